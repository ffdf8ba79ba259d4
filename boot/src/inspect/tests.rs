//! Tests of the inspection: its findings, and its limits for damage and decompression bombs.

use flate2::{Compression as Level, write::GzEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Write;

use super::initrd::inspect_up_to;
use super::*;
use crate::kernel::{Compression, Format};
use crate::testing::{bzimage, put, pvh_elf};

/// A cpio archive in the "newc" format.
fn cpio(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in members.iter().chain(&[("TRAILER!!!", &b""[..])]) {
        let mut numbers = [0; 13];
        numbers[6] = content.len();
        numbers[11] = name.len() + 1;
        archive.extend(b"070701");
        archive.extend(numbers.iter().flat_map(|number| format!("{number:08X}").into_bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// A small initrd as Debian's mkinitramfs makes it: microcode in front, padded, and the compressed system
/// after it.
fn debian_like(pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut file = cpio(&[("kernel/x86/microcode/GenuineIntel.bin", &[7; 3000])]);
    file.resize(file.len().next_multiple_of(512), 0);
    file.extend(pack(&cpio(&[
        (".", b""),
        ("init", b"#!/bin/sh\n"),
        ("usr/lib/modules/6.1.0-56-amd64/kernel/drivers/block/virtio_blk.ko", &[1; 999]),
        ("usr/lib/modules/6.1.0-56-amd64/kernel/drivers/net/virtio_net.ko.xz", b"x"),
        ("usr/lib/modules/6.1.0-56-amd64/kernel/fs/ext4/ext4.ko", b"x"),
        ("usr/lib/modules/6.1.0-56-amd64/modules.builtin", b"kernel/a/virtio_console.ko\nkernel/b.ko\n"),
    ])));
    file
}

fn facts(file: &[u8]) -> InitrdFacts {
    inspect_initrd(file).unwrap()
}

#[track_caller]
fn assert_debian(facts: &InitrdFacts, packing: Compression) {
    assert_eq!(facts.parts, [Part::Cpio, Part::Compressed(packing)]);
    assert_eq!(facts.coverage, Coverage::Complete);
    assert!(facts.contents.init);
    assert_eq!(facts.contents.releases, ["6.1.0-56-amd64"]);
    assert_eq!(facts.contents.virtio_modules, ["virtio_blk", "virtio_net"]);
    assert_eq!(facts.contents.virtio_builtin, ["virtio_console"]);
}

#[test]
fn virtio_is_found_behind_microcode_and_compression() {
    assert_debian(&facts(&debian_like(gzip)), Compression::Gzip);
    assert_debian(&facts(&debian_like(zstd)), Compression::Zstd);
}

#[test]
fn archives_behind_a_packed_one_are_seen() {
    for pack in [gzip, zstd] {
        let mut file = pack(&cpio(&[("a", b"")]));
        file.extend([0; 5]);
        file.extend(cpio(&[("./init", b"")]));
        assert_eq!(facts(&file).parts.len(), 2);
        assert!(facts(&file).contents.init);
        assert_eq!(facts(&file).coverage, Coverage::Complete);
    }
}

#[test]
fn what_is_not_unpacked_is_said() {
    let mut file = cpio(&[]);
    file.extend(b"\xfd7zXZ\0....");
    assert_eq!(facts(&file).parts, [Part::Cpio, Part::Compressed(Compression::Xz)]);
    assert_eq!(facts(&file).coverage, Coverage::UpToUnsupported(Compression::Xz));
}

#[test]
fn truncated_initrd_is_damaged() {
    for file in [debian_like(gzip), debian_like(zstd)] {
        let second = 3584;
        for len in (second + 6..file.len()).chain(6..3000) {
            assert_eq!(facts(&file[..len]).coverage, Coverage::UpToDamage, "{len} of {}", file.len());
        }
    }
}

#[test]
fn rubbish_is_no_archive() {
    assert_eq!(facts(b"hello, world").parts, [Part::Unknown]);
    assert_eq!(facts(b"hello, world").coverage, Coverage::UpToDamage);
    assert_eq!(facts(b"hi").coverage, Coverage::UpToDamage);
    assert_eq!(facts(&[0; 5000]).parts, []);
    let mut file = cpio(&[("init", b"")]);
    put(&mut file, 6 + 6 * 8, b"zzzzzzzz");
    assert_eq!(facts(&file).coverage, Coverage::UpToDamage);
    put(&mut file, 6 + 6 * 8, b"00000000");
    put(&mut file, 6 + 11 * 8, b"00001001");
    assert_eq!(facts(&file).coverage, Coverage::UpToDamage);
}

#[test]
fn bomb_is_left_at_the_limit() {
    let mut front = cpio(&[("big", b"")]);
    front.truncate(front.len() - 124); // without the trailer
    put(&mut front, 6 + 6 * 8, b"ffffffff");
    front.resize(3 << 20, 0);
    let bomb = gzip(&front);
    assert_eq!(inspect_up_to(2 << 20, &bomb[..]).unwrap().coverage, Coverage::Truncated);
    assert_eq!(inspect_up_to(4 << 20, &bomb[..]).unwrap().coverage, Coverage::UpToDamage);
}

#[test]
fn many_archives_end() {
    let file = cpio(&[]).repeat(100);
    assert_eq!((facts(&file).parts.len(), facts(&file).coverage), (64, Coverage::Truncated));
}

#[test]
fn names_are_few_and_printable() {
    let names: Vec<_> =
        (0..100).map(|i| format!("lib/modules/{i}\x1b[0mé{}/x.ko", "xxé".repeat(99))).collect();
    let members: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let releases = facts(&cpio(&members)).contents.releases;
    assert_eq!(releases.len(), 64);
    assert!(releases.iter().all(|release| release.len() <= 128 && !release.contains('\x1b')));
}

#[test]
fn bzimage_facts_are_those_of_its_header() {
    let facts = inspect_kernel(&bzimage()[..]).unwrap();
    assert_eq!((facts.format, facts.boot_protocol), (Format::BzImage, Some((2, 15))));
    assert!(facts.version.unwrap().starts_with("6.1.0-test-amd64 "));
    assert!(facts.linux64 && !facts.pvh);
}

#[test]
fn elf_version_is_found_wherever_it_lies() {
    for at in [5000, 0x1_0000 - 7, 0x1_0000 + 128, 0x2_0000 - 1, 0x3_0000] {
        let mut file = pvh_elf();
        put(&mut file, 4800, b"Linux version %s (%s)\0");
        put(&mut file, at, b"Linux version 6.1.0-56-amd64 (debian) #1 SMP\n\0");
        let facts = inspect_kernel(&file[..]).unwrap();
        assert_eq!(facts.version.as_deref(), Some("6.1.0-56-amd64 (debian) #1 SMP"), "{at}");
        assert!(facts.pvh && facts.linux64);
    }
    assert_eq!(inspect_kernel(&pvh_elf()[..]).unwrap().version, None);
}

/// The committed seeds of the fuzz target `initrd_inspect`.
#[test]
fn fuzz_seeds_are_those_of_the_builders() {
    crate::testing::check_seeds(
        "initrd_inspect",
        &[
            ("cpio", cpio(&[("init", b"#!/bin/sh\n"), ("lib/modules/6.1/modules.builtin", b"virtio.ko\n")])),
            ("debian-gzip", debian_like(gzip)),
            ("debian-zstd", debian_like(zstd)),
        ],
    );
}

#[test]
fn microcode_in_front_does_not_lower_the_need() {
    let mut file = cpio(&[("kernel/x86/microcode/GenuineIntel.bin", &[7; 5000])]);
    file.resize(file.len().next_multiple_of(512), 0);
    let plain = file.len() as u64;
    let mut packed = b"\x28\xb5\x2f\xfd".to_vec();
    packed.resize(1 << 20, 7);
    let alone = crate::Initrd::parse(&packed[..]).unwrap();
    file.extend(packed);
    let both = crate::Initrd::parse(&file[..]).unwrap();
    assert_eq!(both.compression(), Some(Compression::Zstd));
    assert_eq!(both.working_memory(), alone.working_memory() + 2 * plain);
}
