//! Where the tables of an image that is to be written stand, and that each has a refcount: what has none could be given out again
//! and overwritten. The data is not looked at: see `check`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::entries::{OFFSET, refcount};
use crate::{Header, ImageError};

/// Bytes of an entry of the L1 table and the refcount table.
pub(crate) const ENTRY: u64 = 8;
/// Tables are read in pieces of this size.
const PIECE: usize = 64 << 10;
/// Refcounts are read in pieces of this size, in order.
const WINDOW: u64 = 4096;

/// Offsets of tables that others point to.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// With their number in the refcount table.
    pub(crate) refcount_blocks: Vec<(u64, u64)>,
    pub(crate) l2_tables: Vec<u64>,
}

impl Tables {
    /// Reads the places of an image's tables, and checks them.
    pub(crate) fn read(file: &File, path: &Path, header: &Header) -> Result<Tables, ImageError> {
        let failed = |source| ImageError::Io { path: path.into(), action: "read", source };
        let cluster = header.cluster_size();
        let (l1, table) = (header.l1().range(), header.refcount_table().range());
        let blocks: Vec<u64> = all_entries(file, &table).map_err(failed)?;
        let l2_tables: Vec<u64> = entries(file, &l1).map_err(failed)?.collect();
        let refcount_blocks: Vec<(u64, u64)> = numbered(&blocks).collect();
        let fixed = [0..1, l1, table].into_iter().flat_map(|range| range.step_by(1 << header.cluster_bits));
        let mut places: Vec<u64> = fixed
            .chain(refcount_blocks.iter().map(|(offset, _)| *offset))
            .chain(l2_tables.iter().copied())
            .collect();
        places.sort_unstable();
        let length = crate::storage::length(file).map_err(failed)?;
        let damaged = |problem: String| ImageError::Damaged { path: path.into(), problem };
        check_places(&places, cluster, length).map_err(damaged)?;
        let mut refcounts = Refcounts { file, header, blocks: &blocks, window: vec![0; 4096], at: None };
        for place in places {
            if !refcounts.is_used(place / cluster).map_err(failed)? {
                return Err(damaged(format!(
                    "the table at {place:#x} has no reference count, and would be overwritten"
                )));
            }
        }
        Ok(Tables { refcount_blocks, l2_tables })
    }
}

/// Each place is a cluster of the file, and there is one table in it.
fn check_places(sorted: &[u64], cluster: u64, length: u64) -> Result<(), String> {
    if let Some(place) = sorted.iter().find(|place| !place.is_multiple_of(cluster) || **place >= length) {
        return Err(format!("a table is said to be at {place:#x}"));
    }
    match sorted.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(format!("two tables are said to be at {:#x}", pair.first().unwrap_or(&0))),
        None => Ok(()),
    }
}

/// The offset in an entry.
pub(crate) fn offset_of(entry: &[u8]) -> u64 {
    entry.try_into().map(u64::from_be_bytes).unwrap_or_default() & OFFSET
}

/// Offsets in a table, without those that point nowhere.
pub(crate) fn entries(file: &File, table: &Range<u64>) -> io::Result<impl Iterator<Item = u64>> {
    Ok(all_entries(file, table)?.into_iter().filter(|offset| *offset != 0))
}

/// The blocks of a refcount table, with their numbers.
pub(crate) fn refcount_blocks(
    file: &File,
    table: &Range<u64>,
) -> io::Result<impl Iterator<Item = (u64, u64)>> {
    Ok(numbered(&all_entries(file, table)?).collect::<Vec<_>>().into_iter())
}

fn numbered(blocks: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    blocks.iter().zip(0..).filter(|(offset, _)| **offset != 0).map(|(offset, number)| (*offset, number))
}

fn all_entries(file: &File, table: &Range<u64>) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    let mut offset = table.start;
    while offset < table.end {
        let count = usize::try_from(table.end - offset).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; count];
        crate::storage::read_padded(file, &mut piece, offset)?;
        found.extend(piece.as_chunks::<8>().0.iter().map(|entry| offset_of(entry)));
        offset += count as u64;
    }
    Ok(found)
}

/// Looks refcounts up, in the order of the clusters.
struct Refcounts<'a> {
    file: &'a File,
    header: &'a Header,
    blocks: &'a [u64],
    window: Vec<u8>,
    at: Option<u64>,
}

impl Refcounts<'_> {
    fn is_used(&mut self, cluster: u64) -> io::Result<bool> {
        let bits = u64::from(self.header.refcount_bits);
        let per_block = self.header.cluster_size() * 8 / bits;
        let block = usize::try_from(cluster / per_block).ok().and_then(|index| self.blocks.get(index));
        let Some(block) = block.filter(|block| **block != 0) else { return Ok(false) };
        let bit = cluster % per_block * bits;
        let place = block + bit / 8;
        let start = place - place % WINDOW;
        if self.at != Some(start) {
            crate::storage::read_padded(self.file, &mut self.window, start)?;
            self.at = Some(start);
        }
        let inside = (place - start) * 8 / bits + bit % 8 / bits;
        Ok(refcount(&self.window, self.header.refcount_bits.trailing_zeros(), inside)
            .is_some_and(|count| count > 0))
    }
}
