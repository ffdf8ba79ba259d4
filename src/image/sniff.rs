//! What a disk or a partition holds that is no ext4, in words for people.

use super::disk::{Disk, Window};

/// What is recognised by a few bytes at a place.
const MARKS: [(u64, &[u8], &str); 19] = [
    (0, b"QFI\xfb", "a qcow2 image; `qemu-img convert -O raw OLD NEW` makes a raw one of it"),
    (0, b"KDMV", "a VMDK image; `qemu-img convert -O raw OLD NEW` makes a raw one of it"),
    (0, b"vhdxfile", "a VHDX image; `qemu-img convert -O raw OLD NEW` makes a raw one of it"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image; `qemu-img convert -O raw OLD NEW` makes a raw one of it"),
    (0, b"\x1f\x8b", "packed with gzip; unpack it first"),
    (0, b"\xfd7zXZ\0", "packed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd; unpack it first"),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
    (512, b"LABELONE", LVM),
    (0, b"EFI PART", GPT),
    (512, b"EFI PART", GPT),
    (4096, b"EFI PART", GPT),
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"hsqs", "squashfs"),
    (0x8001, b"CD001", "ISO 9660"),
    (0x52, b"FAT32", "FAT"),
    (0x36, b"FAT", "FAT"),
];

/// A table that the guest's kernel does not take by itself.
const GPT: &str = "divided by a GPT that Linux does not take: damaged, of a larger disk, without the MBR \
                   that protects it, or in sectors of another length; `sgdisk -e` or parted may mend it";

/// How LVM is called.
pub(super) const LVM: &str = "LVM";

/// What lies in `window`.
pub(super) fn sniff(disk: &Disk<'_>, window: Window) -> &'static str {
    let found = MARKS.iter().find(|(at, mark, _)| {
        let mut bytes = vec![0; mark.len()];
        disk.read(window, *at, &mut bytes, "its beginning").is_ok() && bytes == *mark
    });
    match found {
        Some((_, _, name)) => name,
        None if is_zero(disk, window) => "empty",
        None => "of a kind that is not known here",
    }
}

/// The first 64 KiB are zero.
fn is_zero(disk: &Disk<'_>, window: Window) -> bool {
    let mut bytes = vec![0; usize::try_from(window.len.min(64 << 10)).unwrap_or(0)];
    disk.read(window, 0, &mut bytes, "its beginning").is_ok() && bytes.iter().all(|byte| *byte == 0)
}
