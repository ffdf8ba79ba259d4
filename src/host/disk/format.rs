//! Image formats other than raw, by their magic numbers. A guest would see such an image as a broken disk,
//! and its writes would destroy it.

/// Number of bytes to check.
pub(super) const HEAD: usize = 512;

/// What a qcow2 image is called here.
pub(super) const QCOW2: &str = "a qcow2 image";

/// Offset and bytes of each magic number, and the format's name with its article.
pub(crate) const IMAGE_FORMATS: [(usize, &[u8], &str); 9] = [
    (0, b"QFI\xfb", QCOW2),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"QED\0", "a QED image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
];

/// The format of an image that begins with `head`; `None` for what may be raw.
pub(super) fn image_format(head: &[u8]) -> Option<&'static str> {
    let is_at = |at: &usize, magic: &[u8]| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    IMAGE_FORMATS.iter().find(|(at, magic, _)| is_at(at, magic)).map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_sectors_and_zeros_may_be_raw() {
        let mut head = [0; HEAD];
        assert_eq!(image_format(&head), None);
        head[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(image_format(&head), None);
        assert_eq!(image_format(b""), None);
    }

    #[test]
    fn magic_at_its_place_is_recognised() {
        let mut head = [0; HEAD];
        head[0x40..0x44].copy_from_slice(&0xbeda_107fu32.to_le_bytes());
        assert_eq!(image_format(&head), Some("a VDI image"));
        assert_eq!(image_format(b"QFI\xfb\0\0\0\x03"), Some("a qcow2 image"));
    }
}
