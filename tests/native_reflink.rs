//! Where the file system can, a raw copy shares the blocks of the original: on a btrfs in a file, behind a loop device, in a mount
//! namespace with which both end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on shall say so by a panic")]

#[path = "support/inside.rs"]
mod inside;
#[path = "support/without.rs"]
mod without;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use inside::{inside, mount};
use without::lacks;

/// What btrfs needs at least, and some room.
const FILE_SYSTEM: u64 = 192 << 20;

fn run(program: &str, words: &[&str], at: &Path) -> String {
    let ran = Command::new(program).args(words).current_dir(at).env("PATH", path()).output();
    let ran = ran.unwrap_or_else(|error| panic!("{program}: {error} (make install-deps)"));
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {words:?}: {said}");
    said.into_owned()
}

/// A user's has no place for mkfs.
fn path() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}

#[test]
fn raw_copy_shares_its_blocks_where_the_file_system_can() {
    inside("raw_copy_shares_its_blocks_where_the_file_system_can", || {
        let folder = tempfile::tempdir().unwrap();
        let (file, at) = (folder.path().join("btrfs"), folder.path().join("mounted"));
        File::create(&file).unwrap().set_len(FILE_SYSTEM).unwrap();
        fs::create_dir(&at).unwrap();
        run("mkfs.btrfs", &["-q", file.to_str().unwrap()], folder.path());
        if !mount(&at, &["-o", "loop", "-t", "btrfs", file.to_str().unwrap()]) {
            return lacks("loop", "this user or host cannot mount a btrfs from a file: run it as root");
        }
        // No two sectors are the same, there is a hole, and the end is none of a block.
        let mut content: Vec<u8> =
            (0..2u32 << 20).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        content.truncate((8 << 20) - 1536);
        content.get_mut(1 << 20..2 << 20).unwrap().fill(0);
        fs::write(at.join("base.raw"), &content).unwrap();
        let minivmm = env!("CARGO_BIN_EXE_minivmm");
        let shared = |name: &str| run("filefrag", &["-v", name], &at).contains("shared");
        assert!(!shared("base.raw"));
        run(minivmm, &["disk", "convert", "base.raw", "copy.raw"], &at);
        assert!(fs::read(at.join("copy.raw")).unwrap() == content);
        assert!(shared("copy.raw") && shared("base.raw"));
        // A copy into another format is one, and whole.
        run(minivmm, &["disk", "convert", "copy.raw", "copy.qcow2"], &at);
        run(minivmm, &["disk", "convert", "copy.qcow2", "again.raw"], &at);
        assert!(fs::read(at.join("again.raw")).unwrap() == content);
        assert!(!shared("again.raw"));
    });
}
