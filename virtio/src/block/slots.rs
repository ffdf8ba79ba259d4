//! Requests in flight: a table by tag, made once.

use std::time::Instant;

use super::engine::{Extent, Operation, Tag};
use crate::queue::Chain;

/// A request between its submission and its end.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) queue: u16,
    /// `None` while the slot is free.
    pub(super) chain: Option<Chain>,
    /// What is in flight.
    pub(super) operation: Option<(Operation, Extent)>,
    /// What comes after it, the next one last.
    pub(super) ranges: Vec<(Operation, Extent)>,
    /// A flush comes at the end: the driver wants no cache.
    pub(super) stable: bool,
    /// What it moves, and how many bytes.
    pub(super) moves: Moves,
    pub(super) bytes: u64,
    /// When it came, and whether it was the only one.
    pub(super) begun: Option<(Instant, bool)>,
}

impl Slot {
    /// What comes next, if anything: the next range, then the flush.
    pub(super) fn next(&mut self) -> Option<(Operation, Extent)> {
        while let Some((operation, extent)) = self.ranges.pop() {
            // An empty range asks for nothing.
            if extent.len > 0 {
                return Some((operation, extent));
            }
        }
        std::mem::take(&mut self.stable).then_some((Operation::Flush, Extent::default()))
    }
}

/// Where a request's data go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moves {
    /// There are none, or none that pass through the guest's memory.
    #[default]
    Nothing,
    /// Into the guest.
    In,
    /// Out of it.
    Out,
}

/// All of them. Tags are used again last in, first out: a disk at depth 1 warms one slot only.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<Tag>,
    bytes: u64,
}

impl Slots {
    /// Has room for `count` requests; nothing is in flight.
    pub(super) fn resize(&mut self, count: usize) {
        let count = count.min(usize::from(Tag::MAX));
        self.bytes = 0;
        self.slots.clear();
        self.slots.resize_with(count, Slot::default);
        self.free.clear();
        self.free.extend((0..Tag::MAX).take(count).rev());
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes that requests in flight move.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The request in flight as `tag` works on so many bytes.
    pub(super) fn works_on(&mut self, tag: Tag, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.bytes = bytes;
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    /// A free slot, now taken.
    pub(super) fn take(&mut self) -> Option<(Tag, &mut Slot)> {
        let tag = self.free.pop()?;
        Some((tag, self.slots.get_mut(usize::from(tag))?))
    }

    /// The slot of a request in flight.
    pub(super) fn get(&mut self, tag: Tag) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(tag)).filter(|slot| slot.chain.is_some())
    }

    /// Ends a request: its chain, and what it moved if all went well.
    pub(super) fn release(&mut self, tag: Tag) -> Option<(Chain, Moves, u64)> {
        let slot = self.get(tag)?;
        let chain = slot.chain.take()?;
        let moves = std::mem::take(&mut slot.moves);
        let bytes = std::mem::take(&mut slot.bytes);
        slot.operation = None;
        slot.ranges.clear();
        slot.stable = false;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.free.push(tag);
        Some((chain, moves, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_flight_are_those_of_the_requests_in_flight() {
        let mut slots = Slots::default();
        slots.resize(2);
        // Chains come from queues only; a slot without one is never released.
        let (first, _) = slots.take().unwrap();
        slots.works_on(first, 4096);
        assert_eq!((slots.bytes(), slots.in_flight()), (4096, 1));
        slots.resize(2);
        assert_eq!((slots.bytes(), slots.in_flight()), (0, 0));
    }
}
