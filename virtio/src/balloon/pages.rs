//! From the page numbers of a guest to ranges that are worth a system call each.

use std::ops::Range;

use vm_memory::GuestAddress;

use crate::memory::Memory;
use crate::queue::Reader;

/// §5.5.6: balloon pages have 4096 bytes, whatever the guest's own pages have.
pub(super) const PAGE_SHIFT: u32 = 12;
/// Most page numbers of one buffer that are read. Linux sends 256; pages behind them stay with the guest.
pub(super) const MOST_PAGES: usize = 4096;

/// The page numbers at the front of a buffer, in `numbers`.
pub(super) fn read(reader: &mut Reader<'_>, numbers: &mut Vec<u32>) {
    numbers.clear();
    let mut part = [0; 1024];
    while numbers.len() < MOST_PAGES {
        let len = reader.read(&mut part);
        let words = part.get(..len).unwrap_or_default().chunks_exact(4);
        numbers.extend(words.filter_map(|word| word.try_into().ok().map(u32::from_le_bytes)));
        if len < part.len() {
            return;
        }
    }
}

/// Gives these pages back to the host, neighbours together: a huge page leaves in one piece then. Returns how many bytes
/// that were, and how many ranges were not the guest's to give.
pub(super) fn discard(numbers: &mut [u32], memory: &Memory) -> (u64, usize) {
    numbers.sort_unstable();
    let (mut given, mut refused) = (0, 0);
    for range in runs(numbers) {
        let (start, len) = (range.start << PAGE_SHIFT, (range.end - range.start) << PAGE_SHIFT);
        match memory.discard(GuestAddress(start), len) {
            Ok(()) => given += len,
            Err(_) => refused += 1,
        }
    }
    (given, refused)
}

/// Runs of neighbours in sorted page numbers.
fn runs(sorted: &[u32]) -> impl Iterator<Item = Range<u64>> + '_ {
    sorted.chunk_by(|a, b| *a == *b || a.checked_add(1) == Some(*b)).filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some(u64::from(*first)..u64::from(*last) + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_given_back_together_whatever_their_order() {
        let mut numbers = [5, 0xffff_ffff, 3, 4, 9, 4, 0xffff_fffe, 0];
        numbers.sort_unstable();
        let ranges: Vec<_> = runs(&numbers).collect();
        assert_eq!(ranges, [0..1, 3..6, 9..10, 0xffff_fffe..0x1_0000_0000]);
    }
}
