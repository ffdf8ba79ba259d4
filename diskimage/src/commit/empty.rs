//! Emptying an overlay in its file: all of it reads from the backing file again, and its space is given back.
//!
//! The order of the writes keeps the image sound, whatever is the last one that reaches the disk: first nothing points to the data
//! any more, then the space is free. Interrupted between, clusters leak, and the next commit frees them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use crate::ImageError;
use crate::check::layout::Layout;
use crate::check::source::Source;
use crate::entries::{BLOCK_OFFSET, set_refcount};
use crate::layout::Table;
use crate::order::medium;
use crate::storage::punch;

/// Entries of the refcount table in one sector, which a disk writes whole.
const ENTRIES_A_SECTOR: u64 = 512 / 8;

/// Empties a qcow2 image that has no internal snapshots. `step` is called before each step, and may end the work.
pub(super) fn empty(
    file: &File,
    path: &Path,
    step: &mut dyn FnMut() -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let source = Source::new(file, path)?;
    let layout = Layout::read(&source)?;
    let blocks = read_blocks(&source, &layout)?;
    let kept = Kept::find(&layout, &blocks);
    let failed = || ImageError::io(path, "write");
    // No entry of level 1: nothing of the overlay is seen any more.
    step()?;
    write_zeroes(file, layout.l1).map_err(failed())?;
    medium::sync(file).map_err(failed())?;
    step()?;
    drop_blocks(file, &layout, &blocks, &kept).map_err(failed())?;
    step()?;
    for (index, offset) in &blocks {
        if kept.blocks.contains(index) {
            medium::write(file, &kept.block(&layout, *index), *offset).map_err(failed())?;
        }
    }
    medium::sync(file).map_err(failed())?;
    step()?;
    give_back(file, &layout, &kept, source.length()).map_err(failed())?;
    file.sync_all().map_err(failed())
}

/// The refcount blocks: where each lies, by its index in the refcount table.
fn read_blocks(source: &Source<'_>, layout: &Layout) -> Result<BTreeMap<u64, u64>, ImageError> {
    let mut blocks = BTreeMap::new();
    let cluster_size = layout.cluster_size();
    source.words(layout.refcounts.offset, layout.refcounts.entries, &mut |index, entry| {
        let offset = entry & BLOCK_OFFSET;
        if !offset.is_multiple_of(cluster_size) || offset >= source.length() {
            let problem = format!("entry {index} of its refcount table points to {offset:#x}");
            return Err(ImageError::Damaged { path: source.path().into(), problem });
        }
        blocks.insert(index, offset);
        Ok(())
    })?;
    Ok(blocks)
}

/// What an empty image consists of.
struct Kept {
    /// Clusters with the header, the L1 table, the refcount table and the refcount blocks that count these clusters.
    clusters: BTreeSet<u64>,
    /// Indices of those blocks.
    blocks: BTreeSet<u64>,
}

impl Kept {
    fn find(layout: &Layout, blocks: &BTreeMap<u64, u64>) -> Self {
        let mut kept = Kept { clusters: BTreeSet::new(), blocks: BTreeSet::new() };
        let tables = [layout.l1, layout.refcounts].map(|table| table.clusters(layout.cluster_bits));
        let mut new: Vec<u64> = [0].into_iter().chain(tables.into_iter().flatten()).collect();
        // A block that counts a kept cluster is kept, and so is the block that counts its own cluster.
        while let Some(cluster) = new.pop() {
            if !kept.clusters.insert(cluster) {
                continue;
            }
            let index = cluster / by_block(layout);
            if let Some(offset) = blocks.get(&index).filter(|_| kept.blocks.insert(index)) {
                new.push(offset >> layout.cluster_bits);
            }
        }
        kept
    }

    /// The bytes of a refcount block: each kept cluster has one reference.
    fn block(&self, layout: &Layout, index: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(layout.cluster_size()).unwrap_or(0)];
        let first = index * by_block(layout);
        for cluster in self.clusters.range(first..first + by_block(layout)) {
            // The block is as long as the range.
            let _ = set_refcount(&mut bytes, layout.refcount_order, cluster - first, 1);
        }
        bytes
    }
}

/// Clusters that one refcount block counts.
fn by_block(layout: &Layout) -> u64 {
    (layout.cluster_size() * 8) >> layout.refcount_order
}

fn write_zeroes(file: &File, table: Table) -> io::Result<()> {
    let zeroes = vec![0; usize::try_from(table.length()).unwrap_or(0)];
    medium::write(file, &zeroes, table.offset)
}

/// Takes the blocks that are not kept out of the refcount table. A block may count the cluster of a later one, so the later ones go
/// first; between sectors, what was written is brought to the disk.
fn drop_blocks(file: &File, layout: &Layout, blocks: &BTreeMap<u64, u64>, kept: &Kept) -> io::Result<()> {
    let mut sectors: Vec<u64> = blocks
        .keys()
        .filter(|index| !kept.blocks.contains(index))
        .map(|index| index / ENTRIES_A_SECTOR)
        .collect();
    sectors.dedup();
    for sector in sectors.into_iter().rev() {
        let first = sector * ENTRIES_A_SECTOR;
        let entries = first..layout.refcounts.entries.min(first + ENTRIES_A_SECTOR);
        let bytes: Vec<u8> = entries
            .map(|index| blocks.get(&index).filter(|_| kept.blocks.contains(&index)).copied().unwrap_or(0))
            .flat_map(u64::to_be_bytes)
            .collect();
        medium::write(file, &bytes, layout.refcounts.offset + first * 8)?;
        medium::sync(file)?;
    }
    Ok(())
}

/// Gives the space of all other clusters back to the file system.
fn give_back(file: &File, layout: &Layout, kept: &Kept, length: u64) -> io::Result<()> {
    let end = kept.clusters.last().map_or(0, |last| (last + 1) << layout.cluster_bits);
    if length > end && file.metadata()?.is_file() {
        file.set_len(end)?;
    }
    let mut free = 0;
    for cluster in &kept.clusters {
        let start = cluster << layout.cluster_bits;
        if start > free {
            // Only space is lost where the file system cannot.
            let _ = punch(file, free, start - free);
        }
        free = start + layout.cluster_size();
    }
    Ok(())
}
