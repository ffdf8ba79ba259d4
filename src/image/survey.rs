//! What lies on a disk, seen from a few bytes of each of its parts: which of them Linux could take as its root, how they
//! are called, and what tells two copies of one disk from two disks.

use super::disk::{Disk, ReadError, Window};
use super::partitions::{self, Kind};

/// What a kernel can do with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It may be the root file system.
    Root,
    /// The root may be inside; only the guest can tell.
    Inside,
    /// It is no root.
    Never,
}

/// Marks: place, bytes, name, use. What is made of other things comes before what it may hold.
const MARKS: [(u64, &[u8], &str, Use); 34] = [
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)", Use::Inside),
    (512, b"LABELONE", "LVM", Use::Inside),
    (0, b"LABELONE", "LVM", Use::Inside),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)", Use::Inside),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)", Use::Inside),
    (0x2_0000, b"\x0c\xb1\xba\0\0\0\0\0", "a member of a ZFS pool", Use::Inside),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache", Use::Inside),
    (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9", "bcachefs", Use::Root),
    (4086, b"SWAPSPACE2", "swap", Use::Never),
    (0x438, b"\x53\xef", "ext2, ext3 or ext4", Use::Root),
    (0, b"XFSB", "XFS", Use::Root),
    (0x1_0040, b"_BHRfS_M", "btrfs", Use::Root),
    (0, b"hsqs", "squashfs", Use::Root),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS", Use::Root),
    (1024, b"\x10\x20\xf5\xf2", "F2FS", Use::Root),
    (0x1_0034, b"ReIsEr", "ReiserFS", Use::Root),
    (0x8000, b"JFS1", "JFS", Use::Root),
    (0x406, b"\x34\x34", "NILFS2", Use::Root),
    (0, b"\x45\x3d\xcd\x28", "cramfs", Use::Root),
    (0, b"-rom1fs-", "romfs", Use::Root),
    (0x8001, b"CD001", "ISO 9660", Use::Root),
    (0x410, b"\x7f\x13", "Minix", Use::Root),
    (0x410, b"\x8f\x13", "Minix", Use::Root),
    (0x410, b"\x68\x24", "Minix", Use::Root),
    (0x410, b"\x78\x24", "Minix", Use::Root),
    (0x418, b"\x5a\x4d", "Minix", Use::Root),
    (3, b"EXFAT   ", "exFAT", Use::Never),
    (3, b"NTFS    ", "NTFS", Use::Never),
    (0x52, b"FAT32", "FAT", Use::Never),
    (0x36, b"FAT", "FAT", Use::Never),
    (0, b"QFI\xfb", "a qcow2 image", Use::Never),
    (0, b"KDMV", "a VMDK image", Use::Never),
    (0, b"vhdxfile", "a VHDX image", Use::Never),
    (512, b"EFI PART", "a damaged GPT", Use::Never),
];

/// What was seen of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    parts: Vec<Part>,
}

/// A partition, or the whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// 0 is the whole disk.
    number: u32,
    /// What Linux calls it behind `PARTUUID=`.
    uuid: Option<String>,
    /// What it is.
    kind: Option<(&'static str, Use)>,
    /// The UUID of its ext file system.
    ext: Option<[u8; 16]>,
    /// Its ext journal holds what is not in its place yet.
    unclean: bool,
}

/// The root file system, as far as the first disk tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Root {
    /// What Linux takes as `root=`, and where it is, in words.
    Is(String, String),
    /// It may be here, and how it is called cannot be known.
    Unknown(String),
    /// There is none.
    No,
}

impl Survey {
    /// Looks at the beginning of each part of a disk.
    pub(crate) fn of(disk: &Disk<'_>) -> Result<Self, ReadError> {
        let mut parts = Vec::new();
        for partition in partitions::read(disk)?.map(|(_, all)| all).unwrap_or_default() {
            let mut part = Part::of(disk, partition.window, partition.number, Some(partition.uuid));
            match partition.kind {
                Kind::Efi => part.kind = Some(("the EFI system partition", Use::Never)),
                Kind::Lvm => part.kind = part.kind.or(Some(("LVM", Use::Inside))),
                Kind::Other => {}
            }
            parts.push(part);
        }
        if parts.is_empty() {
            parts.push(Part::of(disk, disk.whole(), 0, None));
        }
        Ok(Survey { parts })
    }

    /// Which part is the root, if that can be told from here.
    pub(crate) fn root(&self) -> Root {
        let with =
            |wanted| self.parts.iter().filter(move |part| part.kind.is_some_and(|(_, use_)| use_ == wanted));
        let roots: Vec<_> = with(Use::Root).collect();
        if let Some(part) = with(Use::Inside).next() {
            let kind = part.kind.map_or("", |(kind, _)| kind);
            return Root::Unknown(format!("{} is {kind}", part.place()));
        }
        match roots.as_slice() {
            [] => Root::No,
            [part] => {
                let kind = part.kind.map_or("", |(kind, _)| kind);
                let device =
                    part.uuid.as_ref().map_or_else(|| part.device(), |uuid| format!("PARTUUID={uuid}"));
                Root::Is(device, format!("{} ({kind})", part.place()))
            }
            several => {
                let places: Vec<_> = several.iter().map(|part| part.place()).collect();
                Root::Unknown(format!("each of {} could be it", places.join(", ")))
            }
        }
    }

    /// The device behind what Linux takes as `root=`.
    pub(crate) fn device(&self, root: &str) -> Option<String> {
        let uuid = root.strip_prefix("PARTUUID=")?;
        self.parts.iter().find(|part| part.uuid.as_deref() == Some(uuid)).map(Part::device)
    }

    /// Whether the two have the identity of a partition or of a file system in common.
    pub(crate) fn is_twin(&self, other: &Survey) -> bool {
        self.parts.iter().any(|one| {
            other.parts.iter().any(|other| {
                one.uuid.is_some() && one.uuid == other.uuid || one.ext.is_some() && one.ext == other.ext
            })
        })
    }

    /// Whether the ext file system behind this `root=` has a journal that must be replayed first.
    pub(crate) fn is_unclean(&self, root: &str) -> bool {
        let device = self.device(root).unwrap_or_else(|| root.to_owned());
        self.parts.iter().any(|part| part.unclean && (part.device() == device || device.starts_with("UUID=")))
    }
}

impl Part {
    fn of(disk: &Disk<'_>, window: Window, number: u32, uuid: Option<String>) -> Self {
        let bytes = |at, len: usize| {
            let mut bytes = vec![0; len];
            disk.read(window, at, &mut bytes, "its beginning").ok().map(|()| bytes)
        };
        let found =
            MARKS.iter().find(|(at, mark, ..)| bytes(*at, mark.len()).is_some_and(|read| read == *mark));
        let kind = found.map(|(_, _, name, use_)| (*name, *use_));
        let is_ext = kind.is_some_and(|(name, _)| name.starts_with("ext"));
        let superblock = bytes(1024, 0x78).filter(|_| is_ext);
        let ext = superblock.as_ref().and_then(|block| block.get(0x68..0x78)?.try_into().ok());
        // HAS_JOURNAL and RECOVER.
        let flag =
            |at: usize| superblock.as_ref().and_then(|block| block.get(at)).is_some_and(|byte| byte & 4 != 0);
        Part { number, uuid, kind, ext, unclean: flag(0x5c) && flag(0x60) }
    }

    fn device(&self) -> String {
        if self.number == 0 { "/dev/vda".into() } else { format!("/dev/vda{}", self.number) }
    }

    fn place(&self) -> String {
        if self.number == 0 { "the whole disk".into() } else { format!("partition {}", self.number) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{LINUX, LVM, ext4, gpt, unclean, with_disk};

    fn survey(disk: &[u8]) -> Survey {
        with_disk(disk, |disk| Survey::of(disk).unwrap())
    }

    fn marked(at: usize, mark: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 256 << 10];
        disk[at..at + mark.len()].copy_from_slice(mark);
        disk
    }

    #[test]
    fn file_system_over_a_whole_disk_is_the_root() {
        for (at, mark, name, use_) in MARKS {
            let disk = marked(usize::try_from(at).unwrap(), mark);
            let root = survey(&disk).root();
            match use_ {
                Use::Root => {
                    assert_eq!(root, Root::Is("/dev/vda".into(), format!("the whole disk ({name})")));
                }
                Use::Inside => assert!(matches!(root, Root::Unknown(_)), "{name}: {root:?}"),
                Use::Never => assert_eq!(root, Root::No, "{name}"),
            }
        }
        assert_eq!(survey(&[0; 4096]).root(), Root::No);
    }

    #[test]
    fn one_partition_that_can_be_a_root_is_it_and_of_several_none() {
        let (xfs, fat) = (marked(0, b"XFSB"), marked(0x52, b"FAT32"));
        let one = survey(&gpt(512, &[(1, LINUX, &fat), (2, LINUX, &xfs)]));
        assert!(matches!(one.root(), Root::Is(root, _) if root.starts_with("PARTUUID=02020202-")));
        let several = survey(&gpt(512, &[(1, LINUX, &xfs), (2, LINUX, &xfs)]));
        assert!(matches!(several.root(), Root::Unknown(said) if said.contains("partition 1, partition 2")));
        let lvm = survey(&gpt(512, &[(1, LINUX, &xfs), (2, LVM, b"x")]));
        assert!(matches!(lvm.root(), Root::Unknown(said) if said.contains("partition 2 is LVM")));
    }

    #[test]
    fn copies_of_a_disk_are_known_and_other_disks_are_not() {
        let file_system = ext4(2048, &[("x", b"1")], &[]);
        let whole = survey(&file_system);
        assert!(whole.is_twin(&survey(&gpt(512, &[(3, LINUX, &file_system)]))));
        assert!(!whole.is_twin(&survey(&ext4(2048, &[("x", b"1")], &[]))));
        let disk = survey(&gpt(512, &[(1, LINUX, b"x")]));
        assert!(disk.is_twin(&disk) && !disk.is_twin(&survey(&[0; 4096])));
        assert_eq!(
            disk.device("PARTUUID=01010101-0101-0101-0101-010101010101").as_deref(),
            Some("/dev/vda1")
        );
    }

    #[test]
    fn journal_to_be_replayed_is_seen() {
        assert!(survey(&unclean(&[("etc/x", b"")])).is_unclean("/dev/vda"));
        assert!(!survey(&ext4(2048, &[("etc/x", b"")], &[])).is_unclean("/dev/vda"));
    }
}
