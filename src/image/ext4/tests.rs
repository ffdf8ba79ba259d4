#![allow(clippy::cast_possible_truncation, reason = "the sizes are the tests' own, and small")]

use super::*;
use crate::image::testing::{debugfs, ext4};
use boot::read::ReadAt;
use std::process::Command;

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }
}

fn read(image: Vec<u8>, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
    let bytes = Bytes(image);
    let disk = Disk::new(&bytes)?;
    let Some(fs) = Ext4::open(&disk, disk.whole())? else { return Ok(None) };
    let Some(inode) = fs.find(path)? else { return Ok(None) };
    fs.read(&inode, 64 << 20).map(Some)
}

#[test]
fn long_file_is_read_to_its_last_byte() {
    let content: Vec<u8> = (0..3_000_017_u32).map(|n| (n % 251) as u8).collect();
    for block in ["1024", "4096"] {
        let image = ext4(16384, &[("f", &content)], &["-b", block]);
        assert_eq!(read(image, "/f").unwrap().as_deref(), Some(&content[..]));
    }
}

#[test]
fn every_name_of_a_large_folder_is_found() {
    let names: Vec<String> = (0..2000).map(|n| format!("d/file-with-a-long-name-{n}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    // Made without an index; e2fsck makes one.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, ext4(32768, &files, &["-b", "1024"])).unwrap();
    let checked =
        Command::new("/sbin/e2fsck").args(["-fyD"]).arg(&path).output().expect("e2fsck runs (e2fsprogs)");
    assert!(checked.status.code().is_some_and(|code| code <= 1), "{checked:?}");
    let image = std::fs::read(&path).unwrap();
    for name in [&names[0], &names[999], &names[1999]] {
        assert_eq!(read(image.clone(), name).unwrap().as_deref(), Some(name.as_bytes()));
    }
    assert_eq!(read(image, "/d/none").unwrap(), None);
}

#[test]
fn what_only_the_journal_has_is_read_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = ext4(16384, &[("f", b"old content")], &["-b", "1024"]);
    // The block of f, which debugfs then writes to the journal alone, as a guest that was killed leaves it.
    std::fs::write(&path, &image).unwrap();
    let block = debugfs(&path, &["-R", "bmap f 0"]).trim().to_owned();
    let new = folder.path().join("new");
    let mut content = b"new content".to_vec();
    content.resize(1024, 0);
    std::fs::write(&new, &content).unwrap();
    let commands = folder.path().join("commands");
    let text = format!("jo\njw -b {block} {}\njc\n", new.display());
    std::fs::write(&commands, text).unwrap();
    debugfs(&path, &["-w", "-f", commands.to_str().unwrap()]);
    let image = std::fs::read(&path).unwrap();
    let recover = u32::from_le_bytes(image[1024 + 0x60..1024 + 0x64].try_into().unwrap()) & incompat::RECOVER;
    assert_ne!(recover, 0, "the journal is to be replayed");
    assert_eq!(read(image.clone(), "/f").unwrap().as_deref(), Some(&b"new content"[..]));
    // e2fsck agrees.
    let _ = Command::new("/sbin/e2fsck").args(["-fy", "-E", "journal_only"]).arg(&path).output().unwrap();
    assert_eq!(read(std::fs::read(&path).unwrap(), "/f").unwrap().as_deref(), Some(&b"new content"[..]));
    // A block that was revoked since is the one in its place.
    std::fs::write(&path, ext4(16384, &[("f", b"old content")], &["-b", "1024"])).unwrap();
    let text = format!("jo\njw -b {block} {}\njw -r {block}\njc\n", new.display());
    std::fs::write(&commands, text).unwrap();
    debugfs(&path, &["-w", "-f", commands.to_str().unwrap()]);
    assert_eq!(read(std::fs::read(&path).unwrap(), "/f").unwrap().as_deref(), Some(&b"old content"[..]));
}

#[test]
fn older_file_systems_and_unknown_features_are_refused_by_name() {
    let refusal = |image| read(image, "/f").unwrap_err().to_string();
    let said = refusal(ext4(4096, &[("f", b"x")], &["-O", "^extents,^64bit"]));
    assert!(said.contains("ext2 or ext3"), "{said}");
    let said = refusal(ext4(4096, &[("f", b"x")], &["-O", "meta_bg,^resize_inode"]));
    assert!(said.contains("feature of ext4"), "{said}");
}
