//! What a guest that floods can take.

use std::net::SocketAddr;
use std::time::Duration;

use super::host::TestHost;
use super::peer::{Peer, flow};
use crate::config::Limits;
use crate::shares::GuestId;
use crate::tcp::segment::SynOptions;
use crate::tcp::{MOST_REPLIES, Tcp};

const OPTIONS: SynOptions = SynOptions { mss: 1000, shift: Some(7) };

fn few() -> Limits {
    Limits { connections: 64, buffered: 1 << 20, ..Limits::default() }
}

#[test]
fn flood_of_syns_is_refused_and_harms_no_connection() {
    let mut peer = Peer::new(few());
    peer.handshake(OPTIONS);
    peer.host.slow = true;
    for port in 0..10_000 {
        peer.flow = flow(5000 + port);
        peer.syn(OPTIONS);
    }
    assert_eq!(peer.tcp.len(), 1 + 8, "an eighth may be half-open");
    assert_eq!(peer.tcp.refused(), 10_000 - 8);
    assert_eq!(peer.host.remotes.len(), 1 + 8);
    let seen = peer.hear_all();
    assert!(seen.len() == MOST_REPLIES && seen.iter().all(|seen| seen.rst));
    // The open one lives.
    peer.host.remote(0).to_guest.extend(b"still here");
    peer.events();
    assert_eq!(peer.one().port, 4000);
    // The half-open ones go by themselves.
    peer.wait(Duration::from_secs(76));
    assert_eq!(peer.tcp.len(), 1);
    assert!(peer.host.remote(1).closed);
}

#[test]
fn night_that_the_guest_was_paused_costs_no_connection() {
    let mut peer = Peer::new(few());
    peer.handshake(OPTIONS);
    peer.host.slow = true;
    peer.flow = flow(5000);
    peer.syn(OPTIONS);
    peer.wait(Duration::from_secs(70));
    let night = Duration::from_secs(8 * 3600);
    peer.tcp.stood_still(night, peer.now + night);
    peer.now += night;
    peer.tcp.timeout(&mut peer.host, peer.now);
    assert_eq!(peer.tcp.len(), 2);
    // What was half-open has as much time as it had.
    peer.wait(Duration::from_secs(4));
    assert_eq!(peer.tcp.len(), 2);
    peer.wait(Duration::from_secs(2));
    assert_eq!(peer.tcp.len(), 1);
}

#[test]
fn guest_whose_connections_take_all_memory_they_can_leaves_some_to_the_others() {
    let mut peer = Peer::new(few());
    peer.tcp = Tcp::new(Limits { connections: 512, buffered: 1 << 20, ..Limits::default() }, 1500, 8);
    // The first guest takes nothing of what its peers send, the second all.
    for port in 0..200 {
        (peer.flow, peer.account) = (flow(5000 + port), GuestId(1));
        let seen = peer.handshake(OPTIONS);
        assert!(seen.syn);
        peer.host.remote(port.into()).to_guest.extend(vec![1; 40_000]);
        peer.events();
        peer.hear_all();
    }
    let taken = peer.tcp.buffered();
    assert!((400 << 10..=512 << 10).contains(&taken), "{taken}");
    (peer.flow, peer.account) = (flow(6000), GuestId(2));
    peer.handshake(OPTIONS);
    peer.host.remote(200).to_guest.extend(b"for the other");
    peer.events();
    assert!(peer.hear_all().iter().any(|seen| seen.port == 6000 && seen.payload == b"for the other"));
}

/// Connections from outside, which the guest does not answer: how many were taken.
fn come_in(peer: &mut Peer, ports: std::ops::Range<u16>) -> usize {
    let mut came = 0;
    for port in ports {
        let stream = peer.host.incoming();
        let remote = SocketAddr::from(([198, 51, 100, 8], port));
        let guest = SocketAddr::from(([10, 0, 2, 15], 22));
        came +=
            usize::from(peer.tcp.accepted(stream, remote, (guest, GuestId::FIRST), &mut peer.host, peer.now));
    }
    came
}

#[test]
fn half_open_connections_of_the_guest_and_from_outside_do_not_take_each_others_places() {
    let mut peer = Peer::new(few());
    peer.host.slow = true;
    for port in 0..100 {
        peer.flow = flow(5000 + port);
        peer.syn(OPTIONS);
    }
    assert_eq!(come_in(&mut peer, 0..100), 8);
    assert_eq!((peer.tcp.len(), peer.tcp.refused()), (16, 92));

    let mut peer = Peer::new(few());
    assert_eq!(come_in(&mut peer, 0..100), 8);
    peer.hear_all();
    peer.handshake(OPTIONS);
}

/// The guest opens connections from a hundred ports, of which a limit may refuse some.
fn open_a_hundred(peer: &mut Peer) {
    for port in 0..100 {
        peer.flow = flow(5000 + port);
        peer.syn(OPTIONS);
        peer.events();
        let seen = peer.one();
        if seen.syn {
            peer.ack = seen.seq + 1;
            peer.say(|_| {});
        }
    }
}

#[test]
fn open_connections_of_the_guest_leave_a_quarter_to_those_from_outside() {
    let mut peer = Peer::new(few());
    open_a_hundred(&mut peer);
    assert_eq!(come_in(&mut peer, 0..4), 4);
    assert_eq!(peer.tcp.len(), 48 + 4);
}

#[test]
fn memory_that_comes_free_at_once_feeds_all_that_starve() {
    let mut peer = Peer::new(few());
    for port in 0..40 {
        peer.flow = flow(5000 + port);
        peer.handshake(OPTIONS);
    }
    // The others' bytes stay with the host while the pool has no memory left.
    let mut all = crate::tcp::ring::Ring::default();
    while peer.tcp.pool.grow(&mut all) {}
    let mut rest = Vec::new();
    loop {
        let mut ring = crate::tcp::ring::Ring::default();
        if !peer.tcp.pool.grow(&mut ring) {
            break;
        }
        rest.push(ring);
    }
    for index in 0..30 {
        peer.host.remote(index).to_guest.extend(b"for the guest");
    }
    peer.events();
    assert_eq!(peer.tcp.starved.len(), 30);
    rest.push(all);
    for ring in &mut rest {
        peer.tcp.pool.release(ring);
    }
    // Any event.
    peer.flow = flow(5035);
    peer.say(|_| {});
    assert_eq!(peer.tcp.starved.len(), 0);
    for index in 0..30 {
        assert!(peer.host.remote(index).to_guest.is_empty(), "{index}");
    }
}

#[test]
fn table_is_never_larger_than_its_limit() {
    let mut peer = Peer::new(few());
    open_a_hundred(&mut peer);
    assert_eq!((peer.tcp.len(), peer.tcp.refused()), (48, 52), "a quarter is left to forwards");
    // One that goes makes room for one.
    peer.flow = flow(5000);
    peer.host.remote(0).error = Some(std::io::ErrorKind::ConnectionReset);
    peer.events();
    assert!(peer.one().rst);
    peer.flow = flow(9000);
    peer.handshake(OPTIONS);
}

#[test]
fn connections_that_come_and_go_leave_nothing_in_the_lists() {
    let mut peer = Peer::new(few());
    // Nobody takes what is to be sent: the lists must not grow all the same.
    for round in 0..1000 {
        peer.flow = flow(1000 + round);
        peer.syn(OPTIONS);
        peer.events();
        peer.say(|said| (said.rst, said.ack) = (true, None));
    }
    assert!(peer.tcp.outputs.len() <= 64, "{}", peer.tcp.outputs.len());
    assert_eq!((peer.tcp.len(), peer.tcp.timers.len(), peer.tcp.embryonic.total()), (0, 0, 0));
    peer.hear_all();
    peer.flow = flow(4000);
    peer.handshake(OPTIONS);
}

fn buffered(tcp: &Tcp<TestHost>) -> usize {
    tcp.buffered()
}

#[test]
fn budget_bounds_what_the_hosts_peers_send() {
    let mut peer = Peer::new(Limits { connections: 256, ..few() });
    for port in 0..100 {
        peer.flow = flow(5000 + port);
        peer.handshake(OPTIONS);
    }
    for index in 0..100 {
        peer.host.remote(index).to_guest.extend([1; 40_000]);
    }
    for _ in 0..10 {
        peer.events();
    }
    assert_eq!(buffered(&peer.tcp), 1 << 20);
    assert!(peer.host.events().is_empty(), "no event repeats for nothing");
    // All get theirs in the end.
    let mut got = [0; 100];
    for _ in 0..2000 {
        for seen in peer.hear_all() {
            let at = usize::from(seen.port - 5000);
            got[at] += seen.payload.len();
            peer.flow = flow(seen.port);
            let (ack, seq) = (seen.seq + seen.payload.len(), seen.ack);
            peer.say(|said| (said.ack, said.seq) = (Some(ack), seq.unwrap()));
        }
        peer.events();
        assert!(buffered(&peer.tcp) <= 1 << 20);
    }
    assert!(got.iter().all(|bytes| *bytes == 40_000), "{got:?}");
    assert_eq!(buffered(&peer.tcp), 0);
}

#[test]
fn budget_bounds_what_the_guest_sends_and_nothing_is_acknowledged_beyond() {
    let mut peer = Peer::new(few());
    peer.handshake(OPTIONS);
    peer.host.remote(0).room = 0;
    let bytes: Vec<u8> = (0..4_000_000u32).map(|at| (at % 251) as u8).collect();
    let first = peer.seq;
    for chunk in bytes.chunks(50_000) {
        peer.send(chunk);
    }
    assert!(buffered(&peer.tcp) <= 1 << 20);
    let kept = peer.hear_all().last().unwrap().ack.unwrap().beyond(first);
    assert!(kept < 1 << 20, "{kept}");
    peer.host.remote(0).room = usize::MAX;
    peer.events();
    assert!(peer.host.remote(0).from_guest == bytes[..kept]);
    assert_eq!(buffered(&peer.tcp), 0);
    // It goes on where it was cut.
    peer.seq = first + kept;
    peer.send(&bytes[kept..kept + 60_000]);
    assert_eq!(peer.host.remote(0).from_guest.len(), kept + 60_000);
}
