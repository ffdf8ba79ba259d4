//! Machines that are saved to a folder and go on from it, by the verbs: under a guest that notices what is lost, in folders that
//! are full, damaged or there already, and with SIGKILL at any time.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/bench.rs"]
mod bench;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/host.rs"]
mod host;
#[path = "support/load.rs"]
mod load;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::thread;
use std::time::Duration;

use bench::Bench;
use dose::dose;
use load::{assert_last_writes, number};
use vmm::{Launch, Owned};

#[test]
fn a_machine_goes_on_from_its_folder_and_its_guest_misses_nothing() {
    let bench = Bench::new();
    let machine = bench.start("", "ready\n");
    machine.expect("at=512\n", 1);
    bench.does(&["save", "vm0", "saved0"]);
    let ended = machine.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(bench.host.does(&["ls"]).is_empty() || !bench.host.does(&["ls"]).contains("vm0"));
    let mut said = ended.stdout;
    let mode = |name: &str| fs::metadata(bench.folder().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("saved0"), mode("saved0/memory"), mode("saved0/state")), (0o700, 0o600, 0o600));
    for round in 0..3 {
        let clock = if round == 1 { "saved" } else { "host" };
        let restored = bench.restore(&["--clock", clock, &format!("saved{round}")]);
        restored.says("at=");
        bench.does(&["save", "vm0", &format!("saved{}", round + 1)]);
        said += &restored.stdout.text();
        assert_eq!(restored.end().0, Some(0));
    }
    let mut last = bench.restore(&["saved3"]);
    last.says("at=");
    let mut keys = last.child.stdin.take().unwrap();
    std::io::Write::write_all(&mut keys, b"!").unwrap();
    last.says(" kicks=");
    last.stdout.wait(|heard| heard.ends_with(b"\n"));
    said += &last.stdout.text();
    std::io::Write::write_all(&mut keys, b"!").unwrap();
    assert_eq!(last.end().0, Some(0));
    let line = said.lines().last().unwrap();
    let [writes, reads] = ["writes=", "reads="].map(|key| number(line, key));
    assert_eq!(writes, reads, "{line}");
    let lines: String = (1..=writes / 512).map(|at| format!("at={}\n", at * 512)).collect();
    assert_eq!(said.strip_suffix(&format!("{line}\n")).unwrap(), format!("ready\n{lines}"));
    assert_last_writes(&bench.image, writes);
}

#[test]
fn what_was_saved_is_said_and_so_is_a_note_of_no_use() {
    let bench = Bench::new();
    let machine = bench.start("", "ready\n");
    machine.expect("at=512\n", 1);
    let said = |words: &[&str]| {
        let output = bench.verb(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let text = said(&["snapshot", "vm0", "first"]);
    assert!(
        text.starts_with("minivmm: vm0 has the snapshot first in /") && text.contains("(memory, vda: "),
        "{text}"
    );
    assert!(text.contains("`minivmm revert vm0 first`"), "{text}");
    let running = ["save", "vm0", "copy", "--keep-running", "--with-disks"];
    let text = said(&running);
    assert!(
        text.contains("/copy (memory, vda: ") && text.contains("`minivmm restore copy --disks NEW-FOLDER`"),
        "{text}"
    );
    fs::remove_dir_all(bench.path("copy")).unwrap();
    assert_eq!(said(&[&running[..], &["--json"]].concat()), "");
    let text = said(&["save", "vm0", "saved"]);
    assert!(
        text.contains("/saved (memory: ") && text.contains("`minivmm restore saved` lets it go on"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    machine.end();
    fs::write(bench.path("saved/working-set"), "garbage").unwrap();
    let restored = bench.restore(&["--prefetch", "saved"]);
    restored.says("at=");
    let warned = |heard: &[u8]| vmm::count(heard, "is left out, and written anew") > 0;
    assert!(restored.stderr.wait(warned), "{}", restored.stderr.text());
    bench.does(&["kill", "vm0"]);
    restored.end();
}

/// The process in the background has none of the files that were open in the one that was called.
#[test]
fn a_saved_machine_goes_on_in_the_background() {
    let bench = Bench::new();
    let machine = bench.start("", "ready\n");
    bench.does(&["save", "vm0", "saved0"]);
    machine.end();
    for (from, to) in [("saved0", "saved1"), ("saved1", "saved2")] {
        let words = ["restore", from, "-d", "--log", "log"];
        let output = bench.verb(&words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        bench.does(&["save", "vm0", to]);
    }
    let last = bench.restore(&["saved2"]);
    last.says("at=");
    bench.host.does(&["kill", "vm0"]);
    last.end();
}

#[test]
fn what_cannot_be_saved_or_restored_is_refused_and_the_machine_goes_on() {
    let bench = Bench::new();
    let machine = bench.start("", "ready\n");
    fs::create_dir(bench.folder().join("mine")).unwrap();
    fs::write(bench.folder().join("mine/file"), "").unwrap();
    assert!(bench.fails(&["save", "vm0", "mine"]).contains("exists"));
    assert!(bench.fails(&["save", "vm0", "none/saved"]).contains("none/saved: No such file"));
    assert!(bench.fails(&["save", "vm1", "saved"]).contains("no machine called vm1"));
    assert!(bench.fails(&["restore", "mine"]).contains("holds no saved machine"));
    assert_eq!(bench.host.http("vm0", "POST", "/v1/save", "{\"folder\": \"saved\"}").0, 400);
    assert_eq!(bench.host.http("vm0", "POST", "/v1/save", "{\"folder\": 1}").0, 400);
    let before = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", before + 1);
    bench.does(&["save", "vm0", "saved"]);
    assert_eq!(machine.end().status.code(), Some(0));
    // What looks as if the disk stayed as it is does not write to it.
    for words in [&["--disks", "d0"][..], &["--snapshot"]] {
        let said = bench.fails(&[&["restore", "saved"], words].concat());
        assert!(said.contains("no copy of the disk") && said.contains("image.raw"), "{said}");
    }
    assert!(!bench.path("d0").exists());
    let again = bench.restore(&["saved"]);
    again.says("at=");
    assert!(bench.fails(&["restore", "saved"]).contains("was written to since the machine was saved"));
    let said = bench.fails(&["restore", "--trust-disks", "saved"]);
    assert!(said.contains("vm0") && said.contains("runs already"), "{said}");
    // Nobody writes to what a machine has mapped, and it may go away.
    fs::remove_dir_all(bench.folder().join("saved")).unwrap();
    let before = vmm::count(&again.stdout.bytes(), "at=");
    assert!(again.stdout.wait(|heard| vmm::count(heard, "at=") > before + 1));
    bench.does(&["save", "vm0", "saved"]);
    assert_eq!(again.end().0, Some(0));
    fs::rename(bench.folder().join("kernel"), bench.folder().join("gone")).unwrap();
    assert!(bench.fails(&["restore", "saved"]).contains("kernel"));
    fs::rename(bench.folder().join("gone"), bench.folder().join("kernel")).unwrap();
    let memory = File::options().write(true).open(bench.folder().join("saved/memory")).unwrap();
    memory.set_len(16 << 20 | 4096).unwrap();
    assert!(bench.fails(&["restore", "saved"]).contains("damaged"));
    memory.set_len(16 << 20).unwrap();
    let state = File::options().write(true).open(bench.folder().join("saved/state")).unwrap();
    state.write_all_at(b"?", 100).unwrap();
    assert!(bench.fails(&["restore", "saved"]).contains("wrong checksum"));
}

#[test]
fn what_a_snapshot_holds_is_not_lost_by_a_save() {
    let bench = Bench::new();
    let machine = bench.launch(",snapshot").spawn();
    machine.expect("ready\n", 1);
    assert!(bench.fails(&["save", "vm0", "saved"]).contains("overlay=FILE"));
    machine.expect("at=", 1);
    bench.host.does(&["kill", "vm0"]);
    machine.end();
}

#[test]
fn a_folder_that_does_not_fit_is_not_there_and_the_machine_goes_on() {
    let bench = Bench::new();
    let mut launch = bench.launch("");
    limit_files(&mut launch, 12 << 20);
    let machine = launch.spawn();
    machine.expect("ready\n", 1);
    let said = bench.fails(&["save", "vm0", "saved"]);
    assert!(said.contains("saved") && said.contains("File too large"), "{said}");
    let left: Vec<_> =
        fs::read_dir(bench.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("saved")), "{left:?}");
    let before = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", before + 1);
    bench.host.does(&["kill", "vm0"]);
    machine.end();
}

/// As `ulimit -f`.
fn limit_files(launch: &mut Launch, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: between fork and exec it makes one system call, which reads a struct of its own.
    #[allow(unsafe_code, reason = "what a child does before it becomes a program is unsafe to say")]
    unsafe {
        launch.command.pre_exec(move || {
            // SAFETY: the call reads `limit`.
            match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

#[test]
fn a_folder_is_whole_or_not_there_whenever_the_machine_is_killed() {
    let bench = Bench::new();
    for round in 0..dose(50) {
        let mut machine = bench.start("", "ready\n");
        let verb = bench.verb(&["save", "vm0", "saved"]).spawn().unwrap();
        let mut verb = Owned(verb);
        thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        machine.signal(libc::SIGKILL);
        machine.stdin = None;
        machine.end();
        verb.wait().unwrap();
        let saved = bench.folder().join("saved");
        if saved.exists() {
            let restored = bench.restore(&["saved"]);
            restored.says("at=");
            bench.host.does(&["kill", "vm0"]);
            restored.end();
            fs::remove_dir_all(&saved).unwrap();
        }
        // What SIGKILL has left is in nobody's way.
        let machine = bench.start("", "ready\n");
        bench.does(&["save", "vm0", "saved"]);
        assert_eq!(machine.end().status.code(), Some(0));
        fs::remove_dir_all(&saved).unwrap();
        assert!(!bench.folder().join(".saved.part").exists());
    }
}
