//! Which pages of guest memory this process has written, for saving a machine while it runs.
//!
//! KVM logs what the guest writes. What devices write is marked here: by vm-memory wherever it writes, and by
//! [`Memory::written`](crate::memory::Memory::written) where the kernel wrote through a pointer. While the log is off, a write
//! costs one load more.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Regions;

const PAGE: usize = 4096;
const WORD: usize = 64;

/// The written pages of one region.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    on: AtomicBool,
    len: usize,
    /// A bit for each page; made when it is wanted for the first time.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyBitmap {
    /// Forgets all marks, and keeps marks from now on, or no longer.
    pub fn set_on(&self, on: bool) {
        if on {
            let words = self.len.div_ceil(PAGE).div_ceil(WORD);
            self.words.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
        }
        self.on.store(on, Ordering::SeqCst);
        self.take(|_| ());
    }

    /// Whether marks are kept.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Calls `page` with the offset of each marked page, and forgets the marks.
    pub fn take(&self, mut page: impl FnMut(u64)) {
        let words = self.words.get().map_or(&[][..], |words| words);
        for (word, at) in words.iter().zip((0u64..).step_by(PAGE * WORD)) {
            let bits = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) };
            set_bits(bits).for_each(|bit| page(at + bit * PAGE as u64));
        }
    }

    /// Out of the way of writes while it is off.
    #[cold]
    fn mark(&self, offset: usize, len: usize) {
        let (Some(words), Some(last)) = (self.words.get(), len.checked_sub(1)) else { return };
        for page in offset / PAGE..=offset.saturating_add(last).min(self.len.saturating_sub(1)) / PAGE {
            if let Some(word) = words.get(page / WORD) {
                word.fetch_or(1 << (page % WORD), Ordering::AcqRel);
            }
        }
    }
}

/// The numbers of the bits that are set in a word of a log, in ascending order.
pub fn set_bits(word: u64) -> impl Iterator<Item = u64> {
    let mut left = word;
    std::iter::from_fn(move || {
        let bit = (left != 0).then(|| left.trailing_zeros())?;
        left &= left - 1;
        Some(bit.into())
    })
}

/// Has what this process writes to `memory` marked from now on, or no longer.
pub fn set_on(memory: &Regions, on: bool) {
    memory.iter().for_each(|region| (**region).bitmap().set_on(on));
}

/// Calls `page` with the guest address of each page of `memory` that is marked, and forgets the marks.
pub fn take(memory: &Regions, mut page: impl FnMut(u64)) {
    for region in memory.iter() {
        (**region).bitmap().take(|offset| page(region.start_addr().0 + offset));
    }
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.is_on() {
            self.mark(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let word = self.words.get().and_then(|words| words.get(offset / PAGE / WORD));
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (offset / PAGE % WORD) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { bitmap: self, offset }
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(len: usize) -> Self {
        DirtyBitmap { len, ..DirtyBitmap::default() }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = DirtySlice<'a>;
}

/// A part of a [`DirtyBitmap`] from an offset on.
#[derive(Debug, Clone, Copy)]
pub struct DirtySlice<'a> {
    bitmap: &'a DirtyBitmap,
    offset: usize,
}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        DirtySlice { offset: self.offset.saturating_add(offset), ..*self }
    }
}

impl<'a> WithBitmapSlice<'_> for DirtySlice<'a> {
    type S = DirtySlice<'a>;
}

impl BitmapSlice for DirtySlice<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_bit_is_given_once() {
        let bits: Vec<_> =
            [1 | 1 << 63, 0, u64::MAX, 1 << 5].map(|word| set_bits(word).collect::<Vec<_>>()).into();
        let expected = [vec![0, 63], vec![], (0..64).collect(), vec![5]];
        assert_eq!(bits, expected);
    }

    fn taken(bitmap: &DirtyBitmap) -> Vec<u64> {
        let mut pages = Vec::new();
        bitmap.take(|page| pages.push(page));
        pages
    }

    #[test]
    fn marks_are_kept_only_while_wanted_and_given_once() {
        let bitmap = DirtyBitmap::with_len(130 * PAGE);
        bitmap.mark_dirty(0, PAGE);
        assert!(bitmap.words.get().is_none(), "off it costs nothing");
        bitmap.set_on(true);
        assert!(taken(&bitmap).is_empty());
        bitmap.slice_at(PAGE).slice_at(PAGE - 1).mark_dirty(0, 2);
        bitmap.mark_dirty(63 * PAGE, 3 * PAGE);
        bitmap.mark_dirty(129 * PAGE, usize::MAX);
        bitmap.mark_dirty(5 * PAGE, 0);
        bitmap.mark_dirty(usize::MAX, 1);
        let pages = [1, 2, 63, 64, 65, 129].map(|page| page * PAGE as u64);
        assert!(pages.iter().all(|page| bitmap.dirty_at(usize::try_from(*page).unwrap())));
        assert_eq!(taken(&bitmap), pages);
        assert!(taken(&bitmap).is_empty() && !bitmap.dirty_at(PAGE));
        bitmap.mark_dirty(0, 1);
        bitmap.set_on(false);
        bitmap.mark_dirty(0, 1);
        assert!(taken(&bitmap).is_empty());
    }
}
