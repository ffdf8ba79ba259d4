//! A machine and its clones: each goes on alone, with disks of its own, under a guest that compares what is in its memory with what is on
//! its disk.
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
#[path = "support/pty.rs"]
mod pty;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::slice::from_ref;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bench::{Bench, Restored};
use dose::dose;
use load::{BLOCK, BLOCKS};
use serde_json::Value;
use vmm::{Heard, LIMIT, Owned, Vmm, send_signal};

/// A machine that has written for a while.
fn start(bench: &Bench, options: &str, words: &[&str]) -> Vmm {
    let machine = bench.launch(options).args(words).spawn();
    machine.expect("at=1536\n", 1);
    machine
}

/// A command that shows a guest's console.
fn follow(bench: &Bench, words: &[&str]) -> Restored {
    let mut child = Owned::start(bench.verb(words).stdin(Stdio::piped()));
    let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
    let (stderr, _) = Heard::listen(child.stderr.take().unwrap());
    Restored { child, stdout, stderr }
}

/// Has a guest write on, and end. Gives how many blocks it has written, all of which it has read as it wrote them.
#[track_caller]
fn wrote(guest: Restored) -> u64 {
    let now = vmm::count(&guest.stdout.bytes(), "at=");
    assert!(guest.stdout.wait(|heard| vmm::count(heard, "at=") > now + 1), "{}", guest.stderr.text());
    guest.finish().0
}

/// The same for the clone of this name.
#[track_caller]
fn clone_wrote(bench: &Bench, name: &str) -> u64 {
    wrote(follow(bench, &["console", name]))
}

/// The same for the original.
#[track_caller]
fn original_wrote(machine: Vmm) -> u64 {
    let now = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", now + 2);
    bench::finish(machine).0
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What is there of the clone vm1.
fn rest_of_vm1(bench: &Bench) -> Vec<String> {
    names(bench.folder()).into_iter().filter(|name| name.contains("vm1")).collect()
}

#[test]
fn original_and_clones_write_and_none_sees_what_another_writes() {
    // Whether the disk is an overlay, what `clone` is told, the clone's image, and whether that lies on the original's base.
    for (overlay, word, file, on_base) in [
        (false, None, "vda.raw", false),
        (true, Some("--linked"), "vda.qcow2", true),
        (true, Some("--full"), "vda.qcow2", false),
    ] {
        let bench = Bench::new();
        let _ending = Ending(&bench);
        let machine = start(&bench, &bench.options(overlay), &["--net", "user,forward=0:22"]);
        let words = [&["clone", "vm0", "vm1", "--json"][..], word.as_slice()].concat();
        let said: Value = serde_json::from_str(&bench.does(&words)).unwrap();
        let (image, base) = (bench.path("vm1").join(file), bench.image.to_str().unwrap());
        assert_eq!(said["disks"][0]["path"].as_str().unwrap(), image.to_str().unwrap());
        assert_eq!(said["disks"][0]["base"].as_str(), on_base.then_some(base));
        assert!(said["left-out"][0].as_str().unwrap().contains("stays the original's"), "{said}");
        assert!(said["paused-ms"].is_u64() && said["pid"].is_u64(), "{said}");
        // Nothing of what it began from.
        assert_eq!(names(&bench.path("vm1")), [file, "vm.toml"]);
        // A clone of the clone.
        bench.does(&["clone", "vm1", "vm2"]);
        let clones = ["vm1", "vm2"].map(|name| (name, clone_wrote(&bench, name)));
        let below = if on_base { vec![bench.image.clone()] } else { Vec::new() };
        for (name, writes) in clones {
            bench.assert_disk(&bench.path(name).join(file), &below, writes);
        }
        let writes = original_wrote(machine);
        let (own, beneath) = bench.disk(overlay);
        bench.assert_disk(&own, &beneath, writes);
        // It boots later, with what it wrote and with an address of its own.
        let text = fs::read_to_string(bench.path("vm1/vm.toml")).unwrap();
        assert!(
            !text.contains("mac") && !text.contains("forward") && text.contains("name = \"vm1\""),
            "{text}"
        );
        if word == Some("--full") {
            fs::remove_file(&bench.image).unwrap();
        }
        let again = follow(&bench, &["--config", "vm1/vm.toml"]);
        again.says("at=1024\n");
        let writes = wrote(again);
        bench.assert_disk(&bench.path("vm1").join(file), &below, writes);
    }
}

#[test]
fn many_clones_of_one_snapshot_lie_on_its_copies_unless_they_are_full() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let machine = start(&bench, "", &[]);
    bench.does(&["snapshot", "vm0", "first"]);
    let copy = bench.snapshot("first").join("vda.raw");
    let kept = fs::read(&copy).unwrap();
    let linked = ["clone", "vm0", "--snapshot", "first"];
    bench.does(&[&linked[..], &["vm1", "--linked"]].concat());
    bench.does(&[&linked[..], &["vm2"]].concat());
    bench.does(&[&linked[..], &["vm3", "--full"]].concat());
    // As a folder.
    bench.does(&["clone", bench.snapshot("first").to_str().unwrap(), "vm4", "--folder", "elsewhere"]);
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
    let folders = [("vm1", "vm1"), ("vm2", "vm2"), ("vm4", "elsewhere")];
    for (name, folder) in folders {
        let writes = clone_wrote(&bench, name);
        bench.assert_disk(&bench.path(folder).join("vda.qcow2"), from_ref(&copy), writes);
    }
    assert!(fs::read(&copy).unwrap() == kept, "the snapshot was written to");
    let writes = clone_wrote(&bench, "vm3");
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
    let _ending = Ending(&bench);
    let second = bench.path("second.raw");
    File::create(&second).unwrap().set_len(1 << 20).unwrap();
    let words = ["--disk", second.to_str().unwrap()];
    let machine = start(&bench, "", &words);
    bench.does(&["snapshot", "vm0", "first"]);
    bench.does(&["revert", "vm0", "first"]);
    let marks = |bench: &Bench| names(bench.folder()).iter().filter(|name| name.contains("exchange")).count();
    assert_eq!(marks(&bench), 0);
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
    // What it leaves that is killed between two disks: a mark beside each.
    let first = bench.snapshot("first");
    let set_marks = |names: &[&str]| {
        for name in names {
            // The folder, and which files the old and the new image are: here both the one that is there.
            let file = fs::metadata(bench.path(name)).unwrap();
            let is = format!("{} {} {} {}\n", file.ino(), file.len(), file.mtime(), file.mtime_nsec());
            let text = format!("{}\0{is}{is}", first.display());
            fs::write(bench.path(&format!(".{name}.exchange")), text).unwrap();
        }
    };
    let start_one = ["--kernel", "kernel", "--mem", "16", "--disk", "second.raw", "--net", "none"];
    let cure = format!("restore --put-back {}", first.display());
    let is_refused = || {
        let said = bench.fails(&start_one);
        assert!(said.contains("second.raw") && said.contains(&cure), "{said}");
    };
    let other = vec![7; 1 << 20];
    fs::write(&second, &other).unwrap();
    // A machine may have run on the first disk, or something has written to it: nobody knows what is wanted.
    set_marks(&["second.raw"]);
    is_refused();
    set_marks(&["image.raw"]);
    let image = File::options().write(true).open(&bench.image).unwrap();
    image.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    is_refused();
    assert!(fs::read(&second).unwrap() == other);
    let restored = follow(&bench, &["restore", "--put-back", first.to_str().unwrap()]);
    restored.says("at=4096\n");
    let writes = wrote(restored);
    bench.assert_disk(&bench.image, &[], writes);
    assert_eq!(marks(&bench), 0);
    // Where it is clear, the next start does it.
    fs::write(&second, &other).unwrap();
    set_marks(&["image.raw", "second.raw"]);
    let machine = start(&bench, "", &words);
    assert!(fs::read(&second).unwrap() == fs::read(first.join("vdb.raw")).unwrap());
    assert_eq!(marks(&bench), 0);
    assert!(machine.stderr.wait(|heard| vmm::count(heard, "was about to go back to") == 1));
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn a_saved_machine_without_copies_of_its_disks_is_cloned_with_all_of_them() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let machine = start(&bench, "", &[]);
    bench.does(&["save", "vm0", "saved"]);
    assert_eq!(machine.end().status.code(), Some(0));
    let said = bench.fails(&["clone", "saved", "vm1"]);
    assert!(said.contains("no copy of vda") && said.contains("--full"), "{said}");
    assert!(!bench.path("vm1").exists());
    // What it says nothing of, as of a block device, is not written to by a clone.
    let manifest = bench.path("saved/machine.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let mut silent: Value = serde_json::from_str(&text).unwrap();
    silent["disks"] = serde_json::json!([]);
    fs::write(&manifest, silent.to_string()).unwrap();
    assert!(bench.fails(&["clone", "saved", "vm1", "--full"]).contains("as two machines cannot"));
    fs::write(&manifest, text).unwrap();
    bench.does(&["clone", "saved", "vm1", "--full"]);
    let writes = clone_wrote(&bench, "vm1");
    bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
    // The original goes on from its own disk, which nobody has written to.
    let restored = follow(&bench, &["restore", "saved"]);
    restored.says("at=4096\n");
    let writes = wrote(restored);
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn a_machine_that_is_off_is_cloned_from_its_file_and_so_is_a_clone_from_its_folder() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let file = bench.path("vm0.toml");
    // Below the ports that the kernel gives, and another one for each run of these tests.
    let port = (20_000 + std::process::id() % 12_000).to_string();
    let describe = |disk: &str| {
        let text = format!(
            "kernel = 'kernel'\nmem = '16M'\nappend = 'seed=3'\nname = 'vm0'\ndisk = '{disk}'\n\
             net = 'user,mac=02:00:00:00:00:01,forward={port}:22'\nport = 'name=agent,socket=a.sock'\n"
        );
        fs::write(&file, text).unwrap();
    };
    describe("image.raw,overlay=top.qcow2");
    // Its overlay is not made yet.
    let said = bench.does(&["clone", "vm0.toml", "vm1"]);
    assert!(said.contains("vm1 is made, and off") && said.contains("forward"), "{said}");
    let writes = wrote(follow(&bench, &["--config", "vm1/vm.toml"]));
    bench.assert_disk(&bench.path("vm1/vda.qcow2"), from_ref(&bench.image), writes);
    assert!(fs::read(&bench.image).unwrap().iter().all(|byte| *byte == 0), "the base was written to");
    // A clone of that lies on the same base, and one with --full on none.
    bench.does(&["clone", "vm1", "vm2", "--linked"]);
    bench.does(&["clone", "vm1", "vm3", "--full"]);
    bench.assert_disk(&bench.path("vm3/vda.qcow2"), &[], writes);
    let text = fs::read_to_string(bench.path("vm2/vm.toml")).unwrap();
    for (word, there) in
        [("mac", false), (&port, false), ("socket = \"agent.sock\"", true), ("vda.qcow2", true)]
    {
        assert_eq!(text.contains(word), there, "{word}: {text}");
    }
    let again = follow(&bench, &["--config", "vm2/vm.toml"]);
    // It begins anew on what vm1 has written: over all of that, and further.
    again.says(&format!("at={}\n", writes.next_multiple_of(1024)));
    let again = wrote(again);
    bench.assert_disk(&bench.path("vm2/vda.qcow2"), from_ref(&bench.image), again);
    bench.assert_disk(&bench.path("vm1/vda.qcow2"), from_ref(&bench.image), writes);
    // While it runs, its disk is no disk that is off.
    describe("image.raw");
    // It does not run.
    for option in ["--log", "--pidfile"] {
        let said = bench.fails(&["clone", "vm0.toml", "vm4", option, "file"]);
        assert!(said.contains("is off, and so is its clone"), "{said}");
    }
    let machine = follow(&bench, &["--config", "vm0.toml"]);
    machine.says("at=1024\n");
    assert!(bench.fails(&["clone", "vm0.toml", "vm4"]).contains("image.raw"));
    assert!(!bench.path("vm4").exists());
    wrote(machine);
}

#[test]
fn what_two_machines_cannot_have_is_refused_or_the_clones_own() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let wire = bench.path("wire.sock");
    let _listener = UnixListener::bind(&wire).unwrap();
    let net = format!("socket={}", wire.display());
    let port = format!("name=agent,socket={}", bench.path("agent.sock").display());
    let machine = start(&bench, "", &["--net", &net, "--port", &port]);
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
    assert_eq!(rest_of_vm1(&bench), [""; 0]);
    let said = bench.does(&["clone", "vm0", "vm1", "--net", "user"]);
    let socket = bench.path("vm1/agent.sock");
    assert!(said.contains(socket.to_str().unwrap()), "{said}");
    UnixStream::connect(&socket).unwrap();
    UnixStream::connect(bench.path("agent.sock")).unwrap();
    let writes = clone_wrote(&bench, "vm1");
    bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn overlays_of_a_restore_that_fails_are_not_left() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let machine = start(&bench, "", &[]);
    bench.does(&["save", "vm0", "saved", "--with-disks", "--keep-running"]);
    // Its name is taken.
    assert!(bench.fails(&["restore", "saved", "--disks", "d0"]).contains("runs already"));
    assert!(!bench.path("d0").exists());
    fs::create_dir(bench.path("d0")).unwrap();
    fs::write(bench.path("file"), "").unwrap();
    // Its pidfile cannot be one, which is seen when its disks are open.
    let words = ["restore", "saved", "--disks", "d0", "--name", "vm1"];
    assert!(!bench.fails(&[&words[..], &["--pidfile", "none/file"]].concat()).is_empty());
    assert!(names(&bench.path("d0")).is_empty());
    let restored = follow(&bench, &words);
    restored.says("at=4096\n");
    wrote(restored);
    original_wrote(machine);
}

/// Clones are in the background: those of a test that fails end with it.
struct Ending<'a>(&'a Bench);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        cloners(self.0).into_iter().for_each(kill);
    }
}

/// The processes of this bench that make a clone, or run one. One that is between two programs has no words.
fn cloners(bench: &Bench) -> Vec<i32> {
    let own = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let at = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let clones = words.is_empty() || words.split(|byte| *byte == 0).any(|word| word == b"clone");
        clones && at == bench.host.0.path()
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(own).collect()
}

#[test]
fn whenever_a_clone_is_killed_the_original_is_whole_and_the_next_one_succeeds() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let machine = start(&bench, &bench.options(true), &[]);
    bench.does(&["snapshot", "vm0", "first"]);
    for round in 0..dose(50) {
        let from: &[&str] = match round % 3 {
            0 => &["clone", "vm0", "vm1"],
            1 => &["clone", "vm0", "vm1", "--full"],
            _ => &["clone", "vm0", "vm1", "--snapshot", "first"],
        };
        let mut verb = Owned(bench.verb(from).spawn().unwrap());
        thread::sleep(Duration::from_micros(round * 7919 % 90_000));
        // Looks in a row since its end that have found nothing: one may miss a process that began and whose parent ended while it went on.
        let (begun, mut empty) = (Instant::now(), 0);
        while empty < 3 {
            let ended = verb.try_wait().unwrap().is_some();
            let left = cloners(&bench);
            empty = if ended && left.is_empty() { empty + 1 } else { 0 };
            left.into_iter().for_each(kill);
            assert!(begun.elapsed() < LIMIT, "round {round}: they do not end");
        }
        let status = verb.wait().unwrap();
        if status.success() {
            // It had begun to run.
            assert!(bench.path("vm1/vda.qcow2").exists());
            fs::remove_dir_all(bench.path("vm1")).unwrap();
        }
        let begun = Instant::now();
        let made = loop {
            let output = bench.verb(from).output().unwrap();
            if output.status.success() || begun.elapsed() > LIMIT {
                break output;
            }
            // The original does not go on copying for the one that is no more.
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("being copied already"), "round {round}: {said}");
            // Though the kernel lets go of a killed process's locks last, when its directory and words are gone already.
            assert!(!said.contains("runs already"), "round {round}: {said}");
            if bench.path("vm1").exists() {
                assert!(!bench.path("vm1/.minivmm-beginning").exists(), "round {round}: {output:?}");
                fs::remove_dir_all(bench.path("vm1")).unwrap();
            }
        };
        assert!(made.status.success(), "round {round}: {made:?}");
        let writes = clone_wrote(&bench, "vm1");
        let below = [bench.snapshot("first").join("vda.qcow2"), bench.image.clone()];
        bench.assert_disk(&bench.path("vm1/vda.qcow2"), &below, writes);
        fs::remove_dir_all(bench.path("vm1")).unwrap();
        assert_eq!(rest_of_vm1(&bench), [""; 0], "round {round}");
    }
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.path("top.qcow2"), from_ref(&bench.image), writes);
}

/// A save that takes minutes with so many bytes in a second, as one of the machine's clients asks for it.
fn slow_save(bench: &Bench, folder: &str, bandwidth: u32) -> UnixStream {
    let body = format!(
        "{{\"folder\": \"{folder}\", \"keep-running\": true, \"disks\": true, \"bandwidth\": {bandwidth}}}"
    );
    let mut client = UnixStream::connect(bench.path("minivmm/vm0.sock")).unwrap();
    write!(client, "POST /v1/save HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    until_it_copies(bench);
    client
}

#[test]
fn original_gives_up_a_copy_when_nobody_waits_for_it_and_the_next_one_begins_at_once() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let machine = start(&bench, "", &[]);
    let folder = bench.path("saved");
    let client = slow_save(&bench, folder.to_str().unwrap(), 65536);
    // As long as somebody waits, also one that has nothing more to say.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let said = bench.fails(&["clone", "vm0", "vm1"]);
    assert!(said.contains("is being copied already"), "{said}");
    assert!(bench.path(".saved.part").exists());
    drop(client);
    bench.does(&["clone", "vm0", "vm1"]);
    let writes = clone_wrote(&bench, "vm1");
    bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
    assert!(!folder.exists() && !bench.path(".saved.part").exists());
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

/// Waits until something is saved.
fn until_it_copies(bench: &Bench) {
    let begun = Instant::now();
    let copies = || {
        let files = fs::read_dir(bench.path(".saved.part")).into_iter().flatten().flatten();
        files.flat_map(|file| file.metadata()).any(|file| file.blocks() > 0)
    };
    while !copies() {
        assert!(begun.elapsed() < LIMIT, "it does not begin");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn terminal_that_goes_away_ends_the_copy_and_nothing_else() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    let machine = start(&bench, "", &[]);
    let (master, slave) = pty::open();
    let words = ["save", "--keep-running", "--with-disks", "--bandwidth", "64K", "vm0", "saved"];
    let mut verb = pty::spawn_on(&mut bench.verb(&words), &slave);
    until_it_copies(&bench);
    drop((master, slave));
    let status = vmm::wait(&mut verb, String::new);
    assert!(!status.success());
    bench.does(&["clone", "vm0", "vm1"]);
    assert!(names(bench.folder()).iter().all(|name| !name.contains("saved")));
    clone_wrote(&bench, "vm1");
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

#[test]
fn flood_of_questions_about_a_copy_is_answered_and_leaves_no_threads() {
    let bench = Bench::new();
    let machine = start(&bench, "", &[]);
    let client = slow_save(&bench, bench.path("saved").to_str().unwrap(), 8192);
    let threads = || fs::read_dir(format!("/proc/{}/task", machine.pid())).unwrap().count();
    let before = threads();
    // What one client hears until its connection is closed.
    let ask = |method: &str| {
        let mut stream = UnixStream::connect(bench.path("minivmm/vm0.sock")).unwrap();
        let _ = write!(stream, "{method} /v1/copy HTTP/1.1\r\nConnection: close\r\n\r\n");
        let (mut heard, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            heard.extend(&bytes[..count]);
        }
        String::from_utf8(heard).unwrap()
    };
    // As many connections as there may be are answered, each; of more some are closed.
    for (clients, all_fit) in [(24, true), (100, false)] {
        thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    for _ in 0..dose(100) {
                        let heard = ask("GET");
                        assert!(!all_fit || heard.contains("\"total\":"), "{heard}");
                    }
                });
            }
        });
    }
    let begun = Instant::now();
    while threads() > before {
        assert!(begun.elapsed() < LIMIT, "{} threads are left of {before}", threads());
        thread::sleep(Duration::from_millis(1));
    }
    assert!(ask("GET").contains("200"));
    assert!(ask("DELETE").contains("204"));
    let mut answer = String::new();
    let mut client = client;
    client.set_read_timeout(Some(LIMIT)).unwrap();
    while !answer.contains("cancelled") {
        let mut bytes = [0; 4096];
        let count = client.read(&mut bytes).unwrap();
        assert!(count > 0, "{answer}");
        answer.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    let writes = original_wrote(machine);
    bench.assert_disk(&bench.image, &[], writes);
}

/// One that has ended meanwhile is as good.
fn kill(pid: i32) {
    let _ = std::panic::catch_unwind(|| send_signal(pid, libc::SIGKILL));
}

#[test]
fn whenever_the_original_is_killed_there_is_a_whole_clone_or_none() {
    let bench = Bench::new();
    let _ending = Ending(&bench);
    for round in 0..dose(50) {
        let mut machine = start(&bench, "", &[]);
        let mut verb = Owned(bench.verb(&["clone", "vm0", "vm1"]).spawn().unwrap());
        thread::sleep(Duration::from_micros(round * 7919 % 60_000));
        machine.signal(libc::SIGKILL);
        machine.stdin = None;
        machine.end();
        assert_eq!(fs::metadata(&bench.image).unwrap().len(), BLOCKS * BLOCK as u64);
        if verb.wait().unwrap().success() {
            let writes = clone_wrote(&bench, "vm1");
            bench.assert_disk(&bench.path("vm1/vda.raw"), &[], writes);
            fs::remove_dir_all(bench.path("vm1")).unwrap();
        }
        assert_eq!(rest_of_vm1(&bench), [""; 0], "round {round}");
    }
}
