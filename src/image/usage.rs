//! Where the content of a disk ends, as far as its partition table or its file system tells: what a smaller disk must keep.

use boot::read::ReadAt;

use super::disk::{Budget, Disk, ReadError, Window};
use super::filesystem::FileSystem;
use super::partitions::{self, Partition, Table};
use super::signatures::describe;

/// Sectors behind the last partition for the second copy of a GPT: its entries (128 of 128 bytes) and its header.
const GPT_COPY: u64 = (128 * 128) / 512 + 1;

/// What a disk is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Usage {
    /// All up to this byte.
    Until {
        end: u64,
        /// What ends there, for people.
        what: String,
        /// The disk has a GPT, whose second copy is in its last sectors.
        gpt: bool,
    },
    /// Nothing tells it. The content, for people.
    Unknown(String),
}

/// What a disk with sectors of this size is used for.
pub(crate) fn usage_of(source: &dyn ReadAt, sector: u64, budget: &Budget) -> Result<Usage, ReadError> {
    usage(&Disk::new(source, sector, budget)?)
}

/// What `disk` is used for.
fn usage(disk: &Disk<'_>) -> Result<Usage, ReadError> {
    if let Some((table, partitions)) = partitions::read(disk)? {
        let gpt = table == Table::Gpt;
        let last = partitions.iter().max_by_key(|partition| end(partition.window));
        let (number, last) = last.map_or((0, 0), |last: &Partition| (last.number, end(last.window)));
        let extended = if gpt { 0 } else { partitions::extended_end(disk)? };
        let copy = if gpt { GPT_COPY.saturating_mul(disk.sector()) } else { 0 };
        let what = match number {
            0 => format!("its partition table ({table})"),
            _ if extended > last => "its extended partition".to_owned(),
            number if gpt => format!("partition {number}, with the second copy of the GPT behind it,"),
            number => format!("partition {number}"),
        };
        return Ok(Usage::Until { end: last.max(extended).saturating_add(copy), what, gpt });
    }
    let fs = match FileSystem::open(disk, disk.whole()) {
        Err(error @ ReadError::Io(_)) => return Err(error),
        fs => fs.ok().flatten(),
    };
    let known = fs.and_then(|fs| Some((fs.length()?, fs.name())));
    Ok(match known {
        Some((end, name)) => Usage::Until { end, what: format!("its file system ({name})"), gpt: false },
        None => Usage::Unknown(describe(disk, disk.whole())),
    })
}

fn end(window: Window) -> u64 {
    window.start.saturating_add(window.len)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LINUX, ext4, fat, gpt, mbr_entry, unclean, with_disk, with_sectors};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn until(end: u64, what: &str, gpt: bool) -> Usage {
        Usage::Until { end, what: what.into(), gpt }
    }

    fn used(disk: &[u8]) -> Usage {
        with_disk(disk, |disk| usage(disk).unwrap())
    }

    #[test]
    fn partitions_end_with_the_last_one_and_a_gpt_with_its_copy() {
        let part = vec![1; 1 << 20];
        let mut disk = gpt(512, &[(1, LINUX, &part), (4, LINUX, &part)]);
        disk.resize(16 << 20, 0);
        assert_eq!(
            used(&disk),
            until(3 * MIB + 33 * 512, "partition 4, with the second copy of the GPT behind it,", true)
        );
        let mut disk = gpt(4096, &[(1, LINUX, &part)]);
        disk.resize(16 << 20, 0);
        assert_eq!(
            with_sectors(&disk, 4096, |disk| usage(disk).unwrap()),
            until(2 * MIB + 33 * 4096, "partition 1, with the second copy of the GPT behind it,", true)
        );
        let mut disk = vec![0; 32 << 20];
        mbr_entry(&mut disk, 0, 0, 0x83, 2048, 2048);
        assert_eq!(used(&disk), until(2 * MIB, "partition 1", false));
        mbr_entry(&mut disk, 0, 1, 0x05, 8192, 4096);
        assert_eq!(used(&disk), until(6 * MIB, "its extended partition", false));
    }

    #[test]
    fn file_system_on_the_whole_disk_says_its_end() {
        let mut disk = ext4(2048, &[("/file", b"x")], &[]);
        disk.resize(8 << 20, 0);
        assert_eq!(used(&disk), until(2 * MIB, "its file system (ext4)", false));
        let mut disk = fat(16, 8192, &[]);
        let end = disk.len() as u64;
        disk.resize(64 << 20, 0);
        let Usage::Until { end: found, gpt: false, .. } = used(&disk) else { panic!() };
        assert!(found <= end && found + 4096 > end, "{found} of {end}");
    }

    #[test]
    fn what_does_not_tell_its_end_is_unknown() {
        assert_eq!(used(&vec![0; 1 << 20]), Usage::Unknown("empty".into()));
        let mut swap = vec![0; 1 << 20];
        swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
        assert!(matches!(used(&swap), Usage::Unknown(what) if what.contains("swap")));
        // Its journal may make it larger.
        assert!(matches!(used(&unclean(&[("/file", b"x")])), Usage::Unknown(_)));
    }
}
