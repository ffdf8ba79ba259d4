//! What a driver may do with a ring, and what it may not.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::{DriverRing, INDIRECT, NEXT, RawDescriptor, WRITE, memory};

const SIZE: u16 = 16;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x8000;
const BUFFER: u64 = 0x10000;
const MEMORY: usize = 1 << 20;

fn pair(features: u64) -> (DriverRing, Queue) {
    let (memory, _) = memory(MEMORY);
    let ring = DriverRing::new(&memory, RING, SIZE, 256);
    let interrupts = Arc::new(SharedRegisters::new(Vec::new(), 1));
    let queue =
        Queue::new(0, ring.config(), QueueState::default(), features, &memory, &interrupts, &Arc::default())
            .unwrap();
    (ring, queue)
}

fn both() -> (DriverRing, Queue) {
    pair(FEATURE_INDIRECT | FEATURE_EVENT_IDX)
}

fn pop_error(queue: &mut Queue) -> QueueError {
    queue.pop().map(|chain| chain.map(|chain| chain.head())).unwrap_err().error
}

/// The queue has asked for an interrupt since the last look.
fn interrupted(queue: &Queue) -> bool {
    queue.shared.take_isr() != 0
}

#[test]
fn a_chain_comes_back_with_what_was_written() {
    let (mut ring, mut queue) = both();
    queue.memory().write_slice(b"ping", GuestAddress(BUFFER)).unwrap();
    let head = ring.add(&[
        (BUFFER, 2, false),
        (BUFFER + 2, 2, false),
        (BUFFER + 64, 3, true),
        (BUFFER + 80, 9, true),
    ]);
    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (head, 4, 12));
    let memory = queue.memory().clone();
    let mut text = [0; 8];
    assert_eq!(chain.reader(&memory).read(&mut text), 4);
    assert_eq!(&text[..4], b"ping");
    assert_eq!(chain.writer(&memory).write(b"pong!"), 5);
    queue.complete(chain).unwrap();
    assert_eq!(ring.wait_used(), crate::testing::Used { head, len: 5 });
    let mut out = [0; 3];
    memory.read_slice(&mut out, GuestAddress(BUFFER + 64)).unwrap();
    assert_eq!(&out, b"pon");
    assert_eq!(queue.pop().unwrap().map(|chain| chain.head()), None);
}

#[test]
fn indirect_tables_work_alone_and_behind_direct_descriptors() {
    let (mut ring, mut queue) = both();
    let entry = |address, flags, next| RawDescriptor { address, len: 8, flags, next };
    ring.write_descriptor(TABLE, entry(BUFFER, NEXT, 2));
    ring.write_descriptor(TABLE + 32, entry(BUFFER + 8, WRITE, 0));
    ring.set_descriptor(3, RawDescriptor { address: TABLE, len: 48, flags: INDIRECT, next: 0 });
    ring.make_available(3);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 8));
    queue.complete(chain).unwrap();
    ring.set_descriptor(4, entry(BUFFER + 32, NEXT, 3));
    ring.make_available(4);
    assert_eq!(queue.pop().unwrap().unwrap().readable_len(), 16);
}

#[test]
fn bad_chains_are_named() {
    let at = |address, len, flags, next| RawDescriptor { address, len, flags, next };
    let end = MEMORY as u64;
    let cases: &[(&[RawDescriptor], QueueError)] = &[
        (&[at(BUFFER, 8, NEXT, 0)], QueueError::TooLong(SIZE)),
        (&[at(BUFFER, 8, NEXT, 1), at(BUFFER, 8, NEXT, 0)], QueueError::TooLong(SIZE)),
        (&[at(BUFFER, 0, NEXT, 0)], QueueError::TooLong(SIZE)),
        (&[at(BUFFER, 8, NEXT, SIZE)], QueueError::BadIndex(SIZE)),
        (&[at(end, 1, 0, 0)], QueueError::Memory { address: end, len: 1 }),
        (&[at(end - 1, 2, WRITE, 0)], QueueError::Memory { address: end - 1, len: 2 }),
        (&[at(u64::MAX, 2, 0, 0)], QueueError::Memory { address: u64::MAX, len: 2 }),
        (&[at(0, u32::MAX, 0, 0)], QueueError::Memory { address: 0, len: u32::MAX }),
        (&[at(BUFFER, 8, WRITE | NEXT, 1), at(BUFFER, 8, 0, 0)], QueueError::Order),
        (&[at(TABLE, 0, INDIRECT, 0)], QueueError::IndirectLength(0)),
        (&[at(TABLE, 24, INDIRECT, 0)], QueueError::IndirectLength(24)),
        (&[at(TABLE, 16, INDIRECT | NEXT, 1)], QueueError::BadIndirect),
        (&[at(end - 16, 32, INDIRECT, 0)], QueueError::Memory { address: end - 16, len: 32 }),
        (&[at(0, 16 * 1025, INDIRECT, 0)], QueueError::TooLong(MOST_SEGMENTS)),
        // The table is the ring itself: an indirect descriptor in an indirect table.
        (&[at(RING, 16, INDIRECT, 0)], QueueError::BadIndirect),
    ];
    for (descriptors, error) in cases {
        let (mut ring, mut queue) = both();
        for (index, descriptor) in (0..).zip(*descriptors) {
            ring.set_descriptor(index, *descriptor);
        }
        ring.make_available(0);
        assert_eq!(pop_error(&mut queue), *error, "{descriptors:?}");
    }
}

#[test]
fn indirect_without_the_feature_is_an_error() {
    let (mut ring, mut queue) = pair(0);
    ring.set_descriptor(0, RawDescriptor { address: TABLE, len: 16, flags: INDIRECT, next: 0 });
    ring.make_available(0);
    assert_eq!(pop_error(&mut queue), QueueError::BadIndirect);
}

#[test]
fn heads_and_indices_out_of_range_are_errors() {
    let (mut ring, mut queue) = both();
    ring.make_available(SIZE);
    assert_eq!(pop_error(&mut queue), QueueError::BadIndex(SIZE));
    let (mut ring, mut queue) = both();
    ring.set_available_index(SIZE + 1);
    assert_eq!(pop_error(&mut queue), QueueError::IndexJump);
    let (mut ring, mut queue) = both();
    ring.set_available_index(u16::MAX);
    assert_eq!(pop_error(&mut queue), QueueError::IndexJump);
}

#[test]
fn a_head_that_is_made_available_for_ever_is_an_error() {
    let (mut ring, mut queue) = both();
    ring.add(&[(BUFFER, 8, false)]);
    let mut held = Vec::new();
    for _ in 0..SIZE {
        held.push(queue.pop().unwrap().unwrap());
        ring.make_available(0);
    }
    assert_eq!(pop_error(&mut queue), QueueError::TooManyInFlight);
}

#[test]
fn rings_that_are_not_whole_in_memory_are_refused() {
    let (memory, _) = memory(MEMORY);
    let interrupts = Arc::new(SharedRegisters::new(Vec::new(), 1));
    let good = *DriverRing::new(&memory, RING, SIZE, 256).config();
    let make = |config| {
        Queue::new(0, &config, QueueState::default(), 0, &memory, &interrupts, &Arc::default()).map(|_| ())
    };
    assert!(make(good).is_ok());
    for size in [0, 3, 512, 65535] {
        let fault = make(QueueConfig { size, ..good }).unwrap_err();
        assert_eq!(fault.error, QueueError::Size(size));
    }
    let end = MEMORY as u64;
    for address in [end - 16 * 15, end, u64::MAX - 15, 0x1001, 0x1008] {
        assert!(make(QueueConfig { descriptors: address, ..good }).is_err(), "{address:#x}");
    }
    for address in [end - 36, end, u64::MAX - 1, 0x3001] {
        assert!(make(QueueConfig { driver: address, ..good }).is_err(), "{address:#x}");
    }
    for address in [end - 132, end, u64::MAX - 3, 0x3002] {
        assert!(make(QueueConfig { device: address, ..good }).is_err(), "{address:#x}");
    }
    // The last place where it fits.
    assert!(make(QueueConfig { device: end - 136, ..good }).is_ok());
}

#[test]
fn a_queue_goes_on_from_its_state() {
    let (mut ring, mut queue) = both();
    for _ in 0..3 {
        ring.add(&[(BUFFER, 8, false)]);
    }
    let first = queue.pop().unwrap().unwrap();
    queue.complete(first).unwrap();
    let second = queue.pop().unwrap().unwrap();
    let head = second.head();
    queue.put_back(second);
    let state = queue.state();
    assert_eq!(state, QueueState { next_avail: 1, next_used: 1 });
    let memory = queue.memory().clone();
    let interrupts = queue.shared.clone();
    let mut again =
        Queue::new(0, ring.config(), state, FEATURE_EVENT_IDX, &memory, &interrupts, &Arc::default())
            .unwrap();
    assert_eq!(again.pop().unwrap().unwrap().head(), head);
}

#[test]
fn chains_completed_together_appear_at_once_and_in_order() {
    let (mut ring, mut queue) = both();
    let heads: Vec<u16> = (0..4).map(|_| ring.add(&[(BUFFER, 8, true)])).collect();
    let memory = queue.memory().clone();
    let mut chains = Vec::new();
    while let Some(mut chain) = queue.pop().unwrap() {
        chain.writer(&memory).advance(u64::from(chain_len(chains.len())));
        chains.push(chain);
    }
    queue.complete_together(chains).unwrap();
    assert_eq!(ring.used_index(), 4);
    for (n, head) in heads.into_iter().enumerate() {
        assert_eq!(ring.wait_used(), crate::testing::Used { head, len: chain_len(n) });
    }
    queue.complete_together(Vec::new()).unwrap();
    assert_eq!(ring.used_index(), 4);
}

fn chain_len(n: usize) -> u32 {
    n as u32 + 1
}

#[test]
fn without_event_idx_the_flags_decide_about_interrupts() {
    let (mut ring, mut queue) = pair(0);
    for (flags, expected) in [(1, false), (0, true)] {
        ring.set_available_flags(flags);
        ring.add(&[(BUFFER, 8, false)]);
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain).unwrap();
        queue.notify().unwrap();
        assert_eq!(interrupted(&queue), expected);
    }
    queue.notify().unwrap();
    assert!(!interrupted(&queue), "nothing new, no interrupt");
}

#[test]
fn kicks_can_be_declined_and_asked_for_again() {
    for features in [0, FEATURE_EVENT_IDX] {
        let (mut ring, mut queue) = pair(features);
        queue.disable_kicks().unwrap();
        assert_eq!(ring.used_flags(), u16::from(features == 0));
        ring.add(&[(BUFFER, 8, false)]);
        assert!(queue.enable_kicks().unwrap(), "something came meanwhile");
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain).unwrap();
        assert!(!queue.enable_kicks().unwrap());
        assert_eq!(ring.used_flags(), 0);
        if features != 0 {
            assert_eq!(ring.avail_event(), 1);
        }
    }
}

proptest! {
    /// §2.7.7.2: an interrupt exactly if the used index passes used_event, over every wrap of the indices.
    #[test]
    fn interrupts_follow_used_event(start in any::<u16>(), batch in 1..=SIZE, event in any::<u16>()) {
        let (memory, _) = memory(MEMORY);
        let mut ring = DriverRing::new(&memory, RING, SIZE, 256);
        let interrupts = Arc::new(SharedRegisters::new(Vec::new(), 1));
        let state = QueueState { next_avail: start, next_used: start };
        let mut queue = Queue::new(0, ring.config(), state, FEATURE_EVENT_IDX, &memory, &interrupts, &Arc::default()).unwrap();
        ring.set_available_index(start);
        for _ in 0..batch {
            ring.add(&[(BUFFER, 8, false)]);
            let chain = queue.pop().unwrap().unwrap();
            queue.complete(chain).unwrap();
        }
        ring.set_used_event(event);
        queue.notify().unwrap();
        let passed = (0..batch).any(|n| start.wrapping_add(n) == event);
        prop_assert_eq!(interrupted(&queue), passed);
    }

    /// Whatever lies in the rings: an answer, in bounded time, with segments inside memory.
    #[test]
    fn any_ring_gets_an_answer(bytes in proptest::collection::vec(any::<u8>(), 16 * 16 + 64), index in any::<u16>(), features in any::<bool>()) {
        let (mut ring, mut queue) = pair(if features { FEATURE_INDIRECT | FEATURE_EVENT_IDX } else { 0 });
        queue.memory().write_slice(&bytes, GuestAddress(RING)).unwrap();
        ring.set_available_index(index % (2 * SIZE));
        for _ in 0..4 * SIZE {
            match queue.pop() {
                Ok(Some(chain)) => {
                    for segment in chain.readable().iter().chain(chain.writable()) {
                        prop_assert!(segment.address.0 + u64::from(segment.len) <= MEMORY as u64);
                    }
                    queue.complete(chain).unwrap();
                }
                Ok(None) => break,
                Err(_) => break,
            }
        }
    }

    /// Cutting segments keeps every byte once.
    #[test]
    fn cut_gives_the_bytes_asked_for(lens in proptest::collection::vec(0u32..50, 0..8), skip in 0u64..300, take in 0u64..300) {
        let segments: Vec<Segment> =
            lens.iter().zip(0u64..).map(|(len, n)| Segment { address: GuestAddress(n * 100), len: *len }).collect();
        let flat = |segments: &[Segment]| -> Vec<u64> {
            segments.iter().flat_map(|s| s.address.0..s.address.0 + u64::from(s.len)).collect()
        };
        let mut out = Vec::new();
        crate::memory::cut(&segments, skip, take, &mut out);
        let expected: Vec<u64> = flat(&segments).into_iter().skip(skip as usize).take(take as usize).collect();
        prop_assert_eq!(flat(&out), expected);
    }
}
