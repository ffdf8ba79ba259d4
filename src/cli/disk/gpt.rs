//! The second copy of a GUID partition table, which is in a disk's last sectors: a smaller disk needs it at its new end, or Linux
//! does not take the table (UEFI 2.10 §5.3).

use std::io;

use diskimage::Image;

use crate::image::crc32;

/// The sector of an image.
const SECTOR_LEN: usize = 512;
const SECTOR: u64 = SECTOR_LEN as u64;
/// The signature of a header.
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// The known part of a header.
const HEADER: usize = 92;
/// Length of an entry: other ones are none for Linux.
const ENTRY: usize = 128;
/// Longest entries that are moved.
const ENTRIES_MAX: u64 = 1 << 20;
/// Fields of a header: its checksum, the sectors of itself and of its copy, the last one for partitions, that of the entries.
const CRC: usize = 16;
const MY_LBA: usize = 24;
const ALTERNATE_LBA: usize = 32;
const LAST_USABLE: usize = 48;
const ENTRIES_LBA: usize = 72;
/// Where the protective entry of the MBR has its type and its count of sectors, in each of its four entries.
const MBR_ENTRIES: [usize; 4] = [0x1be, 0x1ce, 0x1de, 0x1ee];
const PROTECTIVE: u8 = 0xee;

/// Makes the table one of a disk of `size` bytes, before the image gets that size. The copy is there before the table names it, so
/// that the disk has a table at any moment.
pub(super) fn move_copy(image: &Image, size: u64) -> io::Result<()> {
    let damaged = || io::Error::other("its partition table cannot be read");
    let mut sector = [0; SECTOR_LEN];
    read(image, SECTOR, &mut sector)?;
    let length = number::<4>(&sector, 12).and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|length| (HEADER..=sector.len()).contains(length)).ok_or_else(damaged)?;
    if !sector.starts_with(SIGNATURE) {
        return Err(damaged());
    }
    let count = number::<4>(&sector, 80).and_then(|count| count.checked_mul(number::<4>(&sector, 84)?));
    let bytes = count.filter(|bytes| *bytes <= ENTRIES_MAX).ok_or_else(damaged)?.next_multiple_of(SECTOR);
    let mut entries = vec![0; usize::try_from(bytes).map_err(|_| damaged())?];
    let at = number::<8>(&sector, ENTRIES_LBA).and_then(|lba| lba.checked_mul(SECTOR)).ok_or_else(damaged)?;
    read(image, at, &mut entries)?;

    let last = (size / SECTOR).checked_sub(1).ok_or_else(damaged)?;
    let copied = last.checked_sub(bytes / SECTOR).ok_or_else(damaged)?;
    // An entry has a type, and ends with its last sector.
    let is_used = |entry: &&[u8]| entry.iter().take(16).any(|byte| *byte != 0);
    let used = entries.chunks(ENTRY).filter(is_used).filter_map(|entry| number::<8>(entry, 40));
    if used.max().is_some_and(|end| end >= copied) {
        return Err(io::Error::other(
            "its last partition leaves no room for the copy of its partition table",
        ));
    }
    put(&mut sector, LAST_USABLE, copied.saturating_sub(1));
    let (mut table, mut copy) = (sector, sector);
    put(&mut table, ALTERNATE_LBA, last);
    put(&mut copy, MY_LBA, last);
    put(&mut copy, ALTERNATE_LBA, 1);
    put(&mut copy, ENTRIES_LBA, copied);
    [&mut table, &mut copy].into_iter().for_each(|header| sign(header, length));

    image.write_at(&entries, copied * SECTOR)?;
    image.write_at(&copy, last * SECTOR)?;
    image.flush()?;
    image.write_at(&table, SECTOR)?;
    protect(image, last)?;
    image.flush()
}

/// Lets the protective entry of the MBR end with the disk.
fn protect(image: &Image, last: u64) -> io::Result<()> {
    let mut sector = [0; SECTOR_LEN];
    read(image, 0, &mut sector)?;
    let count = u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes();
    for entry in MBR_ENTRIES {
        if sector.get(entry + 4) == Some(&PROTECTIVE)
            && let Some(place) = sector.get_mut(entry + 12..entry + 16)
        {
            place.copy_from_slice(&count);
        }
    }
    image.write_at(&sector, 0)
}

fn read(image: &Image, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    if image.read_at(buffer, at)? == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The little-endian number of N bytes at this place.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at + N)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn put(bytes: &mut [u8], at: usize, number: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

/// Gives a header its checksum, for which its own field counts as zero.
fn sign(header: &mut [u8], length: usize) {
    if let Some(place) = header.get_mut(CRC..CRC + 4) {
        place.fill(0);
    }
    let crc = crc32(header.iter().copied().take(length));
    if let Some(place) = header.get_mut(CRC..CRC + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use diskimage::Format;

    use super::*;
    use crate::image::testing::{LINUX, gpt};
    use crate::image::{Budget, Usage, usage_of};

    const MIB: u64 = 1 << 20;

    /// A disk of 16 MiB with a partition from 1 to 3 MiB.
    fn image(folder: &tempfile::TempDir) -> Image {
        let path = folder.path().join("image");
        let mut disk = gpt(512, &[(1, LINUX, &vec![7; 2 << 20])]);
        disk.resize(16 << 20, 0);
        std::fs::write(&path, disk).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Image::alone(file, &path, Format::Raw, true).unwrap()
    }

    fn content(folder: &tempfile::TempDir) -> Vec<u8> {
        std::fs::read(folder.path().join("image")).unwrap()
    }

    #[test]
    fn table_of_a_smaller_disk_is_one_and_has_its_copy_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut image, before) = (image(&folder), content(&folder));
        move_copy(&image, 4 * MIB).unwrap();
        image.resize(4 * MIB, true).unwrap();
        let disk = content(&folder);
        assert_eq!(disk.len() as u64, 4 * MIB);
        let usage = usage_of(&&disk[..], 512, &Budget::new()).unwrap();
        assert!(
            matches!(usage, Usage::Until { end, gpt: true, .. } if end == 3 * MIB + 33 * 512),
            "{usage:?}"
        );
        assert_eq!(disk[2 << 20..3 << 20], before[2 << 20..3 << 20], "the partition is as it was");
        let last = disk.len() / 512 - 1;
        let (table, mut copy) = (&disk[512..1024], disk[last * 512..].to_vec());
        assert_eq!(number::<8>(table, ALTERNATE_LBA), Some(last as u64));
        assert_eq!(number::<8>(&copy, MY_LBA), Some(last as u64));
        assert_eq!(number::<8>(&copy, LAST_USABLE), Some(last as u64 - 33));
        assert_eq!(
            disk[(last - 32) * 512..last * 512],
            disk[1024..1024 + 32 * 512],
            "the entries are copied"
        );
        let crc = copy[CRC..CRC + 4].to_vec();
        sign(&mut copy, HEADER);
        assert_eq!(copy[CRC..CRC + 4], crc);
        assert_eq!(number::<4>(&disk, 0x1be + 12), Some(last as u64));
    }

    #[test]
    fn partition_is_never_overwritten_by_the_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (image, before) = (image(&folder), content(&folder));
        let said = move_copy(&image, 3 * MIB + 512).unwrap_err().to_string();
        assert!(said.contains("no room"), "{said}");
        assert!(content(&folder) == before, "nothing is written");
        let raw = folder.path().join("none");
        std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
        let file = File::options().read(true).write(true).open(&raw).unwrap();
        assert!(move_copy(&Image::alone(file, &raw, Format::Raw, true).unwrap(), 1 << 19).is_err());
    }
}
