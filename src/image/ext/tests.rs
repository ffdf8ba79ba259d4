#![allow(clippy::cast_possible_truncation, reason = "the sizes are the tests' own, and small")]

use super::*;
use crate::image::disk::Budget;
use crate::image::testing::{Bytes, debugfs, ext4};
use std::process::Command;

fn read(image: Vec<u8>, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
    let bytes = Bytes(image);
    let budget = Budget::new();
    let disk = Disk::new(&bytes, 512, &budget)?;
    let Some(fs) = ExtFs::open(&disk, disk.whole())? else { return Ok(None) };
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
    // The block of f, which debugfs then writes to the journal alone, as after a kill of the guest.
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
    // A revoked block is read from its place.
    std::fs::write(&path, ext4(16384, &[("f", b"old content")], &["-b", "1024"])).unwrap();
    let text = format!("jo\njw -b {block} {}\njw -r {block}\njc\n", new.display());
    std::fs::write(&commands, text).unwrap();
    debugfs(&path, &["-w", "-f", commands.to_str().unwrap()]);
    assert_eq!(read(std::fs::read(&path).unwrap(), "/f").unwrap().as_deref(), Some(&b"old content"[..]));
}

/// An image whose file `f` of three blocks has newer content in its journal, opened by debugfs with these
/// options.
fn journaled(options: &[&str], open: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [path, new, commands] = ["image", "new", "commands"].map(|name| folder.path().join(name));
    std::fs::write(&path, ext4(16384, &[("f", &[b'o'; 3072])], &[&["-b", "1024"], options].concat()))
        .unwrap();
    let blocks = [0, 1, 2].map(|block| debugfs(&path, &["-R", &format!("bmap f {block}")]).trim().to_owned());
    std::fs::write(&new, [b'n'; 3072]).unwrap();
    std::fs::write(&commands, format!("{open}\njw -b {} {}\njc\n", blocks.join(","), new.display())).unwrap();
    debugfs(&path, &["-w", "-f", commands.to_str().unwrap()]);
    std::fs::read(&path).unwrap()
}

#[test]
fn tags_of_every_journal_are_read() {
    for wide in ["64bit", "^64bit"] {
        for open in ["jo", "jo -c -v 2", "jo -c -v 3"] {
            let image = journaled(&["-O", wide], open);
            let content = read(image, "/f").unwrap().unwrap();
            assert!(content == [b'n'; 3072], "{open} {wide}");
        }
    }
}

#[test]
fn fast_commits_are_said_and_are_no_part_of_the_log() {
    let mut image = journaled(&["-O", "fast_commit"], "jo");
    let journal = image.windows(8).position(|bytes| bytes == b"\xc0\x3b\x39\x98\0\0\0\x04").unwrap();
    let word = |image: &[u8], at: usize| u32::from_be_bytes(image[journal + at..][..4].try_into().unwrap());
    let features = word(&image, 0x28) | 0x20;
    image[journal + 0x28..][..4].copy_from_slice(&features.to_be_bytes());
    let opened = |image: &[u8]| {
        let bytes = Bytes(image.to_vec());
        let budget = Budget::new();
        let disk = Disk::new(&bytes, 512, &budget).unwrap();
        let fs = ExtFs::open(&disk, disk.whole()).unwrap().unwrap();
        let content = fs.read(&fs.find("/f").unwrap().unwrap(), 1 << 20).unwrap();
        assert!(content == [b'n'; 3072]);
        fs.has_fast_commits()
    };
    assert!(!opened(&image));
    // A head after the log's blocks, with the number of the next transaction.
    let count = match word(&image, 0x54) {
        0 => 256,
        count => count,
    };
    let (blocks, next) = (word(&image, 0x10), word(&image, 0x18) + 1);
    let mut head = [9_u16, 8].map(u16::to_le_bytes).concat();
    head.extend([0, next].map(u32::to_le_bytes).concat());
    // Linux skips the block between the two (fs/jbd2/journal.c, `j_fc_first`).
    let at = journal + (blocks - count + 1) as usize * 1024;
    image[at..at + head.len()].copy_from_slice(&head);
    assert!(opened(&image));
    image[at + 8] ^= 1;
    assert!(!opened(&image));
}

/// Older and rarer layouts: a long file with a hole, a short one, a large folder, a long and a short link.
#[test]
fn every_layout_that_mke2fs_makes_is_read() {
    let long: Vec<u8> = (0..5_000_017_u32).map(|n| (n % 251) as u8).collect();
    let mut holes = vec![0; 700_000];
    // No hole at the end: with inline_data mke2fs cuts such a file short.
    holes[300_000..300_009].copy_from_slice(b"an island");
    holes[699_991..].copy_from_slice(b"the shore");
    let target = format!("->d/{}", "./".repeat(60) + "short");
    let names: Vec<String> = (0..300).map(|n| format!("d/name-{n}")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    files.extend([("long", &long[..]), ("holes", &holes), ("d/short", b"short"), ("few/one", b"one")]);
    files.extend([("link", target.as_bytes()), ("d/near", b"->short")]);
    let layouts: [(&str, &[&str]); 9] = [
        ("ext2", &["-t", "ext2"]),
        ("ext2", &["-t", "ext2", "-b", "1024"]),
        ("ext2", &["-t", "ext2", "-r", "0", "-O", "none"]),
        ("ext3", &["-t", "ext3", "-b", "2048"]),
        ("ext4", &["-O", "inline_data"]),
        ("ext4", &["-O", "inline_data", "-I", "512", "-b", "1024"]),
        ("ext4", &["-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "1024"]),
        ("ext4", &["-O", "meta_bg,^resize_inode,^sparse_super,^64bit", "-b", "1024", "-g", "512"]),
        ("ext4", &["-O", "bigalloc", "-C", "16384"]),
    ];
    for (name, options) in layouts {
        let bytes = Bytes(ext4(16384, &files, options));
        let budget = Budget::new();
        let disk = Disk::new(&bytes, 512, &budget).unwrap();
        let fs = ExtFs::open(&disk, disk.whole()).unwrap().unwrap();
        assert_eq!(fs.name(), name, "{options:?}");
        let read = |path: &str| {
            fs.read(
                &fs.find(path).unwrap_or_else(|error| panic!("{path} {options:?}: {error}")).unwrap(),
                64 << 20,
            )
            .unwrap()
        };
        assert!(read("/long") == long, "{options:?}");
        assert!(read("/holes") == holes, "{options:?}");
        for path in ["/d/short", "/link", "/d/near"] {
            assert_eq!(read(path), b"short", "{path} {options:?}");
        }
        assert_eq!(read("/few/one"), b"one");
        assert_eq!(read("/d/name-299"), b"x");
        assert!(fs.find("/few/two").unwrap().is_none());
        let folder = fs.find("/d").unwrap().unwrap();
        assert_eq!(
            fs.list(&folder, 1000, |name| name.starts_with("name-")).unwrap().len(),
            300,
            "{options:?}"
        );
    }
}

/// As `tune2fs -O extents` makes it of an ext3: old files keep their maps, new ones have extents.
#[test]
fn block_maps_and_extents_live_in_one_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let [path, new] = ["image", "new"].map(|name| folder.path().join(name));
    let content: Vec<u8> = (0..400_000_u32).map(|n| (n % 249) as u8).collect();
    std::fs::write(&path, ext4(16384, &[("old", &content)], &["-t", "ext3", "-b", "1024"])).unwrap();
    let tuned = Command::new("/sbin/tune2fs").args(["-O", "extents"]).arg(&path).output().unwrap();
    assert!(tuned.status.success(), "{tuned:?}");
    std::fs::write(&new, &content).unwrap();
    debugfs(&path, &["-w", "-R", &format!("write {} new", new.display())]);
    let image = std::fs::read(&path).unwrap();
    for name in ["/old", "/new"] {
        assert!(read(image.clone(), name).unwrap().as_deref() == Some(&content), "{name}");
    }
}

#[test]
fn features_that_are_not_read_are_named() {
    let mut image = ext4(4096, &[("f", b"x")], &[]);
    for (bits, name) in [(0x1_u32, "compression"), (0x1000, "dirdata"), (0x8000_0000, "0x80000000")] {
        let at = 1024 + 0x60;
        let features = u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        image[at..at + 4].copy_from_slice(&(features | bits).to_le_bytes());
        let said = read(image.clone(), "/f").unwrap_err().to_string();
        assert!(said.contains(name), "{said}");
        image[at..at + 4].copy_from_slice(&features.to_le_bytes());
    }
}

#[test]
fn a_copy_of_the_superblock_is_where_mke2fs_puts_it() {
    let sparse: Vec<u64> = (0..130).filter(|group| Backups::Sparse.has(*group)).collect();
    assert_eq!(sparse, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    assert!(Backups::Every.has(2) && Backups::Two(4, 9).has(9) && !Backups::Two(4, 9).has(1));
}

/// An image of 1 KiB blocks with a file, a folder and a link, changed by these commands of debugfs.
fn changed(commands: &[String], blocks: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [image, script] = ["image", "script"].map(|name| folder.path().join(name));
    let long = format!("->{}", "x".repeat(100));
    let files: [(&str, &[u8]); 3] = [("f", b"x"), ("d/f", b"x"), ("link", long.as_bytes())];
    let mut bytes = ext4(8192, &files, &["-b", "1024", "-O", "^metadata_csum"]);
    for (block, content) in blocks {
        bytes[block * 1024..][..content.len()].copy_from_slice(content);
    }
    std::fs::write(&image, bytes).unwrap();
    std::fs::write(&script, commands.join("\n")).unwrap();
    debugfs(&image, &["-w", "-f", script.to_str().unwrap()]);
    std::fs::read(&image).unwrap()
}

#[test]
fn lengths_that_cannot_be_make_nothing_of_that_length() {
    for (name, path) in [("f", "/f"), ("d", "/d/f"), ("link", "/link")] {
        for size in [u64::MAX >> 1, 5 << 30, 1 << 30] {
            let image = changed(&[format!("set_inode_field {name} size {size}")], &[]);
            let result = read(image, path);
            assert!(
                matches!(result, Err(ReadError::Damaged(_) | ReadError::TooLong { .. })),
                "{name} of {size}: {result:?}"
            );
        }
    }
}

#[test]
fn tree_that_would_take_ages_ends_at_the_budget() {
    // Five levels, each block of 84 entries that all lead to the next one: 84 to the fifth empty leaves.
    let node = |depth: u16, entries: u16, child: u32| {
        let header = [0xf30a, entries, 84, depth, 0, 0].map(u16::to_le_bytes).concat();
        let entry = [0, child, 0].map(u32::to_le_bytes).concat();
        [header, entry.repeat(entries.into())].concat()
    };
    let blocks: Vec<_> = (0..5_u16)
        .map(|depth| {
            (7000 + usize::from(depth), node(depth, if depth == 0 { 0 } else { 84 }, 6999 + u32::from(depth)))
        })
        .collect();
    let root = node(5, 4, 7004);
    let words = root.chunks(4).enumerate().map(|(at, word)| {
        format!("set_inode_field f block[{at}] {}", u32::from_le_bytes(word.try_into().unwrap()))
    });
    let image = changed(&words.collect::<Vec<_>>(), &blocks);
    let result = read(image, "/f");
    assert!(matches!(result, Err(ReadError::Endless)), "{result:?}");
}

/// A file with a huge size costs nothing before it is refused, and a mapped one costs by its pieces.
#[test]
fn work_is_charged_by_what_is_done() {
    let content = vec![7; 2 << 20];
    let bytes = Bytes(ext4(8192, &[("f", &content)], &["-b", "1024"]));
    let budget = Budget::new();
    let disk = Disk::new(&bytes, 512, &budget).unwrap();
    let fs = ExtFs::open(&disk, disk.whole()).unwrap().unwrap();
    let inode = fs.find("/f").unwrap().unwrap();
    let before = budget.spent();
    assert!(matches!(fs.runs(&inode, 1 << 20), Err(ReadError::TooLong { mib: 2, max: 1 })));
    assert_eq!(budget.spent(), before);
    assert!(!fs.runs(&inode, 2 << 20).unwrap().is_empty());
    assert!(budget.spent() - before < 64 << 10, "{}", budget.spent() - before);
}

/// The transactions of a full journal are sorted once, and a file's extent is split only where they touch it.
#[test]
fn a_block_of_a_file_in_the_journal_splits_its_extent() {
    let content: Vec<u8> = (0..100 * 1024_u32).map(|n| (n / 1024 + 1) as u8).collect();
    let bytes = Bytes(ext4(8192, &[("f", &content)], &["-b", "1024"]));
    let budget = Budget::new();
    let disk = Disk::new(&bytes, 512, &budget).unwrap();
    let mut fs = ExtFs::open(&disk, disk.whole()).unwrap().unwrap();
    let inode = fs.find("/f").unwrap().unwrap();
    let plain = fs.runs(&inode, 1 << 20).unwrap();
    let first = plain[0].disk / 1024;
    fs.replayed = vec![(first + 1, 9), (first + 2, 10), (first + 50, 12)];
    let split = fs.runs(&inode, 1 << 20).unwrap();
    let at = |block: u64| {
        let run = split.iter().find(|run| (run.file..run.file + run.len).contains(&(block * 1024))).unwrap();
        (run.disk + block * 1024 - run.file) / 1024
    };
    assert_eq!([0, 1, 2, 3, 49, 50, 51].map(at), [first, 9, 10, first + 3, first + 49, 12, first + 51]);
    assert_eq!(split.iter().map(|run| run.len).sum::<u64>(), content.len() as u64);
}
