//! Sets of a disk's blocks, a bit each, of bounded size whatever the disk's.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio::block::Extent;

/// Least bytes of a block.
const BLOCK: u64 = 64 << 10;
/// Most blocks: a set takes 8 MiB at most.
const MOST_BLOCKS: u64 = 1 << 26;
/// Blocks of a word.
const WORD: u64 = 64;

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    /// Bytes of the disk.
    len: u64,
    /// Bytes of a block, a power of two.
    block: u64,
}

impl Blocks {
    fn of(len: u64) -> Self {
        let block = len.div_ceil(MOST_BLOCKS).checked_next_power_of_two().unwrap_or(1 << 63);
        Blocks { len, block: block.max(BLOCK) }
    }

    fn words(self) -> usize {
        // 2^20 at most.
        usize::try_from(self.len.div_ceil(self.block).div_ceil(WORD)).unwrap_or(0)
    }

    /// The words of the blocks that `extent` touches, and the bits of each.
    fn touched(self, extent: Extent) -> impl Iterator<Item = (usize, u64)> {
        let end = extent.offset.saturating_add(extent.len).min(self.len);
        let blocks = extent.offset.min(end) / self.block..end.div_ceil(self.block);
        words(if extent.offset < end { blocks } else { 0..0 })
    }

    /// The same of those that lie within it; the last one of the disk may be short.
    fn within(self, extent: Extent) -> impl Iterator<Item = (usize, u64)> {
        let end = extent.offset.saturating_add(extent.len);
        let last = if end >= self.len { self.len.div_ceil(self.block) } else { end / self.block };
        let first = extent.offset.div_ceil(self.block);
        words(first..last.max(first))
    }
}

/// The words of these blocks, and their bits in each.
fn words(blocks: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if blocks.is_empty() { 0..0 } else { blocks.start / WORD..blocks.end.div_ceil(WORD) };
    words.filter_map(move |word| {
        let first = blocks.start.saturating_sub(word * WORD);
        let last = (blocks.end - word * WORD).min(WORD);
        let bits = (u64::MAX >> (WORD - last)) & (u64::MAX << first);
        Some((usize::try_from(word).ok()?, bits))
    })
}

/// Adds `bits` to a word. Gives how many it had not.
fn include(word: &mut u64, bits: u64) -> u64 {
    let new = bits & !*word;
    *word |= bits;
    new.count_ones().into()
}

/// Blocks that many threads add to.
#[derive(Debug)]
pub(super) struct SharedBlockSet {
    blocks: Blocks,
    words: Box<[AtomicU64]>,
}

impl SharedBlockSet {
    /// None of a disk of `len` bytes.
    pub(super) fn new(len: u64) -> Self {
        let blocks = Blocks::of(len);
        SharedBlockSet { blocks, words: (0..blocks.words()).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds those that `extent` touches; what is beyond the disk is left out.
    pub(super) fn add(&self, extent: Extent) {
        for (word, bits) in self.blocks.touched(extent) {
            if let Some(word) = self.words.get(word) {
                word.fetch_or(bits, Ordering::AcqRel);
            }
        }
    }

    /// Moves all of them to `to`, a set of the same disk.
    pub(super) fn take_to(&self, to: &mut BlockSet) {
        let BlockSet { words, count, .. } = to;
        for (from, to) in self.words.iter().zip(words) {
            if from.load(Ordering::Acquire) != 0 {
                *count += include(to, from.swap(0, Ordering::AcqRel));
            }
        }
    }
}

/// Blocks of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockSet {
    blocks: Blocks,
    words: Vec<u64>,
    /// Blocks that are in it.
    count: u64,
}

impl BlockSet {
    /// None of a disk of `len` bytes.
    pub(crate) fn new(len: u64) -> Self {
        let blocks = Blocks::of(len);
        BlockSet { blocks, words: vec![0; blocks.words()], count: 0 }
    }

    /// All of them.
    pub(crate) fn all(len: u64) -> Self {
        let mut all = Self::new(len);
        all.add(Extent { offset: 0, len });
        all
    }

    /// Whether none is in it, which takes no look at them.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds those that `extent` touches.
    pub(crate) fn add(&mut self, extent: Extent) {
        for (word, bits) in self.blocks.touched(extent) {
            if let Some(word) = self.words.get_mut(word) {
                self.count += include(word, bits);
            }
        }
    }

    /// Takes those away that lie within `extent`.
    pub(crate) fn remove(&mut self, extent: Extent) {
        for (word, bits) in self.blocks.within(extent) {
            if let Some(word) = self.words.get_mut(word) {
                self.count -= u64::from((*word & bits).count_ones());
                *word &= !bits;
            }
        }
    }

    /// The bytes of `extent` that are in the set, in ascending order.
    pub(crate) fn ranges_in(&self, extent: Extent) -> impl Iterator<Item = Range<u64>> {
        let Blocks { len, block } = self.blocks;
        let end = extent.offset.saturating_add(extent.len).min(len);
        let mut at = extent.offset.min(end);
        std::iter::from_fn(move || {
            let start = self.next(at / block, true)?.saturating_mul(block).max(at);
            let next =
                self.next(start / block, false).map_or(len, |next| next.saturating_mul(block)).min(end);
            at = next;
            (start < next).then_some(start..next)
        })
    }

    /// The bytes of all.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges_in(Extent { offset: 0, len: self.blocks.len })
    }

    /// The first block from `from` on that is in the set, or is not.
    fn next(&self, from: u64, is_in: bool) -> Option<u64> {
        let first = usize::try_from(from / WORD).ok()?;
        let mut mask = u64::MAX << (from % WORD);
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let found = (if is_in { *word } else { !*word }) & mask;
            if found != 0 {
                return Some(index as u64 * WORD + u64::from(found.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    fn extent(range: Range<u64>) -> Extent {
        Extent { offset: range.start, len: range.end - range.start }
    }

    fn ranges(set: &BlockSet) -> Vec<Range<u64>> {
        set.ranges().collect()
    }

    #[test]
    fn set_has_the_blocks_that_were_touched_and_nothing_beyond_the_disk() {
        const B: u64 = BLOCK;
        let len = 200 * B + 512;
        let shared = SharedBlockSet::new(len);
        for range in [0..1, 2 * B - 1..2 * B + 1, 63 * B..65 * B, 199 * B..u64::MAX] {
            shared.add(extent(range));
        }
        for nothing in [(len, 1), (u64::MAX, u64::MAX), (5 * B, 0), (u64::MAX, 0)] {
            shared.add(Extent { offset: nothing.0, len: nothing.1 });
        }
        let mut set = BlockSet::new(len);
        shared.take_to(&mut set);
        assert_eq!(ranges(&set), [0..3 * B, 63 * B..65 * B, 199 * B..len]);
        // Once.
        let mut other = BlockSet::new(len);
        shared.take_to(&mut other);
        assert_eq!(ranges(&other), []);
        // To what is there already.
        shared.add(extent(10 * B..11 * B));
        shared.take_to(&mut set);
        assert_eq!(ranges(&set), [0..3 * B, 10 * B..11 * B, 63 * B..65 * B, 199 * B..len]);
        assert_eq!(
            set.ranges_in(extent(B + 7..64 * B)).collect::<Vec<_>>(),
            [B + 7..3 * B, 10 * B..11 * B, 63 * B..64 * B]
        );
        // Only whole blocks are taken away, and the short one at the end.
        set.remove(extent(1..2 * B + 1));
        set.remove(extent(64 * B..len));
        assert_eq!(ranges(&set), [0..B, 2 * B..3 * B, 10 * B..11 * B, 63 * B..64 * B]);
        assert_eq!(ranges(&BlockSet::all(len)), [0..len]);
        assert_eq!(ranges(&BlockSet::all(0)), []);
    }

    #[test]
    fn count_is_that_of_the_blocks_whoever_adds_them_or_takes_them_away() {
        let len = 200 * BLOCK;
        let (shared, mut set) = (SharedBlockSet::new(len), BlockSet::new(len));
        assert!(set.is_empty() && BlockSet::all(0).is_empty());
        for round in 0..200u64 {
            let at = round * 37 % 200 * BLOCK;
            let some = extent(at..at + round % 7 * BLOCK + 1);
            match round % 3 {
                0 => set.add(some),
                1 => shared.add(some),
                _ => set.remove(some),
            }
            shared.take_to(&mut set);
            let bytes: u64 = set.ranges().map(|range| range.end - range.start).sum();
            assert_eq!((set.count * BLOCK, set.is_empty()), (bytes, bytes == 0));
        }
        set.remove(extent(0..len));
        assert!(set.is_empty());
    }

    #[test]
    fn sets_of_any_disk_are_small() {
        for (len, block) in [(1, BLOCK), (1 << 42, BLOCK), ((1 << 42) + 1, 2 * BLOCK), (u64::MAX, 1 << 38)] {
            let set = BlockSet::all(len);
            assert_eq!(set.blocks.block, block);
            assert!(set.words.len() as u64 * WORD <= MOST_BLOCKS + WORD);
            assert_eq!(ranges(&set), [0..len]);
        }
    }

    #[test]
    fn every_pair_of_ends_is_as_a_list_of_bools_says() {
        let len = 130 * BLOCK - 5;
        for first in 0..130u64 {
            for last in first..130 {
                let mut set = BlockSet::new(len);
                set.add(extent(first * BLOCK..(last * BLOCK + 1).min(len)));
                assert_eq!(ranges(&set), [first * BLOCK..((last + 1) * BLOCK).min(len)]);
                set.remove(extent(first * BLOCK..last * BLOCK));
                assert_eq!(set.count, 1);
                assert_eq!(ranges(&set), [last * BLOCK..((last + 1) * BLOCK).min(len)]);
            }
        }
    }
}
