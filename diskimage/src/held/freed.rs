//! Clusters that nothing points to any more, found by what a commit changes in the tables, and how they become free.
//!
//! First their space goes back to the host, while the image still has them as taken: nobody looks at them. Then their reference
//! counts fall, in memory, and reach the medium with the next commit.

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::commit::{Changes, Commit, Medium};
use super::{Clusters, HeldWrites};
use crate::entries::{BLOCK_OFFSET, COMPRESSED, OFFSET, refcount, set_refcount};
use crate::layout::{Table, entries};
use crate::storage::read_padded;

/// Most clusters of one round, and most bytes of the refcount blocks that count them.
const MOST_CLUSTERS: usize = 4096;
const MOST_BYTES: u64 = 1 << 20;

/// Clusters, and how many references each has lost.
#[derive(Debug, Default)]
pub(super) struct Freed(BTreeMap<u64, u64>);

impl Freed {
    pub(super) fn append(&mut self, other: &mut Self) {
        for (cluster, lost) in std::mem::take(&mut other.0) {
            *self.0.entry(cluster).or_default() += lost;
        }
    }

    fn add(&mut self, cluster: u64) {
        *self.0.entry(cluster).or_default() += 1;
    }

    /// A table that was moved away.
    pub(super) fn table(&mut self, cluster_bits: u32, table: Table) {
        table.clusters(cluster_bits).for_each(|cluster| self.add(cluster));
    }

    /// What the L2 tables lose on the way from the file to `leaving`, where the L1 table changes as `l1` says.
    pub(super) fn tables(
        &mut self,
        writes: &HeldWrites,
        leaving: &Clusters,
        medium: &Medium,
        l1: &Changes,
    ) -> io::Result<()> {
        let bits = writes.cluster_bits;
        let place = |entry: u64| (entry & OFFSET) >> bits;
        let moves = l1.entries.iter().filter_map(|(index, new)| {
            let (from, to) = (place(medium.l1.get(*index).copied()?), place(*new));
            (from != 0 && from != to).then_some((from, to))
        });
        let moves: BTreeMap<u64, u64> = moves.collect();
        let stay = leaving.keys().filter(|at| medium.l2_tables.contains(at) && !moves.contains_key(at));
        for (from, to) in stay.map(|at| (*at, *at)).chain(moves.iter().map(|(from, to)| (*from, *to))) {
            let length = 1usize << bits;
            let (mut was, mut is) = (vec![0; length], vec![0; length]);
            read_padded(&writes.file, &mut was, from << bits)?;
            if to != 0 {
                writes.read_over(|cluster| leaving.get(&cluster), &mut is, to << bits)?;
            }
            for (was, is) in entries(&was).zip(entries(&is)).filter(|(was, is)| was != is) {
                self.entry(bits, was, is);
            }
            if from != to {
                self.add(from);
            }
        }
        Ok(())
    }

    /// An entry of an L2 table that went from `old` to `new`.
    fn entry(&mut self, cluster_bits: u32, old: u64, new: u64) {
        if old & COMPRESSED != 0 {
            // Sectors of 512 bytes, one more than the number says, from the sector of the offset on.
            let shift = 62 - (cluster_bits - 8);
            let offset = old & ((1 << shift) - 1);
            let sectors = (old & (COMPRESSED - 1)) >> shift;
            let last = (offset & !511).saturating_add(sectors * 512 + 511);
            (offset >> cluster_bits..=last >> cluster_bits).for_each(|cluster| self.add(cluster));
        } else if old & OFFSET != 0 && (new & COMPRESSED != 0 || new & OFFSET != old & OFFSET) {
            self.add((old & OFFSET) >> cluster_bits);
        }
    }

    /// Takes the first clusters out, as many as one round has.
    fn round(&mut self, clusters_per_block: u64, block_length: u64) -> Vec<(u64, u64)> {
        let most_blocks = (MOST_BYTES / block_length).max(1);
        let (mut round, mut blocks, mut last) = (Vec::new(), 0, None);
        while let Some(first) = self.0.first_entry() {
            let block = first.key() / clusters_per_block;
            if last != Some(block) {
                (blocks, last) = (blocks + 1, Some(block));
            }
            if round.len() >= MOST_CLUSTERS || blocks > most_blocks {
                break;
            }
            round.push(first.remove_entry());
        }
        round
    }
}

/// Clusters that nothing points to and whose space the host has back. The image has them as taken until [`Commit::free`].
#[derive(Debug, Default)]
#[must_use]
pub struct Punched {
    /// Clusters, and how many references each has lost; those of one refcount block after each other.
    lost: Vec<(u64, u64)>,
}

impl Commit<'_> {
    /// How many clusters can become free.
    pub fn reclaimable(&self) -> usize {
        self.medium.freed.0.len()
    }

    /// Gives the space of clusters that nothing points to back to the host: not of all, if they are very many. Nobody reads them
    /// any more; the image may be used meanwhile.
    ///
    /// # Errors
    /// The file cannot be read; some of them stay reserved.
    pub fn punch(&mut self) -> io::Result<Punched> {
        let layout = self.medium.layout;
        let mut lost = self.medium.freed.round(layout.clusters_per_block(), self.writes.cluster());
        // Entries of a damaged image may have named clusters in which tables lie: these stay.
        let blocks = self.medium.refcounts.iter().map(|entry| (entry & BLOCK_OFFSET) >> layout.cluster_bits);
        let blocks: HashSet<u64> =
            blocks.filter(|block| lost.binary_search_by_key(block, |(at, _)| *at).is_ok()).collect();
        let medium = &self.medium;
        lost.retain(|(at, _)| !layout.holds(*at) && !medium.l2_tables.contains(at) && !blocks.contains(at));
        let mut punched = Punched::default();
        for block in lost.chunk_by(|one, other| {
            one.0 / layout.clusters_per_block() == other.0 / layout.clusters_per_block()
        }) {
            let Some((_, counts)) = self.block(block)? else { continue };
            let count = |at: u64| refcount(&counts, layout.refcount_order, at % layout.clusters_per_block());
            let is_free = |(at, lost): &&(u64, u64)| count(*at).is_some_and(|count| count <= *lost);
            let free: Vec<u64> = block.iter().filter(is_free).map(|(at, _)| *at).collect();
            for run in free.chunk_by(|one, other| one + 1 == *other) {
                if let Some(first) = run.first() {
                    let (start, length) =
                        (first << layout.cluster_bits, run.len() as u64 * self.writes.cluster());
                    // The space is the host's matter: without holes it stays with the file.
                    let _ = self.writes.punch(start, length);
                }
            }
            punched.lost.extend_from_slice(block);
        }
        Ok(punched)
    }

    /// Makes clusters free for imago, which must have nothing in its caches meanwhile that is not held, and forgets what it has
    /// there before it is used again. Nothing is written: the next commit does that.
    ///
    /// # Errors
    /// The file cannot be read; some of the clusters stay reserved.
    pub fn free(&mut self, punched: Punched) -> io::Result<()> {
        let layout = self.medium.layout;
        let per_block = layout.clusters_per_block();
        for block in punched.lost.chunk_by(|one, other| one.0 / per_block == other.0 / per_block) {
            let Some((offset, mut counts)) = self.block(block)? else { continue };
            for (at, lost) in block {
                let (order, index) = (layout.refcount_order, at % per_block);
                let count = refcount(&counts, order, index).unwrap_or(0);
                let _ = set_refcount(&mut counts, order, index, count.saturating_sub(*lost));
            }
            self.writes.write(&counts, offset)?;
        }
        Ok(())
    }

    /// The refcount block of `clusters`, which are all of one, and where it lies. `None` if there is none.
    fn block(&self, clusters: &[(u64, u64)]) -> io::Result<Option<(u64, Vec<u8>)>> {
        let layout = &self.medium.layout;
        let Some((first, _)) = clusters.first() else { return Ok(None) };
        let index = usize::try_from(first / layout.clusters_per_block()).map_err(io::Error::other)?;
        let offset = self.medium.refcounts.get(index).copied().unwrap_or(0) & BLOCK_OFFSET;
        if offset == 0 || !offset.is_multiple_of(self.writes.cluster()) {
            return Ok(None);
        }
        let mut counts = vec![0; usize::try_from(self.writes.cluster()).map_err(io::Error::other)?];
        self.writes.read(&mut counts, offset)?;
        Ok(Some((offset, counts)))
    }
}
