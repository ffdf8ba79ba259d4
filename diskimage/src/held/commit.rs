//! A commit: metadata that were held go to the medium, step by step.
//!
//! What is known of the medium is kept from commit to commit and changed by what changes, so that a commit costs what it writes,
//! however large the image is.

use std::collections::HashSet;
use std::io;
use std::sync::MutexGuard;

use super::freed::Freed;
use super::{Clusters, HeldWrites, lock};
use crate::entries::OFFSET;
use crate::layout::{self, Layout, Table};

/// What a commit knows of the file; one commit runs at a time.
#[derive(Debug, Default)]
pub(super) struct Medium {
    pub(super) layout: Layout,
    pub(super) l1: Vec<u64>,
    pub(super) refcounts: Vec<u64>,
    /// The clusters that `l1` points to.
    pub(super) l2_tables: HashSet<u64>,
    doubted: Doubted,
    /// Syncs that had failed when the commit took what it writes.
    failures: u64,
    pub(super) freed: Freed,
    moved: Vec<Table>,
}

/// What may be pointed to on the medium as well, after commits that failed.
#[derive(Debug, Default)]
struct Doubted {
    layouts: Vec<Layout>,
    l2_tables: HashSet<u64>,
}

impl Medium {
    /// Reads the tables of a file whose header says `layout`.
    pub(super) fn read(writes: &HeldWrites, layout: Layout) -> io::Result<Self> {
        let l1 = writes.table(&Clusters::new(), layout.l1)?;
        let refcounts = writes.table(&Clusters::new(), layout.refcounts)?;
        let l2_tables =
            l1.iter().map(|entry| (entry & OFFSET) >> layout.cluster_bits).filter(|at| *at != 0).collect();
        Ok(Medium { layout, l1, refcounts, l2_tables, ..Medium::default() })
    }

    /// The step in which a cluster is written, where `new` is the layout from then on.
    fn step(&self, cluster: u64, new: &Layout) -> Step {
        let within = |table: Table| table.clusters(new.cluster_bits).contains(&cluster);
        let mut pointed_to = std::iter::once(&self.layout).chain(&self.doubted.layouts);
        if cluster == 0 {
            Step::Pointers
        } else if within(new.refcounts) {
            let is_there = pointed_to.any(|old| old.refcounts == new.refcounts);
            if is_there { Step::Refcounts } else { Step::Fresh }
        } else if within(new.l1) {
            if pointed_to.any(|old| old.l1 == new.l1) { Step::Pointers } else { Step::Fresh }
        } else if pointed_to.any(|old| old.is_in_table(cluster)) {
            Step::Dead
        } else if self.l2_tables.contains(&cluster) || self.doubted.l2_tables.contains(&cluster) {
            Step::Pointers
        } else {
            Step::Fresh
        }
    }

    fn sort(&self, leaving: &Clusters, new: &Layout) -> Sorted {
        let mut sorted = Sorted::default();
        for (cluster, contents) in leaving {
            let step = match self.step(*cluster, new) {
                Step::Fresh => &mut sorted.fresh,
                Step::Refcounts => &mut sorted.tables,
                Step::Pointers => &mut sorted.pointers,
                Step::Dead => continue,
            };
            step.insert(*cluster, contents.clone());
        }
        sorted
    }

    /// The L1 table and the refcount table have changed, and everything is on the medium.
    fn arrived(&mut self, new: Layout, l1: &Changes, refcounts: &Changes) {
        let cluster_of = |entry: u64| (entry & OFFSET) >> new.cluster_bits;
        for (index, _) in &l1.entries {
            if let Some(entry) = self.l1.get(*index) {
                self.l2_tables.remove(&cluster_of(*entry));
            }
        }
        self.l2_tables.extend(l1.values().map(cluster_of).filter(|at| *at != 0));
        l1.apply(&mut self.l1);
        refcounts.apply(&mut self.refcounts);
        (self.layout, self.doubted) = (new, Doubted::default());
    }
}

/// Clusters by the step in which they are written, as the module above says.
#[derive(Debug, Default)]
struct Sorted {
    fresh: Clusters,
    /// The refcount table.
    tables: Clusters,
    pointers: Clusters,
}

/// The steps that a cluster may belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Fresh,
    Refcounts,
    Pointers,
    /// A table that was moved away.
    Dead,
}

/// Entries of a table that change, with their numbers and new values; and how many entries it has then.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) entries: Vec<(usize, u64)>,
    length: usize,
}

impl Changes {
    /// Of the table with the entries `was`, which goes from one place to another and lies under what is `leaving`.
    fn find(
        writes: &HeldWrites,
        leaving: &Clusters,
        was: &[u64],
        from: Table,
        to: Table,
    ) -> io::Result<Self> {
        let differs = |(index, entry): &(usize, u64)| was.get(*index).copied().unwrap_or(0) != *entry;
        let length = usize::try_from(to.entries).map_err(io::Error::other)?;
        if from != to {
            let mut entries = writes.table(leaving, to)?;
            // What a shorter table has no longer.
            entries.resize(length.max(was.len()), 0);
            return Ok(Changes { entries: (0..).zip(entries).filter(differs).collect(), length });
        }
        let mut entries = Vec::new();
        for (cluster, contents) in leaving.range(to.clusters(writes.cluster_bits)) {
            let start = (cluster << writes.cluster_bits).saturating_sub(to.offset) / 8;
            let first = usize::try_from(start).map_err(io::Error::other)?;
            let all = (first..length).zip(layout::entries(contents));
            entries.extend(all.filter(differs));
        }
        Ok(Changes { entries, length })
    }

    fn values(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|(_, entry)| *entry)
    }

    fn apply(&self, table: &mut Vec<u64>) {
        table.resize(self.length, 0);
        for (index, entry) in &self.entries {
            if let Some(place) = table.get_mut(*index) {
                *place = *entry;
            }
        }
    }
}

/// A commit. [`Commit::take`] what it brings to the medium while imago's caches are empty and nobody changes the image, then
/// [`Commit::write`] it.
#[derive(Debug)]
pub struct Commit<'a> {
    pub(super) writes: &'a HeldWrites,
    pub(super) medium: MutexGuard<'a, Medium>,
}

impl Commit<'_> {
    /// Takes everything that is held; what is written from now on belongs to the next commit. After a sync that failed the file
    /// becomes longer: its length may not have come to the medium, and what is taken may point to its end. What new clusters were filled with
    /// is written again then: see [`HeldWrites::is_doubted`].
    ///
    /// # Errors
    /// The file cannot be written to: nothing is taken.
    pub fn take(&mut self) -> io::Result<()> {
        self.medium.failures = self.writes.failures.count();
        let is_doubted = self.writes.failures.is_cache_doubted();
        let (is_empty, filled) = {
            let held = lock(&self.writes.held);
            (held.now.is_empty(), if is_doubted { held.filled.clone() } else { Vec::new() })
        };
        if is_doubted && !(is_empty && filled.is_empty()) {
            self.writes.lengthen()?;
        }
        filled.into_iter().try_for_each(|(offset, length)| self.writes.write_again(offset, length))?;
        let mut held = lock(&self.writes.held);
        held.leaving_filled = std::mem::take(&mut held.filled);
        held.leaving = std::mem::take(&mut held.now);
        if let (Some(size), Some(header)) = (held.shown_size, held.leaving.get(&0).cloned()) {
            let mut shown = header.to_vec();
            if let Some(place) = shown.get_mut(layout::SIZE) {
                place.copy_from_slice(&size.to_be_bytes());
            }
            held.leaving.insert(0, shown.into());
            held.now.insert(0, header);
        }
        self.medium.moved.append(&mut held.moved);
        Ok(())
    }

    /// Brings what was taken, and all data in the file, to the medium. After an error it is taken again by the next commit.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn write(&mut self) -> io::Result<()> {
        let leaving = lock(&self.writes.held).leaving.clone();
        let result = self.write_steps(&leaving);
        let mut held = lock(&self.writes.held);
        let (leaving, mut filled) =
            (std::mem::take(&mut held.leaving), std::mem::take(&mut held.leaving_filled));
        // Also if another sync than those of this commit has failed meanwhile.
        if self.writes.failures.is_cache_doubted() {
            held.filled.append(&mut filled);
        }
        if result.is_err() {
            for (cluster, contents) in leaving {
                held.now.entry(cluster).or_insert(contents);
            }
        }
        result
    }

    fn write_steps(&mut self, leaving: &Clusters) -> io::Result<()> {
        let (writes, medium) = (self.writes, &mut *self.medium);
        if leaving.is_empty() {
            writes.barrier()?;
            writes.failures.are_mended(medium.failures);
            return Ok(());
        }
        let old = medium.layout;
        let new = leaving.get(&0).map_or(Ok(old), |header| Layout::parse(header))?;
        let l1 = Changes::find(writes, leaving, &medium.l1, old.l1, new.l1)?;
        let refcounts = Changes::find(writes, leaving, &medium.refcounts, old.refcounts, new.refcounts)?;
        let Sorted { fresh, tables, pointers } = medium.sort(leaving, &new);
        let write = |clusters: &Clusters| {
            clusters.iter().try_for_each(|(cluster, contents)| writes.write_cluster(*cluster, contents))
        };
        write(&fresh)?;
        writes.barrier()?;

        // From here on the medium may point to all that is new.
        let cluster_of = |entry: u64| (entry & OFFSET) >> writes.cluster_bits;
        medium.doubted.l2_tables.extend(l1.values().map(cluster_of).filter(|at| *at != 0));
        if !medium.doubted.layouts.contains(&new) {
            medium.doubted.layouts.push(new);
        }
        let moved = new.refcounts != old.refcounts;
        if moved || !tables.is_empty() {
            write(&tables)?;
            if let Some(pointer) =
                leaving.get(&0).and_then(|header| header.get(layout::REFCOUNT_POINTER)).filter(|_| moved)
            {
                writes.put(pointer, layout::REFCOUNT_POINTER.start as u64)?;
            }
            writes.barrier()?;
        }

        let mut freed = Freed::default();
        freed.tables(writes, leaving, medium, &l1)?;
        write(&pointers)?;
        writes.barrier()?;
        for table in std::mem::take(&mut medium.moved) {
            freed.table(writes.cluster_bits, table);
        }
        medium.freed.append(&mut freed);
        medium.arrived(new, &l1, &refcounts);
        writes.failures.are_mended(medium.failures);
        Ok(())
    }
}
