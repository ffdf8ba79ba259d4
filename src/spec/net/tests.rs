use super::*;

fn net(text: &str) -> NetSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn each_kind_has_its_word_and_its_options() {
    assert_eq!(net("user"), NetSpec::user());
    assert_eq!(net("none"), NetSpec::none());
    let tap = net("tap=br0-vm1,mac=02:00:00:00:00:01");
    assert_eq!(tap, NetSpec::tap("br0-vm1".parse().unwrap()).with_mac("02:00:00:00:00:01".parse().unwrap()));
    assert_eq!(tap.known_mac(), tap.mac);
    let socket = |path: &str, listen| NetSpec::new(NetLink::Socket { path: path.into(), listen });
    assert_eq!(net("socket=/run/a,,b"), socket("/run/a,b", false));
    assert_eq!(net("socket=a=b,listen"), socket("a=b", true));
    let dgram = NetLink::Dgram { local: "a".into(), remote: "/run/b".into() };
    assert_eq!(net("dgram=a:/run/b"), NetSpec::new(dgram));
    let text = "user,id=lan,subnet=192.168.7.0/24,host-loopback=on,restrict=off,hostname=vm0,mtu=9000,pcap=a.pcapng,\
         forward=5555:22,forward=0:53/udp";
    let spec = net(text);
    let user = spec.user_net().unwrap();
    assert_eq!(user.subnet, Some("192.168.7.0/24".parse().unwrap()));
    assert!(user.host_loopback && !user.restrict);
    assert_eq!(user.hostname.as_ref().unwrap().as_str(), "vm0");
    assert_eq!(user.forward, ["5555:22", "0:53/udp"].map(|text| text.parse().unwrap()));
    assert_eq!((spec.mtu.unwrap().get(), spec.id.unwrap().as_str()), (9000, "lan"));
    assert_eq!(spec.pcap, Some("a.pcapng".into()));
}

#[test]
fn a_tap_is_also_named_alone() {
    let tap = |text: &str| NetSpec::parse_tap(text.as_ref());
    assert_eq!(tap("tap2").unwrap(), net("tap=tap2"));
    assert_eq!(tap("user,pcap=f,mtu=1400").unwrap(), net("tap=user,pcap=f,mtu=1400"));
    let mistake = |text: &str| tap(text).unwrap_err().to_string();
    assert_eq!(
        mistake("tap=tap2"),
        "`tap=tap2` is not the name of a TAP; write `--tap tap2` or `--net tap=tap2`"
    );
    assert!(mistake("tap2,").contains("behind a comma"));
    assert!(mistake("tap2,mc=1").contains("`mac=ADDRESS`"));
    assert!(mistake("tap2,mac").contains("`mac=ADDRESS`"));
    assert!(mistake("tap2,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02").contains("stands twice"));
    assert!(mistake("tap2,mac=5").contains("ba:ad:00:ca:fe:02"));
    assert!(mistake("tap2,listen").contains("no option `listen`"));
}

#[test]
fn mistakes_are_told_with_what_could_be_said() {
    for (text, said) in [
        ("", "`user` (NAT), `switch=NAME`, `tap=NAME`"),
        ("tap2", "`tap2` is no kind of network"),
        ("user=5", "`user=5` is no kind of network"),
        ("tap", "`tap` needs a value: tap=tap2"),
        ("socket", "`socket` needs a value: socket=wire.sock"),
        ("socket=", "`socket=` needs a value"),
        ("dgram", "dgram=a.sock:b.sock"),
        ("switch", "switch=lab"),
        ("tap=", "1 to 15"),
        ("dgram=a", "`dgram=a.sock:b.sock`"),
        ("dgram=a:b:c", "`dgram=a.sock:b.sock`"),
        ("dgram=:b", "`dgram=a.sock:b.sock`"),
        ("none,mac=02:00:00:00:00:01", "`none` has no options"),
        ("user,listen", "`subnet=`"),
        ("user,host-loopback", "`host-loopback` needs a value: host-loopback=on"),
        ("user,restrict", "`restrict` needs a value: restrict=on"),
        ("user,host-loopback=yes", "`on` or `off`"),
        ("user,restrict=on,restrict=on", "stands twice"),
        ("user,subnet=10.0.2.15/24", "`10.0.2.0/24`"),
        ("user,hostname=a_b", "1 to 63"),
        ("user,forward=22", "`5555:22`"),
        ("socket=a,listen,listen", "stands twice"),
        ("socket=a,listen=on", "`listen`, `mac=ADDRESS`"),
        ("user,mtu=67", "68 to 65535"),
        ("user,mtu=many", "68 to 65535"),
        ("user,id=a/b", "1 to 15"),
        ("user,pcap=", "the path of `pcap` is empty"),
        ("user,", "behind a comma"),
    ] {
        let error = text.parse::<NetSpec>().expect_err(text).to_string();
        assert!(error.contains(said), "{text}: {error}");
        assert!(!error.contains("  "), "{error}");
    }
}

#[test]
fn a_table_says_the_same_as_a_text() {
    for (text, table) in [
        ("user", "{\"user\":{}}"),
        ("none", "{\"none\":{}}"),
        ("tap=tap2,mac=02:00:00:00:00:01", "{\"tap\":\"tap2\",\"mac\":\"02:00:00:00:00:01\"}"),
        ("socket=a,listen,mtu=9000", "{\"socket\":\"a\",\"listen\":true,\"mtu\":9000}"),
        (
            "dgram=a:b,pcap=-,id=x",
            "{\"dgram\":{\"local\":\"a\",\"remote\":\"b\"},\"pcap\":\"-\",\"id\":\"x\"}",
        ),
        (
            "user,subnet=10.1.0.0/16,host-loopback=on,restrict=on,hostname=h,forward=[::1]:1:2/udp",
            "{\"user\":{\"subnet\":\"10.1.0.0/16\",\"host-loopback\":true,\"restrict\":true,\"hostname\":\"h\",\
             \"forward\":[\"[::1]:1:2/udp\"]}}",
        ),
    ] {
        let read: NetSpec = serde_json::from_str(table).unwrap();
        assert_eq!(read, net(text));
        assert_eq!(serde_json::to_string(&read).unwrap(), table);
    }
    let one: NetSpec = serde_json::from_str("{\"user\":{\"forward\":\"5555:22\"}}").unwrap();
    assert_eq!(one, net("user,forward=5555:22"));
}

#[test]
fn a_wrong_table_is_explained() {
    for (table, said) in [
        ("{}", "`user`, `switch`, `tap`, `socket`, `dgram` and `none`"),
        ("{\"tap\":\"tap2\",\"user\":{}}", "one of `user`, `switch`"),
        ("{\"tap\":\"tap2\",\"listen\":true}", "`listen`"),
        ("{\"user\":{\"listen\":true}}", "unknown field `listen`"),
        ("{\"none\":{},\"mtu\":1500}", "`none` has no options"),
        ("{\"name\":\"tap2\"}", "unknown field `name`"),
        ("{\"user\":{\"forward\":[\"22\"]}}", "`5555:22`"),
        ("{\"user\":true}", "a table such as `{ forward = [\"5555:22\"] }`"),
        ("{\"user\":{\"forward\":22}}", "a text such as \"5555:22\", or a list"),
        ("{\"dgram\":\"a:b\"}", "a table such as `{ local = \"a.sock\", remote = \"b.sock\" }`"),
        ("{\"none\":true}", "the empty table `{}`"),
        ("{\"socket\":\"\"}", "empty"),
        ("{\"tap\":\"t\",\"mtu\":1}", "68 to 65535"),
    ] {
        let error = serde_json::from_str::<NetSpec>(table).expect_err(table).to_string();
        assert!(error.contains(said), "{table}: {error}");
    }
}
