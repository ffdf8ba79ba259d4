//! Requests in flight: a table by tag, made once.

use std::time::Instant;

use super::config::PIECE;
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
    moves: Moves,
    bytes: u64,
    /// Bytes that it zeroes, which the host may have to write out.
    zeroes: u64,
    /// When it came, and whether it was the only one.
    pub(super) begun: Option<(Instant, bool)>,
}

impl Slot {
    pub(super) fn is_discard(&self) -> bool {
        matches!(self.operation, Some((Operation::Discard, _)))
    }

    /// What comes next, if anything: the next piece of a range, then the flush.
    pub(super) fn next(&mut self) -> Option<(Operation, Extent)> {
        while let Some((operation, extent)) = self.ranges.pop() {
            let len = extent.len.min(PIECE - extent.offset % PIECE);
            if len < extent.len {
                let rest = Extent { offset: extent.offset.saturating_add(len), len: extent.len - len };
                self.ranges.push((operation, rest));
            }
            // An empty range asks for nothing.
            if len > 0 {
                return Some((operation, Extent { len, ..extent }));
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
    moving: usize,
    bytes: u64,
    zeroes: u64,
}

impl Slots {
    /// Has room for `count` requests; nothing is in flight.
    pub(super) fn resize(&mut self, count: usize) {
        let count = count.min(usize::from(Tag::MAX));
        (self.moving, self.bytes, self.zeroes) = (0, 0, 0);
        self.slots.clear();
        self.slots.resize_with(count, Slot::default);
        self.free.clear();
        self.free.extend((0..Tag::MAX).take(count).rev());
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many of them move data.
    pub(super) fn moving(&self) -> usize {
        self.moving
    }

    /// Bytes that requests in flight move through the guest's memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that requests in flight zero.
    pub(super) fn zeroes(&self) -> u64 {
        self.zeroes
    }

    /// The request in flight as `tag` moves so many bytes.
    pub(super) fn moves(&mut self, tag: Tag, moves: Moves, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)).filter(|_| moves != Moves::Nothing) {
            (slot.moves, slot.bytes) = (moves, bytes);
            self.moving += 1;
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    /// The request in flight as `tag` zeroes so many bytes.
    pub(super) fn zeroes_out(&mut self, tag: Tag, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            slot.zeroes = bytes;
            self.zeroes = self.zeroes.saturating_add(bytes);
        }
    }

    /// Of the requests in flight, no discard goes on to its next range.
    pub(super) fn cut_discards(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.is_discard()) {
            slot.ranges.clear();
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
        let zeroes = std::mem::take(&mut slot.zeroes);
        slot.operation = None;
        slot.ranges.clear();
        slot.stable = false;
        self.moving = self.moving.saturating_sub(usize::from(moves != Moves::Nothing));
        self.bytes = self.bytes.saturating_sub(bytes);
        self.zeroes = self.zeroes.saturating_sub(zeroes);
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
        slots.moves(first, Moves::In, 4096);
        slots.zeroes_out(first, 512);
        assert_eq!((slots.bytes(), slots.moving(), slots.zeroes(), slots.in_flight()), (4096, 1, 512, 1));
        slots.resize(2);
        assert_eq!((slots.bytes(), slots.moving(), slots.zeroes(), slots.in_flight()), (0, 0, 0, 0));
    }

    #[test]
    fn large_ranges_are_taken_in_pieces_and_end_with_the_flush() {
        let at = |offset, len| (Operation::Discard, Extent { offset, len });
        let ranges = vec![at(7, 512), at(0, 0), at(PIECE - 512, 2 * PIECE)];
        let mut slot = Slot { ranges, stable: true, ..Slot::default() };
        let pieces: Vec<_> = std::iter::from_fn(|| slot.next()).collect();
        let flush = (Operation::Flush, Extent::default());
        let expected =
            [at(PIECE - 512, 512), at(PIECE, PIECE), at(2 * PIECE, PIECE - 512), at(7, 512), flush];
        assert_eq!(pieces, expected);
    }
}
