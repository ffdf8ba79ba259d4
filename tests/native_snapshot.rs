//! Machines that are saved with copies of their disks, in folders that are restored again and again, and snapshots: under a guest that compares
//! what is in its memory with what is on its disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
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

use dose::dose;
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
        command.current_dir(self.host.0.path()).env("XDG_STATE_HOME", self.path("state"));
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

impl Bench {
    /// Where snapshots of vm0 are.
    fn snapshot(&self, name: &str) -> PathBuf {
        self.path("state/minivmm/snapshots/vm0").join(name)
    }

    fn options(&self, overlay: bool) -> String {
        if overlay { format!(",overlay={}", self.path("top.qcow2").display()) } else { String::new() }
    }

    /// The image that the guest writes to, and what it lies on.
    fn disk(&self, overlay: bool) -> (PathBuf, Vec<PathBuf>) {
        if overlay {
            (self.path("top.qcow2"), vec![self.image.clone()])
        } else {
            (self.image.clone(), Vec::new())
        }
    }
}

/// Ends a machine's guest; the blocks that it has written, and its lines since the last word `since`.
#[track_caller]
fn finish(mut machine: Vmm) -> (u64, String) {
    machine.type_in(b"!");
    machine.expect(" kicks=", 1);
    machine.stdout.wait(|heard| heard.ends_with(b"\n"));
    machine.type_in(b"!");
    let ended = machine.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    (finished(&ended.stdout).0, ended.stdout)
}

#[test]
fn memory_and_disk_go_back_together_as_often_as_it_is_asked_for() {
    for overlay in [false, true] {
        let bench = Bench::new();
        let machine = bench.start(&bench.options(overlay));
        let mode = |path: PathBuf| std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap()) & 0o777;
        let image = bench.disk(overlay).0;
        let before = mode(image.clone());
        bench.does(&["snapshot", "vm0", "first"]);
        assert_eq!(mode(bench.snapshot("first")), 0o700);
        assert_eq!(mode(bench.snapshot("..")), 0o700);
        let lines = machine.stdout.text().lines().count() as u64;
        for round in 1..=2 {
            // Far beyond, so that each block of the snapshot is overwritten.
            let far = format!("at={}\n", (lines + 8) * 512);
            machine.expect(&far, round);
            let said = bench.does(&["revert", "vm0", "first"]);
            assert!(said.contains("vm0 goes on from first") && said.contains("is dropped"), "{said}");
            // It writes again what it wrote, and speaks of it again.
            machine.expect(&far, round + 1);
        }
        assert_eq!(mode(image.clone()), before);
        let list = bench
            .host
            .verb(&["snapshots", "vm0", "--json"])
            .env("XDG_STATE_HOME", bench.path("state"))
            .output();
        let list: serde_json::Value = serde_json::from_slice(&list.unwrap().stdout).unwrap();
        assert_eq!((&list[0]["name"], &list[0]["memory"]), (&"first".into(), &(16 << 20).into()));
        assert_eq!(list[0]["disks"], serde_json::json!(["vda"]));
        assert!(list[0]["size"].as_u64().unwrap() > 0 && list[0]["saved-at"].as_u64().unwrap() > 1 << 30);
        assert!(bench.does(&["snapshots", "vm0"]).contains("first"));
        // Its memory is mapped, and may go away.
        bench.does(&["snapshot", "vm0", "--delete", "first"]);
        assert!(!bench.snapshot("").exists());
        let now = vmm::count(&machine.stdout.bytes(), "at=");
        machine.expect("at=", now + 4);
        let (writes, _) = finish(machine);
        let (image, below) = bench.disk(overlay);
        bench.assert_disk(&image, &below, writes);
        if overlay {
            // Both can be moved together, as before.
            let info = bench.does(&["disk", "info", "top.qcow2"]);
            assert!(info.contains("image.raw") && !info.contains("/image.raw"), "{info}");
        }
    }
}

#[test]
fn a_reset_machine_and_a_paused_one_go_back_as_well() {
    let bench = Bench::new();
    let machine = bench.start("");
    bench.does(&["pause", "vm0"]);
    bench.does(&["snapshot", "vm0", "first"]);
    let lines = vmm::count(&machine.stdout.bytes(), "at=");
    assert!(bench.host.does(&["info", "vm0"]).contains("paused"), "a snapshot left it paused");
    bench.does(&["resume", "vm0"]);
    let far = format!("at={}\n", (lines + 2) * 512);
    machine.expect(&far, 1);
    bench.does(&["reset", "vm0"]);
    machine.expect("ready\n", 2);
    bench.does(&["pause", "vm0"]);
    bench.does(&["revert", "vm0", "first"]);
    machine.expect(&far, 2);
    let (writes, _) = finish(machine);
    assert!(writes > 1536);
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn what_cannot_be_kept_or_gone_back_to_is_refused_and_the_machine_runs_on() {
    let bench = Bench::new();
    let machine = bench.start("");
    assert!(bench.fails(&["revert", "vm0", "none"]).contains("no snapshot called none"));
    assert!(bench.fails(&["snapshot", "vm0", "none", "--delete"]).contains("no snapshot called none"));
    assert!(bench.fails(&["snapshot", "vm1", "first"]).contains("no machine called vm1"));
    assert!(bench.does(&["snapshots", "vm1"]).starts_with("NAME"));
    bench.does(&["snapshot", "vm0", "first"]);
    assert!(bench.fails(&["snapshot", "vm0", "first"]).contains("already"));
    // Of a machine with other parts.
    let manifest = bench.snapshot("first").join("machine.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("image.raw", "other.raw")).unwrap();
    assert!(bench.fails(&["revert", "vm0", "first"]).contains("differs in `disk`"));
    fs::write(&manifest, &text).unwrap();
    // Of none with its disks.
    fs::rename(bench.snapshot("first").join("vda.raw"), bench.path("vda.raw")).unwrap();
    assert!(bench.fails(&["revert", "vm0", "first"]).contains("cannot be read"));
    fs::rename(bench.path("vda.raw"), bench.snapshot("first").join("vda.raw")).unwrap();
    for body in ["{}", "{\"folder\":\"first\"}", "{\"folder\":1}"] {
        assert_eq!(bench.host.http("vm0", "POST", "/v1/revert", body).0, 400);
        assert_eq!(bench.host.http("vm0", "POST", "/v1/snapshot", body).0, 400);
    }
    let before = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", before + 2);
    bench.host.does(&["kill", "vm0"]);
    machine.end();
    let said = bench.fails(&["revert", "vm0", "first"]);
    assert!(said.contains("restore --put-back") && said.contains("snapshots/vm0/first"), "{said}");
    let restored = bench.restore(&["--put-back", bench.snapshot("first").to_str().unwrap()]);
    restored.says("at=8192\n");
    // What a machine runs on is not replaced, and not deleted.
    let said =
        bench.fails(&["restore", "--put-back", "--name", "vm1", bench.snapshot("first").to_str().unwrap()]);
    assert!(said.contains("image.raw") && said.contains("use"), "{said}");
    let (writes, _) = restored.finish();
    bench.assert_disk(&bench.image, &[], writes);
    let other = bench.restore(&["--snapshot", bench.snapshot("first").to_str().unwrap()]);
    other.says("at=8192\n");
    assert!(bench.fails(&["snapshot", "vm0", "first", "--delete"]).contains("runs on the disk"));
    other.finish();
    bench.does(&["snapshot", "vm0", "first", "--delete"]);
}

#[test]
fn whenever_it_is_killed_a_snapshot_is_whole_and_a_disk_is_the_old_or_the_new_one() {
    let bench = Bench::new();
    for round in 0..dose(50) {
        let mut machine = bench.start("");
        bench.does(&["snapshot", "vm0", "first"]);
        let verb = if round % 2 == 0 { ["snapshot", "vm0", "second"] } else { ["revert", "vm0", "first"] };
        let mut verb = Owned(bench.verb(&verb).spawn().unwrap());
        std::thread::sleep(std::time::Duration::from_micros(round * 7919 % 60_000));
        machine.signal(libc::SIGKILL);
        machine.stdin = None;
        machine.end();
        verb.wait().unwrap();
        // The disk is one or the other: a whole file of its length, of which the snapshot is put back.
        assert_eq!(fs::metadata(&bench.image).unwrap().len(), BLOCKS * BLOCK as u64);
        for name in ["first", "second"] {
            let snapshot = bench.snapshot(name);
            if !snapshot.exists() {
                assert_eq!(name, "second");
                continue;
            }
            let restored = bench.restore(&["--put-back", snapshot.to_str().unwrap()]);
            restored.says("at=");
            let (writes, _) = restored.finish();
            bench.assert_disk(&bench.image, &[], writes);
            bench.does(&["snapshot", "vm0", name, "--delete"]);
        }
    }
}

#[test]
fn a_disk_that_does_not_fit_leaves_nothing_and_the_machine_runs_on() {
    let bench = Bench::new();
    let written = BLOCKS * BLOCK as u64;
    File::options().write(true).open(&bench.image).unwrap().set_len(written + (1 << 20)).unwrap();
    let machine = bench.start("");
    bench.does(&["snapshot", "vm0", "first"]);
    // The guest writes below this, and a copy of its disk ends beyond.
    set_file_limit(machine.pid(), written);
    for verb in [["snapshot", "vm0", "second"], ["revert", "vm0", "first"]] {
        let said = bench.fails(&verb);
        assert!(said.contains("File too large"), "{said}");
    }
    assert!(!bench.snapshot("second").exists());
    let left: Vec<_> =
        fs::read_dir(bench.host.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains(".part")), "{left:?}");
    set_file_limit(machine.pid(), libc::RLIM_INFINITY);
    let before = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", before + 2);
    let (writes, _) = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

/// As `prlimit --fsize`: from now on for a process that runs.
fn set_file_limit(pid: i32, bytes: u64) {
    let output = std::process::Command::new("prlimit")
        .args([
            format!("--pid={pid}"),
            format!(
                "--fsize={}:",
                if bytes == libc::RLIM_INFINITY { "unlimited".into() } else { bytes.to_string() }
            ),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_machine_that_runs_on_is_saved_with_its_disks() {
    let bench = Bench::new();
    let machine = bench.start("");
    bench.does(&["save", "vm0", "saved", "--keep-running", "--with-disks"]);
    let before = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", before + 2);
    let restored = bench.restore(&["saved", "--disks", "d0", "--name", "vm1"]);
    restored.says("at=8192\n");
    let (writes, _) = restored.finish();
    bench.assert_disk(&bench.path("d0/vda.qcow2"), &[bench.path("saved/vda.raw")], writes);
    let (writes, _) = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
}
