//! Clusters that nothing points to any more, found by what a commit changes in the tables.

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::layout::{BLOCK_OFFSET, Layout, Table, entries};
use super::{Clusters, HeldWrites};
use crate::entries::{COMPRESSED, OFFSET, refcount, set_refcount};
use crate::storage::{punch, read_padded};

/// Clusters, and how many references each has lost.
#[derive(Debug, Default)]
pub(super) struct Freed(BTreeMap<u64, u64>);

impl Freed {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

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

    /// What the L2 tables lose on the way from the file to `leaving`, where the L1 table goes from `old` to `new`.
    pub(super) fn tables(
        &mut self,
        writes: &HeldWrites,
        leaving: &Clusters,
        old: &[u64],
        new: &[u64],
    ) -> io::Result<()> {
        let bits = writes.cluster_bits;
        for (index, old) in old.iter().enumerate().filter(|(_, old)| **old & OFFSET != 0) {
            let new = new.get(index).copied().unwrap_or(0);
            let (from, to) = (old & OFFSET, new & OFFSET);
            if from == to && !leaving.contains_key(&(to >> bits)) {
                continue;
            }
            let length = 1usize << bits;
            let (mut was, mut is) = (vec![0; length], vec![0; length]);
            read_padded(&writes.file, &mut was, from)?;
            if to != 0 {
                writes.read_over(|cluster| leaving.get(&cluster), &mut is, to)?;
            }
            for (was, is) in entries(&was).into_iter().zip(entries(&is)).filter(|(was, is)| was != is) {
                self.entry(bits, was, is);
            }
            if from != to {
                self.add(from >> bits);
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

    /// Takes the lost references off the refcounts in the file, and gives the space of what is free then back to the host.
    /// Entries of a damaged image may have named clusters in which tables lie: these stay.
    pub(super) fn release(
        self,
        writes: &HeldWrites,
        layout: &Layout,
        l1: &[u64],
        refcounts: &[u64],
    ) -> io::Result<()> {
        let clusters = |entry: u64, mask| (entry & mask) >> layout.cluster_bits;
        let tables: HashSet<u64> = l1
            .iter()
            .map(|entry| clusters(*entry, OFFSET))
            .chain(refcounts.iter().map(|entry| clusters(*entry, BLOCK_OFFSET)))
            .filter(|at| self.0.contains_key(at))
            .collect();
        let per_block = 1u64 << (layout.cluster_bits + 3 - layout.refcount_order);
        let cluster = 1usize << layout.cluster_bits;
        let mut block: Option<(u64, Vec<u8>)> = None;
        for (at, lost) in self.0 {
            if layout.holds(at) || tables.contains(&at) {
                continue;
            }
            let index = usize::try_from(at / per_block).map_err(io::Error::other)?;
            let offset = refcounts.get(index).copied().unwrap_or(0) & BLOCK_OFFSET;
            if offset == 0 || !offset.is_multiple_of(cluster as u64) {
                continue;
            }
            if block.as_ref().is_none_or(|(of, _)| *of != offset) {
                if let Some((of, bytes)) = block.take() {
                    writes.put(&bytes, of)?;
                }
                let mut bytes = vec![0; cluster];
                read_padded(&writes.file, &mut bytes, offset)?;
                block = Some((offset, bytes));
            }
            let Some((_, bytes)) = &mut block else { continue };
            if lower(bytes, layout.refcount_order, at % per_block, lost) == Some(0) {
                // The space is the host's matter: without holes it stays with the file.
                let _ = punch(&writes.file, at << layout.cluster_bits, cluster as u64);
            }
        }
        block.map_or(Ok(()), |(of, bytes)| writes.put(&bytes, of))
    }
}

/// Lowers the refcount `index` of a block, not below 0; returns the new one.
fn lower(block: &mut [u8], order: u32, index: u64, by: u64) -> Option<u64> {
    let new = refcount(block, order, index)?.saturating_sub(by);
    set_refcount(block, order, index, new)?;
    Some(new)
}
