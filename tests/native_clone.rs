//! A machine and its clones: each goes on alone, with disks of its own, under a guest that compares what is in its memory with what is on
//! its disk.
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
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use dose::dose;
use host::Host;
use load::{BLOCK, BLOCKS, assert_last_writes, number};
use serde_json::Value;
use vmm::{Heard, LIMIT, Launch, Owned, Vmm, send_signal, wait};

/// A host with a kernel and an image for the load guest.
struct Bench {
    host: Host,
    image: PathBuf,
}

/// A machine that is followed by the command that shows its console, or by the one that runs it.
struct Guest {
    child: Owned,
    stdout: Heard,
    stderr: Heard,
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

    /// A machine that has written for a while.
    fn start(&self, options: &str, words: &[&str]) -> Vmm {
        let disk = format!("{}{options}", self.image.display());
        let mut launch = Launch::kernel(&self.path("kernel"), tempfile::tempdir().unwrap());
        launch.command.env("XDG_RUNTIME_DIR", self.host.0.path()).current_dir(self.host.0.path());
        let launch = launch.args(&["--name", "vm0", "--mem", "16", "--append", "seed=3", "--disk", &disk]);
        let machine = launch.args(words).stdin(Stdio::piped()).spawn();
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
        assert!(output.stdout.is_empty(), "{words:?}: {:?}", output.stdout);
        said
    }

    fn follow(&self, words: &[&str]) -> Guest {
        let mut child = Owned::start(self.verb(words).stdin(Stdio::piped()));
        let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
        let (stderr, _) = Heard::listen(child.stderr.take().unwrap());
        Guest { child, stdout, stderr }
    }

    fn console(&self, name: &str) -> Guest {
        self.follow(&["console", name])
    }

    /// Asserts that `image` has the last of `writes` writes, whatever it lies on, which is `below`.
    #[track_caller]
    fn assert_disk(&self, image: &Path, below: &[&Path], writes: u64) {
        let flat = self.path("flat.raw");
        let below: Vec<_> = below.iter().flat_map(|path| ["--backing", path.to_str().unwrap()]).collect();
        let words = ["disk", "convert", image.to_str().unwrap(), flat.to_str().unwrap()];
        self.does(&[&words[..], &below].concat());
        assert_last_writes(&flat, writes);
        fs::remove_file(flat).unwrap();
    }

    /// The names in the bench's folder but for those that begin a machine.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.path("state/minivmm/snapshots/vm0").join(name)
    }
}

impl Guest {
    #[track_caller]
    fn says(&self, word: &str) {
        let seen = self.stdout.wait(|heard| vmm::count(heard, word) > 0);
        assert!(seen, "no {word:?}: {} {}", self.stdout.text(), self.stderr.text());
    }

    /// Has the guest write on, and end. Gives how many blocks it has written, all of which it has read as it wrote them.
    #[track_caller]
    fn finish(mut self) -> u64 {
        let now = vmm::count(&self.stdout.bytes(), "at=");
        assert!(self.stdout.wait(|heard| vmm::count(heard, "at=") > now + 1), "{}", self.stderr.text());
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

/// The blocks written.
#[track_caller]
fn finished(said: &str) -> u64 {
    let line = said.lines().rfind(|line| line.contains(" kicks=")).unwrap();
    let [writes, reads] = ["writes=", "reads="].map(|key| number(line, key));
    assert_eq!(writes, reads, "{said}");
    writes
}

/// Ends the original's guest as [`Guest::finish`] does.
#[track_caller]
fn finish(mut machine: Vmm) -> u64 {
    let now = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", now + 2);
    machine.type_in(b"!");
    machine.expect(" kicks=", 1);
    machine.stdout.wait(|heard| heard.ends_with(b"\n"));
    machine.type_in(b"!");
    let ended = machine.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    finished(&ended.stdout)
}

#[test]
fn original_and_clones_write_and_none_sees_what_another_writes() {
    // The disk, what `clone` is told, the clone's image, and whether that lies on the original's base.
    for (options, word, file, on_base) in [
        ("", None, "vda.raw", false),
        (",overlay=top.qcow2", Some("--linked"), "vda.qcow2", true),
        (",overlay=top.qcow2", Some("--full"), "vda.qcow2", false),
    ] {
        let bench = Bench::new();
        let machine = bench.start(options, &["--net", "user,forward=0:22"]);
        let words = [&["clone", "vm0", "vm1", "--json"][..], word.as_slice()].concat();
        let said: Value = serde_json::from_str(&bench.does(&words)).unwrap();
        let (image, base) = (bench.path("vm1").join(file), bench.image.to_str().unwrap());
        assert_eq!(said["disks"][0]["path"].as_str().unwrap(), image.to_str().unwrap());
        assert_eq!(said["disks"][0]["base"].as_str(), on_base.then_some(base));
        assert!(said["left-out"][0].as_str().unwrap().contains("stays the original's"), "{said}");
        assert!(said["paused-ms"].is_u64() && said["pid"].is_u64(), "{said}");
        // Nothing of what it began from.
        assert_eq!(bench.names("vm1"), [file, "vm.toml"]);
        // A clone of the clone.
        bench.does(&["clone", "vm1", "vm2"]);
        let clones = ["vm1", "vm2"].map(|name| (name, bench.console(name).finish()));
        let below: &[&Path] = if on_base { &[&bench.image] } else { &[] };
        for (name, writes) in clones {
            bench.assert_disk(&bench.path(name).join(file), below, writes);
        }
        let writes = finish(machine);
        match options {
            "" => bench.assert_disk(&bench.image, &[], writes),
            _ => bench.assert_disk(&bench.path("top.qcow2"), &[&bench.image], writes),
        }
        // It boots later, with what it wrote and with an address of its own.
        let text = fs::read_to_string(bench.path("vm1/vm.toml")).unwrap();
        assert!(
            !text.contains("mac") && !text.contains("forward") && text.contains("name = \"vm1\""),
            "{text}"
        );
        if word == Some("--full") {
            fs::remove_file(&bench.image).unwrap();
        }
        let again = bench.follow(&["--config", "vm1/vm.toml"]);
        again.says("at=1024\n");
        let writes = again.finish();
        bench.assert_disk(&bench.path("vm1").join(file), below, writes);
    }
}

#[test]
fn many_clones_of_one_snapshot_lie_on_its_copies_unless_they_are_full() {
    let bench = Bench::new();
    let machine = bench.start("", &[]);
    bench.does(&["snapshot", "vm0", "first"]);
    let copy = bench.snapshot("first").join("vda.raw");
    let kept = fs::read(&copy).unwrap();
    let linked = ["clone", "vm0", "--snapshot", "first"];
    bench.does(&[&linked[..], &["vm1", "--linked"]].concat());
    bench.does(&[&linked[..], &["vm2"]].concat());
    bench.does(&[&linked[..], &["vm3", "--full"]].concat());
    // As a folder.
    bench.does(&["clone", bench.snapshot("first").to_str().unwrap(), "vm4", "--folder", "elsewhere"]);
    let writes = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
    let folders = [("vm1", "vm1"), ("vm2", "vm2"), ("vm4", "elsewhere")];
    for (name, folder) in folders {
        let writes = bench.console(name).finish();
        bench.assert_disk(&bench.path(folder).join("vda.qcow2"), &[&copy], writes);
    }
    assert!(fs::read(&copy).unwrap() == kept, "the snapshot was written to");
    let writes = bench.console("vm3").finish();
    bench.assert_disk(&bench.path("vm3/vda.raw"), &[], writes);
    // It is not deleted beneath the overlays of machines that are off.
    for folder in ["vm1", "vm2", "elsewhere"] {
        let said = bench.fails(&["snapshot", "vm0", "first", "--delete"]);
        assert!(said.contains("lies on a disk of the snapshot") && said.contains(folder), "{said}");
        fs::remove_dir_all(bench.path(folder)).unwrap();
    }
    bench.does(&["snapshot", "vm0", "first", "--delete"]);
}

#[test]
fn disks_of_which_a_killed_revert_exchanged_some_are_put_back_before_they_run() {
    let bench = Bench::new();
    let second = bench.path("second.raw");
    File::create(&second).unwrap().set_len(1 << 20).unwrap();
    let words = ["--disk", second.to_str().unwrap()];
    let machine = bench.start("", &words);
    bench.does(&["snapshot", "vm0", "first"]);
    bench.does(&["revert", "vm0", "first"]);
    let marks = |bench: &Bench| bench.names("").iter().filter(|name| name.contains("exchange")).count();
    assert_eq!(marks(&bench), 0);
    let writes = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
    // What it leaves that is killed between two disks.
    let first = bench.snapshot("first");
    for name in [".image.raw.exchange", ".second.raw.exchange"] {
        fs::write(bench.path(name), first.to_str().unwrap()).unwrap();
    }
    let start = ["--kernel", "kernel", "--mem", "16", "--disk", "second.raw", "--net", "none"];
    let said = bench.fails(&start);
    let cure = format!("restore --put-back {}", first.display());
    assert!(said.contains("second.raw") && said.contains(&cure), "{said}");
    let restored = bench.follow(&["restore", "--put-back", first.to_str().unwrap()]);
    restored.says("at=4096\n");
    let writes = restored.finish();
    bench.assert_disk(&bench.image, &[], writes);
    assert_eq!(marks(&bench), 0);
}

#[test]
fn a_saved_machine_without_copies_of_its_disks_is_cloned_with_all_of_them() {
    let bench = Bench::new();
    let machine = bench.start("", &[]);
    bench.does(&["save", "vm0", "saved"]);
    assert_eq!(machine.end().status.code(), Some(0));
    let said = bench.fails(&["clone", "saved", "vm1"]);
    assert!(said.contains("no copy of vda") && said.contains("--full"), "{said}");
    assert!(!bench.path("vm1").exists());
    bench.does(&["clone", "saved", "vm1", "--full"]);
    let writes = bench.console("vm1").finish();
    bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
    // The original goes on from its own disk, which nobody has written to.
    let restored = bench.follow(&["restore", "saved"]);
    restored.says("at=4096\n");
    let writes = restored.finish();
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn a_machine_that_is_off_is_cloned_from_its_file_and_so_is_a_clone_from_its_folder() {
    let bench = Bench::new();
    let file = bench.path("vm0.toml");
    let describe = |disk: &str| {
        let text = format!(
            "kernel = 'kernel'\nmem = '16M'\nappend = 'seed=3'\nname = 'vm0'\ndisk = '{disk}'\n\
             net = 'user,mac=02:00:00:00:00:01,forward=5555:22'\nport = 'name=agent,socket=a.sock'\n"
        );
        fs::write(&file, text).unwrap();
    };
    describe("image.raw,overlay=top.qcow2");
    // Its overlay is not made yet.
    let said = bench.does(&["clone", "vm0.toml", "vm1"]);
    assert!(said.contains("vm1 is made, and off") && said.contains("forward"), "{said}");
    let writes = bench.follow(&["--config", "vm1/vm.toml"]).finish();
    bench.assert_disk(&bench.path("vm1/vda.qcow2"), &[&bench.image], writes);
    assert!(fs::read(&bench.image).unwrap().iter().all(|byte| *byte == 0), "the base was written to");
    // A clone of that lies on the same base, and one with --full on none.
    bench.does(&["clone", "vm1", "vm2", "--linked"]);
    bench.does(&["clone", "vm1", "vm3", "--full"]);
    bench.assert_disk(&bench.path("vm3/vda.qcow2"), &[], writes);
    let text = fs::read_to_string(bench.path("vm2/vm.toml")).unwrap();
    for (word, there) in
        [("mac", false), ("5555", false), ("socket = \"agent.sock\"", true), ("vda.qcow2", true)]
    {
        assert_eq!(text.contains(word), there, "{word}: {text}");
    }
    let again = bench.follow(&["--config", "vm2/vm.toml"]).finish();
    bench.assert_disk(&bench.path("vm2/vda.qcow2"), &[&bench.image], again);
    bench.assert_disk(&bench.path("vm1/vda.qcow2"), &[&bench.image], writes);
    // While it runs, its disk is no disk that is off.
    describe("image.raw");
    let machine = bench.follow(&["--config", "vm0.toml"]);
    machine.says("at=1024\n");
    assert!(bench.fails(&["clone", "vm0.toml", "vm4"]).contains("image.raw"));
    assert!(!bench.path("vm4").exists());
    machine.finish();
}

#[test]
fn what_two_machines_cannot_have_is_refused_or_the_clones_own() {
    let bench = Bench::new();
    let wire = bench.path("wire.sock");
    let _listener = UnixListener::bind(&wire).unwrap();
    let net = format!("socket={}", wire.display());
    let machine = bench.start("", &["--net", &net, "--port", "name=agent,socket=agent.sock"]);
    for (words, said) in [
        (&["vm0"][..], "a machine called vm0 runs already"),
        (&["vm1"], "net0 is on the socket"),
        (&["vm1", "--net", &net], "--same-mac"),
        (&["vm1", "--net", "user", "--net", "user"], "has one network interface"),
        (&["vm1", "--net", "user", "--linked"], "lies on no base"),
        (&["vm1", "--net", "user", "--folder", "full"], "exists"),
        (&["vm1", "--net", "user", "--snapshot", "none"], "no snapshot called none"),
    ] {
        fs::create_dir_all(bench.path("full/of")).unwrap();
        let refused = bench.fails(&[&["clone", "vm0"], words].concat());
        assert!(refused.contains(said), "{words:?}: {refused}");
    }
    assert!(bench.fails(&["clone", "nobody", "vm1"]).contains("no machine called nobody"));
    // It is started where nothing can be: nothing is left of it.
    let refused = bench.fails(&["clone", "vm0", "vm1", "--net", "tap=minivmm-none"]);
    assert!(refused.contains("minivmm-none"), "{refused}");
    let left: Vec<_> = bench.names("").into_iter().filter(|name| name.contains("vm1")).collect();
    assert!(left.is_empty(), "{left:?}");
    let said = bench.does(&["clone", "vm0", "vm1", "--net", "user"]);
    let socket = bench.path("vm1/agent.sock");
    assert!(said.contains(socket.to_str().unwrap()), "{said}");
    UnixStream::connect(&socket).unwrap();
    UnixStream::connect(bench.path("agent.sock")).unwrap();
    let writes = bench.console("vm1").finish();
    bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
    let writes = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn overlays_of_a_restore_that_fails_are_not_left() {
    let bench = Bench::new();
    let machine = bench.start("", &[]);
    bench.does(&["save", "vm0", "saved", "--with-disks", "--keep-running"]);
    // Its name is taken.
    assert!(bench.fails(&["restore", "saved", "--disks", "d0"]).contains("runs already"));
    assert!(!bench.path("d0").exists());
    fs::create_dir(bench.path("d0")).unwrap();
    fs::write(bench.path("file"), "").unwrap();
    // Its pidfile cannot be one, which is seen when its disks are open.
    let words = ["restore", "saved", "--disks", "d0", "--name", "vm1"];
    assert!(!bench.fails(&[&words[..], &["--pidfile", "none/file"]].concat()).is_empty());
    assert!(bench.names("d0").is_empty());
    let restored = bench.follow(&words);
    restored.says("at=4096\n");
    restored.finish();
    finish(machine);
}

/// The processes of this bench that make a clone, or run one.
fn cloners(bench: &Bench) -> Vec<i32> {
    let own = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let at = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == b"clone") && at == bench.host.0.path()
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(own).collect()
}

#[test]
fn whenever_a_clone_is_killed_the_original_is_whole_and_the_next_one_succeeds() {
    let bench = Bench::new();
    let machine = bench.start(",overlay=top.qcow2", &[]);
    bench.does(&["snapshot", "vm0", "first"]);
    for round in 0..dose(50) {
        let from: &[&str] = match round % 3 {
            0 => &["clone", "vm0", "vm1"],
            1 => &["clone", "vm0", "vm1", "--full"],
            _ => &["clone", "vm0", "vm1", "--snapshot", "first"],
        };
        let mut verb = Owned(bench.verb(from).spawn().unwrap());
        thread::sleep(Duration::from_micros(round * 7919 % 90_000));
        let begun = Instant::now();
        loop {
            let left = cloners(&bench);
            if left.is_empty() {
                break;
            }
            left.into_iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).for_each(kill);
            let _ = verb.try_wait();
            assert!(begun.elapsed() < LIMIT, "round {round}: they do not end");
        }
        let status = verb.wait().unwrap();
        if status.success() {
            // It had begun to run.
            assert!(bench.path("vm1/vda.qcow2").exists());
            fs::remove_dir_all(bench.path("vm1")).unwrap();
        }
        // The original may still be copying for the one that is no more.
        let begun = Instant::now();
        let made = loop {
            let output = bench.verb(from).output().unwrap();
            if output.status.success() || begun.elapsed() > LIMIT {
                break output;
            }
            if bench.path("vm1").exists() {
                assert!(!bench.path("vm1/.minivmm-beginning").exists(), "round {round}: {output:?}");
                fs::remove_dir_all(bench.path("vm1")).unwrap();
            }
        };
        assert!(made.status.success(), "round {round}: {made:?}");
        let writes = bench.console("vm1").finish();
        let below = [bench.snapshot("first").join("vda.qcow2"), bench.image.clone()];
        bench.assert_disk(&bench.path("vm1/vda.qcow2"), &below.each_ref().map(PathBuf::as_path), writes);
        fs::remove_dir_all(bench.path("vm1")).unwrap();
        let left: Vec<_> = bench.names("").into_iter().filter(|name| name.contains("vm1")).collect();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
    let writes = finish(machine);
    bench.assert_disk(&bench.path("top.qcow2"), &[&bench.image], writes);
}

/// One that has ended meanwhile is as good.
fn kill(pid: i32) {
    let _ = std::panic::catch_unwind(|| send_signal(pid, libc::SIGKILL));
}

#[test]
fn whenever_the_original_is_killed_there_is_a_whole_clone_or_none() {
    let bench = Bench::new();
    for round in 0..dose(50) {
        let mut machine = bench.start("", &[]);
        let mut verb = Owned(bench.verb(&["clone", "vm0", "vm1"]).spawn().unwrap());
        thread::sleep(Duration::from_micros(round * 7919 % 60_000));
        machine.signal(libc::SIGKILL);
        machine.stdin = None;
        machine.end();
        assert_eq!(fs::metadata(&bench.image).unwrap().len(), BLOCKS * BLOCK as u64);
        if verb.wait().unwrap().success() {
            let writes = bench.console("vm1").finish();
            bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
            fs::remove_dir_all(bench.path("vm1")).unwrap();
        }
        let left: Vec<_> = bench.names("").into_iter().filter(|name| name.contains("vm1")).collect();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
}
