//! Whatever a driver writes: a request that is taken lies on the disk and is covered by its chain.

use proptest::prelude::*;

use super::super::config::{MOST_DISCARD, MOST_RANGES, MOST_ZEROES};
use super::super::request::{Limits, Request, Status};
use super::*;
use crate::queue::{Queue, QueueState};
use crate::shared_registers::SharedRegisters;
use crate::testing::{DriverRing, memory};
use vm_memory::{Bytes, GuestAddress};

/// A header of which each part may be odd.
fn headers() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0u32..16, any::<u32>()];
    let sector = prop_oneof![0..SECTORS + 4, any::<u64>()];
    (kind, sector).prop_map(|(kind, sector)| header(kind, sector))
}

fn ranges() -> impl Strategy<Value = Vec<u8>> {
    let one = (prop_oneof![0..SECTORS + 4, any::<u64>()], prop_oneof![0u32..64, any::<u32>()], 0u32..4);
    prop::collection::vec(one, 0..20).prop_map(|all| {
        all.into_iter().flat_map(|(sector, count, flags)| range(sector, count, flags)).collect()
    })
}

proptest! {
    #[test]
    fn requests_that_are_taken_lie_on_the_disk(
        head in headers(),
        data in prop_oneof![ranges(), prop::collection::vec(any::<u8>(), 0..2048)],
        writable in prop::collection::vec(1u32..3000, 1..5),
        cuts in prop::collection::vec(1usize..600, 1..6),
        read_only: bool,
        features: u64,
        keeps_space: bool,
    ) {
        let (memory, _) = memory(1 << 20);
        let mut ring = DriverRing::new(&memory, 0x1000, 64, 64);
        let bytes = [head, data].concat();
        memory.write_slice(&bytes, GuestAddress(0x10_000)).unwrap();
        let mut pieces = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let len = cut.min(bytes.len() - at);
            pieces.push((0x10_000 + at as u64, len as u32, false));
            at += len;
        }
        pieces.extend(writable.iter().map(|len| (0x20_000, *len, true)));
        ring.add(&pieces);
        let interrupts = Arc::new(SharedRegisters::new(Vec::new(), 1));
        let mut queue =
            Queue::new(0, ring.config(), QueueState::default(), 0, &memory, &interrupts, &Arc::default()).unwrap();
        let chain = queue.pop().unwrap().unwrap();
        let limits = Limits { sectors: SECTORS, read_only, features, keeps_space };
        let mut list = vec![(Operation::Flush, Extent { offset: 1, len: 1 })];
        let on_disk = |extent: Extent| {
            extent.offset.checked_add(extent.len).is_some_and(|end| end <= SECTORS * 512)
                && extent.offset.is_multiple_of(512) && extent.len.is_multiple_of(512)
        };
        match Request::parse(&chain, &memory, &limits, &mut list) {
            Ok(Request::Transfer(Operation::Read, extent)) => {
                prop_assert!(on_disk(extent));
                prop_assert_eq!(extent.len + 1, chain.writable_len());
            }
            Ok(Request::Transfer(operation, extent)) => {
                prop_assert!(on_disk(extent) && !read_only);
                prop_assert_eq!(operation, Operation::Write);
                prop_assert_eq!(extent.len + 16, chain.readable_len());
            }
            Ok(Request::Ranges) => {
                prop_assert!(!read_only && list.len() <= MOST_RANGES as usize);
                prop_assert!(keeps_space || !list.is_empty());
                for (operation, extent) in &list {
                    prop_assert!(on_disk(*extent));
                    let (most, bit) = match operation {
                        Operation::Discard => (MOST_DISCARD, feature::DISCARD),
                        Operation::WriteZeroes { unmap } if !(keeps_space && *unmap) => (MOST_ZEROES, feature::WRITE_ZEROES),
                        other => panic!("{other:?}"),
                    };
                    prop_assert!(!keeps_space || *operation != Operation::Discard);
                    prop_assert!(extent.len <= u64::from(most) * 512 && features & bit != 0);
                }
            }
            Ok(Request::Flush | Request::GetId) => {}
            Err(status) => prop_assert!(status != Status::Ok),
        }
        drop(chain);
    }
}
