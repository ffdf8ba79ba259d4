//! The order in which metadata comes to the medium, so that a power cut or the end of the process leaves an image that opens
//! again: at most clusters that nobody uses, never a mapping to a cluster that is free or another's.
//!
//! imago writes refcount blocks before the L2 tables that need them, and pointers to new tables at once. Here, writes to the L1
//! table and to the refcount table are held until the refcounts of what they point to are in the file, and `fdatasync` stands
//! between what is pointed to and the pointer.

mod free;
pub(crate) mod medium;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;

use crate::Header;
use crate::layout::{SIZE, Table};
use crate::tables::{ENTRY, Tables, offset_of};
use free::Clusters;
pub(crate) use medium::zeroed;
use transaction::Transaction;

/// Pointers to tables, by their place in the file.
type Held = BTreeMap<u64, Vec<u8>>;

/// What is known of a file's metadata, and what is on its way.
#[derive(Debug)]
pub(crate) struct Order {
    cluster_bits: u32,
    refcount_bits: u32,
    l1: Range<u64>,
    refcount_table: Range<u64>,
    /// With their numbers in the refcount table.
    refcount_blocks: HashMap<u64, u64>,
    /// L2 tables that the L1 table in the file points to.
    l2_tables: HashSet<u64>,
    held_l1: Held,
    held_refcount_table: Held,
    /// Refcounts were written after a pointer to a refcount block was held.
    refcounts_since: bool,
    /// Written since the last sync.
    unsynced: Unsynced,
    transaction: Option<Transaction>,
    /// What the header in the file says instead of the disk's new size, while new space is not ready.
    shown_size: Option<u64>,
}

/// Classes of writes since the last sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Unsynced {
    data: bool,
    refcounts: bool,
    l2: bool,
}

enum Class {
    Header,
    L1,
    RefcountTable,
    RefcountBlock,
    L2,
    /// Data, and tables that nothing in the file points to.
    New,
}

impl Order {
    /// Learns the places of an image's tables.
    pub(crate) fn new(header: &Header, tables: Tables) -> Order {
        Order {
            cluster_bits: header.cluster_bits,
            refcount_bits: header.refcount_bits,
            l1: header.l1().range(),
            refcount_table: header.refcount_table().range(),
            refcount_blocks: tables.refcount_blocks.into_iter().collect(),
            l2_tables: tables.l2_tables.into_iter().collect(),
            held_l1: Held::new(),
            held_refcount_table: Held::new(),
            refcounts_since: false,
            unsynced: Unsynced::default(),
            transaction: None,
            shown_size: None,
        }
    }

    /// Takes a write of imago's, and does it now or later.
    pub(crate) fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.class(bytes, offset) {
            Class::Header => return self.write_header(file, bytes, offset),
            Class::L1 => {
                self.held_l1.insert(offset, bytes.into());
                return Ok(());
            }
            Class::RefcountTable => {
                let number = (offset - self.refcount_table.start) / ENTRY;
                self.refcount_blocks.insert(offset_of(bytes), number);
                self.held_refcount_table.insert(offset, bytes.into());
                self.refcounts_since = false;
                return Ok(());
            }
            Class::RefcountBlock => {
                self.refcounts_since = true;
                if let Some(transaction) = &mut self.transaction {
                    transaction.blocks.insert(offset, bytes.into());
                    return Ok(());
                }
                // A cluster is free after the mapping to it is gone.
                if self.unsynced.l2 {
                    self.sync(file)?;
                }
                self.unsynced.refcounts = true;
                if let Some(number) = self.refcount_blocks.get(&offset) {
                    let clusters = Clusters {
                        bits: self.cluster_bits,
                        refcount_bits: self.refcount_bits,
                        number: *number,
                    };
                    clusters.give_back(file, offset, bytes)?;
                }
            }
            Class::L2 => {
                if self.unsynced.data || self.unsynced.refcounts {
                    self.sync(file)?;
                }
                if self.refcounts_since {
                    self.release_refcount_table(file)?;
                }
                self.unsynced.l2 = true;
            }
            Class::New => {
                // It may stand where a cluster was given back by an L2 table.
                if self.unsynced.l2 {
                    self.sync(file)?;
                }
                self.unsynced.data = true;
            }
        }
        medium::write(file, bytes, offset)
    }

    /// Reads what was written and is held.
    pub(crate) fn held(&self, offset: u64) -> Option<&[u8]> {
        self.transaction.as_ref()?.blocks.get(&offset).map(Vec::as_slice)
    }

    /// Writes everything that is held: imago has written all it has. A sync must follow.
    pub(crate) fn release(&mut self, file: &File) -> io::Result<()> {
        if self.transaction.is_none() && self.held_refcount_table.is_empty() && self.held_l1.is_empty() {
            return Ok(());
        }
        self.sync(file)?;
        self.commit(file)?;
        self.release_refcount_table(file)?;
        if !self.held_l1.is_empty() {
            write_all(file, &self.held_l1)?;
            self.unsynced.l2 = true;
            let tables = std::mem::take(&mut self.held_l1);
            self.l2_tables.extend(tables.values().map(|entry| offset_of(entry)));
        }
        Ok(())
    }

    /// Data was written to space that no mapping in the file leads to yet.
    pub(crate) fn data_written(&mut self) {
        self.unsynced.data = true;
    }

    /// Before data is written to new space: what led to it before is gone from the medium.
    pub(crate) fn settle(&mut self, file: &File) -> io::Result<()> {
        if self.unsynced.l2 { self.sync(file) } else { Ok(()) }
    }

    /// Brings everything that was written to the medium.
    pub(crate) fn sync(&mut self, file: &File) -> io::Result<()> {
        medium::sync(file)?;
        self.unsynced = Unsynced::default();
        Ok(())
    }

    fn release_refcount_table(&mut self, file: &File) -> io::Result<()> {
        if self.held_refcount_table.is_empty() {
            return Ok(());
        }
        write_all(file, &self.held_refcount_table)?;
        self.sync(file)?;
        self.held_refcount_table.clear();
        Ok(())
    }

    fn write_header(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = bytes.to_vec();
        let pointers = if offset == 0 { Table::both(&bytes, self.cluster_bits).ok() } else { None };
        if let (Some(size), Some(place), true) = (self.shown_size, bytes.get_mut(SIZE), offset == 0) {
            place.copy_from_slice(&size.to_be_bytes());
        }
        if let (Some(transaction), Some((l1, _))) = (&mut self.transaction, pointers) {
            self.l1 = l1.range();
            transaction.header = Some(bytes);
            return Ok(());
        }
        self.sync(file)?;
        medium::write(file, &bytes, offset)?;
        self.sync(file)?;
        let Some((l1, refcount_table)) = pointers.map(|(l1, table)| (l1.range(), table.range())) else {
            return Ok(());
        };
        self.l1 = l1;
        if refcount_table != self.refcount_table {
            // The new table was written with all that was held for the old one.
            self.held_refcount_table.clear();
            self.refcount_blocks = crate::tables::refcount_blocks(file, &refcount_table)?.collect();
            self.refcount_table = refcount_table;
        }
        Ok(())
    }

    fn class(&self, bytes: &[u8], offset: u64) -> Class {
        let is_entry = bytes.len() as u64 == ENTRY && offset.is_multiple_of(ENTRY);
        if offset < 1 << self.cluster_bits {
            Class::Header
        } else if is_entry && self.l1.contains(&offset) {
            Class::L1
        } else if is_entry && self.refcount_table.contains(&offset) {
            Class::RefcountTable
        } else if bytes.len() as u64 == 1 << self.cluster_bits && self.refcount_blocks.contains_key(&offset) {
            Class::RefcountBlock
        } else if self.l2_tables.contains(&offset) {
            Class::L2
        } else {
            Class::New
        }
    }
}

fn write_all(file: &File, held: &Held) -> io::Result<()> {
    held.iter().try_for_each(|(offset, bytes)| medium::write(file, bytes, *offset))
}
