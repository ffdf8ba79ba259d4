//! Where the tables of a qcow2 image lie, by its header: what the check follows. It believes less than it needs to open an image, for
//! the images to be checked are the ones that do not open.

use std::path::Path;

use super::source::{Source, be16, be32, be64};
use crate::header::extensions::END;
use crate::header::features::{BITMAPS, CORRUPT, DATA_FILE, DIRTY, EXTENDED_L2, KNOWN};
use crate::header::{
    CLUSTER_BITS, LONGEST_NAME, MAGIC, MOST_L1_BYTES, MOST_REFCOUNT_TABLE_BYTES, MOST_SNAPSHOTS, V2_LENGTH,
    V3_LENGTH,
};
use crate::layout::Table;
use crate::{Encryption, ImageError};

/// Fixed part of an entry of the snapshot table.
const SNAPSHOT_LENGTH: u64 = 40;
const MAX_SNAPSHOT_EXTRA: u64 = 1024;
const MAX_SNAPSHOT_TABLE: u64 = 64 << 20;
/// Bitmaps are few, their names at most 1023 bytes (qcow2 specification, "Bitmap directory").
const MAX_BITMAPS: u32 = 65535;
const BITMAP_LENGTH: u64 = 24;
const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;

/// The header extension that owns clusters.
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What a header says of the tables.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) version: u32,
    pub(crate) size: u64,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    pub(crate) l1: Table,
    pub(crate) refcounts: Table,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) dirty: bool,
    pub(crate) corrupt: bool,
    pub(crate) extended_l2: bool,
    /// Number of bitmaps and their directory, if they are consistent.
    pub(crate) bitmaps: u32,
    pub(crate) bitmap_directory: Region,
}

impl Layout {
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Words of 8 bytes for one entry of an L2 table.
    pub(crate) fn l2_words(&self) -> u64 {
        if self.extended_l2 { 2 } else { 1 }
    }

    /// Reads the header.
    pub(crate) fn read(source: &Source<'_>) -> Result<Layout, ImageError> {
        let head = source.read(0, V3_LENGTH + 8)?;
        if !head.starts_with(&MAGIC) || (head.len() as u64) < V2_LENGTH {
            return Err(ImageError::NotQcow2 { path: source.path().into() });
        }
        let damaged = |problem: String| damaged(source.path(), problem);
        let version = be32(&head, 4);
        let v3 = match version {
            2 => false,
            3 => true,
            version => return Err(ImageError::Version { path: source.path().into(), version }),
        };
        let cluster_bits = be32(&head, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged(format!(
                "its clusters have 2^{cluster_bits} bytes, not between 512 and 2 MiB"
            )));
        }
        let cluster_size = 1_u64 << cluster_bits;
        let refcount_order = if v3 { be32(&head, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(damaged(format!("its reference counts have 2^{refcount_order} bits, more than 64")));
        }
        let features = if v3 { be64(&head, 72) } else { 0 };
        refuse_features(source.path(), features)?;
        if let Some(method) = Encryption::of(be32(&head, 32)) {
            return Err(ImageError::Encrypted { path: source.path().into(), method });
        }
        let header_length = if v3 { u64::from(be32(&head, 100)) } else { V2_LENGTH };
        if v3 && (header_length < V3_LENGTH || header_length > cluster_size) {
            return Err(damaged(format!(
                "its header has {header_length} bytes, not between {V3_LENGTH} and a cluster"
            )));
        }
        let (name, name_length) = (be64(&head, 8), u64::from(be32(&head, 16)));
        if name > cluster_size || name != 0 && name_length > (LONGEST_NAME as u64).min(cluster_size - name) {
            return Err(damaged("the name of its backing file is outside of the first cluster".into()));
        }
        let (l1, refcounts) = Table::both(&head, cluster_bits).map_err(damaged)?;
        let mut layout = Layout {
            version,
            size: be64(&head, 24),
            cluster_bits,
            refcount_order,
            l1,
            refcounts,
            snapshots: be32(&head, 60),
            snapshots_offset: be64(&head, 64),
            dirty: features & DIRTY != 0,
            corrupt: features & CORRUPT != 0,
            extended_l2: features & EXTENDED_L2 != 0,
            bitmaps: 0,
            bitmap_directory: Region { offset: 0, length: 0 },
        };
        layout.check_tables(source.path())?;
        let bitmaps_valid = v3 && be64(&head, 88) & BITMAPS != 0;
        layout.read_extensions(source, header_length, name, bitmaps_valid)?;
        Ok(layout)
    }

    /// The limits that QEMU has for opening an image.
    fn check_tables(&self, path: &Path) -> Result<(), ImageError> {
        for (name, table, limit) in [
            ("L1 table", self.l1, MOST_L1_BYTES),
            ("refcount table", self.refcounts, MOST_REFCOUNT_TABLE_BYTES),
        ] {
            if table.entries > limit / 8 {
                return Err(damaged(
                    path,
                    format!("its {name} has {} entries, more than {}", table.entries, limit / 8),
                ));
            }
            if !table.offset.is_multiple_of(self.cluster_size()) || table.offset > i64::MAX as u64 - limit {
                return Err(damaged(
                    path,
                    format!("its {name} begins at {:#x}, where no cluster begins", table.offset),
                ));
            }
        }
        let by_l2 = self.cluster_size() / (8 * self.l2_words());
        let needed = self.size.div_ceil(self.cluster_size()).div_ceil(by_l2);
        if needed > self.l1.entries {
            let problem =
                format!("its L1 table has {} entries; {} bytes need {needed}", self.l1.entries, self.size);
            return Err(damaged(path, problem));
        }
        if self.snapshots > MOST_SNAPSHOTS {
            return Err(damaged(
                path,
                format!("it has {} internal snapshots, more than {MOST_SNAPSHOTS}", self.snapshots),
            ));
        }
        if self.snapshots > 0 && !self.snapshots_offset.is_multiple_of(self.cluster_size()) {
            let problem =
                format!("its snapshot table begins at {:#x}, where no cluster begins", self.snapshots_offset);
            return Err(damaged(path, problem));
        }
        Ok(())
    }

    /// Header extensions lie between the header and the name of the backing file, in the first cluster.
    fn read_extensions(
        &mut self,
        source: &Source<'_>,
        start: u64,
        backing_name: u64,
        bitmaps_valid: bool,
    ) -> Result<(), ImageError> {
        let end = if backing_name == 0 { self.cluster_size() } else { backing_name.min(self.cluster_size()) };
        let bytes = source.read(start, end.saturating_sub(start))?;
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let (kind, length) =
                (be32(&bytes, at), usize::try_from(be32(&bytes, at + 4)).unwrap_or(usize::MAX));
            at += 8;
            if kind == END {
                break;
            }
            if length > bytes.len() - at {
                return Err(damaged(
                    source.path(),
                    "an extension of its header leaves the first cluster".into(),
                ));
            }
            if kind == EXTENSION_BITMAPS && bitmaps_valid {
                self.bitmaps = be32(&bytes, at);
                self.bitmap_directory =
                    Region { length: be64(&bytes, at + 8), offset: be64(&bytes, at + 16) };
            }
            at += length.next_multiple_of(8);
        }
        Ok(())
    }

    /// The snapshots' L1 tables, and the bytes of the snapshot table; the number of entries that lack fields of version 3.
    pub(crate) fn read_snapshots(
        &self,
        source: &Source<'_>,
    ) -> Result<(Vec<Table>, Region, u64), ImageError> {
        let (mut tables, mut at, mut incomplete) = (Vec::new(), self.snapshots_offset, 0);
        for index in 0..self.snapshots {
            let entry = source.read(at, SNAPSHOT_LENGTH)?;
            let extra = u64::from(be32(&entry, 36));
            if extra > MAX_SNAPSHOT_EXTRA {
                let problem = format!("entry {index} of its snapshot table has {extra} bytes of extra data");
                return Err(damaged(source.path(), problem));
            }
            if self.version >= 3 && extra < 16 {
                incomplete += 1;
            }
            tables.push(Table { offset: be64(&entry, 0), entries: be32(&entry, 8).into() });
            let names = u64::from(be16(&entry, 12)) + u64::from(be16(&entry, 14));
            at = at.saturating_add((SNAPSHOT_LENGTH + extra + names).next_multiple_of(8));
            if at - self.snapshots_offset > MAX_SNAPSHOT_TABLE {
                return Err(damaged(source.path(), "its snapshot table has more than 64 MiB".into()));
            }
            if at > source.length() {
                // What follows does not exist; the region below lies outside of the file, which the check reports.
                break;
            }
        }
        let region = Region { offset: self.snapshots_offset, length: at - self.snapshots_offset };
        Ok((tables, region, incomplete))
    }

    /// The tables of the bitmaps. `None` if the directory contradicts itself.
    pub(crate) fn read_bitmaps(&self, source: &Source<'_>) -> Result<Option<Vec<Table>>, ImageError> {
        let directory = self.bitmap_directory;
        if self.bitmaps > MAX_BITMAPS || directory.length > MAX_BITMAP_DIRECTORY {
            return Ok(None);
        }
        let bytes = source.read(directory.offset, directory.length)?;
        let (mut tables, mut at) = (Vec::new(), 0);
        for _ in 0..self.bitmaps {
            let Some(entry) = bytes.get(at..).filter(|rest| rest.len() as u64 >= BITMAP_LENGTH) else {
                return Ok(None);
            };
            tables.push(Table { offset: be64(entry, 0), entries: be32(entry, 8).into() });
            let length = BITMAP_LENGTH + u64::from(be32(entry, 20)) + u64::from(be16(entry, 18));
            at = at.saturating_add(usize::try_from(length.next_multiple_of(8)).unwrap_or(usize::MAX));
        }
        Ok(Some(tables))
    }
}

pub(super) fn damaged(path: &Path, problem: String) -> ImageError {
    ImageError::Damaged { path: path.into(), problem }
}

fn refuse_features(path: &Path, features: u64) -> Result<(), ImageError> {
    let feature = if features & DATA_FILE != 0 {
        "an external data file".to_string()
    } else {
        let unknown = features & !KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        format!("features that are not known ({unknown:#x})")
    };
    Err(ImageError::Feature { path: path.into(), feature })
}
