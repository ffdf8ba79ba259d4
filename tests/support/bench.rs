//! A host with the load guest (`tests/guest/load`) and its disk, and machines that are saved there and go on.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::host::Host;
use super::load::{BLOCK, BLOCKS, assert_last_writes, number};
use super::vmm::{Heard, Launch, Owned, Vmm, count, wait};

/// A host with a kernel and an image for the load guest.
pub(crate) struct Bench {
    pub(crate) host: Host,
    pub(crate) image: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let host = Host::new();
        let image = host.0.path().join("image.raw");
        File::create(&image).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
        fs::write(host.0.path().join("kernel"), tiny_guest::LOAD).unwrap();
        Bench { host, image }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.host.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// vm0, with these options of its disk.
    pub(crate) fn launch(&self, options: &str) -> Launch {
        let disk = format!("{}{options}", self.image.display());
        let mut launch = Launch::kernel(&self.path("kernel"), tempfile::tempdir().unwrap());
        launch.command.env("XDG_RUNTIME_DIR", self.folder());
        launch
            .args(&["--name", "vm0", "--mem", "16", "--append", "seed=3", "--disk", &disk])
            .stdin(Stdio::piped())
    }

    /// The same, when its guest has said `word`.
    pub(crate) fn start(&self, options: &str, word: &str) -> Vmm {
        let machine = self.launch(options).spawn();
        machine.expect(word, 1);
        machine
    }

    /// A verb that runs in the folder, where snapshots are as well.
    pub(crate) fn verb(&self, words: &[&str]) -> Command {
        let mut command = self.host.verb(words);
        command.current_dir(self.folder()).env("XDG_STATE_HOME", self.path("state"));
        command
    }

    #[track_caller]
    pub(crate) fn does(&self, words: &[&str]) -> String {
        let output = self.verb(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a verb says that fails.
    #[track_caller]
    pub(crate) fn fails(&self, words: &[&str]) -> String {
        let output = self.verb(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        said
    }

    /// `minivmm restore` with its console.
    pub(crate) fn restore(&self, words: &[&str]) -> Restored {
        let mut command = self.verb(&[&["restore"], words].concat());
        let mut child = Owned::start(command.stdin(Stdio::piped()));
        let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
        let (stderr, _) = Heard::listen(child.stderr.take().unwrap());
        Restored { child, stdout, stderr }
    }

    /// Where snapshots of vm0 are.
    pub(crate) fn snapshot(&self, name: &str) -> PathBuf {
        self.path("state/minivmm/snapshots/vm0").join(name)
    }

    pub(crate) fn options(&self, overlay: bool) -> String {
        if overlay { format!(",overlay={}", self.path("top.qcow2").display()) } else { String::new() }
    }

    /// The image that the guest writes to, and what it lies on.
    pub(crate) fn disk(&self, overlay: bool) -> (PathBuf, Vec<PathBuf>) {
        if overlay {
            (self.path("top.qcow2"), vec![self.image.clone()])
        } else {
            (self.image.clone(), Vec::new())
        }
    }

    /// Asserts that `image` has the last of `writes` writes, whatever of `below` it lies on.
    #[track_caller]
    pub(crate) fn assert_disk(&self, image: &Path, below: &[PathBuf], writes: u64) {
        let flat = self.path("flat.raw");
        let below: Vec<_> = below.iter().flat_map(|path| ["--backing", path.to_str().unwrap()]).collect();
        let words = ["disk", "convert", image.to_str().unwrap(), flat.to_str().unwrap()];
        self.does(&[&words[..], &below].concat());
        assert_last_writes(&flat, writes);
        fs::remove_file(flat).unwrap();
    }
}

/// A machine that goes on from a folder.
pub(crate) struct Restored {
    pub(crate) child: Owned,
    pub(crate) stdout: Heard,
    pub(crate) stderr: Heard,
}

impl Restored {
    #[track_caller]
    pub(crate) fn says(&self, word: &str) {
        let seen = self.stdout.wait(|heard| count(heard, word) > 0);
        assert!(seen, "no {word:?}: {} {}", self.stdout.text(), self.stderr.text());
    }

    /// Waits for its end: its status, and what minivmm has said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        let status = wait(&mut self.child, || format!("{} {}", stdout.text(), stderr.text()));
        (status.code(), self.stderr.text())
    }

    /// Has the guest end. Gives how many blocks it has written, all of which it has read as it wrote them, and where it began to speak.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (u64, u64) {
        let mut keys = self.child.stdin.take().unwrap();
        keys.write_all(b"!").unwrap();
        self.says(" kicks=");
        self.stdout.wait(|heard| heard.ends_with(b"\n"));
        keys.write_all(b"!").unwrap();
        let stdout = self.stdout.clone();
        let (status, stderr) = self.end();
        assert_eq!(status, Some(0), "{} {stderr}", stdout.text());
        finished(&stdout.text())
    }
}

/// Ends a machine's guest; gives the blocks that it has written, and all that it has said.
#[track_caller]
pub(crate) fn finish(mut machine: Vmm) -> (u64, String) {
    machine.type_in(b"!");
    machine.expect(" kicks=", 1);
    machine.stdout.wait(|heard| heard.ends_with(b"\n"));
    machine.type_in(b"!");
    let ended = machine.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    (finished(&ended.stdout).0, ended.stdout)
}

/// The blocks written, and the first line of progress.
#[track_caller]
pub(crate) fn finished(said: &str) -> (u64, u64) {
    let line = said.lines().last().unwrap();
    let [writes, reads] = ["writes=", "reads="].map(|key| number(line, key));
    assert_eq!(writes, reads, "{said}");
    let first = said.lines().find(|line| line.starts_with("at=")).unwrap();
    (writes, number(first, "at="))
}
