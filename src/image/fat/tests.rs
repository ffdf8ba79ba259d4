#![allow(clippy::cast_possible_truncation, reason = "the sizes are the tests' own, and small")]

use super::*;
use crate::image::disk::Budget;
use crate::image::testing::{Bytes, fat, with_disk};

fn read(image: &[u8], path: &str) -> Result<Option<Vec<u8>>, ReadError> {
    with_disk(image, |disk| {
        let Some(fs) = FatFs::open(disk, disk.whole())? else { return Ok(None) };
        let Some(node) = fs.find(path)? else { return Ok(None) };
        fs.read(&node, 1 << 20).map(Some)
    })
}

/// Bits of the table, and an image size in KiB that leads to it.
const KINDS: [(u32, usize); 3] = [(12, 1024), (16, 4096), (32, 4096)];

#[test]
fn long_names_and_long_files_are_read_from_every_kind() {
    let long: Vec<u8> = (0..200_017_u32).map(|n| (n % 251) as u8).collect();
    let names: Vec<String> =
        (0..60).map(|n| format!("EFI/Linux/a name of more than one part {n}.conf")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    files.extend([("vmlinuz-linux", &long[..]), ("empty", b""), ("EFI/BOOT/BOOTX64.EFI", b"x")]);
    for (bits, kib) in KINDS {
        let image = fat(bits, kib, &files);
        assert!(read(&image, "/vmlinuz-linux").unwrap().as_deref() == Some(&long), "FAT{bits}");
        assert_eq!(read(&image, "/empty").unwrap().as_deref(), Some(&b""[..]));
        for path in ["/efi/boot/bootx64.efi", "\\EFI\\BOOT\\BOOTX64.EFI", "EFI/Linux/../boot/./BOOTX64.EFI"] {
            assert_eq!(read(&image, path).unwrap().as_deref(), Some(&b"x"[..]), "{path}");
        }
        assert_eq!(read(&image, &names[59]).unwrap().as_deref(), Some(names[59].as_bytes()));
        assert_eq!(read(&image, "/EFI/none").unwrap(), None);
        assert_eq!(read(&image, "/empty/none").unwrap(), None);
        with_disk(&image, |disk| {
            let fs = FatFs::open(disk, disk.whole()).unwrap().unwrap();
            assert_eq!((fs.uuid(), fs.label()), ("1234-ABCD", "ESP"));
            let folder = fs.find("/EFI/Linux").unwrap().unwrap();
            assert_eq!(fs.list(&folder, 1000, |_| true).unwrap().len(), 60);
            assert_eq!(fs.list(&folder, 7, |_| true).unwrap().len(), 7);
        });
    }
}

#[test]
fn short_names_have_the_letters_that_windows_marks() {
    let mut image = fat(12, 1024, &[("a", b"x")]);
    let at = image.windows(11).position(|name| name == b"F~1        ").unwrap();
    // Without the long name in front of it.
    image[at - 32] = 0xe5;
    image[at..at + 11].copy_from_slice(b"VMLINUZ CFG");
    image[at + 12] = 0x18;
    with_disk(&image, |disk| {
        let fs = FatFs::open(disk, disk.whole()).unwrap().unwrap();
        let root = fs.find("/").unwrap().unwrap();
        assert_eq!(fs.list(&root, 9, |_| true).unwrap(), ["vmlinuz.cfg"]);
        assert!(fs.find("/VMLINUZ.cfg").unwrap().is_some());
    });
    // A long name with another entry's checksum is ignored.
    let mut image = fat(12, 1024, &[("long name", b"x")]);
    let at = image.windows(11).position(|name| name == b"F~1        ").unwrap();
    image[at + 2] = b'9';
    assert_eq!(read(&image, "/long name").unwrap(), None);
    assert!(read(&image, "/f~9").unwrap().is_some());
}

/// Makes each cluster of a chain lead to `next`.
fn looped(bits: u32, kib: usize, next: u32) -> Vec<u8> {
    let many: Vec<String> = (0..40).map(|n| format!("d/name-{n}")).collect();
    let mut files: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let content = vec![7; 9000];
    files.push(("f", &content));
    let mut image = fat(bits, kib, &files);
    let table = if bits == 32 { 32 * 512 } else { 512 };
    let end = table + 300 * bits as usize / 8;
    let pattern = match bits {
        12 => [next as u8, (next << 4 | next >> 8) as u8, (next >> 4) as u8].to_vec(),
        16 => (next as u16).to_le_bytes().to_vec(),
        _ => next.to_le_bytes().to_vec(),
    };
    for (at, byte) in (table..end).enumerate() {
        image[byte] = pattern[at % pattern.len()];
    }
    image
}

#[test]
fn chains_that_go_round_or_lead_nowhere_end() {
    for (bits, kib) in KINDS {
        for next in [0, 1, 3, 70, 0x7f7, 0xff7] {
            let image = looped(bits, kib, next);
            let bytes = Bytes(image);
            let budget = Budget::new();
            let disk = Disk::new(&bytes, 512, &budget).unwrap();
            let found = FatFs::open(&disk, disk.whole());
            // The root folder of a FAT32 is a chain as well.
            let Ok(Some(fs)) = found else { continue };
            for path in ["/f", "/d/name-none"] {
                let result =
                    fs.find(path).and_then(|node| node.map(|node| fs.read(&node, 1 << 20)).transpose());
                assert!(
                    !matches!(result, Err(ReadError::Endless | ReadError::Io(_))),
                    "{path} {next:#x}: {result:?}"
                );
            }
            assert!(budget.spent() < 96 << 20, "FAT{bits} {next:#x}: {}", budget.spent());
        }
        // A folder whose second cluster is itself.
        let image = looped(bits, kib, if bits == 32 { 66 } else { 2 });
        assert!(read(&image, "/d/name-none").is_err() || bits == 32);
    }
}

#[test]
fn lengths_that_cannot_be_make_nothing_of_that_length() {
    let mut image = fat(16, 4096, &[("f", b"x")]);
    let at = image.windows(11).position(|name| name == b"F~1        ").unwrap();
    image[at + 28..at + 32].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(read(&image, "/f"), Err(ReadError::TooLong { mib: 4095, max: 1 })));
    image[at + 28..at + 32].copy_from_slice(&9999_u32.to_le_bytes());
    assert!(matches!(read(&image, "/f"), Err(ReadError::Damaged(_))));
    image[at + 26..at + 28].copy_from_slice(&u16::MAX.to_le_bytes());
    assert!(matches!(read(&image, "/f"), Err(ReadError::Damaged(_))));
}

#[test]
fn first_sectors_of_other_kinds_are_none() {
    let good = fat(16, 4096, &[("f", b"x")]);
    for (at, value) in [(0xb, 1), (0xc, 0), (0xc, 0x40), (0xd, 0), (0xd, 3), (0xe, 0), (0x10, 0), (0x15, 1)] {
        let mut image = good.clone();
        image[at] = value;
        assert_eq!(read(&image, "/f").unwrap(), None, "byte {at:#x} is {value}");
    }
    assert_eq!(read(b"\xeb", "/f").unwrap(), None);
    assert_eq!(read(&vec![0; 1 << 20], "/f").unwrap(), None);
}
