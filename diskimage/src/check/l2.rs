//! The walk over the tables of level 2, and what their entries refer to.

use super::layout::Region;
use super::report::{Finding, TableKind};
use super::walk::Walk;
use crate::entries::{COMPRESSED, OFFSET};
use crate::{ImageError, Progress};

/// Its cluster belongs to this entry alone.
const COPIED: u64 = 1 << 63;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Compressed data is counted in sectors (qcow2 specification, "Compressed Clusters Descriptor").
const SECTOR: u64 = 512;
/// Tables between two reports of progress.
const TABLES_A_STEP: u64 = 64;

/// A table of level 2.
struct L2Table {
    offset: u64,
    /// Entries of L1 tables that point to it.
    weight: u64,
    /// One of them is in the active L1 table, not in a snapshot's.
    active: bool,
}

impl Walk<'_> {
    /// The tables of level 2, each once, with the number of entries that point to it.
    pub(super) fn l2_tables(&mut self, progress: &mut dyn Progress) -> Result<(), ImageError> {
        for entry in std::mem::take(&mut self.active) {
            // Offsets have their lowest bits free: the lowest one marks the active table.
            self.inactive.push(entry & OFFSET | 1);
            self.check_copied(TableKind::L1Entry, entry);
        }
        let mut offsets = std::mem::take(&mut self.inactive);
        offsets.sort_unstable();
        // All tables are known before the first entry is: data may lie on any of them.
        let mut tables = Vec::new();
        for same in offsets.chunk_by(|one, other| one & !1 == other & !1) {
            let table = L2Table {
                offset: same.first().map_or(0, |offset| offset & !1),
                weight: same.len() as u64,
                active: same.iter().any(|offset| offset & 1 == 1),
            };
            if self.is_readable(&table) {
                tables.push(table);
            }
        }
        let total = tables.len() as u64 * self.layout.cluster_size();
        for (index, table) in (0_u64..).zip(&tables) {
            let done = index * self.layout.cluster_size();
            if index % TABLES_A_STEP == TABLES_A_STEP - 1 && progress.at(done, total).is_break() {
                return Err(ImageError::Interrupted { path: self.source.path().into() });
            }
            self.l2_table(table)?;
        }
        Ok(())
    }

    /// Counts the references to a table; false if it cannot be one.
    fn is_readable(&mut self, table: &L2Table) -> bool {
        let (kind, offset) = (TableKind::L1Entry, table.offset);
        let inside = self.refer(kind, Region { offset, length: self.layout.cluster_size() }, table.weight);
        let aligned = offset.is_multiple_of(self.layout.cluster_size());
        if !aligned {
            self.report.add(Finding::Unaligned { table: kind, offset });
        }
        // An entry with flags and no offset has the header for a table; that is reported as an overlap.
        inside && aligned && offset != 0
    }

    fn l2_table(&mut self, table: &L2Table) -> Result<(), ImageError> {
        let (source, layout) = (self.source, self.layout);
        let L2Table { offset, weight, active } = *table;
        let extended = layout.extended_l2;
        let mut before = (0, 0);
        source.words(offset, layout.cluster_size() / 8, &mut |index, word| {
            if extended && index % 2 == 1 {
                let entry = if before.0 + 1 == index { before.1 } else { 0 };
                self.subclusters(entry, word);
            } else {
                self.l2_entry(word, weight, active);
                before = (index, word);
            }
            Ok(())
        })
    }

    /// Extended entries have a bitmap: 32 bits for subclusters with data, above them 32 for subclusters that read as zeroes (qcow2
    /// specification, "Extended L2 Entries").
    fn subclusters(&mut self, entry: u64, bitmap: u64) {
        let (allocated, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
        let wrong = if entry & COMPRESSED != 0 {
            bitmap != 0
        } else if entry & OFFSET != 0 {
            allocated & zero != 0
        } else {
            allocated != 0
        };
        if wrong {
            self.report.add(Finding::Subclusters { entry, bitmap });
        }
    }

    fn l2_entry(&mut self, entry: u64, weight: u64, active: bool) {
        let kind = TableKind::L2Entry;
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 {
                self.report.add(Finding::Reserved { table: kind, entry });
            }
            self.refer_data(compressed(entry, self.layout.cluster_bits), weight);
            self.report.compressed_clusters += u64::from(active);
            self.report.allocated_clusters += u64::from(active);
            return;
        }
        if entry & L2_RESERVED != 0 {
            self.report.add(Finding::Reserved { table: kind, entry });
        }
        let offset = entry & OFFSET;
        if offset == 0 {
            return;
        }
        if !offset.is_multiple_of(self.layout.cluster_size()) {
            self.report.add(Finding::Unaligned { table: kind, offset });
        }
        self.refer_data(Region { offset, length: self.layout.cluster_size() }, weight);
        if active {
            self.report.allocated_clusters += 1;
            self.check_copied(kind, entry);
        }
    }

    /// The flag says whether the reference count is 1 (qcow2 specification, "L1 table entry" and "L2 table entry").
    fn check_copied(&mut self, table: TableKind, entry: u64) {
        let offset = entry & OFFSET;
        let refcount = self.stored.get(offset >> self.layout.cluster_bits);
        if offset != 0 && (refcount == 1) != (entry & COPIED != 0) {
            self.report.add(Finding::Copied { table, entry, refcount });
        }
    }
}

/// Where compressed data lies: a number of sectors, of which the first is not used from its beginning.
fn compressed(entry: u64, cluster_bits: u32) -> Region {
    let offset_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let sectors = ((entry & !(COPIED | COMPRESSED)) >> offset_bits) + 1;
    Region { offset, length: sectors * SECTOR - offset % SECTOR }
}
