//! A driver at a disk in memory.
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of the tests are small, and bytes of patterns wrap"
)]

mod full;
mod parse;
mod ram;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::config::feature;
use super::*;
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};
use crate::testing::{Guest, Used};
use crate::transport::VirtioFunction;
use devices::component::Component;
use ram::{Hand, byte};

const ALL: u64 = u64::MAX;
const SECTORS: u64 = 2048;
const BYTES: usize = 2048 * 512;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn disk() -> Disk {
    Disk {
        sectors: SECTORS,
        read_only: false,
        serial: "vm0-disk".into(),
        queues: NonZeroU16::MIN,
        topology: Topology::default(),
        discard: Some(4096),
    }
}

fn guest_of(disk: Disk, hand: &Hand) -> Guest<AnyEngine> {
    let engine = hand.clone();
    Guest::new(Box::new(Block::new("blk0", disk)), Box::new(move || Ok(engine.engine())))
}

/// A started driver with these features.
fn driver(wanted: u64) -> (Guest<AnyEngine>, Hand) {
    let hand = Hand::new(BYTES);
    let mut guest = guest_of(disk(), &hand);
    guest.start(wanted, 64);
    (guest, hand)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn read(guest: &mut Guest<AnyEngine>, sector: u64, len: usize) -> (u8, Vec<u8>, Used) {
    let (used, mut out) = guest.request(0, &[&header(READ, sector)], &[len, 1]);
    (out[1][0], out.swap_remove(0), used)
}

fn send(guest: &mut Guest<AnyEngine>, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let head = header(kind, sector);
    let (used, out) = if data.is_empty() {
        guest.request(0, &[&head], &[1])
    } else {
        guest.request(0, &[&head, data], &[1])
    };
    assert_eq!(used.len, 1, "one byte, the status, is written");
    out[0][0]
}

#[test]
fn a_busy_disk_wants_no_kicks_and_looks_by_itself() {
    let (mut guest, hand) = driver(0);
    let head = header(READ, 0);
    read(&mut guest, 0, 512);
    // Alone it was fast. Now many at once are not.
    hand.hold();
    (0..8).for_each(|_| drop(guest.add(0, &[&head], &[512, 1])));
    guest.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    hand.let_go();
    for _ in 0..8 {
        guest.rings[0].wait_used();
    }
    for _ in 0..20 {
        hand.log();
        hand.hold();
        (0..8).for_each(|_| drop(guest.add(0, &[&head], &[512, 1])));
        guest.kick(0);
        guest.wait_until("eight requests", |_| hand.asked() == 8);
        guest.add(0, &[&head], &[512, 1]);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if guest.rings[0].used_flags() == 0 {
            guest.kick(0);
        }
        guest.wait_until("one more", |_| hand.asked() == 9);
        guest.wait_until("a wish for kicks, as nothing ends", |guest| guest.rings[0].used_flags() == 0);
        hand.let_go();
        for _ in 0..9 {
            guest.rings[0].wait_used();
        }
    }
}

#[test]
fn requests_bytes_and_errors_are_counted_and_headers_are_not() {
    let (mut guest, hand) = driver(ALL);
    assert_eq!(send(&mut guest, WRITE, 5, &[1; 1024]), OK);
    assert_eq!(read(&mut guest, 5, 512).0, OK);
    assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
    assert_eq!(send(&mut guest, ZEROES, 0, &range(0, 8, 0)), OK);
    guest.request(0, &[&header(GET_ID, 0)], &[20, 1]);
    assert_eq!(read(&mut guest, SECTORS, 512).0, IO_ERROR);
    assert_eq!(send(&mut guest, 77, 0, &[]), UNSUPPORTED);
    hand.fail(Some(ErrorKind::Other));
    assert_eq!(send(&mut guest, WRITE, 5, &[1; 1024]), IO_ERROR);
    guest.request(0, &[&header(READ, 0)], &[]);
    let counters = guest.counters();
    assert_eq!((counters.bytes_in.now(), counters.bytes_out.now()), (512, 1024));
    assert_eq!((counters.requests.now(), counters.errors.now()), (9, 4));
    assert!((1..=9).contains(&counters.interrupts.now()) && (1..=9).contains(&counters.kicks.now()));
}

#[test]
fn what_is_written_is_read_back() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    let data: Vec<u8> = (0..1024).map(|n| (n * 3) as u8).collect();
    assert_eq!(send(&mut guest, WRITE, 5, &data), OK);
    let (status, got, used) = read(&mut guest, 5, 1024);
    assert_eq!((status, got, used.len), (OK, data, 1025));
    let (status, got, _) = read(&mut guest, 7, 512);
    assert_eq!((status, got[3]), (OK, byte(7 * 512 + 3)));
    assert_eq!(hand.log().len(), 3);
}

#[test]
fn header_data_and_status_may_share_and_split_descriptors() {
    let (mut guest, _) = driver(ALL & !FEATURE_EVENT_IDX);
    let whole = [header(WRITE, 9), vec![0x77; 512]].concat();
    let (_, out) = guest.request(0, &[&whole[..3], &whole[3..100], &whole[100..]], &[1]);
    assert_eq!(out[0], [OK]);
    let (used, out) = guest.request(0, &[&header(READ, 9)[..8], &header(READ, 9)[8..]], &[100, 413]);
    assert_eq!(used.len, 513);
    assert!(out.concat()[..512].iter().all(|byte| *byte == 0x77));
    assert_eq!(out[1][412], OK);
}

#[test]
fn nothing_beyond_the_end_is_touched() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        let (status, got, used) = read(&mut guest, sector, 1024);
        assert_eq!((status, used.len), (IO_ERROR, 0), "sector {sector}");
        assert!(got.iter().all(|byte| *byte == 0xee), "untouched");
        assert_eq!(send(&mut guest, WRITE, sector, &[1; 1024]), IO_ERROR);
    }
    assert_eq!(read(&mut guest, 0, 1000).0, IO_ERROR, "no half sectors");
    assert!(hand.log().is_empty());
    assert_eq!(read(&mut guest, SECTORS - 1, 512).0, OK);
}

#[test]
fn flush_reaches_the_engine_and_the_id_comes_without_it() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
    assert_eq!(hand.log(), [(Operation::Flush, Extent::default(), 0)]);
    let (used, out) = guest.request(0, &[&header(GET_ID, 0)], &[20, 1]);
    assert_eq!((used.len, &out[0][..], out[1][0]), (21, b"vm0-disk\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(), OK));
    let (used, out) = guest.request(0, &[&header(GET_ID, 0)], &[100, 1]);
    assert_eq!((used.len, out[0][20], out[1][0]), (20, 0xee, OK));
    for kind in [2, 3, 5, 10, 14, 99, u32::MAX] {
        assert_eq!(send(&mut guest, kind, 0, &[]), UNSUPPORTED);
    }
    assert!(hand.log().is_empty());
}

#[test]
fn ranges_are_discarded_and_zeroed_one_after_the_other() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    let ranges = [range(8, 8, 0), range(100, 0, 0), range(32, 16, 0)].concat();
    assert_eq!(send(&mut guest, DISCARD, 0, &ranges), OK);
    let at = |sector: u64, count: u64| Extent { offset: sector * 512, len: count * 512 };
    assert_eq!(hand.log(), [(Operation::Discard, at(8, 8), 0), (Operation::Discard, at(32, 16), 0)]);
    let ranges = [range(1, 1, 1), range(3, 1, 0)].concat();
    assert_eq!(send(&mut guest, ZEROES, 0, &ranges), OK);
    let zeroes = |unmap| Operation::WriteZeroes { unmap };
    assert_eq!(hand.log(), [(zeroes(true), at(1, 1), 0), (zeroes(false), at(3, 1), 0)]);
    assert_eq!(hand.data(512, 1536).iter().filter(|byte| **byte != 0).count(), 510, "sector 2 stays");
}

#[test]
fn bad_ranges_are_refused_whole() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    let good = range(0, 1, 0);
    for (kind, bad, status) in [
        (DISCARD, range(0, 1, 1), UNSUPPORTED),
        (DISCARD, range(0, 1, 2), UNSUPPORTED),
        (ZEROES, range(0, 1, 2), UNSUPPORTED),
        (DISCARD, range(SECTORS, 1, 0), IO_ERROR),
        (ZEROES, range(u64::MAX, u32::MAX, 0), IO_ERROR),
        (ZEROES, vec![0; 15], IO_ERROR),
        (DISCARD, good.repeat(17), IO_ERROR),
    ] {
        assert_eq!(send(&mut guest, kind, 0, &[good.clone(), bad].concat()), status);
    }
    assert_eq!(send(&mut guest, DISCARD, 0, &[]), IO_ERROR);
    assert!(hand.log().is_empty());
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_writes() {
    let hand = Hand::new(BYTES);
    let mut guest = guest_of(Disk { read_only: true, ..disk() }, &hand);
    let features = guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    assert_eq!(features & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
    assert_eq!(send(&mut guest, WRITE, 0, &[0; 512]), IO_ERROR);
    assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
    assert_eq!(read(&mut guest, 0, 512).0, OK);
    assert_eq!(hand.data(1, 1), [byte(1)]);
}

#[test]
fn host_errors_become_guest_errors_and_the_disk_goes_on() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    hand.fail(Some(ErrorKind::StorageFull));
    assert_eq!(send(&mut guest, WRITE, 0, &[0; 512]), IO_ERROR);
    let (status, _, used) = read(&mut guest, 0, 512);
    assert_eq!((status, used.len), (IO_ERROR, 0));
    hand.fail(Some(ErrorKind::Unsupported));
    assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 8, 0)), UNSUPPORTED);
    hand.fail(None);
    assert_eq!(read(&mut guest, 0, 512).0, OK);
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn without_a_write_cache_every_write_is_flushed_before_it_ends() {
    let writes = |guest: &mut Guest<AnyEngine>, hand: &Hand| {
        hand.log();
        assert_eq!(send(guest, WRITE, 0, &[0; 512]), OK);
        let log: Vec<Operation> = hand.log().into_iter().map(|(operation, ..)| operation).collect();
        log
    };
    let through = [Operation::Write, Operation::Flush];
    // Neither bit: nobody would flush.
    let (mut guest, hand) = driver(0);
    assert_eq!(writes(&mut guest, &hand), through);
    let (mut guest, hand) = driver(feature::CONFIG_WCE);
    assert_eq!(writes(&mut guest, &hand), through);
    let (mut guest, hand) = driver(feature::FLUSH);
    assert_eq!(writes(&mut guest, &hand), [Operation::Write]);
    let (mut guest, hand) = driver(feature::FLUSH | feature::CONFIG_WCE);
    assert_eq!(writes(&mut guest, &hand), [Operation::Write]);
    guest.set_config(32, &[0]);
    assert_eq!(writes(&mut guest, &hand), through);
    guest.set_config(32, &[1]);
    assert_eq!(writes(&mut guest, &hand), [Operation::Write]);
    guest.set_config(32, &[0]);
    guest.start(feature::FLUSH | feature::CONFIG_WCE, 64);
    assert_eq!(guest.config(32, 1), [1], "a reset brings the cache back");
}

#[test]
fn completions_may_come_late_and_in_any_order_with_one_interrupt() {
    let (mut guest, hand) = driver(ALL & !(FEATURE_EVENT_IDX | FEATURE_INDIRECT));
    hand.hold();
    let heads: Vec<_> = (0..20).map(|n| guest.add(0, &[&header(READ, n)], &[512, 1])).collect();
    guest.kick(0);
    guest.wait_until("all are in flight", |_| hand.asked() == 20);
    assert_eq!(guest.interrupts(0), 0);
    assert_eq!(guest.rings[0].used_index(), 0);
    hand.let_go();
    let used: Vec<u16> = (0..20).map(|_| guest.rings[0].wait_used().head).collect();
    let mut want: Vec<u16> = heads.iter().map(|(head, _)| *head).collect();
    want.reverse();
    assert_eq!(used, want);
    for (n, (_, outs)) in heads.iter().enumerate() {
        assert_eq!(guest.bytes(outs[0], 2), [byte(n * 512), byte(n * 512 + 1)]);
        assert_eq!(guest.bytes(outs[1], 1), [OK]);
    }
    guest.wait_until("the driver is told", |guest| guest.interrupts(0) > 0);
    assert_eq!(guest.interrupts(0), 1);
}

/// A disk that is larger than its memory: its operations fail, unless they are reads.
fn large(hand: &Hand, wanted: u64) -> Guest<AnyEngine> {
    let mut guest = guest_of(Disk { sectors: 1 << 30, ..disk() }, hand);
    guest.start(wanted, 64);
    hand.hold();
    hand.fail(Some(ErrorKind::Other));
    guest
}

#[test]
fn large_discards_and_zeroing_in_flight_hold_no_reads() {
    for (kind, sectors) in [(DISCARD, 1 << 21), (ZEROES, 1 << 16)] {
        let hand = Hand::new(BYTES);
        let mut guest = large(&hand, ALL & !FEATURE_EVENT_IDX);
        for n in 0..16 {
            guest.add(0, &[&header(kind, 0), &range(n << 21, sectors, 0)], &[1]);
        }
        guest.kick(0);
        guest.wait_until("two are in flight, and no more", |_| hand.asked() == 2);
        hand.fail(None);
        guest.add(0, &[&header(READ, 3)], &[512, 1]);
        guest.kick(0);
        let is_read = |(operation, ..): &(Operation, Extent, usize)| *operation == Operation::Read;
        let begin = Instant::now();
        let mut seen = false;
        while !seen && begin.elapsed() < Duration::from_secs(60) {
            seen = hand.log().iter().any(is_read);
        }
        hand.fail(Some(ErrorKind::Other));
        hand.let_go();
        for _ in 0..17 {
            guest.rings[0].wait_used();
        }
        assert!(seen, "the read did not begin while requests of kind {kind} hung");
    }
}

#[test]
fn a_disk_that_keeps_its_space_zeroes_without_holes_and_ignores_discards_of_a_restored_driver() {
    let hand = Hand::new(BYTES);
    let (guest, _) = driver(ALL & !FEATURE_EVENT_IDX);
    guest.function().quiesce();
    let kept = || Box::new(Block::new("blk0", Disk { discard: None, ..disk() }));
    let engine = hand.clone();
    let mut guest = guest.moved(kept(), Box::new(move || Ok(engine.engine())));
    assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 8, 0)), OK);
    assert_eq!(send(&mut guest, ZEROES, 0, &range(0, 8, 1)), OK);
    let zeroed = Extent { offset: 0, len: 4096 };
    assert_eq!(hand.log(), [(Operation::WriteZeroes { unmap: false }, zeroed, 0)]);
    let features = guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    assert_eq!(features & feature::DISCARD, 0, "a driver that comes later is not offered any");
}

#[test]
fn discards_that_have_not_begun_hold_up_no_reset() {
    let hand = Hand::new(BYTES);
    let mut guest = large(&hand, ALL & !FEATURE_EVENT_IDX);
    let ranges: Vec<u8> = (0..16).flat_map(|n| range(n, 1, 0)).collect();
    hand.fail(None);
    for _ in 0..10 {
        guest.add(0, &[&header(DISCARD, 0), &ranges], &[1]);
    }
    guest.kick(0);
    guest.wait_until("two are in flight", |_| hand.asked() == 2);
    guest.set_status(0);
    assert_ne!(guest.status(), 0, "the reset waits for these");
    hand.let_go();
    guest.wait_until("the reset", |guest| guest.status() == 0);
    assert_eq!(hand.asked(), 2, "and begins no other");
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    assert_eq!(read(&mut guest, 3, 512).0, OK);
}

#[test]
fn zeroing_that_has_not_begun_is_done_before_a_stop() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    hand.hold();
    for n in 0..6 {
        guest.add(0, &[&header(ZEROES, 0), &range(n * 8, 8, 0)], &[1]);
    }
    guest.kick(0);
    guest.wait_until("two are in flight", |_| hand.asked() == 2);
    guest.set_status(0);
    hand.let_go();
    guest.wait_until("the reset", |guest| guest.status() == 0);
    assert!(hand.data(0, 6 * 4096).iter().all(|byte| *byte == 0));
}

#[test]
fn reset_waits_for_what_is_in_flight_and_the_disk_works_again() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    hand.hold();
    for n in 0..10 {
        guest.add(0, &[&header(READ, n)], &[512, 1]);
    }
    let ranges = [range(8, 8, 0), range(16, 8, 0)].concat();
    guest.add(0, &[&header(DISCARD, 0), &ranges], &[1]);
    guest.kick(0);
    guest.wait_until("all are in flight", |_| hand.asked() == 11);
    guest.set_status(0);
    assert_ne!(guest.status(), 0, "the reset is not over while the host works on guest memory");
    hand.let_go();
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    assert_eq!(read(&mut guest, 3, 512).0, OK);
}

#[test]
fn several_queues_are_served_by_one_thread() {
    let hand = Hand::new(BYTES);
    let mut guest = guest_of(Disk { queues: NonZeroU16::new(4).unwrap(), ..disk() }, &hand);
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    assert_eq!(guest.config(34, 2), [4, 0]);
    for queue in [3, 0, 2, 1] {
        let (_, out) = guest.request(queue, &[&header(READ, queue as u64)], &[512, 1]);
        assert_eq!((out[0][0], out[1][0]), (byte(queue * 512), OK));
    }
}

#[test]
fn a_queue_with_a_bad_ring_stops_alone_while_it_has_requests_in_flight() {
    let hand = Hand::new(BYTES);
    let mut guest = guest_of(Disk { queues: NonZeroU16::new(2).unwrap(), ..disk() }, &hand);
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    hand.hold();
    guest.add(0, &[&header(READ, 1)], &[512, 1]);
    guest.add(1, &[&header(READ, 2)], &[512, 1]);
    guest.kick(0);
    guest.kick(1);
    guest.wait_until("both are in flight", |_| hand.asked() == 2);
    guest.rings[0].set_available_index(5000);
    guest.kick(0);
    guest.wait_until("the fault is seen", |guest| guest.status() & 64 != 0);
    hand.let_go();
    assert_eq!(guest.rings[1].wait_used().len, 513);
    the_other_queue_goes_on_and_a_reset_mends(&mut guest);
}

/// After a fault in the first of two queues.
#[track_caller]
fn the_other_queue_goes_on_and_a_reset_mends(guest: &mut Guest<AnyEngine>) {
    let (_, out) = guest.request(1, &[&header(READ, 3)], &[512, 1]);
    assert_eq!(out[1][0], OK);
    assert_eq!(guest.rings[0].used_index(), 0);
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    assert_eq!(read(guest, 3, 512).0, OK);
}

#[test]
fn requests_without_room_for_a_status_go_back_and_harm_nobody() {
    let (mut guest, hand) = driver(ALL & !FEATURE_EVENT_IDX);
    for _ in 0..200 {
        let (used, _) = guest.request(0, &[&header(WRITE, 0), &[0; 512]], &[]);
        assert_eq!(used.len, 0);
        let (used, out) = guest.request(0, &[&header(READ, 0)[..15]], &[513]);
        assert_eq!((used.len, out[0][512]), (0, IO_ERROR));
        let (used, out) = guest.request(0, &[], &[1]);
        assert_eq!((used.len, out[0][0]), (1, IO_ERROR));
    }
    assert!(hand.log().is_empty());
    assert_eq!(read(&mut guest, 3, 512).0, OK);
}

#[test]
fn the_configuration_is_laid_out_as_the_driver_reads_it() {
    let hand = Hand::new(512);
    let topology = Topology { logical_block: 512, physical_block: 4096, least_io: 4096, best_io: 1 << 20 };
    let mut guest = guest_of(Disk { topology, ..disk() }, &hand);
    let config = guest.config(0, 60);
    let u32_at = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    // A read of 1 MiB whose pages lie alone is one request.
    assert!(u32_at(12) >= 257);
    assert_eq!(u32_at(20), 512);
    assert_eq!(config[24..28], [3, 0, 8, 0]);
    assert_eq!(u32_at(28), 2048);
    assert_eq!((config[32], config[34], config[35]), (1, 1, 0));
    assert_eq!((u32_at(44), config[56]), (8, 1));
    assert_eq!(config.len(), 60);
}

#[test]
fn a_saved_state_is_taken_by_the_same_disk_only() {
    let block = Block::new("blk0", disk());
    block.config.set(WRITEBACK, &[0]);
    let state = block.save().unwrap();
    let mut again = Block::new("blk0", disk());
    again.load(&state).unwrap();
    assert_eq!(again.save().unwrap(), state);
    let mut other = Block::new("blk0", Disk { sectors: 7, ..disk() });
    let error = other.load(&state).unwrap_err();
    assert!(error.to_string().contains("blk0 has 3584 bytes and had"), "{error}");
}

#[test]
fn a_disk_that_grows_tells_its_driver_and_takes_requests_behind_its_old_end() {
    let hand = Hand::new(BYTES);
    let mut guest = guest_of(Disk { sectors: 8, ..disk() }, &hand);
    guest.function().tell(Message::DiskSize { sectors: 16 }).unwrap();
    assert_eq!(guest.config(0, 8), 16u64.to_le_bytes(), "before its driver is there");
    guest.start(ALL, 64);
    assert_eq!(read(&mut guest, 16, 512).0, IO_ERROR);
    let (told, generation) = (guest.config_interrupts(), guest.common_u16(0x14) >> 8);
    guest.function().tell(Message::DiskSize { sectors: 24 }).unwrap();
    guest.wait_until("the driver is told", |guest| guest.config_interrupts() == told + 1);
    assert_eq!(
        (guest.config(0, 8), guest.common_u16(0x14) >> 8),
        (24u64.to_le_bytes().to_vec(), generation + 1)
    );
    assert_eq!(read(&mut guest, 16, 512).0, OK);
    // While the machine is paused its memory is saved, and no interrupt may come.
    guest.function().quiesce();
    let state = guest.function().save().unwrap();
    [24u64, 32].into_iter().for_each(|sectors| guest.function().tell(Message::DiskSize { sectors }).unwrap());
    assert_eq!(guest.function().save().unwrap(), state);
    assert_eq!(guest.config_interrupts(), told + 1);
    guest.function().go();
    guest.wait_until("the driver is told", |guest| guest.config_interrupts() == told + 2);
    assert_eq!(guest.config(0, 8), 32u64.to_le_bytes());
    guest.reset();
    assert_eq!(guest.config(0, 8), 32u64.to_le_bytes(), "a reset does not shrink it");
    let wrong = guest.function().tell(Message::BalloonStatistics).unwrap_err();
    assert!(wrong.to_string().contains("Balloon"), "{wrong}");
}

#[test]
fn queues_on_threads_of_their_own_do_not_wait_for_each_other() {
    let hands = [(); 2].map(|()| Hand::new(BYTES));
    let first = Block::new("vda", Disk { queues: NonZeroU16::new(3).unwrap(), ..disk() });
    let second = first.for_another_thread();
    let thread = |device: Block, hand: &Hand| {
        let hand = hand.clone();
        (Box::new(device) as Box<dyn Device<Poller = AnyEngine>>, Box::new(move || Ok(hand.engine())) as _)
    };
    let mut guest = Guest::with_threads(vec![thread(first, &hands[0]), thread(second, &hands[1])]);
    guest.start(ALL, 64);
    let read = |guest: &mut Guest<AnyEngine>, queue: usize| {
        guest.add(queue, &[&header(READ, 0)], &[512, 1]);
        guest.kick(queue);
    };
    hands[0].hold();
    read(&mut guest, 0);
    guest.wait_until("the first thread has a request", |_| hands[0].asked() == 1);
    for _ in 0..3 {
        read(&mut guest, 1);
        guest.rings[1].wait_used();
    }
    assert_eq!((guest.rings[0].used_index(), hands[1].asked()), (0, 3), "served by the other thread");
    hands[0].let_go();
    guest.rings[0].wait_used();
    for round in 0..3 {
        // Both threads stop, keep the positions of their queues and continue.
        guest.function.quiesce();
        let state = guest.function.save().unwrap();
        if round == 1 {
            guest.function.load(&state).unwrap();
        }
        (0..3).for_each(|queue| read(&mut guest, queue));
        assert_eq!(guest.function.save().unwrap(), state);
        guest.function.go();
        for queue in 0..3 {
            guest.rings[queue].wait_used();
        }
    }
    let counted: Vec<u64> = guest.function().counters().iter().map(|thread| thread.requests.now()).collect();
    assert_eq!(counted, [1 + 2 * 3, 3 + 3], "each counts its own queues");
    guest.function().tell(Message::DiskSize { sectors: 4096 }).unwrap();
    guest.start(ALL, 64);
    (0..3).for_each(|queue| {
        read(&mut guest, queue);
        guest.rings[queue].wait_used();
    });
}

fn limits(iops: u64) -> DiskLimits {
    DiskLimits { iops: std::num::NonZeroU64::new(iops), bps: None }
}

fn limited(queues: u16, iops: u64) -> (Guest<AnyEngine>, Hand) {
    let hand = Hand::new(BYTES);
    let engine = hand.clone();
    let disk = Disk { queues: NonZeroU16::new(queues).unwrap(), ..disk() };
    let block = Block::new("blk0", disk).with_limits(limits(iops));
    let mut guest = Guest::new(Box::new(block), Box::new(move || Ok(engine.engine())));
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    (guest, hand)
}

#[test]
fn requests_beyond_a_limit_wait_in_their_ring_until_it_is_lifted() {
    let begin = Instant::now();
    let (mut guest, hand) = limited(1, 10);
    let head = header(READ, 0);
    (0..60).for_each(|_| drop(guest.add(0, &[&head], &[512, 1])));
    guest.kick(0);
    for _ in 0..3 {
        guest.rings[0].wait_used();
    }
    // Counted before the time is taken: a slow host makes the bound larger, never the count.
    let asked = hand.asked() as u128;
    let most = begin.elapsed().as_millis() / 100 + 2;
    assert!(asked <= most, "{asked} were begun, and {most} are due");
    guest.wait_until("a request waits", |guest| guest.counters().throttled.now() >= 1);
    guest.handle().tell(Message::DiskLimits { limits: DiskLimits::default() }).unwrap();
    for _ in 3..60 {
        guest.rings[0].wait_used();
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn everything_that_works_on_the_disk_counts_as_an_operation_and_nothing_else_does() {
    let begin = Instant::now();
    let (mut guest, _) = limited(1, 20);
    for _ in 0..30 {
        guest.request(0, &[&header(GET_ID, 0)], &[20, 1]);
        assert_eq!(read(&mut guest, SECTORS, 512).0, IO_ERROR);
    }
    assert_eq!(guest.counters().throttled.now(), 0);
    for _ in 0..2 {
        assert_eq!(send(&mut guest, WRITE, 5, &[1; 512]), OK);
        assert_eq!(send(&mut guest, FLUSH, 0, &[]), OK);
        assert_eq!(send(&mut guest, ZEROES, 0, &range(0, 8, 0)), OK);
        assert_eq!(send(&mut guest, DISCARD, 0, &[range(8, 8, 0), range(32, 8, 0)].concat()), OK);
    }
    // Eight are due in 400 ms, and a tenth of a second comes at once.
    assert!(begin.elapsed() >= Duration::from_millis(250), "{:?}", begin.elapsed());
}

#[test]
fn a_limited_disk_serves_its_queues_in_turn() {
    let (mut guest, _) = limited(3, 40);
    let head = header(READ, 0);
    for queue in [0, 2] {
        (0..60).for_each(|_| drop(guest.add(queue, &[&head], &[512, 1])));
    }
    guest.add(1, &[&head], &[512, 1]);
    (0..3).for_each(|queue| guest.kick(queue));
    guest.rings[1].wait_used();
    guest.rings[2].wait_used();
    let done = [0, 2].map(|queue: usize| guest.rings[queue].used_index());
    assert!(done.iter().all(|done| *done < 60), "{done:?}");
    guest.handle().tell(Message::DiskLimits { limits: DiskLimits::default() }).unwrap();
    guest.wait_until("all", |guest| [0, 2].iter().all(|queue| guest.rings[*queue].used_index() == 60));
}

#[test]
fn a_limited_disk_stops_and_begins_again_with_what_waits() {
    let (mut guest, hand) = limited(1, 1);
    let head = header(READ, 0);
    (0..20).for_each(|_| drop(guest.add(0, &[&head], &[512, 1])));
    guest.kick(0);
    guest.rings[0].wait_used();
    let begin = Instant::now();
    guest.function().quiesce();
    assert!(begin.elapsed() < Duration::from_secs(10), "it waits for nothing that waits");
    let asked = hand.asked();
    // Told while it rests, and heard when it goes on.
    guest.handle().tell(Message::DiskLimits { limits: DiskLimits::default() }).unwrap();
    assert_eq!(hand.asked(), asked);
    guest.function().go();
    for _ in 1..20 {
        guest.rings[0].wait_used();
    }
}
