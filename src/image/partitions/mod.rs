//! The partitions of a disk, as Linux numbers and names them.

mod crc32;
mod gpt;
mod mbr;

use std::fmt;

pub(crate) use crc32::crc32;
pub(super) use mbr::extended_end;

use super::disk::{Disk, ReadError, Window};

/// Maximum partitions to consider; Linux's own limit for a virtio disk without extended numbers is lower.
const MAX: usize = 256;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// From 1 on.
    pub(super) number: u32,
    /// Its location.
    pub(super) window: Window,
    /// Its `PARTUUID` in Linux.
    pub(super) uuid: String,
    /// Its `PARTLABEL` in Linux; empty if it has none.
    pub(super) label: String,
    /// Its type.
    pub(super) kind: Kind,
}

/// The types of partitions that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For LVM.
    Lvm,
    /// An EFI system partition.
    Efi,
    /// Anything else.
    Other,
}

/// Kinds of partition tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// UEFI's.
    Gpt,
    /// The PC's.
    Mbr,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Table::Gpt => "GPT",
            Table::Mbr => "MBR",
        })
    }
}

/// The partitions of `disk`; `None` if it has no partition table.
pub(super) fn read(disk: &Disk<'_>) -> Result<Option<(Table, Vec<Partition>)>, ReadError> {
    if let Some(partitions) = gpt::read(disk)? {
        return Ok(Some((Table::Gpt, partitions)));
    }
    Ok(mbr::read(disk)?.map(|partitions| (Table::Mbr, partitions)))
}

/// A range of sectors in bytes, cut off at the disk's end (`blk_add_partition` in Linux); `None` if it is
/// empty or begins after that.
fn window(disk: &Disk<'_>, first: u64, count: u64) -> Option<Window> {
    let (start, len) = (first.checked_mul(disk.sector())?, count.checked_mul(disk.sector())?);
    let len = disk.whole().len.checked_sub(start)?.min(len);
    (start > 0 && len > 0).then_some(Window { start, len })
}
