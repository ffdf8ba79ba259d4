//! The walk over all tables of an image. Each table is read once, however many entries point to it, so that the work is bounded by
//! what the file holds.

use super::counts::{Bits, Counts, MAX_CLUSTERS};
use super::layout::{Layout, Region, damaged};
use super::report::{Finding, Report, TableKind};
use super::source::Source;
use crate::entries::{OFFSET, REFCOUNT_TABLE_RESERVED};
use crate::header::MOST_L1_BYTES;
use crate::layout::Table;
use crate::{Format, ImageError, Progress};

const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const BITMAP_OFFSET: u64 = OFFSET;
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// QEMU's limits.
const MAX_L1_ENTRIES: u64 = MOST_L1_BYTES / 8;
const MAX_BITMAP_ENTRIES: u64 = 0x800_0000;

/// A walk and what it has counted.
pub(super) struct Walk<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) layout: &'a Layout,
    /// References to each cluster, counted here.
    references: Counts,
    /// Reference counts that the image has.
    pub(super) stored: Counts,
    /// Clusters that hold tables.
    tables: Bits,
    /// Entries of the active L1 table, and offsets that entries of the snapshots' L1 tables have.
    pub(super) active: Vec<u64>,
    pub(super) inactive: Vec<u64>,
    pub(super) report: Report,
}

impl<'a> Walk<'a> {
    pub(super) fn new(source: &'a Source<'a>, layout: &'a Layout) -> Result<Self, ImageError> {
        // A table may end in the cluster behind the last one, where the file ends within a cluster.
        let clusters = source.length().div_ceil(layout.cluster_size()) + 1;
        if clusters > MAX_CLUSTERS {
            let reason = format!(
                "it has {clusters} clusters, and at most {MAX_CLUSTERS} are checked here; `qemu-img check` has a higher limit"
            );
            return Err(ImageError::Unsupported { path: source.path().into(), reason });
        }
        let limit =
            if layout.refcount_order == 6 { u64::MAX } else { (1 << (1_u32 << layout.refcount_order)) - 1 };
        Ok(Walk {
            source,
            layout,
            references: Counts::new(clusters, limit),
            stored: Counts::new(clusters, u64::MAX),
            tables: Bits::new(clusters),
            active: Vec::new(),
            inactive: Vec::new(),
            report: Report {
                format: Format::Qcow2,
                cluster_size: layout.cluster_size(),
                total_clusters: layout.size.div_ceil(layout.cluster_size()),
                snapshots: layout.snapshots,
                dirty: layout.dirty,
                marked_corrupt: layout.corrupt,
                ..Report::raw()
            },
        })
    }

    /// Walks over everything.
    pub(super) fn run(mut self, progress: &mut dyn Progress) -> Result<Report, ImageError> {
        self.refer(TableKind::Header, Region { offset: 0, length: self.layout.cluster_size() }, 1);
        self.refcounts()?;
        self.l1(self.layout.l1, true)?;
        self.snapshots()?;
        self.bitmaps()?;
        self.l2_tables(progress)?;
        self.compare();
        Ok(self.report)
    }

    /// The refcount table and its blocks: where they lie, and the counts in them.
    fn refcounts(&mut self) -> Result<(), ImageError> {
        let table = self.layout.refcounts;
        self.refer(TableKind::RefcountTable, bytes_of(table), 1);
        let by_block = (self.layout.cluster_size() * 8) >> self.layout.refcount_order;
        let mut entries = Vec::new();
        self.source.words(table.offset, table.entries, &mut |index, entry| {
            entries.push((index, entry));
            Ok(())
        })?;
        let kind = TableKind::RefcountTableEntry;
        for (index, entry) in entries {
            let offset = entry & !REFCOUNT_TABLE_RESERVED;
            let sound = entry & REFCOUNT_TABLE_RESERVED == 0;
            if !sound {
                self.report.add(Finding::Reserved { table: kind, entry });
            }
            if !offset.is_multiple_of(self.layout.cluster_size()) {
                self.report.add(Finding::Unaligned { table: kind, offset });
                continue;
            }
            if offset >= self.source.length() {
                self.report.add(Finding::Outside { table: kind, offset, length: self.layout.cluster_size() });
                continue;
            }
            if sound {
                self.refer(kind, Region { offset, length: self.layout.cluster_size() }, 1);
            }
            self.stored.read_block(self.source, self.layout, offset, index.saturating_mul(by_block))?;
        }
        Ok(())
    }

    /// An L1 table; the tables of level 2 are read later, each once.
    fn l1(&mut self, table: Table, active: bool) -> Result<(), ImageError> {
        let kind = if active { TableKind::L1Table } else { TableKind::SnapshotL1Table };
        self.refer(kind, bytes_of(table), 1);
        let mut entries = Vec::new();
        self.source.words(table.offset, table.entries, &mut |_, entry| {
            entries.push(entry);
            Ok(())
        })?;
        for entry in &entries {
            if entry & L1_RESERVED != 0 {
                self.report.add(Finding::Reserved { table: TableKind::L1Entry, entry: *entry });
            }
        }
        if active {
            self.active = entries;
        } else {
            self.inactive.extend(entries.into_iter().map(|entry| entry & OFFSET));
        }
        Ok(())
    }

    fn snapshots(&mut self) -> Result<(), ImageError> {
        if self.layout.snapshots == 0 {
            return Ok(());
        }
        let (tables, region, incomplete) = self.layout.read_snapshots(self.source)?;
        self.refer(TableKind::SnapshotTable, region, 1);
        if incomplete > 0 {
            self.report.add(Finding::IncompleteSnapshots { count: incomplete });
        }
        let mut bytes = 0_u64;
        for table in tables {
            let kind = TableKind::SnapshotL1Table;
            if !table.offset.is_multiple_of(self.layout.cluster_size()) {
                self.report.add(Finding::Unaligned { table: kind, offset: table.offset });
            } else if table.entries > MAX_L1_ENTRIES {
                self.report.add(Finding::TooLong { table: kind, entries: table.entries });
            } else {
                // Tables that do not overlap have room in the file. Without this bound, all could name the same bytes.
                bytes += table.entries * 8;
                if bytes > self.source.length() {
                    let problem = "the L1 tables of its snapshots are larger than the file".to_string();
                    return Err(damaged(self.source.path(), problem));
                }
                self.l1(table, false)?;
            }
        }
        Ok(())
    }

    fn bitmaps(&mut self) -> Result<(), ImageError> {
        if self.layout.bitmaps == 0 {
            return Ok(());
        }
        self.refer(TableKind::BitmapDirectory, self.layout.bitmap_directory, 1);
        let Some(tables) = self.layout.read_bitmaps(self.source)? else {
            self.report.add(Finding::BitmapDirectory);
            return Ok(());
        };
        let mut words = 0_u64;
        for table in tables {
            words = words.saturating_add(table.entries);
            if table.entries > MAX_BITMAP_ENTRIES || words > self.source.length() / 8 {
                self.report.add(Finding::TooLong { table: TableKind::BitmapTable, entries: table.entries });
                break;
            }
            self.refer(TableKind::BitmapTable, bytes_of(table), 1);
            let source = self.source;
            source.words(table.offset, table.entries, &mut |_, entry| {
                let (kind, offset) = (TableKind::BitmapTableEntry, entry & BITMAP_OFFSET);
                let wrong = entry & BITMAP_RESERVED != 0 || offset != 0 && entry & 1 != 0;
                if wrong || !offset.is_multiple_of(self.layout.cluster_size()) {
                    self.report.add(Finding::Reserved { table: kind, entry });
                } else if offset != 0 {
                    let region = Region { offset, length: self.layout.cluster_size() };
                    self.refer(kind, region, 1);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Counts the references of a table of the image to its clusters; false if it lies outside of the file.
    pub(super) fn refer(&mut self, table: TableKind, region: Region, weight: u64) -> bool {
        let Some(clusters) = self.count(table, region, weight) else { return false };
        for cluster in clusters {
            if self.tables.set(cluster) {
                self.report.add(Finding::Overlap { table, offset: cluster << self.layout.cluster_bits });
            }
        }
        true
    }

    /// Counts the references of an L2 entry to its data.
    pub(super) fn refer_data(&mut self, region: Region, weight: u64) {
        let table = TableKind::L2Entry;
        let Some(clusters) = self.count(table, region, weight) else { return };
        for cluster in clusters {
            if self.tables.has(cluster) {
                self.report.add(Finding::Overlap { table, offset: cluster << self.layout.cluster_bits });
            }
        }
    }

    /// The clusters of a region, counted; `None` if it is empty or leaves the file by a cluster or more. The last cluster of a file
    /// may be shorter.
    fn count(
        &mut self,
        table: TableKind,
        region: Region,
        weight: u64,
    ) -> Option<std::ops::RangeInclusive<u64>> {
        let Region { offset, length } = region;
        if length == 0 {
            return None;
        }
        let end = offset.saturating_add(length);
        if end.saturating_sub(self.source.length()) >= self.layout.cluster_size() {
            self.report.add(Finding::Outside { table, offset, length });
            return None;
        }
        let bits = self.layout.cluster_bits;
        let clusters = offset >> bits..=(end - 1) >> bits;
        for cluster in clusters.clone() {
            if self.references.add(cluster, weight).is_err() {
                self.report.add(Finding::Overflow { offset: cluster << bits });
            }
        }
        Some(clusters)
    }

    /// Compares the references with the reference counts.
    fn compare(&mut self) {
        let Walk { references, stored, report, layout, .. } = self;
        let counted = references.values().zip(stored.values());
        for (cluster, (references, refcount)) in (0_u64..).zip(counted) {
            if references == 0 && refcount == 0 {
                continue;
            }
            let offset = cluster << layout.cluster_bits;
            report.end = offset + layout.cluster_size();
            if refcount > references {
                report.add(Finding::Leaked { offset, refcount, references });
            } else if refcount < references {
                report.add(Finding::TooLow { offset, refcount, references });
            }
        }
    }
}

fn bytes_of(table: Table) -> Region {
    Region { offset: table.offset, length: table.entries * 8 }
}
