//! Machines that are saved with copies of their disks, in folders that are restored again and again: under a guest that compares what is in
//! its memory with what is on its disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/load.rs"]
mod load;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use host::Host;
use load::{BLOCK, BLOCKS, assert_last_writes, number};
use vmm::{Heard, Launch, Owned, Vmm, wait};

/// A host with a kernel and an image for the load guest.
struct Bench {
    host: Host,
    image: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let host = Host::new();
        let image = host.0.path().join("image.raw");
        File::create(&image).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
        fs::write(host.0.path().join("kernel"), tiny_guest::LOAD).unwrap();
        Bench { host, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.0.path().join(name)
    }

    fn launch(&self, options: &str) -> Launch {
        let disk = format!("{}{options}", self.image.display());
        let mut launch = Launch::kernel(&self.path("kernel"), tempfile::tempdir().unwrap());
        launch.command.env("XDG_RUNTIME_DIR", self.host.0.path());
        launch
            .args(&["--name", "vm0", "--mem", "16", "--append", "seed=3", "--disk", &disk])
            .stdin(Stdio::piped())
    }

    /// A machine that has written for a while.
    fn start(&self, options: &str) -> Vmm {
        let machine = self.launch(options).spawn();
        machine.expect("at=1536\n", 1);
        machine
    }

    fn verb(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.host.verb(words);
        command.current_dir(self.host.0.path());
        command
    }

    #[track_caller]
    fn does(&self, words: &[&str]) -> String {
        let output = self.verb(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, words: &[&str]) -> String {
        let output = self.verb(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        said
    }

    /// `minivmm restore` with its console.
    fn restore(&self, words: &[&str]) -> Restored {
        let mut command = self.verb(&[&["restore"], words].concat());
        let mut child = Owned::start(command.stdin(Stdio::piped()));
        let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
        let (stderr, _) = Heard::listen(child.stderr.take().unwrap());
        Restored { child, stdout, stderr }
    }

    /// Asserts that `image` has the last of `writes` writes, whatever of `below` it lies on.
    #[track_caller]
    fn assert_disk(&self, image: &Path, below: &[PathBuf], writes: u64) {
        let flat = self.path("flat.raw");
        let below: Vec<_> = below.iter().flat_map(|path| ["--backing", path.to_str().unwrap()]).collect();
        let words = ["disk", "convert", image.to_str().unwrap(), flat.to_str().unwrap()];
        self.does(&[&words[..], &below].concat());
        assert_last_writes(&flat, writes);
        fs::remove_file(flat).unwrap();
    }
}

struct Restored {
    child: Owned,
    stdout: Heard,
    stderr: Heard,
}

impl Restored {
    #[track_caller]
    fn says(&self, word: &str) {
        let seen = self.stdout.wait(|heard| vmm::count(heard, word) > 0);
        assert!(seen, "no {word:?}: {} {}", self.stdout.text(), self.stderr.text());
    }

    /// Has the guest end. Gives how many blocks it has written, all of which it has read as it wrote them, and where it began to speak.
    #[track_caller]
    fn finish(mut self) -> (u64, u64) {
        let mut keys = self.child.stdin.take().unwrap();
        keys.write_all(b"!").unwrap();
        self.says(" kicks=");
        self.stdout.wait(|heard| heard.ends_with(b"\n"));
        keys.write_all(b"!").unwrap();
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        let status = wait(&mut self.child, || format!("{} {}", stdout.text(), stderr.text()));
        assert_eq!(status.code(), Some(0), "{} {}", stdout.text(), stderr.text());
        finished(&stdout.text())
    }
}

/// The blocks written, and the first line of progress.
#[track_caller]
fn finished(said: &str) -> (u64, u64) {
    let line = said.lines().last().unwrap();
    let [writes, reads] = ["writes=", "reads="].map(|key| number(line, key));
    assert_eq!(writes, reads, "{said}");
    let first = said.lines().find(|line| line.starts_with("at=")).unwrap();
    (writes, number(first, "at="))
}

#[test]
fn a_folder_with_copies_of_disks_is_restored_again_and_again() {
    for options in ["", ",overlay=top.qcow2"] {
        let bench = Bench::new();
        let options = options.replace("top", bench.path("top").to_str().unwrap());
        let machine = bench.start(&options);
        bench.does(&["save", "vm0", "saved", "--with-disks"]);
        assert_eq!(machine.end().status.code(), Some(0));
        let (copy, original) = match options.as_str() {
            "" => ("saved/vda.raw", bench.image.clone()),
            _ => ("saved/vda.qcow2", bench.path("top.qcow2")),
        };
        let (copied, kept) = (fs::read(bench.path(copy)).unwrap(), fs::read(&original).unwrap());
        let said = bench.fails(&["restore", "saved"]);
        assert!(said.contains("--disks") && said.contains("--snapshot"), "{said}");
        for round in ["d0", "d1"] {
            let restored = bench.restore(&["saved", "--disks", round]);
            restored.says("at=4096\n");
            let (writes, first) = restored.finish();
            assert!(first == 2048 || first > 1536 && first < writes, "{first}");
            let below = [bench.path(copy), bench.image.clone()];
            bench.assert_disk(&bench.path(&format!("{round}/vda.qcow2")), &below, writes);
        }
        assert!(bench.fails(&["restore", "saved", "--disks", "d0"]).contains("d0 exists"));
        let restored = bench.restore(&["saved", "--snapshot"]);
        restored.says("at=4096\n");
        // Two machines from one folder.
        let other = bench.restore(&["saved", "--snapshot", "--name", "vm1"]);
        other.says("at=4096\n");
        restored.finish();
        other.finish();
        assert!(fs::read(bench.path(copy)).unwrap() == copied, "the folder was written to");
        assert!(fs::read(&original).unwrap() == kept, "the original was written to");
        fs::remove_file(bench.path(copy)).unwrap();
        assert!(bench.fails(&["restore", "saved", "--snapshot"]).contains("cannot be read"));
        std::os::unix::fs::symlink(&original, bench.path(copy)).unwrap();
        assert!(bench.fails(&["restore", "saved", "--snapshot"]).contains("cannot be read"));
    }
}
