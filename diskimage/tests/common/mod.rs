//! Images by qemu-img, which judges ours.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub(crate) mod tools;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use diskimage::{CreateOptions, Format, Image, ImageError, ImageOptions, UnlockedOpener};

/// Runs a program of qemu-utils; its output.
pub(crate) fn run<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (qemu-utils): {error}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {text}");
    text
}

/// `qemu-img` with words separated by blanks, and a path behind them.
pub(crate) fn qemu_img(words: &str, path: &Path) -> String {
    let words = words.split_whitespace().map(OsStr::new);
    run("qemu-img", words.chain([path.as_os_str()]))
}

/// The image is as good as qemu-img finds images: no errors, no leaks.
pub(crate) fn assert_clean(path: &Path) {
    let said = qemu_img("check -f qcow2", path);
    assert!(said.contains("No errors were found"), "{said}");
}

/// The bytes of a disk, as qemu-img reads them.
pub(crate) fn converted(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("converted");
    qemu_img(&format!("convert -f qcow2 -O raw {}", path.display()), &raw);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// The bytes of a disk, as this crate reads them.
pub(crate) fn read_all(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::try_from(image.size()).unwrap()];
    assert_eq!(image.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// Opens an image.
pub(crate) fn open(path: &Path, write: bool) -> Result<Image, ImageError> {
    Image::open(path, &ImageOptions::new(Format::of(path)).write(write), &mut UnlockedOpener)
}

/// Makes an image.
pub(crate) fn create(path: &Path, options: &CreateOptions) {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    diskimage::create(&file, path, options).unwrap();
}

/// A folder, and a path in it.
pub(crate) fn folder(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

/// Bytes that are all different for a while, from a number.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}
