//! The MBR partition table: four entries in the first sector, and a chain of logical partitions in an
//! extended one. Numbers and identifiers are those of Linux (block/partitions/msdos.c).

use super::{Kind, MAX, Partition, window};
use crate::image::disk::{Disk, Fields, ReadError};

/// Offset of the four entries, of 16 bytes each.
const ENTRIES: usize = 0x1be;
/// Offset of the disk's signature.
const DISK_SIGNATURE: usize = 0x1b8;
/// Offset and value of the boot signature.
const MAGIC: (usize, u16) = (0x1fe, 0xaa55);
/// Types of entries.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const LVM: u8 = 0x8e;
const EFI: u8 = 0xef;
/// Type of a protective entry (UEFI 2.10 §5.2.3). A Linux with GPT support ignores a table with one.
const PROTECTIVE: u8 = 0xee;
/// Number of the first logical partition.
const LOGICAL: u32 = 5;
/// Maximum links of a chain of logical partitions, so that a cycle ends (`state->limit` in Linux).
const LINKS: usize = 128;

struct Entry {
    kind: u8,
    first: u64,
    count: u64,
}

/// Whether this is a protective MBR (`is_pmbr_valid` in Linux).
pub(super) fn protects(disk: &Disk<'_>) -> Result<bool, ReadError> {
    let Some(sector) = sector(disk, 0)? else { return Ok(false) };
    Ok(entries(&sector)?.iter().any(|entry| entry.kind == PROTECTIVE && entry.first == 1))
}

/// The partitions of a disk; `None` if its first sector is no such table.
pub(super) fn read(disk: &Disk<'_>) -> Result<Option<Vec<Partition>>, ReadError> {
    let Some(sector) = sector(disk, 0)? else { return Ok(None) };
    let entries = entries(&sector)?;
    if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        return Ok(None);
    }
    // The first sector of a FAT or NTFS has the same signature, but other bytes in place of the flags (Linux:
    // `is_pte_valid`).
    let flags = (0..4).map(|n| Fields(&sector).bytes::<1>(ENTRIES + n * 16));
    for flag in flags {
        if !matches!(flag?, [0 | 0x80]) {
            return Ok(None);
        }
    }
    let signature = Fields(&sector).le32(DISK_SIGNATURE)?;
    let mut partitions = Vec::new();
    let mut logical = LOGICAL;
    for (number, entry) in (1..).zip(&entries) {
        if EXTENDED.contains(&entry.kind) {
            chain(disk, signature, entry.first, &mut logical, &mut partitions)?;
        } else {
            partitions.extend(partition(disk, number, signature, entry));
        }
    }
    Ok((!partitions.is_empty()).then_some(partitions))
}

/// The logical partitions in an extended one that starts at sector `extended`: each has a sector of its own
/// with its location, relative to that sector, and a link to the next one, relative to the extended
/// partition.
fn chain(
    disk: &Disk<'_>,
    signature: u32,
    extended: u64,
    number: &mut u32,
    partitions: &mut Vec<Partition>,
) -> Result<(), ReadError> {
    let mut at = extended;
    for _ in 0..LINKS {
        let Some(sector) = sector(disk, at)? else { return Ok(()) };
        let entries = entries(&sector)?;
        let is_link = |entry: &&Entry| EXTENDED.contains(&entry.kind);
        for entry in entries.iter().filter(|entry| !is_link(entry) && entry.count > 0) {
            let place = Entry { first: at.saturating_add(entry.first), ..*entry };
            if partitions.len() < MAX {
                partitions.extend(partition(disk, *number, signature, &place));
            }
            *number = number.saturating_add(1);
        }
        match entries.iter().find(is_link) {
            Some(link) if link.count > 0 => at = extended.saturating_add(link.first),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Where the last extended partition of an MBR ends, in bytes; 0 if there is none.
pub(in crate::image) fn extended_end(disk: &Disk<'_>) -> Result<u64, ReadError> {
    let Some(sector) = sector(disk, 0)? else { return Ok(0) };
    let entries = entries(&sector)?;
    let extended = entries.iter().filter(|entry| EXTENDED.contains(&entry.kind));
    let windows = extended.filter_map(|entry| window(disk, entry.first, entry.count));
    Ok(windows.map(|window| window.start.saturating_add(window.len)).max().unwrap_or(0))
}

fn partition(disk: &Disk<'_>, number: u32, signature: u32, entry: &Entry) -> Option<Partition> {
    Some(Partition {
        number,
        window: window(disk, entry.first, entry.count).filter(|_| entry.kind != 0)?,
        uuid: format!("{signature:08x}-{number:02x}"),
        label: String::new(),
        kind: match entry.kind {
            LVM => Kind::Lvm,
            EFI => Kind::Efi,
            _ => Kind::Other,
        },
    })
}

fn sector(disk: &Disk<'_>, number: u64) -> Result<Option<[u8; 512]>, ReadError> {
    let mut sector = [0; 512];
    let Some(at) = number.checked_mul(disk.sector()) else { return Ok(None) };
    match disk.read(disk.whole(), at, &mut sector, "its partition table") {
        Err(ReadError::Outside(_)) => return Ok(None),
        other => other?,
    }
    Ok((Fields(&sector).le16(MAGIC.0)? == MAGIC.1).then_some(sector))
}

fn entries(sector: &[u8; 512]) -> Result<Vec<Entry>, ReadError> {
    let entry = |n: usize| {
        let fields = Fields(sector).rest(ENTRIES + n * 16);
        let [kind] = fields.bytes(4)?;
        Ok(Entry { kind, first: fields.le32(8)?.into(), count: fields.le32(12)?.into() })
    };
    (0..4).map(entry).collect()
}
