//! A host without room, for disks whose requests wait for it.

use super::*;
use crate::testing::{FailureLog, RawDescriptor};

/// A started driver at a disk whose requests wait for room, and the log of when they do.
fn waiting(queues: u16, hand: &Hand) -> (Guest<AnyEngine>, Arc<FailureLog>) {
    let log = Arc::<FailureLog>::default();
    let mut guest = guest_with(queues, hand, &log);
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    (guest, log)
}

fn block(queues: u16, log: &Arc<FailureLog>) -> Block {
    let disk = Disk { queues: NonZeroU16::new(queues).unwrap(), ..disk() };
    Block::new("vda", disk).waiting_when_full(log.clone())
}

fn guest_with(queues: u16, hand: &Hand, log: &Arc<FailureLog>) -> Guest<AnyEngine> {
    let engine = hand.clone();
    Guest::new(Box::new(block(queues, log)), Box::new(move || Ok(engine.engine())))
}

/// A write, a zeroing of two ranges and a flush, at 100 times `n` sectors; where their statuses come.
fn three(guest: &mut Guest<AnyEngine>, queue: usize, n: u64) -> Vec<u64> {
    let write = guest.add(queue, &[&header(WRITE, 100 * n), &[0x5a; 1024]], &[1]).1;
    let ranges = [range(100 * n + 8, 8, 0), range(100 * n + 32, 8, 1)].concat();
    let zeroes = guest.add(queue, &[&header(ZEROES, 0), &ranges], &[1]).1;
    let flush = guest.add(queue, &[&header(FLUSH, 0)], &[1]).1;
    guest.kick(queue);
    [write, zeroes, flush].concat()
}

/// Waits until `queue` has answered `count` requests, and asserts that each of `statuses` is a success.
fn answered(guest: &mut Guest<AnyEngine>, queue: usize, count: usize, statuses: &[u64]) {
    for _ in 0..count {
        guest.rings[queue].wait_used();
    }
    assert!(statuses.iter().all(|at| guest.bytes(*at, 1) == [OK]), "all went well");
}

/// What [`three`] leaves at `n`.
fn is_done(hand: &Hand, n: usize) -> bool {
    let at = |sector: usize, len: usize| hand.data((100 * n + sector) * 512, len);
    at(0, 1024) == [0x5a; 1024] && at(8, 4096) == [0; 4096] && at(32, 4096) == [0; 4096]
}

fn wait_until_full(guest: &mut Guest<AnyEngine>, log: &FailureLog, times: usize) {
    guest.wait_until("it is said that the host is full", |_| log.full().len() == times);
}

#[test]
fn requests_without_room_wait_and_are_done_when_the_disk_goes_on() {
    let hand = Hand::new(BYTES);
    let (mut guest, log) = waiting(1, &hand);
    hand.fail(Some(ErrorKind::StorageFull));
    let mut statuses = three(&mut guest, 0, 0);
    wait_until_full(&mut guest, &log, 1);
    // Nothing more begins, so that what waits stays bounded.
    let begun = hand.asked();
    (1..7).for_each(|n| statuses.extend(three(&mut guest, 0, n)));
    guest.function().quiesce();
    assert_eq!((guest.rings[0].used_index(), log.full().len(), hand.asked()), (0, 1, begun));
    // In vain: there is no room yet.
    guest.function().go();
    wait_until_full(&mut guest, &log, 2);
    guest.function().quiesce();
    assert_eq!(guest.rings[0].used_index(), 0);
    hand.fail(None);
    guest.function().go();
    answered(&mut guest, 0, 21, &statuses);
    assert!((0..7).all(|n| is_done(&hand, n)));
    let (disk, wanted) = &log.full()[0];
    assert!(disk == "vda" && [0, 1024, 4096].contains(wanted), "how much one of them wanted");
    assert_eq!((guest.counters().errors.now(), guest.status()), (0, 0xf));
}

#[test]
fn requests_that_wait_go_with_a_saved_machine() {
    let hand = Hand::new(BYTES);
    let (mut guest, log) = waiting(2, &hand);
    hand.fail(Some(ErrorKind::QuotaExceeded));
    let first = three(&mut guest, 0, 1);
    let second = three(&mut guest, 1, 2);
    wait_until_full(&mut guest, &log, 1);
    guest.function().quiesce();
    let state = guest.function().save().unwrap();
    assert_eq!(guest.function().save().unwrap(), state);
    assert_eq!(guest.rings[0].used_index() + guest.rings[1].used_index(), 0);
    hand.fail(None);
    let engine = hand.clone();
    let mut guest = guest.moved(Box::new(block(2, &log)), Box::new(move || Ok(engine.engine())));
    answered(&mut guest, 0, 3, &first);
    answered(&mut guest, 1, 3, &second);
    assert!(is_done(&hand, 1) && is_done(&hand, 2));
}

#[test]
fn requests_of_all_threads_of_a_disk_wait() {
    let (hands, log) = ([(); 2].map(|()| Hand::new(BYTES)), Arc::<FailureLog>::default());
    let first = block(2, &log);
    let second = first.for_another_thread();
    let thread = |device: Block, hand: &Hand| {
        let hand = hand.clone();
        (Box::new(device) as Box<dyn Device<Poller = AnyEngine>>, Box::new(move || Ok(hand.engine())) as _)
    };
    let mut guest = Guest::with_threads(vec![thread(first, &hands[0]), thread(second, &hands[1])]);
    guest.start(ALL, 64);
    hands.iter().for_each(|hand| hand.fail(Some(ErrorKind::StorageFull)));
    let statuses = [three(&mut guest, 0, 0), three(&mut guest, 1, 1)];
    wait_until_full(&mut guest, &log, 2);
    guest.function().quiesce();
    // As the state of all threads, whichever saves and loads it.
    let state = guest.function().save().unwrap();
    guest.function().load(&state).unwrap();
    assert_eq!(guest.function().save().unwrap(), state);
    hands.iter().for_each(|hand| hand.fail(None));
    guest.function().go();
    for (queue, statuses) in statuses.iter().enumerate() {
        answered(&mut guest, queue, 3, statuses);
        assert!(is_done(&hands[queue], queue));
    }
}

#[test]
fn a_driver_that_resets_a_full_disk_starts_anew() {
    let hand = Hand::new(BYTES);
    let (mut guest, log) = waiting(1, &hand);
    hand.fail(Some(ErrorKind::StorageFull));
    three(&mut guest, 0, 0);
    wait_until_full(&mut guest, &log, 1);
    guest.reset();
    hand.fail(None);
    guest.start(ALL & !FEATURE_EVENT_IDX, 64);
    hand.log();
    assert_eq!(send(&mut guest, WRITE, 700, &[1; 512]), OK);
    assert_eq!(hand.asked(), 1, "what its driver gave up is not done");
    // A machine ends with what waits.
    hand.fail(Some(ErrorKind::StorageFull));
    three(&mut guest, 0, 0);
    wait_until_full(&mut guest, &log, 2);
}

#[test]
fn descriptors_that_a_guest_changed_meanwhile_break_their_queue_alone() {
    let hand = Hand::new(BYTES);
    let (mut guest, log) = waiting(2, &hand);
    hand.fail(Some(ErrorKind::StorageFull));
    let (head, _) = guest.add(0, &[&header(WRITE, 0), &[1; 512]], &[1]);
    guest.kick(0);
    wait_until_full(&mut guest, &log, 1);
    guest.function().quiesce();
    guest.rings[0].set_descriptor(head, RawDescriptor { address: u64::MAX, len: 512, flags: 0, next: 0 });
    hand.fail(None);
    guest.function().go();
    guest.wait_until("the fault is seen", |guest| guest.status() & 64 != 0);
    the_other_queue_goes_on_and_a_reset_mends(&mut guest);
}

#[test]
fn a_damaged_list_of_what_waits_is_refused() {
    let log = Arc::<FailureLog>::default();
    let state = block(1, &log).save().unwrap();
    for (queue, head) in [(1, 0), (0, 512), (65535, 65535)] {
        let mut wrong = state.clone();
        wrong.data["stalled"] = serde_json::json!([{ "queue": queue, "head": head }]);
        let error = block(1, &log).load(&wrong).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
    let mut long = state.clone();
    long.data["stalled"] = vec![serde_json::json!({ "queue": 0, "head": 0 }); 513].into();
    assert!(block(1, &log).load(&long).is_err());
    assert_eq!(state.data.get("stalled"), None, "older programs read the state of a disk with room");
}

#[test]
fn a_discard_or_another_error_waits_for_nothing() {
    let hand = Hand::new(BYTES);
    let (mut guest, log) = waiting(1, &hand);
    hand.fail(Some(ErrorKind::StorageFull));
    assert_eq!(send(&mut guest, DISCARD, 0, &range(0, 8, 0)), IO_ERROR);
    hand.fail(Some(ErrorKind::Other));
    assert_eq!(send(&mut guest, WRITE, 0, &[0; 512]), IO_ERROR);
    assert!(log.full().is_empty());
}
