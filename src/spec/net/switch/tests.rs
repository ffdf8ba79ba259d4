use super::*;
use crate::spec::{DeviceError, NetLink, NetSpec};

fn options(text: &str) -> PortOptions {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn names_are_file_names_and_no_words_of_the_verb() {
    for name in ["lab", "s0", "web-1.example_com", "shows", &"x".repeat(63)] {
        assert_eq!(name.parse::<SwitchName>().unwrap().as_str(), name);
    }
    for name in ["", ".", "..", "-d", "a/b", "a b", "ö", "a\0", &"x".repeat(64)] {
        let error = name.parse::<SwitchName>().unwrap_err().to_string();
        assert!(error.contains("1 to 63"), "{error}");
    }
    for name in SwitchName::RESERVED {
        let error = name.parse::<SwitchName>().unwrap_err().to_string();
        assert!(error.contains("a word of `minivmm switch`"), "{error}");
    }
}

#[test]
fn units_are_read_and_written_in_the_largest_that_fits() {
    for (text, micros, shown) in [
        ("20ms", 20_000, "20ms"),
        ("500us", 500, "500us"),
        ("1.5s", 1_500_000, "1500ms"),
        ("0.25ms", 250, "250us"),
        ("1000ms", 1_000_000, "1s"),
        ("10s", 10_000_000, "10s"),
        ("0", 0, "0"),
        ("0ms", 0, "0"),
    ] {
        let delay: Delay = text.parse().unwrap();
        assert_eq!((delay.duration().as_micros(), delay.to_string().as_str()), (micros, shown), "{text}");
    }
    for (text, parts, shown) in [
        ("1%", 10_000, "1%"),
        ("0.05%", 500, "0.05%"),
        ("100%", 1_000_000, "100%"),
        ("0.0001%", 1, "0.0001%"),
        ("0", 0, "0"),
    ] {
        let loss: Loss = text.parse().unwrap();
        assert_eq!((loss.per_million(), loss.to_string().as_str()), (parts, shown), "{text}");
    }
    for (text, bits, shown) in [
        ("10mbit", Some(10_000_000), "10mbit"),
        ("1.5Mbit", Some(1_500_000), "1500kbit"),
        ("1GBIT", Some(1_000_000_000), "1gbit"),
        ("1000bit", Some(1000), "1kbit"),
        ("0", None, "0"),
    ] {
        let rate: Rate = text.parse().unwrap();
        assert_eq!((rate.bits_per_second(), rate.to_string().as_str()), (bits, shown), "{text}");
    }
}

#[test]
fn what_is_no_amount_is_refused_with_an_example() {
    for text in [
        "",
        "20",
        "ms",
        "20 ms",
        "-1ms",
        "+1ms",
        "1e3ms",
        "0.5us",
        "11s",
        "1.ms",
        ".5ms",
        "1.2.3ms",
        "99999999999999999999s",
    ] {
        assert!(text.parse::<Delay>().expect_err(text).to_string().contains("`20ms`"));
    }
    for text in ["", "1", "101%", "100.0001%", "0.00001%", "%", "-1%", "1%%"] {
        assert!(text.parse::<Loss>().expect_err(text).to_string().contains("`1%`"));
    }
    for text in ["", "10", "10mb", "999bit", "1001gbit", "mbit", "0.5bit", "99999999999999999999gbit"] {
        assert!(text.parse::<Rate>().expect_err(text).to_string().contains("`10mbit`"));
    }
    for text in ["", "0", "4095", "65538", "+2", "two", "2 "] {
        assert!(text.parse::<VlanId>().expect_err(text).to_string().contains("1 to 4094"));
        assert!(text.parse::<Trunk>().expect_err(text).to_string().contains("`trunk=2+3`"));
    }
}

#[test]
fn an_impairment_is_for_both_directions_or_for_one() {
    let both = options("delay=20ms,jitter=5ms,loss=1%,rate=10mbit");
    assert_eq!(both.to_guest, both.from_guest);
    assert_eq!(both.to_guest.delay, Some("20ms".parse().unwrap()));
    let one = options("delay=20ms,delay-in=5ms,loss-out=2%");
    assert_eq!(one.to_guest.delay, Some("5ms".parse().unwrap()));
    assert_eq!(one.from_guest.delay, Some("20ms".parse().unwrap()));
    assert_eq!((one.to_guest.loss, one.from_guest.loss), (None, Some("2%".parse().unwrap())));
    assert_eq!(one.to_string(), "delay-in=5ms,delay-out=20ms,loss-out=2%");
}

#[test]
fn options_are_the_same_as_words_as_keys_and_as_a_change() {
    for (text, keys) in [
        ("vlan=2", "{\"vlan\":2}"),
        ("trunk=2+3", "{\"trunk\":[2,3]}"),
        ("trunk=all", "{\"trunk\":\"all\"}"),
        ("isolated=on,secure=off", "{\"isolated\":true,\"secure\":false}"),
        ("delay=20ms,loss-in=1%,rate=10mbit", "{\"delay\":\"20ms\",\"loss-in\":\"1%\",\"rate\":\"10mbit\"}"),
    ] {
        let read = options(text);
        assert_eq!(read.to_string(), text);
        assert_eq!(serde_json::to_string(&read).unwrap(), keys);
        assert_eq!(serde_json::from_str::<PortOptions>(keys).unwrap(), read);
    }
    assert_eq!(options("trunk=3,2,isolated"), options("isolated=on,trunk=2+3"));
    assert_eq!(serde_json::from_str::<PortOptions>("{\"trunk\":\"2+3\"}").unwrap(), options("trunk=2+3"));
    let mut port = options("vlan=2,delay=20ms,loss=1%,isolated");
    port.apply(&options("trunk=3,delay-in=0,isolated=off"));
    assert_eq!(port, options("trunk=3,delay-out=20ms,loss=1%,isolated=off"));
    port.apply(&options("delay=0,jitter=0,loss=0,rate=0"));
    assert_eq!(port.to_string(), "trunk=3,isolated=off");
    port.apply(&options("vlan=4"));
    assert_eq!((port.vlan, port.trunk), (Some(VlanId::new(4).unwrap()), None));
}

#[test]
fn a_wrong_option_of_a_port_alone_is_told_without_paths() {
    for (text, said) in [
        ("speed=1", "a port of a switch has no option `speed=1`; it has `vlan=2`"),
        ("", "empty"),
        ("delay=1ms,", "empty"),
    ] {
        let error = text.parse::<PortOptions>().unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains("path"), "{error}");
    }
}

#[test]
fn a_value_of_another_type_is_told_what_is_expected() {
    for (key, said) in [
        ("\"delay\":20", "expected a time with its unit such as \"20ms\""),
        ("\"loss-in\":1.5", "expected a percentage such as \"1%\""),
        ("\"rate\":10", "expected bits a second with their unit such as \"10mbit\""),
        ("\"secure\":\"on\"", "expected true or false"),
    ] {
        let options = serde_json::from_str::<PortOptions>(&format!("{{{key}}}")).unwrap_err().to_string();
        assert!(options.contains(said), "{options}");
        let net = serde_json::from_str::<NetSpec>(&format!("{{\"switch\":\"lab\",{key}}}"));
        let net = net.unwrap_err().to_string();
        assert!(net.contains(said), "{net}");
    }
}

#[test]
fn a_wrong_option_is_told_with_what_could_be_said() {
    for (text, said) in [
        ("switch=", "1 to 63"),
        ("switch=show", "a word of `minivmm switch`"),
        ("switch=lab,vlan", "`vlan` needs a value: vlan=2"),
        ("switch=lab,vlan=0", "1 to 4094"),
        ("switch=lab,vlan=2,trunk=3", "exclude each other"),
        ("switch=lab,vlan=2,vlan=3", "stands twice"),
        ("switch=lab,vlan=2,3", "no option `3`"),
        ("switch=lab,trunk=", "`trunk=2+3`"),
        ("switch=lab,trunk=all,3", "`all+3`"),
        ("switch=lab,secure", "secure=on"),
        ("switch=lab,secure=yes", "`on` or `off`"),
        ("switch=lab,delay=20", "`20ms`"),
        ("switch=lab,listen", "`vlan=2`"),
        ("switch=lab,", "behind a comma"),
    ] {
        let error = text.parse::<NetSpec>().expect_err(text).to_string();
        assert!(error.contains(said) && !error.contains("  "), "{text}: {error}");
    }
    for (table, said) in [
        ("{\"tap\":\"t\",\"vlan\":2}", "belong to `switch`"),
        ("{\"switch\":\"lab\",\"vlan\":0}", "1 to 4094"),
        ("{\"switch\":\"lab\",\"trunk\":[]}", "`trunk=2+3`"),
        ("{\"switch\":\"lab\",\"trunk\":2}", "a list of VLANs such as [2, 3]"),
        ("{\"switch\":\"lab\",\"vlan\":2,\"trunk\":[3]}", "exclude each other"),
        ("{\"switch\":\"lab\",\"delay\":20}", "a time with its unit"),
        ("{\"switch\":\"lab\",\"speed\":20}", "unknown field `speed`"),
    ] {
        let error = serde_json::from_str::<NetSpec>(table).expect_err(table).to_string();
        assert!(error.contains(said), "{table}: {error}");
    }
    assert!(
        "vlan=2,".parse::<PortOptions>().unwrap_err().to_string().contains("one of the options is empty")
    );
    assert!("mtu=2".parse::<PortOptions>().unwrap_err().to_string().contains("`rate=10mbit`"));
}

#[test]
fn a_machine_names_switch_port_and_interface_in_any_order() {
    let net: NetSpec = "switch=lab,mtu=9000,trunk=2,3,pcap=f,isolated,id=lan".parse().unwrap();
    let NetLink::Switch { name, port } = &net.link else { panic!("{net:?}") };
    assert_eq!((name.as_str(), port), ("lab", &options("trunk=2+3,isolated=on")));
    assert_eq!(
        (net.link.kind(), net.link.to_string().as_str()),
        ("switch", "switch lab (trunk=2+3,isolated=on)")
    );
    assert_eq!((net.mtu.unwrap().get(), net.id.as_ref().unwrap().as_str()), (9000, "lan"));
    let table =
        "{\"switch\":\"lab\",\"trunk\":[2,3],\"isolated\":true,\"mtu\":9000,\"pcap\":\"f\",\"id\":\"lan\"}";
    assert_eq!(serde_json::to_string(&net).unwrap(), table);
    assert_eq!(serde_json::from_str::<NetSpec>(table).unwrap(), net);
    assert_eq!("switch=lab".parse(), Ok::<_, DeviceError>(NetSpec::switch("lab".parse().unwrap())));
}
