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

fn segment(seen: &Seen) -> (u16, u16, u8, u32) {
    let packet = smoltcp::wire::TcpPacket::new_checked(seen.payload.as_slice()).unwrap();
    #[expect(clippy::cast_sign_loss, reason = "a sequence number")]
    let number = packet.seq_number().0 as u32;
    (packet.src_port(), packet.dst_port(), seen.payload[13] & 0x3f, number)
}

/// A segment of the guest from port 22.
fn answer(guest: &mut Guest, to: &str, flags: u8, ack: u32) {
    let to: SocketAddr = to.parse().unwrap();
    let ends = (GUEST.parse().unwrap(), to.ip());
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&22u16.to_be_bytes());
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    bytes[8..12].copy_from_slice(&ack.to_be_bytes());
    (bytes[12], bytes[13]) = (0x50, flags);
    let sum = crate::sum::Sum::pseudo(ends.0, ends.1, crate::packet::TCP, 20).add(&bytes).checksum();
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    let frame = guest.frame(ends, (crate::packet::TCP, 64), &bytes);
    guest.send_frame(&frame);
}

#[test]
fn connection_from_outside_comes_from_the_gateway_and_one_with_the_same_port_from_another_port() {
    let mut guest = Guest::new(Config { restrict: true, ..Config::default() });
    let forward =
        Forward { protocol: Protocol::Tcp, bind: "127.0.0.1:5555".parse().unwrap(), guest_port: 22 };
    guest.network.forward(forward).unwrap();
    let peers: [SocketAddr; 2] = ["127.0.0.1:9000", "127.0.0.2:9000"].map(|peer| peer.parse().unwrap());
    guest.network.host().waiting.entry(1).or_default().extend(peers);
    let token = guest.network.host().token(1);
    guest.host_ready(token);
    let seen = guest.seen();
    for (packet, port) in seen.iter().zip([9000, 9001]) {
        let (from, to, flags, _) = segment(packet);
        assert_eq!(
            (packet.source.to_string().as_str(), packet.destination.to_string().as_str()),
            ("10.0.2.2", GUEST)
        );
        assert_eq!((from, to, flags), (port, 22, 2));
    }
    assert_eq!((seen.len(), guest.network.counters().connections), (2, 2));
    // The guest refuses the first: RST, ACK.
    let (.., number) = segment(&seen[0]);
    answer(&mut guest, "10.0.2.2:9000", 0x14, number.wrapping_add(1));
    assert_eq!((guest.network.counters().connections, guest.network.host().open_sockets()), (1, 2));
}

#[test]
fn flood_of_connections_from_outside_keeps_its_limit() {
    let limits = crate::Limits { connections: 40, ..crate::Limits::default() };
    let mut guest = Guest::new(Config { limits, ..Config::default() });
    let forward = Forward { protocol: Protocol::Tcp, bind: "0.0.0.0:5555".parse().unwrap(), guest_port: 22 };
    guest.network.forward(forward).unwrap();
    for round in 0..10u8 {
        let peers = (1000..1064).map(|port| SocketAddr::from(([192, 168, 1, round], port)));
        guest.network.host().waiting.entry(1).or_default().extend(peers);
        let token = guest.network.host().token(1);
        guest.host_ready(token);
    }
    let counters = guest.network.counters();
    assert_eq!((counters.connections, counters.full), (5, 635), "an eighth may be half-open");
    assert_eq!(guest.network.host().open_sockets(), 6);
}

#[test]
fn flood_of_datagrams_from_outside_leaves_flows_to_the_guest_and_the_reverse() {
    let limits = crate::Limits { udp_flows: 40, ..crate::Limits::default() };
    let config = Config { limits, ..Config::default() };
    let mut guest = Guest::new(config.clone());
    guest.network.forward(udp_forward()).unwrap();
    for port in 1000..1100 {
        guest.host_gives(1, &format!("192.168.1.7:{port}"), b"flood");
    }
    assert_eq!(guest.frames().len(), 30);
    guest.send_udp("10.0.2.15:4000", "10.0.2.3:53", b"query");
    assert_eq!((guest.network.host().sent.len(), guest.network.counters().full), (1, 0));

    let mut guest = Guest::new(config);
    guest.network.forward(udp_forward()).unwrap();
    for port in 1000..1100 {
        guest.send_udp(&format!("10.0.2.15:{port}"), "9.9.9.9:7", b"flood");
    }
    assert_eq!(guest.network.counters().flows, 30);
    guest.host_gives(1, "192.168.1.7:9000", b"one");
    assert_eq!(guest.one().datagram().2, b"one");
}
