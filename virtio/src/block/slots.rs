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

/// All of them. Tags are used again last in, first out: a disk at depth 1 warms one slot only.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<Tag>,
}

impl Slots {
    /// Has room for `count` requests; nothing is in flight.
    pub(super) fn resize(&mut self, count: usize) {
        let count = count.min(usize::from(Tag::MAX));
        self.slots.clear();
        self.slots.resize_with(count, Slot::default);
        self.free.clear();
        self.free.extend((0..Tag::MAX).take(count).rev());
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
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

    /// Ends a request.
    pub(super) fn release(&mut self, tag: Tag) -> Option<(u16, Chain)> {
        let slot = self.get(tag)?;
        let (queue, chain) = (slot.queue, slot.chain.take()?);
        slot.operation = None;
        slot.ranges.clear();
        slot.stable = false;
        self.free.push(tag);
        Some((queue, chain))
    }
}
