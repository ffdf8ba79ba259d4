//! Reads files of a FAT12, FAT16 or FAT32 file system with long names, as an EFI system partition is, without
//! mounting it.
//!
//! The layout is in Microsoft's "FAT32 File System Specification" of 2000; the checks are those of Linux
//! (fs/fat/inode.c). All input is hostile: chains of clusters end at the length of their content, and all
//! work is charged to the disk's budget.

mod dir;

use std::cell::RefCell;

use super::disk::{Disk, ENTRY_COST, Fields, ReadError, Window};
use super::filesystem::FileKind;
use super::runs::{self, Run, Runs};

/// Number of the first cluster.
const FIRST: u32 = 2;
/// Maximum clusters of a FAT12 and of a FAT16 (`MAX_FAT12` and `MAX_FAT16` in Linux).
const FAT12_MAX: u64 = 0xff4;
const FAT16_MAX: u64 = 0xfff4;
/// Length of the cached part of the table: a multiple of three bytes, which contain two entries of 12 bits.
const CHUNK: u64 = 12 << 10;

/// Bits of an entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    Twelve,
    Sixteen,
    /// 28 of the 32 bits are used.
    ThirtyTwo,
}

/// A FAT file system on a part of a disk.
#[derive(Debug)]
pub(super) struct FatFs<'a> {
    pub(super) disk: &'a Disk<'a>,
    window: Window,
    bits: Bits,
    /// Cluster size in bytes.
    cluster: u64,
    /// Number of clusters.
    clusters: u64,
    /// All of it in bytes.
    length: u64,
    /// The first table, and the start of the clusters, in bytes of the window.
    table: Window,
    data: u64,
    root: Root,
    uuid: String,
    label: String,
    /// The cached part of the table, with its offset.
    chunk: RefCell<(u64, Vec<u8>)>,
}

/// Location of a folder.
#[derive(Debug, Clone, Copy)]
enum Root {
    /// Before the clusters, in bytes of the window.
    Fixed(Window),
    Cluster(u32),
}

/// A file or folder.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    /// Size of a file in bytes.
    pub(super) size: u64,
    start: Root,
}

impl<'a> FatFs<'a> {
    /// Opens the file system in `window`; `None` if there is none.
    pub(super) fn open(disk: &'a Disk<'a>, window: Window) -> Result<Option<Self>, ReadError> {
        let mut sector = [0; 512];
        match disk.read(window, 0, &mut sector, "its first sector") {
            Err(ReadError::Outside(_)) => return Ok(None),
            other => other?,
        }
        let fields = Fields(&sector);
        let [per_cluster, tables, media] = [0xd, 0x10, 0x15].map(|at| fields.bytes::<1>(at));
        let ([per_cluster], [tables], [media]) = (per_cluster?, tables?, media?);
        let (bytes, reserved) = (u64::from(fields.le16(0xb)?), u64::from(fields.le16(0xe)?));
        // The checks of Linux (`fat_read_bpb`, `fat_valid_media`).
        let sane = bytes.is_power_of_two()
            && (512..=4096).contains(&bytes)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && tables > 0
            && (media == 0xf0 || media >= 0xf8);
        if !sane {
            return Ok(None);
        }
        let [entries, total, length] = [0x11, 0x13, 0x16].map(|at| fields.le16(at).map(u64::from));
        let (entries, total, length) = (entries?, total?, length?);
        let total = if total > 0 { total } else { fields.le32(0x20)?.into() };
        let wide = length == 0;
        let length = if wide { fields.le32(0x24)?.into() } else { length };
        let root = Window { start: (reserved + u64::from(tables) * length) * bytes, len: entries * 32 };
        let data = (root.start + root.len).next_multiple_of(bytes);
        let cluster = bytes * u64::from(per_cluster);
        let Some(room) = (total * bytes).checked_sub(data) else { return Ok(None) };
        let clusters = room / cluster;
        let bits = match (wide, clusters) {
            (true, _) => Bits::ThirtyTwo,
            (false, ..=FAT12_MAX) => Bits::Twelve,
            (false, ..=FAT16_MAX) => Bits::Sixteen,
            _ => return Ok(None),
        };
        let table = Window { start: reserved * bytes, len: length * bytes };
        let slots = match bits {
            Bits::Twelve => table.len * 2 / 3,
            Bits::Sixteen => table.len / 2,
            Bits::ThirtyTwo => table.len / 4,
        };
        // The serial number and the label follow fields of which FAT32 has more.
        let more = if wide { 0x40 } else { 0x24 };
        let serial = fields.le32(more + 3)?;
        let mut fs = FatFs {
            disk,
            window,
            bits,
            cluster,
            length: total * bytes,
            clusters: clusters.min(slots.saturating_sub(FIRST.into())).min(0x0fff_fff0),
            table,
            data,
            root: if wide { Root::Cluster(fields.le32(0x2c)?) } else { Root::Fixed(root) },
            uuid: format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff),
            label: dir::text(&fields.bytes::<11>(more + 7)?),
            chunk: RefCell::new((u64::MAX, Vec::new())),
        };
        // The label in the root folder is newer than that of the first sector.
        if let Some(label) = fs.volume_label()? {
            fs.label = label;
        }
        Ok(Some(fs))
    }

    /// Its length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The serial number, as `blkid` prints it.
    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// The next cluster of a chain; `None` at its end.
    fn next(&self, cluster: u32) -> Result<Option<u32>, ReadError> {
        self.disk.charge(ENTRY_COST)?;
        let at = u64::from(cluster);
        let (at, len) = match self.bits {
            Bits::Twelve => (at + at / 2, 2),
            Bits::Sixteen => (at * 2, 2),
            Bits::ThirtyTwo => (at * 4, 4),
        };
        let start = at / CHUNK * CHUNK;
        let mut chunk = self.chunk.borrow_mut();
        if chunk.0 != start {
            let rest = self.table.len.checked_sub(start).ok_or(inconsistent())?.min(CHUNK);
            let mut bytes = vec![0; usize::try_from(rest).map_err(|_| inconsistent())?];
            self.disk.read(self.window, self.table.start + start, &mut bytes, "its table of clusters")?;
            *chunk = (start, bytes);
        }
        let entry = Fields(&chunk.1).rest(usize::try_from(at - start).map_err(|_| inconsistent())?);
        let entry = if len == 2 { entry.le16(0)?.into() } else { entry.le32(0)? & 0x0fff_ffff };
        let (entry, end) = match self.bits {
            Bits::Twelve if cluster % 2 == 1 => (entry >> 4, 0xff8),
            Bits::Twelve => (entry & 0xfff, 0xff8),
            Bits::Sixteen => (entry, 0xfff8),
            Bits::ThirtyTwo => (entry, 0x0fff_fff8),
        };
        Ok((entry < end).then_some(entry))
    }

    /// The location of a cluster, in bytes of the window.
    fn cluster_offset(&self, cluster: u32) -> Result<u64, ReadError> {
        let index = cluster.checked_sub(FIRST).map(u64::from).filter(|index| *index < self.clusters);
        index.map(|index| self.data + index * self.cluster).ok_or(inconsistent())
    }

    /// The runs of a file's bytes on the disk. A file longer than `max` is refused before its chain is read.
    pub(super) fn runs(&self, node: &Node, max: u64) -> Result<Vec<Run>, ReadError> {
        if node.size > max {
            return Err(ReadError::TooLong { mib: node.size >> 20, max: max >> 20 });
        }
        let Root::Cluster(mut cluster) = node.start else { return Err(inconsistent()) };
        let (mut runs, mut at) = (Runs::default(), 0);
        // Clusters after the file's end are allocated and not part of it.
        while at < node.size {
            let (cluster_offset, len) = (self.cluster_offset(cluster)?, self.cluster.min(node.size - at));
            if cluster_offset + len > self.window.len {
                return Err(ReadError::Outside("a file's cluster"));
            }
            runs.push(Run { file: at, disk: self.window.start + cluster_offset, len })?;
            at += len;
            if at < node.size {
                cluster = self.next(cluster)?.ok_or(ReadError::Damaged("a file ends before its length"))?;
            }
        }
        Ok(runs.finish())
    }

    /// The content of a small file.
    pub(super) fn read(&self, node: &Node, max: u64) -> Result<Vec<u8>, ReadError> {
        runs::read(self.disk, &self.runs(node, max)?, node.size)
    }
}

fn inconsistent() -> ReadError {
    ReadError::Damaged("its chains of clusters do not hold together")
}

#[cfg(test)]
mod tests;
