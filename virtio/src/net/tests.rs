//! The device with a driver on one side and a wire in memory on the other.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use devices::component::Component;
use serde_json::json;

use super::features::*;
use super::testing::{Frame, Wire};
use super::*;
use crate::poll::Epoll;
use crate::queue::FEATURE_EVENT_IDX;
use crate::testing::Guest;

const MAC_ADDRESS: [u8; 6] = [0xba, 0xad, 0, 0xca, 0xfe, 2];
const ALL: u64 = u64::MAX;
const RX: usize = 0;
const TX: usize = 1;

fn device(wire: &Wire, cpus: u16) -> Net<Epoll> {
    Net::new("net0", MAC_ADDRESS, Box::new(wire.clone()), cpus)
}

fn guest(wire: &Wire, cpus: u16) -> Guest<Epoll> {
    Guest::new(Box::new(device(wire, cpus)), Box::new(Epoll::new))
}

fn frame(len: usize, seed: u8) -> Frame {
    let bytes = (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    Frame { header: [0; HEADER_LEN], bytes }
}

fn header(flags: u8, gso: u8, rest: [u16; 5]) -> Vec<u8> {
    let rest = rest.into_iter().flat_map(u16::to_le_bytes);
    [flags, gso].into_iter().chain(rest).collect()
}

fn sent(wire: &Wire) -> Vec<Vec<u8>> {
    wire.ends().from_guest.iter().map(|(_, frame)| frame.bytes.clone()).collect()
}

/// The next frame that the guest received, put together from the buffers at `addresses`, which `len` long.
fn received(guest: &mut Guest<Epoll>, addresses: &[u64], len: usize) -> Vec<u8> {
    let first = guest.rings[RX].wait_used();
    let mut bytes = guest.bytes(addresses[0], first.len as usize);
    let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
    for address in &addresses[1..buffers.into()] {
        // All were published with the first.
        let used = guest.rings[RX].poll_used().unwrap();
        assert!(used.len as usize <= len);
        bytes.extend(guest.bytes(*address, used.len as usize));
    }
    bytes.split_off(HEADER_LEN)
}

fn give_buffers(guest: &mut Guest<Epoll>, count: usize, len: usize) -> Vec<u64> {
    (0..count).map(|_| guest.add(RX, &[], &[len]).1[0]).collect()
}

#[test]
fn the_configuration_says_address_link_pairs_and_mtu() {
    let mut guest = guest(&Wire::new(4, Offloads::all()), 2);
    guest.negotiate(ALL);
    assert_eq!(guest.config(0, 6), MAC_ADDRESS);
    assert_eq!(guest.config(6, 6), [1, 0, 2, 0, 0xdc, 5]);
    assert_eq!(guest.config(12, 8), [0; 8]);
}

#[test]
fn only_what_the_wire_can_is_offered() {
    let plain = guest(&Wire::new(1, Offloads::empty()), 4).offered();
    assert_eq!(plain & (CSUM | GUEST_OFFLOADS | HOST_TSO4 | CTRL_GUEST_OFFLOADS | MQ), 0);
    assert_eq!(plain & (MRG_RXBUF | CTRL_VQ | MAC | STATUS | MTU), MRG_RXBUF | CTRL_VQ | MAC | STATUS | MTU);
    let full = guest(&Wire::new(2, Offloads::all()), 4).offered();
    let wanted = CSUM | GUEST_OFFLOADS | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO | MQ;
    assert_eq!(full & wanted, wanted);
    // More pairs than processors serve nobody.
    assert_eq!(guest(&Wire::new(2, Offloads::all()), 1).offered() & MQ, 0);
}

#[test]
fn frames_come_in_order_each_behind_its_header() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 64);
    let buffers = give_buffers(&mut guest, 8, 1526);
    guest.kick(RX);
    let mut frames: Vec<_> = (0..8).map(|n| frame(60 + 100 * n, n as u8)).collect();
    frames[0].header[0] = 2;
    wire.give(0, frames.clone());
    for (buffer, frame) in buffers.iter().zip(&frames) {
        assert_eq!(received(&mut guest, &[*buffer], 1526), frame.bytes);
    }
    assert_eq!(guest.bytes(buffers[0], HEADER_LEN), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn an_answer_comes_without_an_event_and_waits_for_buffers() {
    let wire = Wire::new(1, Offloads::all());
    wire.ends().echoes = true;
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 64);
    let buffers = give_buffers(&mut guest, 1, 1526);
    guest.kick(RX);
    // It will not look again by itself.
    guest.wait_until("it has looked for frames", |_| wire.ends().calls > 0);
    let questions: Vec<_> = (0..2).map(|seed| frame(60, seed)).collect();
    for question in &questions {
        guest.add(TX, &[&header(0, 0, [0; 5]), &question.bytes], &[]);
    }
    guest.kick(TX);
    assert_eq!(received(&mut guest, &buffers, 1526), questions[0].bytes);
    let buffers = give_buffers(&mut guest, 1, 1526);
    guest.kick(RX);
    assert_eq!(received(&mut guest, &buffers, 1526), questions[1].bytes);
}

#[test]
fn a_large_frame_lies_in_as_many_buffers_as_it_needs_and_all_come_at_once() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 128);
    let buffers = give_buffers(&mut guest, 100, 1526);
    guest.kick(RX);
    // The first is read into the buffers for small ones and the spill, the second without a copy.
    let large = [frame(65_000, 1), frame(65_549, 2)];
    wire.give(0, large.clone());
    let of = |len: usize| (len + HEADER_LEN).div_ceil(1526);
    assert_eq!(received(&mut guest, &buffers, 1526), large[0].bytes);
    assert_eq!(received(&mut guest, &buffers[of(65_000)..], 1526), large[1].bytes);
    assert_eq!(guest.rings[RX].used_index(), (of(65_000) + of(65_549)) as u16);
}

#[test]
fn a_frame_that_finds_too_few_buffers_waits_for_more_and_is_whole() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    let counters = guest.counters();
    guest.start(ALL, 64);
    let mut buffers = give_buffers(&mut guest, 3, 1000);
    guest.kick(RX);
    let (large, small) = (frame(9000, 5), frame(60, 6));
    wire.give(0, [large.clone(), small.clone()]);
    guest.wait_until("the large frame waits", |_| wire.ends().to_guest[0].len() == 1);
    assert_eq!(guest.rings[RX].used_index(), 0);
    // Also where the machine pauses meanwhile.
    for _ in 0..2 {
        guest.function.quiesce();
        guest.function.go();
    }
    for _ in 0..8 {
        buffers.extend(give_buffers(&mut guest, 1, 1000));
        guest.kick(RX);
    }
    assert_eq!(received(&mut guest, &buffers, 1000), large.bytes);
    assert_eq!(received(&mut guest, &buffers[10..], 1000), small.bytes);
    assert_eq!(counters.errors.now(), 0);
}

#[test]
fn a_frame_that_waited_for_one_driver_does_not_reach_the_next() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 64);
    give_buffers(&mut guest, 3, 1000);
    guest.kick(RX);
    wire.give(0, [frame(9000, 5)]);
    guest.wait_until("the frame waits", |_| wire.ends().to_guest[0].is_empty());
    guest.start(ALL, 64);
    let buffers = give_buffers(&mut guest, 16, 1000);
    guest.kick(RX);
    wire.give(0, [frame(60, 6)]);
    assert_eq!(received(&mut guest, &buffers, 1000), frame(60, 6).bytes);
}

#[test]
fn a_frame_that_no_ring_of_buffers_can_hold_is_lost_and_the_next_one_comes() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    let counters = guest.counters();
    guest.start(ALL, 4);
    let buffers = give_buffers(&mut guest, 4, 200);
    guest.kick(RX);
    wire.give(0, [frame(5000, 1), frame(100, 2)]);
    assert_eq!(received(&mut guest, &buffers, 200), frame(100, 2).bytes);
    assert_eq!(counters.errors.now(), 1);
}

#[test]
fn without_merging_a_frame_has_one_buffer_and_what_does_not_fit_is_lost() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL & !MRG_RXBUF, 16);
    let buffers = give_buffers(&mut guest, 2, 1526);
    guest.kick(RX);
    wire.give(0, [frame(1600, 1), frame(1514, 2), frame(14, 3)]);
    assert_eq!(received(&mut guest, &buffers, 1526), frame(1514, 2).bytes);
    assert_eq!(received(&mut guest, &buffers[1..], 1526), frame(14, 3).bytes);
}

#[test]
fn buffers_that_cannot_hold_a_header_come_back_empty_and_stop_nothing() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 16);
    guest.add(RX, &[], &[11]);
    guest.add(RX, &[b"readable"], &[1526]);
    let good = guest.add(RX, &[], &[1526]).1;
    guest.kick(RX);
    wire.give(0, [frame(60, 1)]);
    assert_eq!(guest.rings[RX].wait_used().len, 0);
    assert_eq!(guest.rings[RX].wait_used().len, 0);
    assert_eq!(received(&mut guest, &good, 1526), frame(60, 1).bytes);
}

#[test]
fn many_frames_make_few_interrupts() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL & !FEATURE_EVENT_IDX, 256);
    give_buffers(&mut guest, 100, 1526);
    guest.kick(RX);
    wire.give(0, (0..100).map(|n| frame(60, n)));
    guest.wait_until("all are there", |guest| guest.rings[RX].used_index() == 100);
    guest.wait_until("it is said", |guest| guest.interrupts(RX) > 0);
    assert!(guest.interrupts(RX) <= 2, "{}", guest.interrupts(RX));
}

#[test]
fn frames_go_out_whole_and_their_headers_say_only_what_was_checked() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 64);
    let bytes = frame(3000, 7).bytes;
    let tso = header(1, 1, [9999, 1448, 34, 16, 77]);
    // The frame in three pieces; the header with the first of them, and alone.
    guest.request(TX, &[&[tso.as_slice(), &bytes[..100]].concat(), &bytes[100..1000], &bytes[1000..]], &[]);
    guest.request(TX, &[&[0; HEADER_LEN], &bytes[..60]], &[]);
    let ends = wire.ends();
    assert_eq!(ends.from_guest[0].1.bytes, bytes);
    assert_eq!(ends.from_guest[0].1.header.as_slice(), header(1, 1, [3000, 1448, 34, 16, 0]));
    assert_eq!(ends.from_guest[1].1, Frame { header: [0; HEADER_LEN], bytes: bytes[..60].to_vec() });
}

#[test]
fn malformed_frames_are_dropped_and_their_buffers_come_back() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    let counters = guest.counters();
    guest.start(ALL, 64);
    let body = [0u8; 60];
    guest.request(TX, &[b"short"], &[]);
    guest.request(TX, &[&[0; HEADER_LEN]], &[]);
    guest.request(TX, &[&[0; HEADER_LEN], &body], &[1]);
    guest.request(TX, &[], &[100]);
    guest.request(TX, &[&header(1, 0, [0, 0, 60, 60, 0]), &body], &[]);
    guest.request(TX, &[&header(1, 2, [0, 9, 14, 6, 0]), &body], &[]);
    guest.request(TX, &[&[0; HEADER_LEN], &[0; 70_000]], &[]);
    let (used, _) = guest.request(TX, &[&[0; HEADER_LEN], &body], &[]);
    assert_eq!(used.len, 0);
    assert_eq!(sent(&wire), [body]);
    assert_eq!((counters.errors.now(), counters.requests.now(), counters.bytes_out.now()), (7, 8, 60));
}

#[test]
fn a_full_wire_holds_frames_up_and_loses_none() {
    let wire = Wire::new(1, Offloads::all());
    wire.ends().credit = Some(3);
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 64);
    let frames: Vec<_> = (0..10).map(|n| frame(60, n).bytes).collect();
    for bytes in &frames {
        guest.add(TX, &[&[0; HEADER_LEN], bytes], &[]);
    }
    guest.kick(TX);
    guest.wait_until("three are sent", |_| sent(&wire).len() == 3);
    wire.ends().credit = None;
    wire.ring(0);
    guest.wait_until("all are sent", |guest| guest.rings[TX].used_index() == 10);
    assert_eq!(sent(&wire), frames);
}

#[test]
fn a_flood_in_one_direction_leaves_the_other_its_turn() {
    let wire = Wire::new(1, Offloads::all());
    wire.ends().forget = true;
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 256);
    // Without buffers nothing of this is taken.
    wire.give(0, (0..5000).map(|_| frame(60, 0)));
    for _ in 0..20 {
        guest.request(TX, &[&[0; HEADER_LEN], &[1; 60]], &[]);
    }
    let buffers = give_buffers(&mut guest, 2, 100);
    guest.kick(RX);
    received(&mut guest, &buffers, 100);
    received(&mut guest, &buffers[1..], 100);
    assert_eq!(wire.ends().to_guest[0].len(), 4998);
}

#[test]
fn the_guest_is_told_when_the_link_goes_and_comes() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 16);
    for (plugged, count) in [(false, 1), (true, 2)] {
        wire.plug(plugged);
        guest.wait_until("the link is seen", |guest| guest.config(6, 1) == [u8::from(plugged)]);
        guest.wait_until("the driver is told", |guest| guest.config_interrupts() == count);
    }
}

#[test]
fn pairs_of_queues_are_taken_into_use_by_command() {
    let wire = Wire::new(2, Offloads::all());
    let mut guest = guest(&wire, 2);
    guest.start(ALL, 16);
    let buffers = guest.add(2, &[], &[1526]).1;
    guest.kick(2);
    wire.give(1, [frame(60, 1)]);
    assert_eq!(guest.request(4, &[&[4, 0], &[3, 0]], &[1]).1, [[1]], "three pairs of two");
    assert_eq!(guest.request(4, &[&[4, 0], &[0, 0]], &[1]).1, [[1]]);
    assert_eq!(guest.rings[2].used_index(), 0, "a pair that is not in use receives nothing");
    assert_eq!(guest.request(4, &[&[4, 0], &[2, 0]], &[1]).1, [[0]]);
    guest.rings[2].wait_used();
    assert_eq!(guest.bytes(buffers[0] + HEADER_LEN as u64, 60), frame(60, 1).bytes);
    assert_eq!(wire.ends().enabled, 2);
    guest.request(3, &[&[0; HEADER_LEN], &[1; 60]], &[]);
    assert_eq!(wire.ends().from_guest[0].0, 1);
    guest.reset();
    assert_eq!(wire.ends().enabled, 1);
}

#[test]
fn guest_that_uses_what_another_network_lacks_is_told_which_one_it_needs() {
    let mut first = guest(&Wire::new(1, Offloads::all()), 1);
    first.start(ALL, 16);
    first.function.quiesce();
    let state = first.function.save().unwrap();
    for (offloads, pairs) in [(Offloads::CSUM, 1), (Offloads::all(), 2)] {
        let mut other = guest(&Wire::new(pairs, offloads), pairs);
        other.function.quiesce();
        let error = other.function.load(&state).unwrap_err();
        assert!(
            matches!(error, StateError::Network { .. }) && error.to_string().contains("--net tap="),
            "{error}"
        );
    }
}

#[test]
fn without_multiqueue_the_control_queue_is_the_third() {
    let wire = Wire::new(2, Offloads::all());
    let mut guest = guest(&wire, 2);
    guest.start(ALL & !MQ, 16);
    assert_eq!(guest.request(2, &[&[5, 0], &GUEST_CSUM.to_le_bytes()], &[1]).1, [[0]]);
    assert_eq!(wire.ends().offloads, Some(Offloads::CSUM));
    assert_eq!(guest.request(2, &[&[4, 0], &[1, 0]], &[1]).1, [[1]], "not negotiated");
    // Not by a saved state either.
    guest.function.quiesce();
    let mut state = guest.function.save().unwrap();
    *state.data.pointer_mut("/device/data/driver/pairs").unwrap() = json!(2);
    guest.function.load(&state).unwrap();
    guest.function.go();
    assert_eq!(guest.request(2, &[&[5, 0], &0u64.to_le_bytes()], &[1]).1, [[0]]);
    assert_eq!(wire.ends().enabled, 1);
}

#[test]
fn offloads_to_the_guest_are_what_it_took_and_change_by_command() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL & !GUEST_TSO6, 16);
    let taken = Offloads::all() - Offloads::TSO6;
    guest.wait_until("the wire knows", |_| wire.ends().offloads == Some(taken));
    let mut set = |bits: u64| guest.request(2, &[&[5, 0], &bits.to_le_bytes()], &[1]).1[0][0];
    assert_eq!(set(GUEST_CSUM | GUEST_TSO6), 1, "not negotiated");
    assert_eq!(set(1 << 40), 1, "no offload");
    assert_eq!(set(GUEST_CSUM | GUEST_TSO4), 0);
    assert_eq!(wire.ends().offloads, Some(Offloads::CSUM | Offloads::TSO4));
}

#[test]
fn commands_that_make_no_sense_are_answered_so_and_those_without_room_for_an_answer_come_back() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 16);
    for bad in [
        &[][..],
        &[5],
        &[5, 0],
        &[5, 0, 1],
        &[0, 0, 1],
        &[1, 0, 0, 0],
        &[5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[255; 20],
    ] {
        let readable = if bad.is_empty() { vec![] } else { vec![bad] };
        assert_eq!(guest.request(2, &readable, &[1]).1, [[1]], "{bad:?}");
    }
    assert_eq!(guest.request(2, &[&[5, 0], &[0; 8]], &[]).0.len, 0);
}

#[test]
fn a_broken_ring_stops_its_queue_and_no_other() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 16);
    guest.rings[RX].set_available_index(100);
    guest.kick(RX);
    guest.wait_until("the device says that it needs a reset", |guest| guest.status() & 64 != 0);
    guest.request(TX, &[&[0; HEADER_LEN], &[1; 60]], &[]);
    guest.start(ALL, 16);
    let buffers = give_buffers(&mut guest, 1, 1526);
    guest.kick(RX);
    wire.give(0, [frame(60, 1)]);
    assert_eq!(received(&mut guest, &buffers, 1526), frame(60, 1).bytes);
}

#[test]
fn buffers_at_hand_are_the_guests_again_after_a_stop() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 16);
    let buffers = give_buffers(&mut guest, 5, 700);
    guest.kick(RX);
    wire.give(0, [frame(60, 1)]);
    assert_eq!(received(&mut guest, &buffers, 700), frame(60, 1).bytes);
    // More of them are at hand now, and a pause gives them back.
    guest.function.quiesce();
    guest.function.go();
    wire.give(0, [frame(2000, 2)]);
    assert_eq!(received(&mut guest, &buffers[1..], 700), frame(2000, 2).bytes);
}

#[test]
fn what_the_driver_said_is_in_the_state_and_nonsense_is_refused() {
    let wire = Wire::new(2, Offloads::all());
    let mut first = device(&wire, 2);
    first.driver = DriverState { pairs: 2, guest_offloads: Some(GUEST_CSUM) };
    let saved = first.save().unwrap();
    let mut other = device(&wire, 2);
    other.load(&saved).unwrap();
    assert_eq!(other.driver, first.driver);
    let longest = "00".repeat(usize::try_from(header::LONGEST_FRAME).unwrap() + 1);
    for (place, value) in [
        ("/driver/pairs", json!(0)),
        ("/driver/pairs", json!(3)),
        ("/driver/guest_offloads", json!(MAC)),
        ("/frames/1", json!({ "header": vec![0; 12], "bytes": longest })),
        ("/frames/1", json!({ "header": vec![0; 11], "bytes": "" })),
    ] {
        let mut bad = saved.clone();
        *bad.data.pointer_mut(place).unwrap() = value;
        assert!(matches!(other.load(&bad), Err(StateError::Damaged { .. })), "{place}");
        assert_eq!(other.save().unwrap(), saved);
    }
    assert!(matches!(device(&wire, 1).load(&saved), Err(StateError::Mismatch { .. })));
}

#[test]
fn a_frame_that_waits_is_in_the_state() {
    let wire = Wire::new(1, Offloads::all());
    let mut guest = guest(&wire, 1);
    guest.start(ALL, 64);
    let mut buffers = give_buffers(&mut guest, 3, 1000);
    guest.kick(RX);
    let large = frame(9000, 5);
    wire.give(0, [large.clone()]);
    guest.wait_until("the frame waits", |_| wire.ends().to_guest[0].is_empty());
    let mut moved = guest.moved(Box::new(device(&wire, 1)), Box::new(Epoll::new));
    assert_eq!(moved.rings[RX].used_index(), 0);
    for _ in 0..8 {
        buffers.extend(give_buffers(&mut moved, 1, 1000));
        moved.kick(RX);
    }
    assert_eq!(received(&mut moved, &buffers, 1000), large.bytes);
}
