//! What does not get there: the guest is told, or the frame is counted.

use std::io::ErrorKind;

use super::*;
use crate::packet::TCP;
use crate::testing::Opened;

/// The ICMP error's type and code, and the packet that it quotes, as addresses and the first bytes of its payload.
fn error(seen: &Seen) -> ((u8, u8), String, Vec<u8>) {
    assert!(matches!(seen.protocol, ICMP | ICMPV6));
    if seen.protocol == ICMP {
        assert_eq!(crate::sum::Sum::default().add(&seen.payload).checksum(), 0);
    }
    let quote = &seen.payload[8..];
    let (destination, headers) = match quote[0] >> 4 {
        4 => (IpAddr::from(*quote[16..].first_chunk::<4>().unwrap()), 20),
        _ => (IpAddr::from(*quote[24..].first_chunk::<16>().unwrap()), 40),
    };
    ((seen.payload[0], seen.payload[1]), destination.to_string(), quote[headers..].to_vec())
}

fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&from.to_be_bytes());
    segment[2..4].copy_from_slice(&to.to_be_bytes());
    (segment[12], segment[13]) = (0x50, 2);
    segment
}

fn with_checksum(from: &str, to: &str, mut segment: Vec<u8>) -> Vec<u8> {
    let sum = crate::sum::Sum::pseudo(from.parse().unwrap(), to.parse().unwrap(), TCP, segment.len());
    let sum = sum.add(&segment).checksum();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

#[test]
fn closed_port_of_a_peer_is_reported_in_the_peers_name() {
    for (from, to, code) in
        [("10.0.2.15:4000", "9.9.9.9:7", (3, 3)), ("[fd62:6164:2::15]:4000", "[2001:db8::9]:7", (1, 4))]
    {
        let mut guest = Guest::new(Config::default());
        guest.send_udp(from, to, b"question");
        guest.network.host().incoming.entry(1).or_default().push_back(Err(ErrorKind::ConnectionRefused));
        let token = guest.network.host().token(1);
        guest.host_ready(token);
        let seen = guest.one();
        let to: SocketAddr = to.parse().unwrap();
        assert_eq!(seen.source, to.ip());
        let (kind, about, head) = error(&seen);
        assert_eq!((kind, about), (code, to.ip().to_string()));
        assert_eq!(head[..4], [15, 160, 0, 7], "ports by which the guest finds its socket");
        assert_eq!(guest.network.host().open_sockets(), 1);
    }
}

#[test]
fn unreachable_network_is_reported_by_the_gateway() {
    let mut guest = Guest::new(Config::default());
    guest.network.host().refuses = Some(ErrorKind::NetworkUnreachable);
    guest.send_udp("[fd62:6164:2::15]:4000", "[2001:db8::9]:7", b"question");
    let seen = guest.one();
    assert_eq!((error(&seen).0, seen.source), ((1, 0), Config::default().ipv6.unwrap().gateway.into()));
}

#[test]
fn private_addresses_of_the_host_are_prohibited_without_a_look_at_them() {
    let mut guest = Guest::new(Config::default());
    guest.send_udp("10.0.2.15:4000", "127.0.0.1:111", b"x");
    guest.send_udp("10.0.2.15:4000", "169.254.169.254:80", b"x");
    guest.send_ip(GUEST, "127.0.0.1", (TCP, 64), &with_checksum(GUEST, "127.0.0.1", syn(4000, 22)));
    guest.ping(GUEST, "127.0.0.1", 64);
    guest.send_udp("[fd62:6164:2::15]:4000", "[::ffff:127.0.0.1]:111", b"x");
    let kinds: Vec<_> = guest.seen().iter().map(|seen| error(seen).0).collect();
    assert_eq!(kinds, [(3, 13), (3, 13), (3, 13), (3, 13), (1, 1)]);
    assert!(guest.network.host().opened.is_empty());
    assert_eq!(guest.network.counters().forbidden, 5);
}

#[test]
fn gateway_refuses_unless_the_hosts_loopback_is_open() {
    let mut closed = Guest::new(Config::default());
    closed.send_udp("10.0.2.15:4000", "10.0.2.2:111", b"x");
    assert_eq!(error(&closed.one()).0, (3, 3));
    assert!(closed.network.host().opened.is_empty());

    let mut open = Guest::new(Config { host_loopback: true, ..Config::default() });
    open.send_udp("10.0.2.15:4000", "10.0.2.2:111", b"x");
    assert_eq!(open.network.host().opened[0].0, Opened::Datagram("127.0.0.1:111".parse().unwrap()));
}

#[test]
fn name_server_refuses_where_the_host_has_none() {
    let mut guest = Guest::new(Config::default());
    guest.network.host().resolver = None;
    guest.send_udp("10.0.2.15:4000", "10.0.2.3:53", b"query");
    let seen = guest.one();
    assert_eq!((error(&seen).0, seen.source.to_string().as_str()), ((3, 3), "10.0.2.3"));
}

#[test]
fn restricted_guest_is_cut_off() {
    let mut guest = Guest::new(Config { restrict: true, host_loopback: true, ..Config::default() });
    for to in ["9.9.9.9:7", "10.0.2.2:7", "10.0.2.3:53"] {
        guest.send_udp("10.0.2.15:4000", to, b"x");
    }
    guest.send_ip(GUEST, "9.9.9.9", (TCP, 64), &with_checksum(GUEST, "9.9.9.9", syn(4000, 22)));
    assert!(guest.network.host().opened.is_empty());
    assert!(guest.seen().iter().all(|seen| error(seen).0 == (3, 13)));
}

#[test]
fn last_hop_is_the_gateway() {
    for (from, to, code) in [(GUEST, "9.9.9.9", (11, 0)), (GUEST6, "2001:db8::9", (3, 0))] {
        let mut guest = Guest::new(Config::default());
        guest.ping(from, to, 1);
        let (kind, about, _) = error(&guest.one());
        assert_eq!((kind, about.as_str()), (code, to));
        assert!(guest.network.host().opened.is_empty());
    }
}

#[test]
fn what_is_no_packet_of_the_guest_is_dropped_and_counted() {
    let mut guest = Guest::new(Config::default());
    let whole = {
        let ends = (GUEST.parse().unwrap(), "9.9.9.9".parse().unwrap());
        let datagram = udp::datagram(ends, (4000, 7), b"question");
        guest.frame(ends, (UDP, 64), &datagram)
    };
    let mut count = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = whole.clone();
        change(&mut frame);
        let before = guest.network.counters();
        guest.send_frame(&frame);
        let after = guest.network.counters();
        assert!(guest.network.host().opened.is_empty());
        [
            after.malformed - before.malformed,
            after.fragments - before.fragments,
            after.spoofed - before.spoofed,
            after.unknown - before.unknown,
        ]
    };
    let fix = |frame: &mut Vec<u8>| {
        smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[ETHERNET..]).fill_checksum()
    };
    // Cut short, at every place.
    for len in 0..whole.len() {
        assert_eq!(count(&|frame| frame.truncate(len)), [1, 0, 0, 0], "{len}");
    }
    // A wrong version, header length, header checksum, and checksum.
    assert_eq!(count(&|frame| (frame[14] = 0x65, fix(frame)).1), [1, 0, 0, 0]);
    assert_eq!(count(&|frame| (frame[14] = 0x44, ()).1), [1, 0, 0, 0]);
    assert_eq!(count(&|frame| frame[24] ^= 1), [1, 0, 0, 0]);
    assert_eq!(count(&|frame| *frame.last_mut().unwrap() ^= 1), [1, 0, 0, 0]);
    // The first and a later fragment.
    assert_eq!(count(&|frame| (frame[20] = 0x20, fix(frame)).1), [0, 1, 0, 0]);
    assert_eq!(count(&|frame| (frame[21] = 1, fix(frame)).1), [0, 1, 0, 0]);
    // Another's address: the gateway's, one of another subnet, broadcast.
    for source in [[10, 0, 2, 2], [192, 168, 1, 1], [10, 0, 2, 255], [127, 0, 0, 1], [0, 0, 0, 0]] {
        assert_eq!(count(&|frame| (frame[26..30].copy_from_slice(&source), fix(frame)).1), [0, 0, 1, 0]);
    }
    // A multicast Ethernet source; the gateway's own.
    assert_eq!(count(&|frame| frame[6] |= 1), [0, 0, 1, 0]);
    assert_eq!(count(&|frame| frame.copy_within(0..6, 6)), [0, 0, 1, 0]);
    // For another station, of another protocol, of another transport.
    assert_eq!(count(&|frame| frame[5] ^= 1), [0, 0, 0, 1]);
    assert_eq!(count(&|frame| frame[12] = 0x81), [0, 0, 0, 1]);
    assert_eq!(count(&|frame| (frame[23] = 132, fix(frame)).1), [0, 0, 0, 1]);
    assert!(guest.frames().is_empty());
}
