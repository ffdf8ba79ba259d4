//! Many machines on one image: each writes to an overlay of its own, which it finds again, or to a temporary file, of which nothing
//! is left. The image itself stays as it was.
//!
//! The guest (`tests/guest/load`) writes numbered blocks, reads each of them back and judges what it reads.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use diskimage::{Format, Image, ImageOptions, UnlockedOpener};
use embedded::{LIMIT, Output};
use minivmm::spec::{DiskSpec, Spec};
use minivmm::{Exit, Machine};
use vmm::Launch;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;

struct Lab {
    folder: tempfile::TempDir,
    base: Vec<u8>,
}

impl Lab {
    /// A folder with the guest's kernel and an image that no guest wrote.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("load"), tiny_guest::LOAD).unwrap();
        let base: Vec<u8> = (0..BLOCKS).flat_map(|block| [0x80 | block.to_le_bytes()[0]; BLOCK]).collect();
        fs::write(folder.path().join("base.raw"), &base).unwrap();
        Lab { folder, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, overlay: &str) -> Guest {
        let disk = DiskSpec::new(self.path("base.raw")).with_overlay(self.path(overlay));
        let spec = Spec::new(self.path("load")).with_mem("16".parse().unwrap()).with_disk(disk);
        let output = Output::default();
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        Guest { machine, output, overlay: self.path(overlay) }
    }

    /// The overlay has what the guest wrote in this run, or else in the one before, and else what the image has.
    fn holds(&self, overlay: &Path, runs: &[u64]) {
        let options = ImageOptions::new(Format::Qcow2);
        let image = Image::open(overlay, &options, &mut UnlockedOpener).unwrap();
        assert_eq!(image.size(), self.base.len() as u64);
        let mut all = vec![0; self.base.len()];
        assert_eq!(image.read_at(&mut all, 0).unwrap(), all.len());
        let blocks = all.chunks_exact(BLOCK).zip(self.base.chunks_exact(BLOCK));
        for (at, (block, base)) in (0..).zip(blocks) {
            match runs.iter().find_map(|writes| last_write(at, *writes)) {
                Some(number) => {
                    assert!(is_written(block, number), "block {at} is not that of write {number}")
                }
                None => assert!(block == base, "block {at} was not written"),
            }
        }
    }
}

struct Guest {
    machine: Machine,
    output: Output,
    overlay: PathBuf,
}

impl Guest {
    fn until(&self, what: &str, done: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(&self.output.text()) {
            assert!(Instant::now() < deadline, "{what}: {}", self.output.text());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends what it does; returns its overlay and how many blocks it has written.
    fn finish(self) -> (PathBuf, u64) {
        self.machine.console_input().write_all(b"!").unwrap();
        self.until("finished", |text| text.contains(" kicks=") && text.ends_with('\n'));
        let text = self.output.text();
        let writes = text.split_once("writes=").unwrap().1.split(' ').next().unwrap().parse().unwrap();
        self.machine.console_input().write_all(b"!").unwrap();
        let exit = self.machine.wait_for(LIMIT);
        assert!(matches!(exit.as_deref(), Some(Exit::PoweredOff)), "{exit:?}: {text}");
        (self.overlay, writes)
    }
}

/// Block `at` as the `number`th write leaves it.
fn is_written(block: &[u8], number: u64) -> bool {
    let words = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    (0..).zip(words).all(|(word, found)| tiny_guest::load_word(number, word) == found)
}

/// The last of `writes` writes that went to block `at`. They are numbered from 1 and go round the blocks.
fn last_write(at: u64, writes: u64) -> Option<u64> {
    let last = (writes + BLOCKS - at) / BLOCKS * BLOCKS + at;
    last.checked_sub(BLOCKS).filter(|last| *last > 0)
}

#[test]
fn thirty_machines_on_one_image_each_have_their_own_disk() {
    let lab = Lab::new();
    let guests: Vec<_> = (0..30).map(|n| lab.start(&format!("student{n}.qcow2"))).collect();
    for guest in &guests {
        guest.until("it works", |text| text.contains("at=512\n"));
    }
    let ended: Vec<_> = guests.into_iter().map(Guest::finish).collect();
    assert!(fs::read(lab.path("base.raw")).unwrap() == lab.base, "the image itself is only read");
    for (overlay, writes) in &ended {
        lab.holds(overlay, &[*writes]);
    }
    // The next start goes on with the same disk.
    let (overlay, writes) = &ended[7];
    let again = lab.start("student7.qcow2");
    again.until("it works", |text| text.contains("ready\n"));
    let (_, more) = again.finish();
    lab.holds(overlay, &[more, *writes]);
}

#[test]
fn nothing_is_left_of_a_snapshot_even_if_the_machine_is_killed() {
    let lab = Lab::new();
    let tmp = lab.path("tmp");
    fs::create_dir(&tmp).unwrap();
    for kill in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let disk = format!("{},snapshot", lab.path("base.raw").display());
        let mut launch = Launch::kernel(&lab.path("load"), folder).args(&["--mem", "16", "--disk", &disk]);
        launch.command.env("TMPDIR", &tmp);
        let mut machine = launch.stdin(Stdio::piped()).spawn();
        machine.expect("at=512\n", 1);
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "the file has no name");
        if kill {
            machine.signal(libc::SIGKILL);
        } else {
            machine.type_in(b"!");
            assert!(
                machine.stdout.wait(|heard| vmm::count(heard, " kicks=") == 1),
                "{}",
                machine.stdout.text()
            );
            machine.type_in(b"!");
        }
        let ended = machine.end();
        assert_eq!(ended.status.code(), if kill { None } else { Some(0) }, "{ended:?}");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
        assert!(fs::read(lab.path("base.raw")).unwrap() == lab.base);
    }
}
