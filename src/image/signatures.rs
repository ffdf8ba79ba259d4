//! Identifies the content of a disk or a partition by its magic number.

use super::disk::{Disk, Window};
use crate::host::disk::IMAGE_FORMATS;

/// Whether a kind of content can be a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootUse {
    /// It may be the root file system.
    Possible,
    /// It may contain the root, which only the guest can read.
    Container,
    /// It is no root.
    Never,
}

/// A kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    /// Offset of the magic number in bytes.
    pub(super) at: u64,
    pub(super) bytes: &'static [u8],
    /// Its name for people.
    pub(super) name: &'static str,
    /// The cure.
    pub(super) cure: &'static str,
    pub(super) usage: RootUse,
}

/// A kind without a cure.
const fn signature(at: u64, bytes: &'static [u8], name: &'static str, usage: RootUse) -> Signature {
    Signature { at, bytes, name, cure: "", usage }
}

/// An image or an archive, with its cure.
const fn unusable(at: u64, bytes: &'static [u8], name: &'static str, cure: &'static str) -> Signature {
    Signature { at, bytes, name, cure, usage: RootUse::Never }
}

/// Names that other modules compare.
pub(super) const LVM: &str = "LVM";
pub(super) const EXT: &str = "ext2, ext3 or ext4";
pub(super) const XFS: &str = "XFS";
pub(super) const BTRFS: &str = "btrfs";
const LUKS: &str = "encrypted (LUKS)";
const RAID: &str = "a member of a RAID (md)";
/// A partition table that the guest's kernel does not accept by default.
const GPT: &str = "divided by a GPT that Linux does not take: damaged, of a larger disk, without the MBR that protects it, or \
                   in sectors of another length";
const MEND: &str = "`sgdisk -e` or parted may mend it";
const CONVERT: &str = "`qemu-img convert -O raw OLD NEW` makes a raw one of it";
const UNPACK: &str = "unpack it first";

/// All known kinds. A container comes before its possible content.
pub(super) const SIGNATURES: [Signature; 38] = [
    unusable(0, b"\x1f\x8b", "packed with gzip", UNPACK),
    unusable(0, b"\xfd7zXZ\0", "packed with xz", UNPACK),
    unusable(0, b"\x28\xb5\x2f\xfd", "packed with zstd", UNPACK),
    unusable(0, b"BZh", "packed with bzip2", UNPACK),
    unusable(0, b"PK\x03\x04", "a zip archive", UNPACK),
    signature(0, b"LUKS\xba\xbe", LUKS, RootUse::Container),
    signature(512, b"LABELONE", LVM, RootUse::Container),
    signature(0, b"LABELONE", LVM, RootUse::Container),
    signature(4096, b"\xfc\x4e\x2b\xa9", RAID, RootUse::Container),
    signature(0, b"\xfc\x4e\x2b\xa9", RAID, RootUse::Container),
    signature(0x2_0000, b"\x0c\xb1\xba\0\0\0\0\0", "a member of a ZFS pool", RootUse::Container),
    signature(0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache", RootUse::Container),
    signature(0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9", "bcachefs", RootUse::Possible),
    signature(4086, b"SWAPSPACE2", "swap", RootUse::Never),
    signature(0x438, b"\x53\xef", EXT, RootUse::Possible),
    signature(0, b"XFSB", XFS, RootUse::Possible),
    signature(0x1_0040, b"_BHRfS_M", BTRFS, RootUse::Possible),
    signature(0, b"hsqs", "squashfs", RootUse::Possible),
    signature(1024, b"\xe2\xe1\xf5\xe0", "EROFS", RootUse::Possible),
    signature(1024, b"\x10\x20\xf5\xf2", "F2FS", RootUse::Possible),
    signature(0x1_0034, b"ReIsEr", "ReiserFS", RootUse::Possible),
    signature(0x8000, b"JFS1", "JFS", RootUse::Possible),
    signature(0x406, b"\x34\x34", "NILFS2", RootUse::Possible),
    signature(0, b"\x45\x3d\xcd\x28", "cramfs", RootUse::Possible),
    signature(0, b"-rom1fs-", "romfs", RootUse::Possible),
    signature(0x8001, b"CD001", "ISO 9660", RootUse::Possible),
    signature(0x410, b"\x7f\x13", "Minix", RootUse::Possible),
    signature(0x410, b"\x8f\x13", "Minix", RootUse::Possible),
    signature(0x410, b"\x68\x24", "Minix", RootUse::Possible),
    signature(0x410, b"\x78\x24", "Minix", RootUse::Possible),
    signature(0x418, b"\x5a\x4d", "Minix", RootUse::Possible),
    signature(3, b"EXFAT   ", "exFAT", RootUse::Never),
    signature(3, b"NTFS    ", "NTFS", RootUse::Never),
    signature(0x52, b"FAT32", "FAT", RootUse::Never),
    signature(0x36, b"FAT", "FAT", RootUse::Never),
    unusable(0, b"EFI PART", GPT, MEND),
    unusable(512, b"EFI PART", GPT, MEND),
    unusable(4096, b"EFI PART", GPT, MEND),
];

/// Bytes that are read and compared at once.
const PIECE: usize = 4096;
/// Bytes in which most signatures are, read at once.
const HEAD: u64 = 8 << 10;

/// Identifies the content of `window`.
pub(super) fn identify(disk: &Disk<'_>, window: Window) -> Option<Signature> {
    let read = |at, len| {
        let mut bytes = vec![0; len];
        disk.read(window, at, &mut bytes, "its beginning").ok().map(|()| bytes)
    };
    // Where a part of it cannot be read, each signature is read by itself.
    let head = usize::try_from(HEAD.min(window.len)).ok().and_then(|len| read(0, len)).unwrap_or_default();
    let formats = IMAGE_FORMATS.iter().map(|(at, bytes, name)| unusable(*at as u64, bytes, name, CONVERT));
    formats.chain(SIGNATURES).find(|signature| {
        let len = signature.bytes.len();
        let place = usize::try_from(signature.at).ok().and_then(|at| head.get(at..at.checked_add(len)?));
        match place {
            Some(bytes) => bytes == signature.bytes,
            None => read(signature.at, len).is_some_and(|bytes| bytes == signature.bytes),
        }
    })
}

/// The content of `window`, for people.
pub(super) fn describe(disk: &Disk<'_>, window: Window) -> String {
    match identify(disk, window) {
        Some(Signature { name, cure: "", .. }) => name.to_owned(),
        Some(Signature { name, cure, .. }) => format!("{name}; {cure}"),
        None if is_zero(disk, window) => "empty".to_owned(),
        None => "of a kind that is not known here".to_owned(),
    }
}

/// Whether the first 64 KiB are zero.
fn is_zero(disk: &Disk<'_>, window: Window) -> bool {
    let end = window.len.min(64 << 10);
    (0..end).step_by(PIECE).all(|at| {
        let mut bytes = [0; PIECE];
        let len = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        let piece = bytes.get_mut(..len).unwrap_or_default();
        disk.read(window, at, piece, "its beginning").is_ok() && piece.iter().all(|byte| *byte == 0)
    })
}
