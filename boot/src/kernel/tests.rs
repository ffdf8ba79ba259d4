//! Tests of `Kernel::parse`: accepted files, refused files, and the messages.

use super::*;
use crate::testing::{Part, bzimage, elf, put, pvh_elf, tiny_elf};

fn refusal(file: &[u8]) -> String {
    Kernel::parse(file).unwrap_err().to_string()
}

/// The error for the file with `bytes` at `offset`.
fn refusal_with(mut file: Vec<u8>, offset: usize, bytes: &[u8]) -> String {
    put(&mut file, offset, bytes);
    refusal(&file)
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(message.ends_with('.'), "{message:?} is no sentence");
}

#[test]
fn bzimage_says_what_it_is() {
    let kernel = Kernel::parse(&bzimage()[..]).unwrap();
    assert_eq!(kernel.format(), Format::BzImage);
    assert_eq!(kernel.version(), Some("6.1.0-test-amd64 (nobody@example.org) #1 SMP"));
    assert_eq!(kernel.compression(), Some(Compression::Lz4));
    assert_eq!(kernel.boot_protocol(), Some((2, 15)));
    assert_eq!((kernel.cmdline_max(), kernel.initrd_addr_max()), (2047, 0x7fff_ffff));
    assert_eq!((kernel.pref_address(), kernel.init_size()), (0x100_0000, 0x40_0000));
    assert!(kernel.relocatable());
    assert!(kernel.supports(Protocol::Linux64) && !kernel.supports(Protocol::Pvh));
}

#[test]
fn elf_says_what_it_is() {
    let kernel = Kernel::parse(&pvh_elf()[..]).unwrap();
    assert_eq!(kernel.format(), Format::ElfPvh);
    assert!(kernel.supports(Protocol::Linux64) && kernel.supports(Protocol::Pvh));
    assert_eq!((kernel.pref_address(), kernel.init_size()), (0x100_0000, 0x21_0000));
    assert_eq!((kernel.version(), kernel.compression(), kernel.relocatable()), (None, None, false));
    assert_eq!(Kernel::parse(&tiny_elf()[..]).unwrap().format(), Format::Elf);
}

#[test]
fn parsing_leaves_the_file_position_alone() {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bzimage()).unwrap();
    file.seek(std::io::SeekFrom::Start(17)).unwrap();
    Kernel::parse(&file).unwrap();
    assert_eq!(file.stream_position().unwrap(), 17);
}

#[test]
fn control_characters_of_a_version_do_not_reach_the_terminal() {
    let mut file = bzimage();
    put(&mut file, 0x600, b"6.1\x1b[2J\xff\n");
    assert!(Kernel::parse(&file[..]).unwrap().version().unwrap().starts_with("6.1[2J"));
    put(&mut file, 0x20e, &[0, 0]);
    assert_eq!(Kernel::parse(&file[..]).unwrap().version(), None);
}

#[test]
fn unusable_bzimages_are_named() {
    assert_says(&refusal_with(bzimage(), 0x206, &[0x04, 0x02]), &["2.04", "2.05", "Linux 2.6.20"]);
    assert_says(&refusal_with(bzimage(), 0x211, &[0]), &["zImage", "bzImage"]);
    assert_says(&refusal_with(bzimage(), 0x1fe, &[0, 0]), &["setup header", "boot flag"]);
    assert_says(&refusal_with(bzimage(), 0x201, &[0x20]), &["setup header", "shorter"]);
    assert_says(&refusal_with(bzimage(), 0x258, &[0; 8]), &["setup header", "preferred address"]);
    assert_says(&refusal_with(bzimage(), 0x258, &[0xff; 8]), &["setup header", "preferred address"]);
    assert_says(&refusal_with(bzimage(), 0x24c, &[0xff; 4]), &["setup header", "payload"]);
    assert_says(&refusal_with(bzimage(), 0x1f4, &[0; 4]), &["setup header", "too short"]);
    assert_says(&refusal(&bzimage()[..0x220]), &["setup header", "too early"]);
}

#[test]
fn truncated_kernel_is_an_error() {
    let file = bzimage();
    assert_says(&refusal(&file[..file.len() - 16]), &["cut short", "code", "6144", "6128", "download"]);
    let file = pvh_elf();
    assert_says(&refusal(&file[..file.len() - 1]), &["cut short", "segment"]);
    assert_says(&refusal(&file[..100]), &["cut short", "program headers"]);
    assert_says(&refusal(&file[..17]), &["ELF", "too early"]);
    assert_says(&refusal(&[]), &["empty"]);
}

#[test]
fn unusable_elf_files_are_named() {
    let elf = tiny_elf;
    assert_says(&refusal_with(elf(), 18, &[183]), &["64-bit Arm", "x86 kernel"]);
    assert_says(&refusal_with(elf(), 18, &[243]), &["RISC-V"]);
    assert_says(&refusal_with(elf(), 18, &[0xee, 0xee]), &["61166"]);
    assert_says(&refusal_with(elf(), 5, &[2]), &["big-endian"]);
    assert_says(&refusal_with(elf(), 16, &[1]), &["kernel module"]);
    assert_says(&refusal_with(elf(), 16, &[4]), &["program"]);
    assert_says(&refusal_with(elf(), 64, &[3]), &["program"]);
    assert_says(&refusal_with(elf(), 64, &[0]), &["no segment"]);
    assert_says(&refusal_with(elf(), 54, &[55]), &["56 bytes"]);
    assert_says(&refusal_with(elf(), 56, &[0, 0]), &["no program headers"]);
    assert_says(&refusal_with(elf(), 56, &[65, 0]), &["64 program headers"]);
    assert_says(&refusal_with(elf(), 24, &[0xff; 8]), &["entry point"]);
    assert_says(&refusal_with(elf(), 64 + 40, &[0; 8]), &["longer in the file"]);
    assert_says(&refusal_with(elf(), 64 + 24, &[0xff; 8]), &["address space"]);
}

/// At most 15 bytes: a file with less of its last paragraph is truncated.
#[test]
fn a_file_may_end_within_its_last_paragraph() {
    let file = bzimage();
    for missing in [1, 8, 15] {
        let kernel = Kernel::parse(&file[..file.len() - missing]).unwrap();
        assert_eq!(kernel.bzimage().unwrap().code_len, 4096 - missing as u64);
    }
}

#[test]
fn a_32_bit_bzimage_is_entered_by_the_32_bit_protocol() {
    let mut file = bzimage();
    put(&mut file, 0x236, &[0x04]);
    let kernel = Kernel::parse(&file[..]).unwrap();
    assert!(kernel.supports(Protocol::Linux32) && !kernel.supports(Protocol::Linux64));
    // Older protocols have fewer fields: 2.10 added the preferred address, 2.06 the length of the command
    // line.
    for (version, place, size, cmdline) in
        [(0x0a, 0x100_0000, 0x40_0000, 2047), (0x06, 0x10_0000, 0x8000, 2047), (0x05, 0x10_0000, 0x8000, 255)]
    {
        put(&mut file, 0x206, &[version, 0x02]);
        let kernel = Kernel::parse(&file[..]).unwrap();
        assert!(kernel.supports(Protocol::Linux32), "{version:#x}");
        assert_eq!((kernel.pref_address(), kernel.init_size()), (place, size), "{version:#x}");
        assert_eq!(kernel.cmdline_max(), cmdline, "{version:#x}");
    }
}

/// A 32-bit ELF with one segment at 1 MiB whose code begins with `code`, and a PVH note if asked for.
fn elf32(code: &[u8], pvh_entry: Option<u32>) -> Vec<u8> {
    let mut file = Vec::new();
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0, 1, 0, 0, 0]);
    put(&mut file, 24, &words(&[0x10_0010, 52]));
    put(&mut file, 40, &[52, 0, 32, 0, 1 + u8::from(pvh_entry.is_some()), 0]);
    put(&mut file, 52, &words(&[1, 0x400, 0xc010_0000, 0x10_0000, 0x100, 0x2000, 7, 4096]));
    if let Some(entry) = pvh_entry {
        put(&mut file, 84, &words(&[4, 0x300, 0, 0, 20, 20, 4, 4]));
        put(&mut file, 0x300, &words(&[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry]));
    }
    put(&mut file, 0x400, code);
    file.resize(0x500, 0x90);
    file
}

#[test]
fn thirty_two_bit_elf_kernels_have_their_own_entry_or_that_of_pvh() {
    let kernel = Kernel::parse(&elf32(&[], None)[..]).unwrap();
    assert_eq!(kernel.format(), Format::Elf);
    assert!(kernel.supports(Protocol::Linux32) && !kernel.supports(Protocol::Linux64));
    assert_eq!((kernel.pref_address(), kernel.init_size()), (0x10_0000, 0x2000));
    let kernel = Kernel::parse(&elf32(&[], Some(0x10_0020))[..]).unwrap();
    assert_eq!(kernel.format(), Format::ElfPvh);
    assert!(kernel.supports(Protocol::Pvh));
}

#[test]
fn a_kernel_for_multiboot_loaders_is_named() {
    let mut header = vec![0x90; 4];
    for word in [0x1bad_b002_u32, 3, 0_u32.wrapping_sub(0x1bad_b002 + 3)] {
        header.extend(word.to_le_bytes());
    }
    assert_says(&refusal(&elf32(&header, None)), &["Multiboot", "PVH note"]);
    assert!(Kernel::parse(&elf32(&header, Some(0x10_0020))[..]).is_ok());
    // As placed by the usual linker script: after the first page.
    let mut file = elf32(&[], None);
    put(&mut file, 52, &[1, 0, 0, 0, 0, 0x10, 0, 0]);
    put(&mut file, 0x1000, &header);
    file.resize(0x1100, 0x90);
    assert_says(&refusal(&file), &["Multiboot"]);
    // A 64-bit kernel with a 32-bit entry for such a loader.
    let mut file = tiny_elf();
    put(&mut file, 0x1000, &header);
    assert_says(&refusal(&file), &["Multiboot"]);
    // A magic number alone is no header.
    assert!(Kernel::parse(&elf32(&header[..8], None)[..]).is_ok());
}

#[test]
fn elf_of_32_bits_that_is_no_kernel_is_named() {
    let mut file = tiny_elf();
    put(&mut file, 4, &[1]);
    assert_says(&refusal(&file), &["32-bit ELF file for x86-64", "x86 kernel"]);
    assert_says(&refusal_with(elf32(&[], None), 18, &[40]), &["32-bit Arm"]);
    assert_says(&refusal_with(elf32(&[], None), 42, &[56]), &["32 bytes"]);
    assert_says(&refusal(&elf32(&[], None)[..60]), &["cut short", "program headers"]);
}

#[test]
fn overlapping_segments_are_an_error() {
    let first = Part { paddr: 0x20_0000, filesz: 16, memsz: 0x1001 };
    let second = Part { paddr: 0x20_1000, filesz: 16, memsz: 16 };
    assert_says(&refusal(&elf(0x20_0000, &[first, second], None)), &["claim the same memory"]);
    let apart = Part { memsz: 0x1000, ..first };
    assert!(Kernel::parse(&elf(0x20_0000, &[second, apart], None)[..]).is_ok());
}

#[test]
fn entry_must_be_code_of_the_file() {
    let part = Part { paddr: 0x20_0000, filesz: 16, memsz: 0x1000 };
    assert_says(&refusal(&elf(0x20_0010, &[part], None)), &["entry point"]);
    assert!(Kernel::parse(&elf(0x20_000f, &[part], None)[..]).is_ok());
}

#[test]
fn linked_entry_address_becomes_physical() {
    let mut file = elf(0xffff_ffff_8020_0008, &[Part { paddr: 0x20_0000, filesz: 16, memsz: 16 }], None);
    put(&mut file, 64 + 16, &0xffff_ffff_8020_0000u64.to_le_bytes());
    let kernel = Kernel::parse(&file[..]).unwrap();
    assert!(matches!(kernel.image, Image::Elf(Elf { entry: Some(0x20_0008), .. })));
}

#[test]
fn pvh_entry_outside_of_the_kernel_is_not_used() {
    let file = elf(0x10_0000, &[Part { paddr: 0x10_0000, filesz: 16, memsz: 16 }], Some(0x20_0000));
    assert_eq!(Kernel::parse(&file[..]).unwrap().format(), Format::Elf);
}

#[test]
fn endless_notes_end() {
    let mut file = pvh_elf();
    // A name that is longer than everything, then one that overflows.
    put(&mut file, 3072, &u32::MAX.to_le_bytes());
    assert_eq!(Kernel::parse(&file[..]).unwrap().format(), Format::Elf);
    put(&mut file, 3072, &[0; 12]);
    put(&mut file, 3072 + 4, &u32::MAX.to_le_bytes());
    assert_eq!(Kernel::parse(&file[..]).unwrap().format(), Format::Elf);
}

#[test]
fn files_that_are_no_kernel_are_named_with_their_cure() {
    let mut page = [0; 4096];
    let mut named = |offset: usize, magic: &[u8], words: &[&str]| {
        page = [0; 4096];
        page[offset..offset + magic.len()].copy_from_slice(magic);
        assert_says(&refusal(&page), words);
    };
    named(0, b"\x1f\x8b\x08", &["gzip data", "gzip -dc", "initrd"]);
    named(0, b"\xfd7zXZ\0", &["xz data", "xz -dc"]);
    named(0, b"\x28\xb5\x2f\xfd", &["zstd data", "zstd -dc"]);
    named(0, b"\x02\x21\x4c\x18", &["lz4 data", "lz4 -dc"]);
    named(0, b"BZh9", &["bzip2 data"]);
    named(0, b"\x89LZO", &["lzo data"]);
    named(0, b"070701", &["initrd", "as the initrd"]);
    named(0x38, b"ARM\x64", &["64-bit Arm"]);
    named(0x38, b"RSC\x05", &["RISC-V"]);
    named(0, b"QFI\xfb", &["disk image (qcow2)", "as a disk"]);
    named(0x200, b"EFI PART", &["disk image", "GPT"]);
    named(0x438, b"\x53\xef", &["disk image", "ext4"]);
    named(0x1fe, b"\x55\xaa", &["disk image", "boot sector"]);
    named(0, b"!<arch>\ndebian-binary", &["Debian package", "dpkg-deb -x"]);
    named(0, b"", &["no kernel of a known format", "vmlinuz"]);
    assert_says(&refusal(b"#!/bin/sh\necho hello\n"), &["text file"]);
    assert_says(&refusal(b"\0"), &["no kernel of a known format"]);
}

#[test]
fn efi_programs_are_named() {
    let efi = |machine: u16| {
        let mut file = vec![0; 512];
        put(&mut file, 0, b"MZ");
        put(&mut file, 0x3c, &[0x80]);
        put(&mut file, 0x80, b"PE\0\0");
        put(&mut file, 0x84, &machine.to_le_bytes());
        refusal(&file)
    };
    assert_says(&efi(0x8664), &["EFI program", "no EFI firmware"]);
    assert_says(&efi(0xaa64), &["EFI", "64-bit Arm"]);
    assert_says(&efi(0x14c), &["EFI", "32-bit x86"]);
    assert_says(&efi(0x5064), &["EFI", "0x5064"]);
}

#[test]
fn unreadable_kernel_keeps_the_reason() {
    let directory = std::fs::File::open(std::env::temp_dir()).unwrap();
    let error = Kernel::parse(&directory).unwrap_err();
    assert!(matches!(&error, KernelError::Read(why) if why.kind() == std::io::ErrorKind::IsADirectory));
    assert_says(&error.to_string(), &["cannot be read"]);
}
