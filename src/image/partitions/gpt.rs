//! The GUID partition table (UEFI 2.10 §5.3).

use super::crc32::crc32;
use super::{Kind, MAX, Partition, mbr, window};
use crate::image::disk::{Disk, Fields, ReadError};

/// The signature of a header, `EFI PART` (§5.3.2).
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Length of the known part of a header.
const HEADER: usize = 92;
/// Length of an entry. UEFI allows longer ones (§5.3.3); Linux does not (`is_gpt_valid`).
const ENTRY: u32 = 128;
/// Maximum length of all entries, above Linux's.
const ENTRIES_MAX: usize = 1 << 20;

/// Type GUIDs in their on-disk form, the first three fields little-endian (UEFI 2.10, appendix A).
const LVM: [u8; 16] = *b"\x79\xd3\xd6\xe6\x07\xf5\xc2\x44\xa2\x3c\x23\x8f\x2a\x3d\xf9\x28";
const EFI: [u8; 16] = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";

/// The fields of a header.
struct Header {
    entries: u64,
    count: u32,
    size: u32,
    crc: u32,
}

/// The partitions; `None` unless the disk has a table that Linux accepts by default: the primary one, with a
/// protective MBR, in the guest's sector size (block/partitions/efi.c).
pub(super) fn read(disk: &Disk<'_>) -> Result<Option<Vec<Partition>>, ReadError> {
    if !mbr::protects(disk)? {
        return Ok(None);
    }
    let Some(header) = header(disk)? else { return Ok(None) };
    let Some(len) = usize::try_from(u64::from(header.count) * u64::from(header.size)).ok() else {
        return Ok(None);
    };
    if len > ENTRIES_MAX {
        return Ok(None);
    }
    let mut entries = vec![0; len];
    let Some(at) = header.entries.checked_mul(disk.sector()) else { return Ok(None) };
    match disk.read(disk.whole(), at, &mut entries, "its partition table") {
        Err(ReadError::Outside(_)) => return Ok(None),
        other => other?,
    }
    if crc32(entries.iter().copied()) != header.crc {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    // A partition's number is its index in the table, empty entries included.
    for (number, entry) in (1..).zip(entries.chunks_exact(header.size as usize)) {
        let (first, last) = (Fields(entry).le64(32)?, Fields(entry).le64(40)?);
        let kind: [u8; 16] = Fields(entry).bytes(0)?;
        if kind == [0; 16] || partitions.len() >= MAX {
            continue;
        }
        let count = last.checked_sub(first).and_then(|len| len.checked_add(1));
        let Some(window) = count.and_then(|count| window(disk, first, count)) else { continue };
        partitions.push(Partition {
            number,
            window,
            uuid: guid(Fields(entry).bytes(16)?),
            label: label(&Fields(entry).bytes::<72>(56)?),
            kind: match kind {
                LVM => Kind::Lvm,
                EFI => Kind::Efi,
                _ => Kind::Other,
            },
        });
    }
    Ok(Some(partitions))
}

/// The header in the second sector, if it is valid.
fn header(disk: &Disk<'_>) -> Result<Option<Header>, ReadError> {
    let mut bytes = [0; HEADER];
    match disk.read(disk.whole(), disk.sector(), &mut bytes, "its partition table") {
        Err(ReadError::Outside(_)) => return Ok(None),
        other => other?,
    }
    let fields = Fields(&bytes);
    let size = fields.le32(12)? as usize;
    if !bytes.starts_with(SIGNATURE) || size < HEADER || size as u64 > disk.sector() || fields.le64(24)? != 1
    {
        return Ok(None);
    }
    let mut whole = vec![0; size];
    match disk.read(disk.whole(), disk.sector(), &mut whole, "its partition table") {
        Err(ReadError::Outside(_)) => return Ok(None),
        other => other?,
    }
    // Its own checksum counts as zero (§5.3.2).
    let summed = whole.iter().enumerate().map(|(at, byte)| if (16..20).contains(&at) { 0 } else { *byte });
    if crc32(summed) != fields.le32(16)? {
        return Ok(None);
    }
    let header = Header {
        entries: fields.le64(72)?,
        count: fields.le32(80)?,
        size: fields.le32(84)?,
        crc: fields.le32(88)?,
    };
    // Linux does not accept the table of a larger disk either.
    let last = (disk.whole().len / disk.sector()).saturating_sub(1);
    let fits = fields.le64(40)? <= last && fields.le64(48)? <= last;
    Ok((header.size == ENTRY && fits).then_some(header))
}

/// A partition's name of at most 36 characters (UEFI 2.10 §5.3.3).
fn label(bytes: &[u8]) -> String {
    let (low, high) = (bytes.iter().step_by(2), bytes.iter().skip(1).step_by(2));
    let letters = low.zip(high).map(|(low, high)| u16::from_le_bytes([*low, *high]));
    let letters = letters.take_while(|letter| *letter != 0);
    char::decode_utf16(letters).map(|letter| letter.unwrap_or('!')).collect()
}

/// In Linux's format (`%pUl`): the first three fields are little-endian.
fn guid(bytes: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (clock, node) = rest.split_at(2);
    [&[d, c, b, a][..], &[f, e], &[h, g], clock, node].map(hex).join("-")
}
