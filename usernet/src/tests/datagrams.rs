//! The NAT of UDP and of echo requests.

use std::io::ErrorKind;

use super::*;
use crate::Limits;
use crate::testing::Opened;

fn sent(guest: &mut Guest) -> Vec<(u64, Vec<u8>)> {
    std::mem::take(&mut guest.network.host().sent).into_iter().map(|(id, _, bytes)| (id, bytes)).collect()
}

#[test]
fn datagram_goes_out_and_its_answer_comes_back_in_both_families() {
    for (from, to) in [("10.0.2.15:4000", "9.9.9.9:7"), ("[fd62:6164:2::15]:4000", "[2001:db8::9]:7")] {
        let mut guest = Guest::new(Config::default());
        guest.send_udp(from, to, b"question");
        guest.send_udp(from, to, b"more");
        assert_eq!(guest.network.host().opened[0].0, Opened::Datagram(to.parse().unwrap()));
        assert_eq!(sent(&mut guest), [(1, b"question".to_vec()), (1, b"more".to_vec())]);
        guest.host_gives(1, to, b"answer");
        guest.host_gives(1, to, b"");
        let seen = guest.seen();
        assert_eq!(seen[0].datagram(), (to.into(), from.into(), &b"answer"[..]));
        assert_eq!(seen[1].datagram().2, b"");
        assert_eq!(seen.len(), 2);
    }
}

#[test]
fn name_server_stands_for_the_hosts_even_on_its_loopback() {
    let mut guest = Guest::new(Config::default());
    guest.send_udp("10.0.2.15:4000", "10.0.2.3:53", b"query");
    assert_eq!(guest.network.host().opened[0].0, Opened::Datagram("127.0.0.53:53".parse().unwrap()));
    guest.host_gives(1, "127.0.0.53:53", b"name");
    assert_eq!(guest.one().datagram(), ("10.0.2.3:53".into(), "10.0.2.15:4000".into(), &b"name"[..]));
}

#[test]
fn flow_ends_after_half_a_minute_or_three_if_it_was_answered() {
    let mut guest = Guest::new(Config::default());
    guest.send_udp("10.0.2.15:4000", "9.9.9.9:7", b"a");
    guest.send_udp("10.0.2.15:4001", "9.9.9.9:7", b"b");
    guest.host_gives(2, "9.9.9.9:7", b"answer");
    guest.one();
    guest.wait(29);
    assert_eq!(guest.network.host().open_sockets(), 2);
    guest.wait(2);
    assert_eq!((guest.network.host().open_sockets(), guest.network.counters().flows), (1, 1));
    // In use, it goes on.
    guest.wait(140);
    guest.send_udp("10.0.2.15:4001", "9.9.9.9:7", b"c");
    guest.wait(170);
    assert_eq!(guest.network.host().open_sockets(), 1);
    guest.wait(11);
    assert_eq!((guest.network.host().open_sockets(), guest.network.next_timeout()), (0, None));
}

#[test]
fn flood_of_flows_is_refused_at_the_limit_and_those_there_are_go_on() {
    let limits = Limits { udp_flows: 100, pings: 10, ..Limits::default() };
    let mut guest = Guest::new(Config { limits, ..Config::default() });
    guest.network.host().forget = true;
    for port in 1..=1000 {
        guest.send_udp(&format!("10.0.2.15:{port}"), "9.9.9.9:7", b"flood");
    }
    for host in 1..=100 {
        guest.ping(GUEST, &format!("9.9.9.{host}"), 64);
    }
    assert_eq!(guest.network.host().open_sockets(), 75 + 10);
    assert_eq!(guest.network.counters().full, 925);
    guest.host_gives(1, "9.9.9.9:7", b"still there");
    assert_eq!(guest.one().datagram().1, "10.0.2.15:1");
    guest.wait(200);
    assert_eq!(guest.network.host().open_sockets(), 0);
    guest.send_udp("10.0.2.15:1", "9.9.9.9:7", b"again");
    assert_eq!(guest.network.host().open_sockets(), 1);
}

#[test]
fn answer_longer_than_the_mtu_comes_in_fragments_that_add_up() {
    for (from, to) in [("10.0.2.15:4000", "9.9.9.9:7"), ("[fd62:6164:2::15]:4000", "[2001:db8::9]:7")] {
        let mut guest = Guest::new(Config::default());
        guest.send_udp(from, to, b"question");
        let answer: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
        guest.host_gives(1, to, &answer);
        let frames = guest.frames();
        assert_eq!(frames.len(), 4);
        let v4 = from.starts_with('1');
        let (fixed, mut whole) = (if v4 { 34 } else { 62 }, Vec::<u8>::new());
        for (index, frame) in frames.iter().enumerate() {
            assert!(frame.len() <= 1500 + ETHERNET);
            let field = u16::from_be_bytes(if v4 { [frame[20], frame[21]] } else { [frame[56], frame[57]] });
            let (offset, more) =
                if v4 { ((field & 0x1fff) * 8, field & 0x2000 != 0) } else { (field & !7, field & 1 != 0) };
            assert_eq!((usize::from(offset), more), (whole.len(), index < 3));
            whole.extend(&frame[fixed..]);
        }
        assert_eq!(whole[8..], answer);
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let expected = udp::datagram((to.ip(), from.ip()), (to.port(), from.port()), &answer);
        assert_eq!(whole, expected);
    }
}

#[test]
fn checksum_is_left_to_a_guest_that_takes_it() {
    let mut guest = Guest::new(Config::default());
    guest.accepts.checksum = true;
    guest.send_udp("10.0.2.15:4000", "9.9.9.9:7", b"question");
    let token = guest.network.host().give(1, "9.9.9.9:7".parse().unwrap(), b"answer");
    guest.host_ready(token);
    let mut room = vec![0; LONGEST_FRAME];
    let (range, offload) = guest.network.output(&mut room, guest.accepts, guest.now).unwrap();
    let crate::Checksum::Partial { start, offset } = offload.checksum else { panic!("{offload:?}") };
    let frame = &mut room[range];
    // As the guest's kernel does it.
    let sum = crate::sum::Sum::default().add(&frame[start.into()..]).checksum();
    frame[usize::from(start + offset)..][..2].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(seen(frame).datagram().2, b"answer");
}

#[test]
fn gateway_answers_echo_requests_itself() {
    let subnet = Config::default().ipv6.unwrap();
    let link_local = link::link_local(Config::default().gateway_mac);
    let v6 = [subnet.gateway.to_string(), subnet.dns.to_string()];
    let cases = [
        (GUEST, "10.0.2.2"),
        (GUEST, "10.0.2.3"),
        (GUEST6, &v6[0]),
        (GUEST6, &v6[1]),
        ("fe80::15", &link_local.to_string()),
    ];
    for (from, to) in cases {
        let mut guest = Guest::new(Config { restrict: true, ..Config::default() });
        guest.ping(from, to, 1);
        let reply = guest.one();
        assert_eq!((reply.source.to_string(), reply.destination.to_string()), (to.into(), from.into()));
        assert_eq!(reply.payload[0], if from == GUEST { 0 } else { 129 });
        assert_eq!(reply.payload[4..], *b"\0\x07\0\x09hello");
        assert!(guest.network.host().opened.is_empty());
    }
}

#[test]
fn echo_beyond_the_gateway_has_the_guests_identifier_again_when_it_comes_back() {
    for (from, to, kind) in [(GUEST, "9.9.9.9", 0), (GUEST6, "2001:db8::9", 129)] {
        let mut guest = Guest::new(Config::default());
        guest.ping(from, to, 64);
        assert_eq!(guest.network.host().opened[0].0, Opened::Ping(to.parse().unwrap()));
        let (_, message) = sent(&mut guest).remove(0);
        assert_eq!(message[6..], *b"\0\x09hello");
        let mut reply = message.clone();
        (reply[0], reply[4], reply[5]) = (kind, 0xab, 0xcd);
        guest.host_gives(1, &SocketAddr::new(to.parse().unwrap(), 0).to_string(), &reply);
        let seen = guest.one();
        assert_eq!(seen.source.to_string(), to);
        assert_eq!((seen.payload[0], &seen.payload[4..]), (kind, &b"\0\x07\0\x09hello"[..]));
    }
}

#[test]
fn echo_that_the_host_does_not_allow_is_answered_with_an_error() {
    let mut guest = Guest::new(Config::default());
    guest.network.host().refuses = Some(ErrorKind::PermissionDenied);
    guest.ping(GUEST, "9.9.9.9", 64);
    let error = guest.one();
    assert_eq!((error.protocol, &error.payload[..2]), (ICMP, &[3, 13][..]));
}

#[test]
fn many_addresses_are_pinged_one_after_the_other_and_the_one_in_use_lasts() {
    let limits = Limits { pings: 4, ..Limits::default() };
    let mut guest = Guest::new(Config { limits, ..Config::default() });
    for host in 1..=100 {
        guest.now += Duration::from_millis(1);
        guest.ping(GUEST, &format!("9.9.9.{host}"), 64);
        guest.now += Duration::from_millis(1);
        guest.ping(GUEST, "9.9.9.1", 64);
    }
    assert_eq!(sent(&mut guest).len(), 200);
    assert_eq!((guest.network.host().opened.len(), guest.network.host().open_sockets()), (100, 4));
    guest.wait(9);
    assert_eq!(guest.network.host().open_sockets(), 4);
    guest.wait(2);
    assert_eq!((guest.network.host().open_sockets(), guest.network.next_timeout()), (0, None));
}

#[test]
fn datagram_of_another_sender_than_the_flows_peer_does_not_reach_the_guest() {
    let mut guest = Guest::new(Config::default());
    guest.send_udp("10.0.2.15:4000", "9.9.9.9:7", b"question");
    guest.host_gives(1, "9.9.9.8:7", b"forged");
    guest.host_gives(1, "9.9.9.9:8", b"forged");
    assert!(guest.seen().is_empty());
    guest.host_gives(1, "9.9.9.8:7", b"forged");
    guest.host_gives(1, "9.9.9.9:7", b"answer");
    assert_eq!(guest.one().datagram().2, b"answer");

    guest.ping(GUEST, "9.9.9.9", 64);
    let (_, mut reply) = sent(&mut guest).pop().unwrap();
    reply[0] = 0;
    guest.host_gives(2, "9.9.9.8:0", &reply);
    assert!(guest.seen().is_empty());
    guest.host_gives(2, "9.9.9.9:0", &reply);
    assert_eq!(guest.one().source.to_string(), "9.9.9.9");
}

#[test]
fn night_that_the_guest_was_paused_does_not_count() {
    let mut guest = Guest::new(Config::default());
    guest.send_udp("10.0.2.15:4000", "9.9.9.9:7", b"question");
    guest.wait(20);
    // Nobody called for what was due.
    guest.now += Duration::from_secs(8 * 3600);
    guest.network.timeout(guest.now);
    guest.wait(9);
    guest.host_gives(1, "9.9.9.9:7", b"answer");
    assert_eq!(guest.one().datagram().2, b"answer");
    // It ends as one that was never paused.
    guest.wait(181);
    assert_eq!((guest.network.counters().flows, guest.network.next_timeout()), (0, None));
}
