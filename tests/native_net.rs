//! The networks of the command line: what a machine opens for them, shows of them and leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

use host::Host;
use tiny_guest::Guest;
use vmm::{LIMIT, Launch, Vmm, count};

/// Where the host listens, by the banner.
fn forwards(machine: &Vmm) -> Vec<SocketAddr> {
    let text = machine.stderr.text();
    let lines = text.lines().filter_map(|line| line.strip_prefix("~> Forward     : "));
    lines.map(|line| line.split_once(" to port ").unwrap().0.parse().unwrap()).collect()
}

#[test]
fn a_forward_is_shown_serves_over_reboots_and_ends_with_the_machine() {
    let host = Host::new();
    let flags = ["-p", "0:22", "-p", "[::1]:0:80", "-p", "0:53/udp"];
    let mut machine = host.launch(Guest::Obedient, "vm0").args(&flags).spawn();
    machine.expect("ready\n", 1);
    assert!(machine.stderr.wait(|text| count(text, "~> Forward") == 3), "{}", machine.stderr.text());
    let at = forwards(&machine);
    assert!(at[0].ip().is_loopback() && at[0].is_ipv4() && at[1].is_ipv6(), "{at:?}");
    assert!(machine.stderr.text().contains("~> Network     : user, guest 10.0.2.15 by DHCP, MAC "));
    TcpStream::connect_timeout(&at[0], LIMIT).unwrap();
    TcpStream::connect_timeout(&at[1], LIMIT).unwrap();
    assert_eq!(UdpSocket::bind(at[2]).unwrap_err().kind(), ErrorKind::AddrInUse);
    let info = host.json(&["info", "--json", "vm0"]);
    assert_eq!(info["forwards"][0]["address"], at[0].to_string());
    assert_eq!(
        (&info["forwards"][2]["net"], &info["forwards"][2]["forward"]),
        (&"net0".into(), &"0:53/udp".into())
    );
    assert!(host.does(&["info", "vm0"]).contains(&format!("{} to port 22 of the guest", at[0])));
    machine.type_in(b"r");
    machine.expect("ready\n", 2);
    TcpStream::connect_timeout(&at[0], LIMIT).unwrap();
    machine.type_in(b"q");
    assert!(machine.end().status.success());
    assert_eq!(TcpStream::connect(at[0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    UdpSocket::bind(at[2]).unwrap();
}

#[test]
fn a_machine_without_a_word_on_networks_has_one_and_none_has_none() {
    let host = Host::new();
    let networks = |flags: &[&str]| {
        let mut machine = host.launch(Guest::Obedient, "vm0").args(flags).spawn();
        machine.expect("ready\n", 1);
        let files = fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap().flatten();
        let links = files.filter_map(|file| fs::read_link(file.path()).ok());
        // Each user network has a timer.
        let timers = links.filter(|link| link.to_str() == Some("anon_inode:[timerfd]")).count();
        machine.type_in(b"q");
        let ended = machine.end();
        assert!(ended.status.success(), "{ended:?}");
        (count(ended.stderr.as_bytes(), "~> Network"), timers)
    };
    let (none, others) = networks(&["--net", "none"]);
    assert_eq!(none, 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    fs::write(&file, "cpus = 1\n").unwrap();
    assert_eq!(networks(&["--config", file.to_str().unwrap()]), (1, others + 1));
    fs::write(
        &file,
        "net = [{ user = {}, id = 'lan' }, { user = { restrict = true, subnet = '10.0.5.0/24' } }]\n",
    )
    .unwrap();
    assert_eq!(networks(&["--config", file.to_str().unwrap()]), (2, others + 2));
}

#[test]
fn a_port_that_is_taken_is_a_sentence_with_its_owner() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let flag = format!("{}:22", held.local_addr().unwrap().port());
    let ended = Launch::new(Guest::Obedient).args(&["-p", &flag]).run();
    ended.is("", 1).said(&["is in use by", &format!("(process {})", std::process::id()), "`-p 0:22`"]);
}

#[test]
fn sockets_and_captures_are_opened_with_the_machine() {
    let host = Host::new();
    let path = |name: &str| host.0.path().join(name);
    let (socket, pcap, dgram) = (path("wire"), path("a.pcapng"), path("local"));
    let nets = [
        format!("socket={},listen,pcap={}", socket.display(), pcap.display()),
        format!("dgram={}:{}", dgram.display(), path("remote").display()),
    ];
    let flags = ["--net", &nets[0], "--net", &nets[1]];
    let mut machine = host.launch(Guest::Obedient, "vm0").args(&flags).spawn();
    machine.expect("ready\n", 1);
    let peer = UnixStream::connect(&socket).unwrap();
    assert!(dgram.exists());
    // A second machine on the same sockets does not begin.
    let second = host.launch(Guest::Obedient, "vm1").args(&flags).run();
    second.is("", 1).said(&["another program uses the socket"]);
    machine.type_in(b"q");
    assert!(machine.end().status.success());
    assert!(!socket.exists() && !dgram.exists());
    drop(peer);
    // The section header of pcapng.
    assert_eq!(fs::read(pcap).unwrap()[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
}
