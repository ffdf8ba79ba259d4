use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// `printf 'minivmm minivmm MINIVMM, and so on, and so on; abcabcabcabc\n' | xz --check=crc32 --lzma2=dict=64KiB` (5.4.1).
const PACKED: &[u8] = b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x02\0\x21\x01\x08\0\0\0\xd8\x0f\x23\x13\xe0\0\x3b\0\x29\x5d\0\x36\
    \x9a\x4a\x1f\x66\xdf\x97\xd0\x19\x23\x82\xf5\x90\x41\x3e\xd6\x50\x0e\x94\x90\xeb\x66\x06\x22\x6a\x1d\x28\x16\x13\x11\x88\x60\
    \xea\x5e\x67\xba\xf6\x7d\xdd\x30\0\0\0\0\0\x49\x35\x44\xa1\0\x01\x41\x3c\xe8\xb7\x8b\xe6\x90\x42\x99\x0d\x01\0\0\0\0\x01\x59\x5a";
const CONTENT: &[u8] = b"minivmm minivmm MINIVMM, and so on, and so on; abcabcabcabc\n";

#[test]
fn file_is_unpacked_up_to_its_limit() {
    assert_eq!(unpack(PACKED, CONTENT.len()).as_deref(), Some(CONTENT));
    assert_eq!(unpack(PACKED, CONTENT.len() - 1), None);
}

#[test]
fn damage_anywhere_is_found() {
    for len in 0..PACKED.len() {
        assert_eq!(unpack(&PACKED[..len], 1 << 20), None, "{len} bytes");
    }
    assert_eq!(unpack(&[PACKED, &[0; 4]].concat(), 1 << 20), None);
    for at in 0..PACKED.len() {
        for bit in 0..8 {
            let mut damaged = PACKED.to_vec();
            damaged[at] ^= 1 << bit;
            // What is said of the content behind it is not needed for it.
            let unpacked = unpack(&damaged, 1 << 20);
            assert!(unpacked.as_deref().is_none_or(|content| content == CONTENT), "bit {bit} of {at}");
        }
    }
}

/// A block without a check, of these chunks.
fn file(chunks: &[u8]) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        [bytes, &crc.sum().to_le_bytes()].concat()
    };
    let padded = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let block = [2, 0, 0x21, 1, 8, 0, 0, 0];
    let parts = [MAGIC.to_vec(), crc(&[0, 0]), crc(&block), padded(chunks.to_vec())];
    [parts.concat(), crc(&padded(vec![0, 1, 9, 9])), vec![0; 10], END.to_vec()].concat()
}

#[test]
fn chunks_that_do_not_follow_the_format_end_the_work() {
    let plain = |control: u8, bytes: &[u8]| {
        let size = u16::try_from(bytes.len() - 1).unwrap().to_be_bytes();
        [&[control][..], &size, bytes].concat()
    };
    let whole = file(&[plain(1, b"one "), plain(2, b"two"), vec![0]].concat());
    assert_eq!(unpack(&whole, 7).as_deref(), Some(&b"one two"[..]));
    assert_eq!(unpack(&whole, 6), None);
    // A first chunk that goes on from another; control bytes that are none; packed bytes without properties, without a state, with properties
    // that there are not; a first distance that leads before the content; an end that does not come.
    let damaged: [&[u8]; 8] = [
        &plain(2, b"two"),
        &[3, 0, 0, 0],
        &[0x7f, 0, 0, 0],
        &[0xa0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0],
        &[0xc0, 0, 0, 0, 5, 0x5d, 0, 0, 0, 0, 0, 0],
        &[0xe0, 0, 0, 0, 5, 225, 0, 0, 0, 0, 0, 0],
        &[0xe0, 0xff, 0xff, 0, 9, 0x5d, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0, 4, 0x5d, 0, 0, 0, 0, 0],
    ];
    for chunks in damaged {
        assert_eq!(unpack(&file(&[chunks, &[0]].concat()), 1 << 30), None, "{chunks:02x?}");
    }
    assert_eq!(unpack(&file(&plain(1, b"no ending")), 100), None);
}

/// What the program makes of it, if it is there.
fn packed(content: &[u8], options: &[&str]) -> Option<Vec<u8>> {
    let mut child = Command::new("xz")
        .args(["-c", "--check=crc32"])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(content).unwrap());
        child.wait_with_output().ok()
    })
    .map(|out| out.stdout)
}

#[test]
fn whatever_the_program_packs_comes_out_again() {
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_le_bytes()[7]
    };
    let noise: Vec<u8> = (0..60_000).map(|_| random()).collect();
    // Words, numbers, long runs and repetitions from far away: as in a program.
    let mut mixed: Vec<u8> = (0..20_000_u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
    mixed.extend(include_bytes!("lzma.rs"));
    mixed.extend(vec![0; 3 << 20]);
    mixed.extend((0..400).flat_map(|n| format!("{n} is a line like others\n").into_bytes()));
    mixed.extend(&noise[..50_000]);
    mixed.extend_from_within(..50_000);
    let content: [&[u8]; 5] = [b"", b"x", &noise, &mixed, CONTENT];
    let options: [&[&str]; 6] = [
        &["-0"],
        &["-9e"],
        &["--lzma2=dict=4KiB,lc=0,lp=4,pb=0"],
        &["--lzma2=dict=1MiB,lc=4,lp=0,pb=4"],
        &["--block-size=100000", "-T2", "-1"],
        &["--check=none"],
    ];
    for (at, content) in content.into_iter().enumerate() {
        for options in options {
            let Some(packed) = packed(content, options) else { return };
            let unpacked = unpack(&packed, content.len());
            assert!(unpacked.as_deref() == Some(content), "content {at}, {options:?}");
        }
        // Other kinds are for the program.
        for options in [&["--check=crc64"][..], &["--check=sha256"], &["--x86", "--lzma2"]] {
            let Some(packed) = packed(content, options) else { return };
            assert!(content.is_empty() || unpack(&packed, 1 << 30).is_none(), "{options:?}");
        }
        let Some(twice) = packed(content, &[]).map(|one| [&one[..], &one].concat()) else { return };
        assert_eq!(unpack(&twice, 1 << 30), None);
    }
}
