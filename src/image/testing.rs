//! Images for tests: small ext4 file systems by mke2fs, and tables of partitions by hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use boot::read::ReadAt;

use super::disk::{Budget, Disk};

/// A disk in memory.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl ReadAt for Bytes {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }
}

/// What `look` sees of a disk with this content.
pub(crate) fn with_disk<T>(content: &[u8], look: impl FnOnce(&Disk<'_>) -> T) -> T {
    with_sectors(content, 512, look)
}

/// The same with sectors of so many bytes.
pub(crate) fn with_sectors<T>(content: &[u8], sector: u64, look: impl FnOnce(&Disk<'_>) -> T) -> T {
    let bytes = Bytes(content.to_vec());
    look(&Disk::new(&bytes, sector, &Budget::new()).unwrap())
}

/// An ext4 file system of `kib` KiB with these files, or of the kind that `-t` in the options says; a content that starts with
/// `->` is a link's.
pub(crate) fn ext4(kib: u64, files: &[(&str, &[u8])], options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    for (name, content) in files {
        let path = root.join(name.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix(b"->") {
            Some(target) => symlink(Path::new(std::str::from_utf8(target).unwrap()), path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let image = folder.path().join("image");
    let made = Command::new("mke2fs")
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .args(if options.contains(&"-t") { &["-q"][..] } else { &["-q", "-t", "ext4"] })
        .arg("-d")
        .arg(&root)
        .args(options)
        .arg(&image)
        .arg(format!("{kib}k"))
        .output()
        .expect("mke2fs runs; it is in Debian's package e2fsprogs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read(&image).unwrap()
}

/// A small file system with these files, whose journal holds its root folder's block once more: not unmounted.
pub(crate) fn unclean(files: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [image, block, commands] = ["image", "block", "commands"].map(|name| folder.path().join(name));
    fs::write(&image, ext4(2560, files, &["-b", "1024", "-N", "64"])).unwrap();
    let number = debugfs(&image, &["-R", "bmap / 0"]);
    let number: usize = number.trim().parse().unwrap();
    fs::write(&block, &fs::read(&image).unwrap()[number * 1024..][..1024]).unwrap();
    fs::write(&commands, format!("jo\njw -b {number} {}\njc\n", block.display())).unwrap();
    debugfs(&image, &["-w", "-f", commands.to_str().unwrap()]);
    fs::read(&image).unwrap()
}

/// What debugfs says to these arguments, on this image.
pub(crate) fn debugfs(image: &Path, arguments: &[&str]) -> String {
    let run = Command::new("/sbin/debugfs").args(arguments).arg(image).output();
    let run = run.expect("debugfs runs; it is in Debian's package e2fsprogs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// A bit by bit CRC-32, independent of the one that is tested.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let odd = (crc ^ u32::from(byte >> bit)) & 1;
            crc = (crc >> 1) ^ if odd == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

/// Type of a partition of Linux data, and of one for LVM, as they lie on a disk.
pub(crate) const LINUX: [u8; 16] = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
pub(crate) const LVM: [u8; 16] = *b"\x79\xd3\xd6\xe6\x07\xf5\xc2\x44\xa2\x3c\x23\x8f\x2a\x3d\xf9\x28";

/// A disk with a GPT of these partitions, a MiB apart, each numbered as it is given; number n has the identity n, n, n...
pub(crate) fn gpt(sector: usize, partitions: &[(u8, [u8; 16], &[u8])]) -> Vec<u8> {
    const MIB: usize = 1 << 20;
    let mut disk = vec![0; MIB];
    let mut entries = vec![0; 128 * 128];
    for (number, kind, content) in partitions {
        let first = disk.len() / sector;
        disk.extend(*content);
        disk.resize(disk.len().next_multiple_of(MIB), 0);
        let entry = &mut entries[(usize::from(*number) - 1) * 128..][..128];
        entry[..16].copy_from_slice(kind);
        entry[16..32].fill(*number);
        entry[32..40].copy_from_slice(&(first as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&((disk.len() / sector - 1) as u64).to_le_bytes());
    }
    disk.resize(disk.len() + MIB, 0);
    let last = disk.len() / sector - 1;
    let table = entries.len() / sector;
    for (place, at) in [(1, 2), (last, last - table)] {
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..16].copy_from_slice(b"\0\0\x01\0\x5c\0\0\0");
        header[24..32].copy_from_slice(&(place as u64).to_le_bytes());
        header[40..48].copy_from_slice(&2_u64.to_le_bytes());
        header[48..56].copy_from_slice(&((last - 1) as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(at as u64).to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let crc = crc32(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        disk[place * sector..][..92].copy_from_slice(&header);
        disk[at * sector..][..entries.len()].copy_from_slice(&entries);
    }
    mbr_entry(&mut disk, 0, 0, 0xee, 1, u32::MAX);
    disk
}

/// Puts an entry into the table of the sector that starts at `at`.
pub(crate) fn mbr_entry(disk: &mut [u8], at: usize, slot: usize, kind: u8, first: u32, count: u32) {
    disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    let entry = &mut disk[at + 0x1be + slot * 16..][..16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&count.to_le_bytes());
}
