//! Reference counts of clusters: those that the tables say, and those that the image has stored.

use super::layout::Layout;
use super::source::Source;
use crate::ImageError;
use crate::entries::refcount;

/// Most clusters that are counted: two bytes for each, twice. It is 8 TiB of clusters of 64 KiB, and 64 GiB of clusters of 512 bytes.
pub(super) const MAX_CLUSTERS: u64 = 1 << 27;

/// One count for each cluster of the file. Memory is taken only where something is counted.
#[derive(Debug)]
pub(super) struct Counts {
    counts: Vec<u16>,
    limit: u64,
}

/// A count would be above what the image can store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow;

impl Counts {
    /// For `clusters` clusters, whose counts can be stored up to `limit`. Counts above 65535 are not told from each other.
    pub(super) fn new(clusters: u64, limit: u64) -> Self {
        Self { counts: vec![0; usize::try_from(clusters).unwrap_or(0)], limit }
    }

    /// The counts of all clusters.
    pub(super) fn values(&self) -> impl Iterator<Item = u16> {
        self.counts.iter().copied()
    }

    /// The count; 0 for what is outside of the file.
    pub(super) fn get(&self, cluster: u64) -> u16 {
        usize::try_from(cluster).ok().and_then(|index| self.counts.get(index)).copied().unwrap_or(0)
    }

    /// Counts `weight` more references.
    pub(super) fn add(&mut self, cluster: u64, weight: u64) -> Result<(), Overflow> {
        let Some(count) = usize::try_from(cluster).ok().and_then(|index| self.counts.get_mut(index)) else {
            return Ok(());
        };
        let sum = u64::from(*count).saturating_add(weight);
        *count = u16::try_from(sum.min(self.limit)).unwrap_or(u16::MAX);
        if sum > self.limit { Err(Overflow) } else { Ok(()) }
    }

    fn set(&mut self, cluster: u64, value: u64) {
        if let Some(count) = usize::try_from(cluster).ok().and_then(|index| self.counts.get_mut(index)) {
            *count = u16::try_from(value).unwrap_or(u16::MAX);
        }
    }

    /// Takes the counts from a refcount block at `offset`, whose first one is for the cluster `first`.
    pub(super) fn read_block(
        &mut self,
        source: &Source<'_>,
        layout: &Layout,
        offset: u64,
        first: u64,
    ) -> Result<(), ImageError> {
        let order = layout.refcount_order;
        let by_word = 64_u64 >> order;
        // Clusters behind the end of the file have no counts, however large the block is.
        let needed = (self.counts.len() as u64).saturating_sub(first).div_ceil(by_word);
        source.words(offset, needed.min(layout.cluster_size() / 8), &mut |index, word| {
            let bytes = word.to_be_bytes();
            for entry in 0..by_word {
                let count = refcount(&bytes, order, entry).unwrap_or(0);
                self.set(first + index * by_word + entry, count);
            }
            Ok(())
        })
    }
}

/// One bit for each cluster.
#[derive(Debug)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(clusters: u64) -> Self {
        Self(vec![0; usize::try_from(clusters.div_ceil(64)).unwrap_or(0)])
    }

    pub(super) fn has(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster / 64).ok().and_then(|index| self.0.get(index));
        word.is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Sets the bit; whether it was set before.
    pub(super) fn set(&mut self, cluster: u64) -> bool {
        let before = self.has(cluster);
        if let Some(word) = usize::try_from(cluster / 64).ok().and_then(|index| self.0.get_mut(index)) {
            *word |= 1 << (cluster % 64);
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stop_at_what_can_be_stored() {
        let mut counts = Counts::new(2, 3);
        assert_eq!(counts.add(1, 3), Ok(()));
        assert_eq!(counts.add(1, 1), Err(Overflow));
        assert_eq!((counts.get(1), counts.get(0), counts.get(2)), (3, 0, 0));
        let mut wide = Counts::new(1, u64::MAX);
        assert_eq!(wide.add(0, 1 << 20), Ok(()));
        assert_eq!(wide.get(0), u16::MAX);
    }
}
