//! Rings of bytes, and the budget that all rings of a network share.
//!
//! A ring has no memory until a byte comes, and gives it back when the last one has gone. Memory counts against the budget
//! by what is allocated, not by what is filled.

use std::fmt::{self, Debug, Formatter};
use std::mem;

use crate::shares::{GuestId, Holdings};

/// The smallest ring. More than half of the budget is handed out in these only.
const SMALL: usize = 16 << 10;
/// The first size of a ring while there is plenty.
const FIRST: usize = 64 << 10;
/// The largest ring.
pub(super) const LARGEST: usize = 4 << 20;
/// Sizes from [`SMALL`] to [`LARGEST`], each twice the one before.
const SIZES: usize = (LARGEST / SMALL).ilog2() as usize + 1;
/// Released memory that is kept for the next ring.
const MOST_HELD: usize = LARGEST;

/// A queue of bytes.
#[derive(Default)]
pub(super) struct Ring {
    /// A power of two, or nothing.
    bytes: Box<[u8]>,
    /// Where the first byte is.
    head: usize,
    len: usize,
}

impl Ring {
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    fn wrap(&self, at: usize) -> usize {
        if at >= self.bytes.len() { at - self.bytes.len() } else { at }
    }

    /// The free bytes that follow the last one, up to the end of the memory; [`Ring::commit`] says how many were filled.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let start = self.wrap(self.head + self.len);
        let end = self.bytes.len().min(start + self.room());
        self.bytes.get_mut(start..end).unwrap_or_default()
    }

    pub(super) fn commit(&mut self, filled: usize) {
        self.len += filled.min(self.room());
    }

    /// The first bytes, up to the end of the memory.
    pub(super) fn front(&self) -> &[u8] {
        let end = self.bytes.len().min(self.head + self.len);
        self.bytes.get(self.head..end).unwrap_or_default()
    }

    /// Drops the first bytes.
    pub(super) fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len);
        self.head = self.wrap(self.head + bytes);
        self.len -= bytes;
        if self.len == 0 {
            self.head = 0;
        }
    }

    /// Appends what fits and returns how much that was.
    pub(super) fn push(&mut self, mut from: &[u8]) -> usize {
        let mut pushed = 0;
        // Twice, where the free bytes lie at both ends.
        while !from.is_empty() && self.room() > 0 {
            let space = self.space();
            let count = space.len().min(from.len());
            let (now, later) = from.split_at(count);
            if let Some(to) = space.get_mut(..count) {
                to.copy_from_slice(now);
            }
            self.commit(count);
            pushed += count;
            from = later;
        }
        pushed
    }

    /// Copies bytes from `offset` on and returns how many there were.
    pub(super) fn copy(&self, offset: usize, into: &mut [u8]) -> usize {
        let count = into.len().min(self.len.saturating_sub(offset));
        let start = self.wrap(self.head + offset);
        let first = count.min(self.bytes.len() - start);
        let parts = [self.bytes.get(start..start + first), self.bytes.get(..count - first)];
        let mut into = into;
        for part in parts.into_iter().flatten() {
            let Some((to, rest)) = mem::take(&mut into).split_at_mut_checked(part.len()) else { break };
            to.copy_from_slice(part);
            into = rest;
        }
        count
    }
}

/// What users send is nobody's concern, and long.
impl Debug for Ring {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} of {})", self.len, self.bytes.len())
    }
}

/// The memory of all rings.
pub(super) struct Pool {
    limit: usize,
    /// Bytes in rings.
    used: usize,
    /// Those of each of several guests, and the one whose turn it is.
    each: Holdings,
    pub(super) guest: GuestId,
    /// Bytes in `free`.
    held: usize,
    /// Released memory, by size.
    free: [Vec<Box<[u8]>>; SIZES],
}

impl Debug for Pool {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {}, {} held)", self.used, self.limit, self.held)
    }
}

impl Pool {
    /// So many guests share it: each may have as much as is left for the others.
    pub(super) fn new(limit: usize, guests: u16) -> Self {
        let each = Holdings::new(guests);
        Pool { limit, used: 0, each, guest: GuestId::FIRST, held: 0, free: Default::default() }
    }

    /// Bytes in rings.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Bytes that rings of the guest may still take.
    pub(super) fn available(&self) -> usize {
        self.available_to(self.guest)
    }

    /// [`Pool::available`] of any guest.
    pub(super) fn available_to(&self, guest: GuestId) -> usize {
        let free = self.limit.saturating_sub(self.used);
        match self.each.own(guest) {
            None => free,
            // What it takes is no longer free: it may take half of the difference.
            Some(own) => free.saturating_sub(own) / 2,
        }
    }

    /// Gives `ring` its first memory, or twice of what it has. False: it is as large as rings get, or the budget is used up.
    pub(super) fn grow(&mut self, ring: &mut Ring) -> bool {
        let available = self.available();
        // Growth never takes the half from which new rings are served.
        let plenty = match self.each.own(self.guest) {
            None => (self.limit / 2).saturating_sub(self.used),
            Some(_) => available / 2,
        };
        let size = match ring.capacity() {
            0 if FIRST <= plenty => FIRST,
            0 => SMALL,
            LARGEST.. => return false,
            now if now > plenty && now >= SMALL => return false,
            now => now * 2,
        };
        if size - ring.capacity() > available {
            return false;
        }
        let mut grown = Ring { bytes: self.take(size), head: 0, len: ring.len };
        ring.copy(0, &mut grown.bytes);
        self.used += size;
        self.each.change(self.guest, size, 0);
        self.put(mem::replace(ring, grown));
        true
    }

    /// Takes the memory of `ring` back, with all that is in it.
    pub(super) fn release(&mut self, ring: &mut Ring) {
        self.put(mem::take(ring));
    }

    fn index(size: usize) -> usize {
        (size / SMALL).checked_ilog2().unwrap_or(0) as usize
    }

    fn take(&mut self, size: usize) -> Box<[u8]> {
        if let Some(bytes) = self.free.get_mut(Self::index(size)).and_then(Vec::pop) {
            self.held -= bytes.len();
            return bytes;
        }
        vec![0; size].into_boxed_slice()
    }

    fn put(&mut self, ring: Ring) {
        let size = ring.capacity();
        self.used -= size;
        self.each.change(self.guest, 0, size);
        if size == 0 || self.held + size > MOST_HELD {
            return;
        }
        if let Some(free) = self.free.get_mut(Self::index(size)) {
            self.held += size;
            free.push(ring.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn bytes(from: usize, count: usize) -> Vec<u8> {
        (from..from + count).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
    }

    #[test]
    fn ring_grows_with_its_bytes_in_order() {
        let mut pool = Pool::new(64 << 20, 1);
        let mut ring = Ring::default();
        assert_eq!(ring.push(b"none"), 0, "no memory yet");
        assert!(pool.grow(&mut ring));
        assert_eq!(ring.capacity(), FIRST);
        // The content wraps before it grows.
        ring.push(&bytes(0, FIRST));
        ring.consume(1000);
        assert_eq!(ring.push(&bytes(FIRST, 2000)), 1000);
        assert!(pool.grow(&mut ring));
        assert_eq!((ring.capacity(), ring.len(), pool.used()), (2 * FIRST, FIRST, 2 * FIRST));
        assert_eq!(ring.front(), &bytes(1000, FIRST)[..]);
        pool.release(&mut ring);
        assert_eq!((ring.capacity(), pool.used()), (0, 0));
    }

    #[test]
    fn budget_holds_and_leaves_half_for_small_rings() {
        let limit = 1 << 20;
        let mut pool = Pool::new(limit, 1);
        let mut large = Ring::default();
        while pool.grow(&mut large) {}
        assert_eq!(large.capacity(), limit / 2);
        let mut small = Vec::new();
        loop {
            let mut ring = Ring::default();
            if !pool.grow(&mut ring) {
                break;
            }
            assert_eq!(ring.capacity(), SMALL);
            small.push(ring);
        }
        assert_eq!((small.len(), pool.used(), pool.available()), (limit / 2 / SMALL, limit, 0));
        pool.release(&mut small[0]);
        assert_eq!(pool.available(), SMALL);
    }

    #[test]
    fn released_memory_is_used_again_and_bounded() {
        let mut pool = Pool::new(64 << 20, 1);
        let mut rings: Vec<Ring> = (0..100).map(|_| Ring::default()).collect();
        rings.iter_mut().for_each(|ring| assert!(pool.grow(ring)));
        rings.iter_mut().for_each(|ring| pool.release(ring));
        assert_eq!(pool.held, MOST_HELD);
        assert!(pool.grow(&mut rings[0]));
        assert_eq!((pool.held, pool.used()), (MOST_HELD - FIRST, FIRST));
    }

    proptest! {
        #[test]
        fn ring_is_a_queue(steps in prop::collection::vec((any::<bool>(), 0usize..40_000), 1..40)) {
            let mut pool = Pool::new(64 << 20, 1);
            let mut ring = Ring::default();
            pool.grow(&mut ring);
            let mut model: VecDeque<u8> = VecDeque::new();
            for (step, (add, count)) in steps.into_iter().enumerate() {
                if add {
                    let from = bytes(step * 1000, count);
                    let pushed = ring.push(&from);
                    prop_assert_eq!(pushed, count.min(FIRST - model.len()));
                    model.extend(&from[..pushed]);
                } else {
                    ring.consume(count);
                    model.drain(..count.min(model.len()));
                }
                let mut seen = vec![0; model.len() + 10];
                let offset = model.len() / 3;
                let copied = ring.copy(offset, &mut seen);
                prop_assert_eq!(ring.len(), model.len());
                prop_assert!(seen[..copied].iter().eq(model.iter().skip(offset)));
            }
        }
    }
}
