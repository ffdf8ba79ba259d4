//! Virtual switches: their life as processes, what clients on their ports hear of each other, and their verbs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/switch.rs"]
mod switch;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use host::Host;
use serde_json::json;
use switch::{Client, Switch, socket, until};
use tiny_guest::Guest;
use vmm::{Launch, send_signal};

#[test]
fn a_switch_is_one_process_of_its_name_that_is_found_shown_and_ended() {
    let host = Host::new();
    assert_eq!(host.does(&["switch", "ls"]), "NAME  PID  UPTIME  PORTS  ADDRESSES\n");
    host.fails(
        &["switch", "show", "lab"],
        1,
        "no switch called lab runs here, nor any other; `minivmm switch lab` starts it",
    );
    let lab = Switch::start(&host, &["lab"]);
    let said = lab.stderr.text();
    assert!(
        said.starts_with("~> Switch lab listens on /") && said.ends_with("join it with `--net switch=lab`\n"),
        "{said}"
    );
    let path = socket(&host, "lab");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
    let pid = lab.pid();
    host.fails(
        &["switch", "lab"],
        1,
        &format!("a switch called lab runs already, as process {pid}; `minivmm switch show lab` shows it"),
    );
    let other = Switch::start(&host, &["lab2", "--keep"]);
    let list = host.json(&["switch", "ls", "--json"]);
    assert_eq!(
        (&list[0]["name"], &list[0]["pid"], &list[1]["name"]),
        (&json!("lab"), &json!(pid), &json!("lab2"))
    );
    assert_eq!((&list[0]["kept"], &list[1]["kept"]), (&json!(false), &json!(true)));
    host.fails(&["switch", "show", "lab3"], 1, "those that do are lab, lab2");
    assert!(host.does(&["switch", "show", "lab"]).starts_with(&format!("switch lab, process {pid}, up ")));
    // A machine may have the same name.
    host.fails(&["info", "lab"], 1, "no machine called lab");
    assert_eq!(host.does(&["switch", "stop", "lab2"]), "");
    let (status, said) = other.end();
    assert!(status == Some(0) && said.ends_with("minivmm: switch lab2: stopped\n"), "{said}");
    send_signal(pid, libc::SIGTERM);
    assert_eq!(lab.end().0, Some(0));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn a_switch_that_was_killed_leaves_its_name_to_the_next_one() {
    let host = Host::new();
    let lab = Switch::start(&host, &["lab"]);
    let mut one = Client::attach(&socket(&host, "lab"), 1, "").unwrap();
    assert!(one.head.contains("\r\nPort-Name: vm1.net0\r\n"), "{}", one.head);
    send_signal(lab.pid(), libc::SIGKILL);
    lab.end();
    assert_eq!(one.next(), None);
    host.fails(&["switch", "stop", "lab"], 1, "no switch called lab runs here");
    let lab = Switch::start(&host, &["lab"]);
    let mut one = Client::attach(&socket(&host, "lab"), 1, "").unwrap();
    let mut two = Client::attach(&socket(&host, "lab"), 2, "").unwrap();
    one.send(255, None, "again");
    two.hears(1, 255, None, "again");
    host.does(&["switch", "stop", "lab"]);
    assert_eq!((one.next(), lab.end().0), (None, Some(0)));
}

#[test]
fn vlans_are_separate_trunks_have_tags_and_secure_ports_one_address() {
    let host = Host::new();
    let _lab = Switch::start(&host, &["lab"]);
    let attach = |number, options| Client::attach(&socket(&host, "lab"), number, options).unwrap();
    let (mut two, mut two_b) = (attach(2, "\"vlan\":2"), attach(12, "\"vlan\":2,\"secure\":true"));
    let (mut three, mut trunk) = (attach(3, "\"vlan\":3"), attach(4, "\"trunk\":[2,3]"));
    two.send(255, None, "to VLAN 2");
    two_b.hears(2, 255, None, "to VLAN 2");
    trunk.hears(2, 255, Some(2), "to VLAN 2");
    three.send(255, None, "to VLAN 3");
    trunk.hears(3, 255, Some(3), "to VLAN 3");
    trunk.send(3, Some(3), "from the router");
    // Of VLAN 2 it has heard nothing.
    three.hears(4, 3, None, "from the router");
    trunk.send(2, Some(4), "a VLAN that is none of its own");
    two_b.send_frame(&switch::frame(99, 2, None, "from a stranger"));
    two_b.send(2, None, "from itself");
    two.hears(12, 2, None, "from itself");
    let shown = until(&host, "lab", |shown| shown["ports"].as_array().unwrap().len() == 4);
    let port = |name: &str| {
        shown["ports"].as_array().unwrap().iter().find(|port| port["name"] == name).unwrap().clone()
    };
    assert_eq!(port("vm12.net0")["out"]["drops"], json!({ "secure": 1 }));
    assert_eq!(port("vm4.net0")["out"]["drops"], json!({ "vlan": 1 }));
    let text = host.does(&["switch", "show", "lab"]);
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert!(
        line("vm4.net0 ").contains("trunk 2+3") && !line("vm12.net0 dropped out: secure 1").is_empty(),
        "{text}"
    );
    assert!(text.lines().any(|line| line.starts_with("3     02:00:00:00:00:03  vm3.net0")), "{text}");
}

#[test]
fn a_port_is_changed_while_it_runs_and_wrong_words_are_explained() {
    let host = Host::new();
    let _lab = Switch::start(&host, &["lab"]);
    let mut one = Client::attach(&socket(&host, "lab"), 1, "").unwrap();
    let mut two = Client::attach(&socket(&host, "lab"), 2, "\"delay\":\"1ms\"").unwrap();
    assert_eq!(host.does(&["switch", "set", "lab", "vm2.net0", "loss-in=100%", "rate=10mbit"]), "");
    one.send(2, None, "lost");
    until(&host, "lab", |shown| shown["ports"][1]["in"]["drops"]["loss"] == 1);
    assert_eq!(host.does(&["switch", "set", "lab", "vm2.net0", "loss=0,delay=0,rate=0"]), "");
    one.send(2, None, "heard");
    two.hears(1, 2, None, "heard");
    host.fails(
        &["switch", "set", "lab", "vm3.net0", "delay=1ms"],
        1,
        "no port vm3.net0; its ports are: vm1.net0, vm2.net0",
    );
    host.fails(&["switch", "set", "lab", "vm1.net0", "delay=fast"], 2, "fast");
    host.fails(&["switch", "set", "lab", "vm1.net0", "speed=1"], 2, "speed=1");
    host.fails(&["switch", "show"], 2, "<NAME>");
    host.fails(&["switch"], 2, "<NAME>");
    host.fails(&["switch", "lab", "--uplink", "bridge=br0"], 2, "no kind of uplink");
    let refused = Client::attach(&socket(&host, "lab"), 1, "").unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 409 ") && refused.contains("has a port vm1.net0 already"),
        "{refused}"
    );
    let refused = Client::attach(&socket(&host, "lab"), 7, "\"vlan\":4095").unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("4095"), "{refused}");
}

#[test]
fn a_switch_in_the_background_outlives_its_caller_and_ends_after_its_last_port() {
    let host = Host::new();
    let started = host.run(&["switch", "lab", "-d"]);
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(started.status.success() && said.starts_with("~> Switch lab listens on "), "{said}");
    let pid: i32 = String::from_utf8(started.stdout).unwrap().trim().parse().unwrap();
    let shown = host.json(&["switch", "show", "lab", "--json"]);
    assert_eq!(shown["pid"], pid);
    let session = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: i32 = session.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert!(
        session != pid && !std::path::Path::new(&format!("/proc/{session}")).exists(),
        "a session without a leader"
    );
    host.fails(&["switch", "lab", "-d"], 1, "a switch called lab runs already");
    drop(Client::attach(&socket(&host, "lab"), 1, "").unwrap());
    until_gone(&host);
}

#[test]
fn machines_that_start_at_once_meet_on_one_switch_that_ends_after_them() {
    let host = Host::new();
    let machines: Vec<_> = (0..8)
        .map(|number| {
            host.launch(Guest::Obedient, &format!("vm{number}")).args(&["--net", "switch=lab"]).spawn()
        })
        .collect();
    machines.iter().for_each(|machine| machine.expect("ready\n", 1));
    assert_eq!(host.json(&["switch", "ls", "--json"]).as_array().unwrap().len(), 1);
    let shown = host.json(&["switch", "show", "lab", "--json"]);
    let ports = shown["ports"].as_array().unwrap();
    let names: Vec<_> = ports.iter().map(|port| port["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, (0..8).map(|number| format!("vm{number}.net0")).collect::<Vec<_>>());
    let pid = i32::try_from(shown["pid"].as_i64().unwrap()).unwrap();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let files: Vec<_> = files.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    assert!(
        !files.iter().any(|file| file.to_string_lossy().starts_with("pipe:")),
        "no file of a machine: {files:?}"
    );
    for mut machine in machines {
        machine.type_in(b"q");
        machine.end().is("ready\ndone\n", 0);
    }
    until_gone(&host);
}

#[test]
fn a_switch_that_cannot_be_had_is_a_sentence() {
    let host = Host::new();
    let long = host.0.path().join("x".repeat(90));
    fs::create_dir(&long).unwrap();
    let mut launch = Launch::new(Guest::Obedient).args(&["--net", "switch=lab"]);
    launch.command.env("XDG_RUNTIME_DIR", &long);
    let ended = launch.run();
    ended.is("", 1).said(&["the switch lab cannot be started: the socket ", "choose a shorter name"]);
    let ended = host.launch(Guest::Obedient, "vm0").args(&["--net", "switch=show"]).run();
    ended.is("", 2).said(&["show"]);
}

/// Waits until no switch is left, nor a file of one.
#[track_caller]
fn until_gone(host: &Host) {
    let begun = Instant::now();
    while host.does(&["switch", "ls"]).lines().count() > 1 {
        assert!(begun.elapsed() < vmm::LIMIT);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read_dir(host.folder().join("switch")).unwrap().count(), 0);
}
