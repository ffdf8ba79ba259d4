//! Tests of the archive: the members that a reader finds, and what is refused.

use super::*;
use std::fs;

/// A member as a reader sees it: name, mode, links, device, size.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    name: String,
    inode: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

/// Reads an archive as Linux does.
fn read(archive: &[u8]) -> Vec<Seen> {
    let mut rest = archive;
    let mut members = Vec::new();
    loop {
        assert_eq!(&rest[..6], b"070701");
        let number = |i: usize| {
            u32::from_str_radix(std::str::from_utf8(&rest[6 + i * 8..14 + i * 8]).unwrap(), 16).unwrap()
        };
        let (size, name_size) = (number(6) as usize, number(11) as usize);
        let content_at = (110 + name_size).next_multiple_of(4);
        assert_eq!(rest[110 + name_size - 1], 0);
        let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
        let member = Seen {
            name,
            inode: number(0),
            mode: number(1),
            links: number(4),
            device: (number(9), number(10)),
            content: rest[content_at..content_at + size].to_vec(),
        };
        rest = &rest[(content_at + size).next_multiple_of(4)..];
        if member.name == "TRAILER!!!" {
            assert!(rest.is_empty());
            return members;
        }
        members.push(member);
    }
}

fn names(members: &[Seen]) -> Vec<&str> {
    members.iter().map(|member| member.name.as_str()).collect()
}

fn host(path: &Path) -> Content {
    let meta = fs::metadata(path).unwrap();
    Content::Host { path: path.to_path_buf(), size: meta.len(), identity: (meta.dev(), meta.ino()) }
}

#[test]
fn members_are_found_with_their_modes_and_the_folders_above_them() {
    let mut archive = Archive::new();
    archive.add("/usr/bin/tool", Member::file(0o4755, *b"12345")).unwrap();
    archive.add("usr/lib", Member::new(0o777, Kind::Symlink(b"../lib".to_vec()))).unwrap();
    archive.add("dev/console", Member::new(0o600, Kind::CharacterDevice(5, 1))).unwrap();
    archive.add("run/pipe", Member::new(0o640, Kind::Fifo)).unwrap();
    archive.folder("usr").unwrap();
    let members = read(&archive.finish().unwrap().to_vec().unwrap());
    assert_eq!(
        names(&members),
        ["usr", "usr/bin", "usr/bin/tool", "usr/lib", "dev", "dev/console", "run", "run/pipe"]
    );
    let modes: Vec<u32> = members.iter().map(|member| member.mode).collect();
    assert_eq!(modes, [0o40755, 0o40755, 0o104755, 0o120777, 0o40755, 0o20600, 0o40755, 0o10640]);
    assert_eq!(
        (members[2].content.as_slice(), members[3].content.as_slice()),
        (&b"12345"[..], &b"../lib"[..])
    );
    assert_eq!(members[5].device, (5, 1));
}

#[test]
fn files_of_the_host_are_read_with_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let data: Vec<u8> = (0..10_001u32).map(|n| (n % 251) as u8).collect();
    fs::write(&path, &data).unwrap();
    let mut archive = Archive::new();
    archive.add("a", Member::file(0o644, *b"x")).unwrap();
    archive.add("data", Member::new(0o644, Kind::File(host(&path)))).unwrap();
    archive.add("z", Member::file(0o644, *b"yz")).unwrap();
    let archive = archive.finish().unwrap();
    let whole = archive.to_vec().unwrap();
    assert_eq!(read(&whole)[1].content, data);
    assert_eq!(whole.len() as u64, archive.length().unwrap());
    // Every part of it is the same, wherever it starts and ends.
    for (at, len) in (0..whole.len()).step_by(97).zip((1..).step_by(131)) {
        let mut part = vec![0xee; len];
        let done = archive.read_at(&mut part, at as u64).unwrap();
        assert_eq!(part[..done], whole[at..(at + len).min(whole.len())], "{len} at {at}");
    }
    assert_eq!(archive.read_at(&mut [0; 9], archive.length().unwrap()).unwrap(), 0);
}

#[test]
fn file_that_changed_meanwhile_is_an_error_and_what_it_grew_by_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    fs::write(&path, "12345").unwrap();
    let mut archive = Archive::new();
    archive.add("data", Member::new(0o644, Kind::File(host(&path)))).unwrap();
    let archive = archive.finish().unwrap();
    fs::write(&path, "12345678").unwrap();
    assert_eq!(read(&archive.to_vec().unwrap())[0].content, b"12345");
    fs::write(&path, "123").unwrap();
    let error = archive.to_vec().unwrap_err().to_string();
    assert!(error.contains("data: it became shorter"), "{error}");
    fs::rename(&path, folder.path().join("old")).unwrap();
    fs::write(&path, "54321").unwrap();
    let error = archive.to_vec().unwrap_err().to_string();
    assert!(error.contains("another file took its place"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(archive.to_vec().unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn file_of_four_gib_is_refused_and_one_byte_less_is_not() {
    let with =
        |size| Member::new(0o644, Kind::File(Content::Host { path: "big".into(), size, identity: (0, 0) }));
    let mut archive = Archive::new();
    let error = archive.add("big", with(1 << 32)).unwrap_err();
    assert!(error.to_string().contains("big has 4294967296 bytes"), "{error}");
    archive.add("big", with((1 << 32) - 1)).unwrap();
    // An archive of several such files is longer than 4 GiB, and still right.
    archive.add("more", with((1 << 32) - 1)).unwrap();
    archive.add("small", Member::file(0o644, *b"end")).unwrap();
    let archive = archive.finish().unwrap();
    assert!(archive.length().unwrap() > 2 << 32);
    let mut end = vec![0; 240];
    let at = archive.length().unwrap() - 240;
    assert_eq!(archive.read_at(&mut end, at).unwrap(), 240);
    let text = String::from_utf8_lossy(&end).into_owned();
    assert!(text.contains("small\0") && text.contains("end\0") && text.contains("TRAILER!!!"), "{text}");
}

#[test]
fn second_name_of_a_file_costs_nothing() {
    let mut archive = Archive::new();
    let inode = archive.add("busybox", Member { links: 2, ..Member::file(0o755, *b"code") }).unwrap();
    archive.add("sh", Member { links: 2, ..Member::new(0o755, Kind::Link(inode)) }).unwrap();
    let members = read(&archive.finish().unwrap().to_vec().unwrap());
    assert_eq!(members[0].inode, members[1].inode);
    assert_eq!((members[1].links, members[1].content.len()), (2, 0));
}

#[test]
fn names_that_lead_elsewhere_or_stand_twice_are_refused() {
    let mut archive = Archive::new();
    let long = "x/".repeat(2048) + "x";
    for name in ["", "/", ".", "a/../b", "a//b", "a/", "a\0b", "TRAILER!!!", &long] {
        let error = archive.add(name, Member::file(0o644, [])).unwrap_err();
        assert!(matches!(error, CpioError::Name { .. }), "{name}: {error}");
    }
    archive.add("a", Member::file(0o644, [])).unwrap();
    assert!(matches!(archive.add("/a", Member::file(0o644, [])), Err(CpioError::Twice { .. })));
    let error = archive.add("a/b", Member::file(0o644, [])).unwrap_err();
    assert_eq!(error.to_string(), "a/b cannot be in the initramfs, because a in it is no folder");
}

#[test]
fn archive_is_one_that_the_inspection_knows() {
    let mut archive = Archive::new();
    archive.add("init", Member::file(0o755, *b"#!/bin/sh\n")).unwrap();
    archive.add("lib/modules/6.1/virtio_pci.ko", Member::file(0o644, *b"x")).unwrap();
    let facts = crate::inspect::inspect_initrd(&archive.finish().unwrap()).unwrap();
    assert!(facts.contents.init);
    assert_eq!(facts.contents.virtio_modules, ["virtio_pci"]);
}

#[test]
fn members_keep_their_time_and_others_have_the_archives() {
    let mut archive = Archive::dated(0x1234_5678);
    archive.add("d/own", Member { mtime: 0x0bad_cafe, ..Member::file(0o644, *b"x") }).unwrap();
    let bytes = archive.finish().unwrap().to_vec().unwrap();
    let time = |at: usize| std::str::from_utf8(&bytes[at + 46..at + 54]).unwrap();
    assert_eq!((time(0), time(112)), ("12345678", "0badcafe"));
}
