//! Space of clusters whose refcount falls to zero goes back to the host.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::medium;
use crate::entries::refcount;
use crate::storage::{punch, read_padded};

/// The clusters that a refcount block counts.
pub(super) struct Clusters {
    /// Of a cluster's size.
    pub(super) bits: u32,
    /// Of a refcount.
    pub(super) refcount_bits: u32,
    /// Of the block, in the refcount table.
    pub(super) number: u64,
}

impl Clusters {
    /// Before a block is written: nothing on the medium leads to what it no longer counts. A host that makes no holes keeps the
    /// space.
    pub(super) fn give_back(&self, file: &File, block: u64, new: &[u8]) -> io::Result<()> {
        let mut old = vec![0; new.len()];
        read_padded(file, &mut old, block)?;
        if old == new {
            return Ok(());
        }
        for clusters in self.freed(&old, new) {
            let (start, end) = (clusters.start << self.bits, clusters.end << self.bits);
            // What is behind the end of the file takes no space.
            if punch(file, start, end - start).is_err() {
                break;
            }
            medium::zeroed(start, end - start);
        }
        Ok(())
    }

    /// Runs of clusters that were counted, and are not now.
    fn freed(&self, old: &[u8], new: &[u8]) -> Vec<Range<u64>> {
        let first = self.number * (new.len() as u64 * 8 / u64::from(self.refcount_bits));
        let mut runs: Vec<Range<u64>> = Vec::new();
        let freed = self.used(old).zip(self.used(new)).zip(first..).filter(|((old, new), _)| *old && !*new);
        for (_, cluster) in freed {
            match runs.last_mut() {
                Some(run) if run.end == cluster => run.end += 1,
                _ => runs.push(cluster..cluster + 1),
            }
        }
        runs
    }

    /// Whether each refcount of a block is above zero.
    fn used<'a>(&self, block: &'a [u8]) -> impl Iterator<Item = bool> + use<'a> {
        let order = self.refcount_bits.trailing_zeros();
        let counts = block.len() as u64 * 8 / u64::from(self.refcount_bits);
        (0..counts).map(move |index| refcount(block, order, index).is_some_and(|count| count > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of ranges is meant")]
    fn clusters_that_are_free_now_are_found_for_every_width() {
        let freed = |refcount_bits, old: &[u8], new: &[u8]| {
            Clusters { bits: 9, refcount_bits, number: 1 }.freed(old, new)
        };
        assert_eq!(freed(1, &[0b0000_1111, 1], &[0b0000_1001, 0]), [17..19, 24..25]);
        assert_eq!(freed(4, &[0x21, 0x10], &[0x20, 0x00]), [4..5, 7..8]);
        assert_eq!(freed(8, &[1, 2, 0], &[0, 0, 1]), [3..5]);
        assert_eq!(freed(16, &[0, 1, 1, 0, 0, 2], &[0, 0, 1, 0, 0, 1]), [3..4]);
        assert_eq!(freed(64, &[0, 0, 0, 0, 0, 0, 0, 1], &[0; 8]), [1..2]);
    }
}
