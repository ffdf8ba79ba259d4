//! Calls of QEMU's tools, and what tests share.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use diskimage::{Format, Image, ImageOptions, NoProgress, Report, UnlockedOpener};

/// Numbers that look random and are the same in each run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// All of it in `make soak`, a tenth in `make test`.
pub(crate) fn dose(full: u64) -> u64 {
    let soak = std::env::var("MINIVMM_SOAK").is_ok_and(|soak| soak == "1");
    if soak { full } else { full.div_ceil(10) }
}

pub(crate) fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install qemu-utils"))
}

/// `qemu-img` with these words, which must succeed.
pub(crate) fn qemu_img(words: &[&str]) -> String {
    let output = run("qemu-img", words);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "qemu-img {words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// `qemu-io` with these commands on an image.
pub(crate) fn qemu_io(path: &Path, format: &str, commands: &[String]) {
    let mut words = vec!["-f", format];
    for command in commands {
        words.extend(["-c", command.as_str()]);
    }
    words.push(text(path));
    let output = run("qemu-io", &words);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("failed"), "qemu-io {words:?}: {said}");
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn open(path: &Path, write: bool) -> File {
    OpenOptions::new().read(true).write(write).open(path).unwrap()
}

pub(crate) fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Our check.
pub(crate) fn check(path: &Path) -> Result<Report, diskimage::ImageError> {
    diskimage::check(&open(path, false), path, Format::Qcow2, &mut NoProgress)
}

/// An image with its chain.
pub(crate) fn image(path: &Path, format: Format, write: bool) -> Image {
    Image::open(path, &ImageOptions::new(format).write(write), &mut UnlockedOpener).unwrap()
}

/// QEMU finds no difference between two images.
pub(crate) fn assert_same(one: &Path, one_format: &str, other: &Path, other_format: &str, why: &str) {
    let words = ["compare", "-f", one_format, "-F", other_format, text(one), text(other)];
    let output = run("qemu-img", &words);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{why}: {words:?}: {said}");
}

/// QEMU and we find nothing wrong with a qcow2 image.
pub(crate) fn assert_sound(path: &Path, why: &str) {
    let output = run("qemu-img", &["check", "-f", "qcow2", text(path)]);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{why}: qemu-img check {path:?}: {said}");
    let report = check(path).unwrap();
    assert_eq!(report.findings, [], "{why}: {path:?}");
}

/// Bytes that a file takes on its disk.
pub(crate) fn used(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().blocks() * 512
}

/// Names of files in a folder that vanishes.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
