//! The archive of a guest whose command leaves files (`minivmm run --out`): members of any kind, with names that lead anywhere, headers
//! in front of them that say otherwise, and any bytes.
//!
//! Promises: no panic and no hang; it is unpacked or refused in a sentence; beside the folder nothing is made or changed; no link in it
//! leads out of it, no file in it has another user's rights, and all of it can be removed.
//!
//! Input: a byte of flags, then members: kind, name, link, mode, length of the content (a byte each), content. [`RAW`]: the archive as it
//! is.
#![no_main]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use minivmm::cli::run::unpack_bytes;

const RAW: u8 = 1;
/// The archive has no end.
const CUT: u8 = 2;
const BLOCK: usize = 512;
const KINDS: &[u8] = b"0512567xxLKg34\0S";
/// Two of them in a row are a name.
const NAMES: [&str; 20] = [
    "",
    "a",
    "b",
    "c",
    "a/b",
    "a/b/c",
    "b/c",
    "..",
    "../a",
    "a/..",
    "a/../..",
    "/",
    "//b",
    "./a",
    "a/",
    "b/./c",
    "../../beside/kept",
    "\n\u{1b}[2J",
    "a/b/..",
    ".",
];

/// With a folder `to` for what is unpacked, and one beside it.
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = PathBuf::from("/dev/shm").join(format!("minivmm-fuzz-tar-{}", std::process::id()));
    fs::create_dir_all(root.join("beside")).expect("a folder in /dev/shm");
    fs::write(root.join("beside/kept"), "kept").expect("a file");
    root
});

fn name(byte: u8) -> String {
    let (first, second) = (NAMES[usize::from(byte) % NAMES.len()], usize::from(byte) / NAMES.len());
    match second {
        0 => first.to_owned(),
        11 => format!("{first}/{}", "d/".repeat(98)),
        12 => "n".repeat(95) + first,
        second => format!("{first}/{}", NAMES[second]),
    }
}

fn member(kind: u8, name: &str, link: &str, mode: u8, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let len = bytes.len().min(most);
        block[at..at + len].copy_from_slice(&bytes[..len]);
    };
    put(0, 100, name.as_bytes());
    put(100, 8, format!("{:07o}", u32::from(mode) << 4 | 7).as_bytes());
    put(124, 12, format!("{:011o}", content.len()).as_bytes());
    put(136, 12, format!("{:011o}", u64::from(mode) << 25).as_bytes());
    put(156, 1, &[kind]);
    put(157, 100, link.as_bytes());
    put(257, 8, b"ustar\x0000");
    if mode & 0x80 != 0 {
        put(345, 155, link.as_bytes());
    }
    put(148, 8, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(content);
    block.resize(block.len().next_multiple_of(BLOCK), 0);
    block
}

/// A record of a header in front of a member.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let len = rest.len() + 1;
    let len = len + usize::from(len >= 10) + usize::from(len >= 99);
    format!("{len}{rest}")
}

fn archive(flags: u8, mut input: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    while let [kind, first, second, mode, len, rest @ ..] = input {
        let (content, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        input = rest;
        let (kind, path, link) = (KINDS[usize::from(*kind) % KINDS.len()], name(*first), name(*second));
        let said = match kind {
            b'x' => {
                let key = ["path", "linkpath", "size", "mtime"][usize::from(*mode) % 4];
                let value = if key == "size" { second.to_string() } else { link.clone() };
                // What is left is said as it is.
                [record(key, &value).as_bytes(), content].concat()
            }
            b'L' | b'K' => [link.as_bytes(), b"\0"].concat(),
            _ => content.to_vec(),
        };
        archive.extend(member(kind, &path, &link, *mode, &said));
    }
    if flags & CUT == 0 {
        archive.extend([0; 2 * BLOCK]);
    }
    archive
}

/// All in a folder, none of which leads out of it.
fn look(folder: &Path, top: &Path) {
    for entry in fs::read_dir(folder).expect("a folder that its owner can read") {
        let entry = entry.expect("an entry");
        let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
        if kind.is_symlink() {
            // Where there is nothing it leads nowhere.
            if let Ok(target) = path.canonicalize() {
                assert!(target.starts_with(top), "{path:?} leads to {target:?}");
            }
        } else {
            let mode = entry.metadata().expect("its mode").permissions().mode();
            assert_eq!(mode & 0o7000, 0, "{path:?}");
            assert!(kind.is_file() || kind.is_dir(), "{path:?}");
        }
        if kind.is_dir() {
            look(&path, top);
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((flags, input)) = input.split_first() else { return };
    let begin = Instant::now();
    let archive = if flags & RAW != 0 { input.to_vec() } else { archive(*flags, input) };
    let (root, to) = (&*ROOT, ROOT.join("to"));
    fs::create_dir(&to).expect("the folder was removed");
    if let Err(sentence) = unpack_bytes(&archive, &to) {
        assert!(!sentence.is_empty() && !sentence.contains(char::is_control), "{sentence:?}");
    }
    look(&to, &to);
    fs::remove_dir_all(&to).expect("all can be removed");
    assert_eq!(fs::read_dir(root).expect("the root").count(), 1, "something was made beside it");
    assert_eq!(fs::read_dir(root.join("beside")).expect("the other").count(), 1);
    assert_eq!(fs::read(root.join("beside/kept")).expect("its file"), b"kept");
    assert!(begin.elapsed() < Duration::from_secs(30), "something held it up");
});
