//! Images for tests: small ext4 file systems by mke2fs, FAT and partition tables by hand.
#![allow(clippy::cast_possible_truncation, reason = "the sizes are the tests' own, and small")]

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

/// Calls `look` with a disk of this content.
pub(crate) fn with_disk<T>(content: &[u8], look: impl FnOnce(&Disk<'_>) -> T) -> T {
    with_sectors(content, 512, look)
}

/// The same with this sector size.
pub(crate) fn with_sectors<T>(content: &[u8], sector: u64, look: impl FnOnce(&Disk<'_>) -> T) -> T {
    let bytes = Bytes(content.to_vec());
    look(&Disk::new(&bytes, sector, &Budget::new()).unwrap())
}

/// An ext4 file system of `kib` KiB with these files, or another kind with `-t` in the options; content that
/// starts with `->` makes a symbolic link.
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

/// A small file system with these files that was not unmounted: its journal has a copy of the root folder's
/// block.
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

/// The output of debugfs with these arguments, on this image.
pub(crate) fn debugfs(image: &Path, arguments: &[&str]) -> String {
    let run = Command::new("/sbin/debugfs").args(arguments).arg(image).output();
    let run = run.expect("debugfs runs; it is in Debian's package e2fsprogs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// A bit by bit CRC-32, independent of the tested one.
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

/// Partition types of Linux data and of LVM, in their on-disk form.
pub(crate) const LINUX: [u8; 16] = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
pub(crate) const LVM: [u8; 16] = *b"\x79\xd3\xd6\xe6\x07\xf5\xc2\x44\xa2\x3c\x23\x8f\x2a\x3d\xf9\x28";

/// A disk with a GPT of these partitions, 1 MiB apart, with the given numbers; number n has the GUID n, n,
/// n... and the label `partN`.
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
        let label = format!("part{number}");
        for (letter, place) in label.bytes().zip((56..).step_by(2)) {
            entry[place] = letter;
        }
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

/// Puts an entry into the partition table of the sector at `at`.
pub(crate) fn mbr_entry(disk: &mut [u8], at: usize, slot: usize, kind: u8, first: u32, count: u32) {
    disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    let entry = &mut disk[at + 0x1be + slot * 16..][..16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&count.to_le_bytes());
}

/// Type of an EFI system partition.
pub(crate) const EFI: [u8; 16] = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";

/// A FAT with entries of this many bits and `kib` KiB, with these files under long names. Its serial number
/// is 1234-ABCD, its label `ESP`. In a file of three clusters and more the last two are swapped.
pub(crate) fn fat(bits: u32, kib: usize, files: &[(&str, &[u8])]) -> Vec<u8> {
    let reserved = if bits == 32 { 32 } else { 1 };
    let sectors = kib * 2;
    let table = (sectors + 2) * bits as usize / 8 / 512 + 1;
    let root_sectors = if bits == 32 { 0 } else { 32 };
    let mut image = vec![0; sectors * 512];
    image[..3].copy_from_slice(b"\xeb\x3c\x90");
    image[0xb..0x11].copy_from_slice(&[0, 2, 1, reserved, 0, 2]);
    image[0x11..0x13].copy_from_slice(&u16::to_le_bytes(root_sectors * 16));
    image[0x15] = 0xf8;
    image[0x20..0x24].copy_from_slice(&(sectors as u32).to_le_bytes());
    let more = if bits == 32 { 0x40 } else { 0x24 };
    match bits {
        32 => {
            image[0x24..0x28].copy_from_slice(&(table as u32).to_le_bytes());
            image[0x2c] = 2;
        }
        _ => image[0x16..0x18].copy_from_slice(&(table as u16).to_le_bytes()),
    }
    image[more + 2] = 0x29;
    image[more + 3..more + 7].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
    image[more + 7..more + 18].copy_from_slice(b"ESP        ");
    image[more + 18..more + 26].copy_from_slice(format!("FAT{bits:<5}").as_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    let table_at = usize::from(reserved) * 512;
    let root_at = table_at + 2 * table * 512;
    let data = root_at + usize::from(root_sectors) * 512;
    let mut fat = Fat { image, bits, table: table_at, data, next: 2, count: 0 };
    let root = if bits == 32 { fat.claim(64) } else { Vec::new() };
    let content = fat.folder("", files);
    match bits {
        32 => fat.fill(&root, &content),
        _ => fat.image[root_at..root_at + content.len()].copy_from_slice(&content),
    }
    fat.image.copy_within(table_at..table_at + table * 512, table_at + table * 512);
    fat.image
}

struct Fat {
    image: Vec<u8>,
    bits: u32,
    table: usize,
    data: usize,
    next: usize,
    count: usize,
}

impl Fat {
    /// Allocates a chain of this many clusters.
    fn claim(&mut self, clusters: usize) -> Vec<usize> {
        let mut chain: Vec<_> = (self.next..self.next + clusters).collect();
        self.next += clusters;
        if let [.., a, b, c] = chain.as_mut_slice() {
            let _ = a;
            std::mem::swap(b, c);
        }
        for (at, cluster) in chain.iter().enumerate() {
            let next = chain.get(at + 1).copied().unwrap_or(0x0fff_ffff) as u32;
            self.set(*cluster, next);
        }
        chain
    }

    fn set(&mut self, cluster: usize, next: u32) {
        let at = self.table + cluster * self.bits as usize / 8;
        match self.bits {
            12 => {
                let old = u16::from_le_bytes([self.image[at], self.image[at + 1]]);
                let next = (next & 0xfff) as u16;
                let new = if cluster % 2 == 1 { old & 0xf | next << 4 } else { old & 0xf000 | next };
                self.image[at..at + 2].copy_from_slice(&new.to_le_bytes());
            }
            16 => self.image[at..at + 2].copy_from_slice(&(next as u16).to_le_bytes()),
            _ => self.image[at..at + 4].copy_from_slice(&next.to_le_bytes()),
        }
    }

    fn fill(&mut self, chain: &[usize], content: &[u8]) {
        for (cluster, part) in chain.iter().zip(content.chunks(512)) {
            let at = self.data + (cluster - 2) * 512;
            self.image[at..at + part.len()].copy_from_slice(part);
        }
    }

    fn store(&mut self, content: &[u8]) -> usize {
        let chain = self.claim(content.len().div_ceil(512));
        self.fill(&chain, content);
        chain.first().copied().unwrap_or(0)
    }

    /// The entries of a folder with these files, and its subfolders.
    fn folder(&mut self, path: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut entries = Vec::new();
        let mut done = Vec::new();
        for (name, content) in
            files.iter().filter_map(|(name, content)| Some((name.strip_prefix(path)?, *content)))
        {
            match name.split_once('/') {
                Some((folder, _)) if done.contains(&folder) => {}
                Some((folder, _)) => {
                    done.push(folder);
                    let content = self.folder(&format!("{path}{folder}/"), files);
                    let first = self.store(&content);
                    entries.extend(self.entry(folder, 0x10, first, 0));
                }
                None => {
                    let first = if content.is_empty() { 0 } else { self.store(content) };
                    entries.extend(self.entry(name, 0x20, first, content.len()));
                }
            }
        }
        entries
    }

    fn entry(&mut self, name: &str, attributes: u8, first: usize, len: usize) -> Vec<u8> {
        self.count += 1;
        let mut short = [0; 32];
        short[..11].copy_from_slice(format!("F~{:<9}", self.count).as_bytes());
        short[11] = attributes;
        short[20..22].copy_from_slice(&((first >> 16) as u16).to_le_bytes());
        short[26..28].copy_from_slice(&(first as u16).to_le_bytes());
        short[28..32].copy_from_slice(&(len as u32).to_le_bytes());
        let sum = short[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let mut letters: Vec<u16> = name.encode_utf16().collect();
        if !letters.len().is_multiple_of(13) {
            letters.push(0);
            letters.resize(letters.len().next_multiple_of(13), 0xffff);
        }
        let parts: Vec<_> = letters.chunks(13).collect();
        let mut all = Vec::new();
        for (number, part) in parts.iter().enumerate().rev() {
            let mut entry = [0; 32];
            entry[0] = number as u8 + 1 + if number + 1 == parts.len() { 0x40 } else { 0 };
            (entry[11], entry[13]) = (0x0f, sum);
            let bytes: Vec<u8> = part.iter().flat_map(|letter| letter.to_le_bytes()).collect();
            entry[1..11].copy_from_slice(&bytes[..10]);
            entry[14..26].copy_from_slice(&bytes[10..22]);
            entry[28..32].copy_from_slice(&bytes[22..]);
            all.extend(entry);
        }
        all.extend(short);
        all
    }
}
