//! Whole transfers between smoltcp's TCP in the guest and streams of the host.

use std::io;
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::guest::World;
use crate::config::Limits;
use crate::flow::{Target, Unreachable};
use crate::shares::GuestId;

/// Bytes whose place in the stream shows.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// An established connection of the guest with its stream 0.
pub(super) fn established(world: &mut World, buffer: usize) -> SocketHandle {
    let handle = world.connect(buffer, 4000);
    world.run(|world| world.get(handle).may_send());
    handle
}

/// Lets the guest send `bytes` and returns how many of the host's it read, in `into`.
fn pump(world: &mut World, handle: SocketHandle, bytes: &[u8], sent: &mut usize, into: &mut Vec<u8>) {
    let socket = world.get(handle);
    if socket.can_send() && *sent < bytes.len() {
        *sent += socket.send_slice(&bytes[*sent..]).unwrap();
        if *sent == bytes.len() {
            socket.close();
        }
    }
    while socket.can_recv() {
        socket.recv(|data| (data.len(), into.extend_from_slice(data))).unwrap();
    }
}

/// `len` bytes each way at once, then both ends close.
fn exchange(world: &mut World, len: usize, buffer: usize) {
    let handle = established(world, buffer);
    let (up, down) = (pattern(len), pattern(len + 1));
    world.host.remote(0).to_guest.extend(&down);
    world.host.remote(0).finished = true;
    let (mut sent, mut received) = (0, Vec::new());
    world.run(|world| {
        pump(world, handle, &up, &mut sent, &mut received);
        received.len() == down.len() && world.host.remote(0).shut
    });
    assert!(received == down, "bytes to the guest differ");
    assert!(world.host.remote(0).from_guest == up, "bytes of the guest differ");
    world.run(|world| world.tcp.len() == 0);
    let remote = world.host.remote(0);
    assert!(remote.closed && !remote.reset);
    drop(remote);
    assert_eq!(world.tcp.buffered(), 0);
}

#[test]
fn ten_mebibytes_each_way() {
    exchange(&mut World::new(), 10 << 20, 1 << 20);
}

#[test]
fn ten_mebibytes_each_way_in_large_packets() {
    let mut world = World::with(Limits::default(), true);
    exchange(&mut world, 10 << 20, 1 << 20);
    assert!(world.large > 100 && world.longest > 60_000, "{} {}", world.large, world.longest);
    assert!(world.card.largest > 20_000, "{}", world.card.largest);
}

#[test]
fn a_seventh_of_the_packets_lost_both_ways() {
    let mut world = World::new();
    world.loss = 7;
    exchange(&mut world, 1 << 20, 256 << 10);
    assert!(world.lost > 200, "{}", world.lost);
}

#[test]
fn a_seventh_of_the_large_packets_lost_both_ways() {
    let mut world = World::with(Limits::default(), true);
    world.loss = 7;
    exchange(&mut world, 4 << 20, 1 << 20);
    assert!(world.lost > 20, "{}", world.lost);
}

#[test]
fn guest_closes_its_half_and_still_receives() {
    let mut world = World::new();
    let handle = established(&mut world, 64 << 10);
    world.get(handle).send_slice(b"request").unwrap();
    world.get(handle).close();
    world.run(|world| world.host.remote(0).shut);
    assert_eq!(world.host.remote(0).from_guest, b"request");
    world.pass(Duration::from_secs(300));
    let answer = pattern(200_000);
    world.host.remote(0).to_guest.extend(&answer);
    world.host.remote(0).finished = true;
    let mut received = Vec::new();
    world.run(|world| {
        pump(world, handle, &[], &mut 0, &mut received);
        world.tcp.len() == 0
    });
    assert!(received == answer);
    assert!(!world.host.remote(0).reset);
}

#[test]
fn host_closes_its_half_and_still_receives() {
    let mut world = World::new();
    let handle = established(&mut world, 64 << 10);
    world.host.remote(0).to_guest.extend(b"banner");
    world.host.remote(0).finished = true;
    world.run(|world| world.get(handle).state() == State::CloseWait);
    let mut received = Vec::new();
    let up = pattern(200_000);
    let mut sent = 0;
    world.run(|world| {
        pump(world, handle, &up, &mut sent, &mut received);
        world.tcp.len() == 0
    });
    assert_eq!(received, b"banner");
    assert!(world.host.remote(0).from_guest == up);
}

#[test]
fn connection_from_outside() {
    let mut world = World::new();
    let handle = world.socket(64 << 10);
    world.get(handle).listen(22).unwrap();
    let stream = world.host.incoming();
    let ends = ("10.0.2.2:40000".parse().unwrap(), "10.0.2.15:22".parse().unwrap());
    assert!(world.tcp.accepted(stream, ends.0, (ends.1, GuestId::FIRST), &mut world.host, world.now));
    world.host.remote(0).to_guest.extend(b"hello");
    world.run(|world| world.get(handle).recv_queue() == 5);
    assert_eq!(world.get(handle).remote_endpoint().unwrap().port, 40_000);
    world.get(handle).send_slice(b"SSH-2.0").unwrap();
    world.run(|world| world.host.remote(0).from_guest == b"SSH-2.0");

    // The same ends a second time.
    let stream = world.host.incoming();
    assert!(!world.tcp.accepted(stream, ends.0, (ends.1, GuestId::FIRST), &mut world.host, world.now));
    assert!(world.host.remote(1).reset);
}

#[test]
fn guest_without_a_listener_resets_the_host() {
    let mut world = World::new();
    let stream = world.host.incoming();
    let ends = ("10.0.2.2:40000".parse().unwrap(), "10.0.2.15:22".parse().unwrap());
    assert!(world.tcp.accepted(stream, ends.0, (ends.1, GuestId::FIRST), &mut world.host, world.now));
    world.run(|world| world.host.remote(0).reset);
    assert_eq!(world.tcp.len(), 0);
}

#[test]
fn refusal_is_a_reset() {
    for at_once in [true, false] {
        let mut world = World::new();
        world.host.refuses = at_once.then_some(io::ErrorKind::ConnectionRefused);
        world.host.slow = true;
        let handle = world.connect(4096, 4000);
        world.turn();
        if !at_once {
            assert_eq!(world.get(handle).state(), State::SynSent);
            world.host.remote(0).connected = Some(Err(io::ErrorKind::ConnectionRefused));
        }
        world.run(|world| world.get(handle).state() == State::Closed);
        assert!(world.failed.is_empty() && world.tcp.len() == 0);
    }
    let mut world = World::new();
    world.target = Some(Target::Refused);
    let handle = world.connect(4096, 4000);
    world.run(|world| world.get(handle).state() == State::Closed);
    assert!(world.host.remotes.is_empty());
}

#[test]
fn unreachable_peer_is_reported_as_such() {
    for (kind, why) in [
        (io::ErrorKind::HostUnreachable, Unreachable::Host),
        (io::ErrorKind::NetworkUnreachable, Unreachable::Network),
        (io::ErrorKind::PermissionDenied, Unreachable::Prohibited),
    ] {
        let mut world = World::new();
        world.host.slow = true;
        let handle = world.connect(4096, 4000);
        world.turn();
        world.host.remote(0).connected = Some(Err(kind));
        world.run(|world| !world.failed.is_empty());
        assert_eq!((world.failed[0].why, world.failed[0].flow.guest.port()), (why, 4000));
        assert_eq!(world.get(handle).state(), State::SynSent, "only ICMP tells it");
        assert_eq!(world.tcp.len(), 0);
    }
}

#[test]
fn guest_is_not_answered_before_the_host_has_connected() {
    let mut world = World::new();
    world.host.slow = true;
    let handle = world.connect(4096, 4000);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.get(handle).state(), world.host.remotes.len()), (State::SynSent, 1));
    world.host.remote(0).connected = Some(Ok(()));
    world.run(|world| world.get(handle).state() == State::Established);
    assert_eq!(world.host.remote(0).to, Some("198.51.100.7:80".parse().unwrap()));
}

#[test]
fn reset_passes_both_ways() {
    let mut world = World::new();
    let handle = established(&mut world, 4096);
    world.get(handle).abort();
    world.run(|world| world.host.remote(0).reset);
    assert_eq!(world.tcp.len(), 0);

    let handle = world.connect(4096, 4001);
    world.run(|world| world.get(handle).may_send());
    world.host.remote(1).error = Some(io::ErrorKind::ConnectionReset);
    world.run(|world| world.get(handle).state() == State::Closed);
    assert_eq!(world.tcp.len(), 0);
}

#[test]
fn slow_guest_closes_the_window_and_opens_it() {
    let mut world = World::new();
    let handle = established(&mut world, 8192);
    let down = pattern(500_000);
    world.host.remote(0).to_guest.extend(&down);
    world.pass(Duration::from_secs(400));
    assert_eq!(world.get(handle).recv_queue(), 8192);
    assert!(world.host.remote(0).to_guest.len() > 300_000, "the host's peer is held back");
    assert!(world.host.events().is_empty(), "no event repeats for nothing");
    let mut received = Vec::new();
    world.run(|world| {
        pump(world, handle, &[], &mut 0, &mut received);
        received.len() == down.len()
    });
    assert!(received == down);
}

#[test]
fn slow_host_closes_the_window_and_opens_it() {
    let mut world = World::new();
    let handle = established(&mut world, 1 << 20);
    world.host.remote(0).room = 0;
    let up = pattern(6 << 20);
    let (mut sent, mut none) = (0, Vec::new());
    for _ in 0..2000 {
        pump(&mut world, handle, &up, &mut sent, &mut none);
        world.turn();
        world.now += Duration::from_millis(5);
    }
    assert!(sent < up.len(), "the guest is held back");
    assert_eq!(world.host.remote(0).from_guest.len(), 0);
    let began = world.now;
    world.host.remote(0).room = usize::MAX;
    world.run(|world| {
        pump(world, handle, &up, &mut sent, &mut none);
        world.host.remote(0).shut
    });
    assert!(world.host.remote(0).from_guest == up);
    assert!(world.now.duration_since(began) < Duration::from_secs(1), "the window was told when it opened");
}

#[test]
fn window_is_scaled_both_ways() {
    let mut world = World::with(Limits::default(), true);
    let handle = established(&mut world, 2 << 20);
    // More than 64 KiB is on its way without an acknowledgement.
    world.host.remote(0).to_guest.extend(pattern(2 << 20));
    world.run(|world| world.get(handle).recv_queue() == 2 << 20);
    world.host.remote(0).room = 0;
    assert_eq!(world.get(handle).send_slice(&pattern(1 << 20)).unwrap(), 1 << 20);
    world.run(|world| world.get(handle).send_queue() == 0);
    assert!(world.tcp.buffered() >= 3 << 20 || world.tcp.buffered() >= 1 << 20);
}

#[test]
fn silent_guest_is_given_up() {
    let mut world = World::new();
    let handle = established(&mut world, 4096);
    world.sockets.remove(handle);
    // Packets to it are lost, so that it does not even refuse.
    world.loss = 1;
    world.host.remote(0).to_guest.extend(b"anyone there?");
    world.run(|world| world.tcp.len() == 0);
    assert!(world.host.remote(0).reset);
}

#[test]
fn idle_connection_is_probed_and_stays() {
    let mut world = World::new();
    let handle = established(&mut world, 4096);
    world.now += Duration::from_secs(7201);
    world.turn();
    // Long enough for all probes, had it not answered the first.
    world.pass(Duration::from_secs(2000));
    assert_eq!(world.tcp.len(), 1);
    // One that does not answer is given up, however long the machine was paused.
    world.sockets.remove(handle);
    world.loss = 1;
    world.now += Duration::from_secs(100_000);
    world.turn();
    assert_eq!(world.tcp.len(), 1);
    world.pass(Duration::from_secs(800));
    assert_eq!(world.tcp.len(), 0);
    assert!(world.host.remote(0).reset);
}

#[test]
fn keep_alive_of_the_guest_is_answered() {
    let mut world = World::new();
    let handle = established(&mut world, 4096);
    world.get(handle).set_keep_alive(Some(smoltcp::time::Duration::from_secs(5)));
    world.get(handle).set_timeout(Some(smoltcp::time::Duration::from_secs(20)));
    world.pass(Duration::from_secs(120));
    assert_eq!(world.get(handle).state(), State::Established);
}
