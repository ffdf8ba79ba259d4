//! Ports of the host that lead to the guest.

use super::*;
use crate::{Forward, Protocol};

fn udp_forward() -> Forward {
    Forward { protocol: Protocol::Udp, bind: "127.0.0.1:5353".parse().unwrap(), guest_port: 53 }
}

#[test]
fn datagrams_from_outside_reach_the_guest_and_each_peer_gets_its_answer() {
    let mut guest = Guest::new(Config { restrict: true, ..Config::default() });
    guest.network.forward(udp_forward()).unwrap();
    // Two programs with the same port, one of them on this host.
    guest.host_gives(1, "127.0.0.1:9000", b"one");
    guest.host_gives(1, "127.0.0.2:9000", b"two");
    guest.host_gives(1, "192.168.1.7:9000", b"three");
    let seen = guest.seen();
    let seen: Vec<_> = seen.iter().map(Seen::datagram).collect();
    let to = || "10.0.2.15:53".to_owned();
    assert_eq!(seen[0], ("10.0.2.2:9000".into(), to(), &b"one"[..]));
    assert_eq!(seen[1], ("10.0.2.2:9001".into(), to(), &b"two"[..]));
    assert_eq!(seen[2], ("192.168.1.7:9000".into(), to(), &b"three"[..]));

    for (peer, answer) in [("10.0.2.2:9001", b"2"), ("10.0.2.2:9000", b"1"), ("192.168.1.7:9000", b"3")] {
        guest.send_udp("10.0.2.15:53", peer, answer);
    }
    let sent: Vec<_> = guest
        .network
        .host()
        .sent
        .iter()
        .map(|(_, to, bytes)| (to.unwrap().to_string(), bytes.as_slice()))
        .collect();
    let expected = [
        ("127.0.0.2:9000".into(), &b"2"[..]),
        ("127.0.0.1:9000".into(), b"1"),
        ("192.168.1.7:9000".into(), b"3"),
    ];
    assert_eq!(sent, expected);
}

#[test]
fn forward_that_is_removed_is_closed_and_its_flows_end() {
    let mut guest = Guest::new(Config::default());
    let bind = guest.network.forward(udp_forward()).unwrap();
    guest.host_gives(1, "127.0.0.1:9000", b"one");
    guest.one();
    assert!(guest.network.remove_forward(Protocol::Udp, bind));
    assert!(!guest.network.remove_forward(Protocol::Udp, bind));
    assert_eq!((guest.network.host().open_sockets(), guest.network.forwards().count()), (0, 0));
    guest.send_udp("10.0.2.15:53", "10.0.2.2:9000", b"answer");
    assert_eq!(guest.one().payload[..2], [3, 3]);
    // A late event of the closed port.
    let token = guest.network.host().token(1);
    guest.host_ready(token);
    assert!(guest.frames().is_empty());
}

#[test]
fn forward_leads_to_the_address_that_the_guest_uses_and_rather_to_that_of_its_lease() {
    let mut guest = Guest::new(Config::default());
    guest.network.forward(udp_forward()).unwrap();
    let mut leads_to = |uses: Option<&str>, peer: &str| {
        if let Some(address) = uses {
            guest.ping(address, "10.0.2.2", 64);
            guest.one();
        }
        guest.host_gives(1, peer, b"one");
        guest.one().datagram().1
    };
    assert_eq!(leads_to(None, "127.0.0.1:9000"), "10.0.2.15:53");
    assert_eq!(leads_to(Some("10.0.2.77"), "127.0.0.1:9001"), "10.0.2.77:53");
    assert_eq!(leads_to(Some("10.0.2.15"), "127.0.0.1:9002"), "10.0.2.15:53");
    assert_eq!(leads_to(Some("10.0.2.78"), "127.0.0.1:9003"), "10.0.2.15:53");
}
