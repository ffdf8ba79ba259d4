//! Disks that are copied while their guest writes to them, and come with its machine.

use std::io::Write;
use std::process::Command;

use super::*;
use crate::load::{assert_last_writes, number};
use crate::without::lacks;

/// Images of each kind that the load guest can be busy with, in the bench's folder.
fn images(bench: &Bench) -> [&'static str; 3] {
    let file = |name: &str| bench.folder().join(name).display().to_string();
    for raw in ["vda.raw", "base.raw"] {
        fs::write(file(raw), vec![0xa5; 8 << 20]).unwrap();
    }
    bench.host.does(&["disk", "create", &file("vda.qcow2"), "8M"]);
    fs::create_dir(file("there")).unwrap();
    ["vda.raw", "vda.qcow2", "base.raw,overlay=top.qcow2"]
}

impl Bench {
    /// What is in the target's folder.
    fn there(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder().join("there")).unwrap();
        names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A machine whose guest has written all that it ever writes to this disk, and does so again.
    fn start_busy(&self, disk: &str) -> Vmm {
        let machine = self.start_load(disk);
        machine.expect("at=2560\n", 1);
        machine
    }

    /// The guest that keeps the disk busy has gone on at the source.
    #[track_caller]
    fn load_runs_on(&self, machine: &Vmm) {
        assert_eq!(self.state("vm0"), "running");
        let before = count(&machine.stdout.bytes(), "at=");
        machine.expect("at=", before + 1);
        let begun = std::time::Instant::now();
        while self.host.http("vm0", "GET", "/v1/copy", "").0 != 204 {
            assert!(begun.elapsed() < vmm::LIMIT);
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Ends what it has in flight, and says how many writes that were.
fn finish(stdin: &mut impl Write, said: &Heard) -> u64 {
    stdin.write_all(b"!").unwrap();
    assert!(said.wait(|heard| count(heard, " kicks=") > 0), "{}", said.text());
    stdin.write_all(b"!").unwrap();
    number(said.text().rsplit_once("finished").unwrap().1, "writes=")
}

#[test]
fn disks_are_copied_while_their_guest_writes_and_nothing_of_it_is_lost() {
    let bench = Bench::new();
    for disk in images(&bench) {
        let source = bench.start_busy(disk);
        let mut target = bench.receive("target", &["--name", "vm1", "--disks", "there"]);
        let own = bench.folder().join("target.disk");
        let words = ["--with-disks", "--bandwidth", "16M", "--json"];
        let (status, stdout, stderr) = bench.migrate("vm0", "unix:target", &words);
        assert_eq!(status, Some(0), "{disk}: {stderr} {}", target.stderr.text());
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert!(report["rounds"].as_u64().unwrap() > 1 && report["sent"].as_u64().unwrap() > 0, "{report}");
        let ended = source.end();
        assert!(ended.status.success(), "{ended:?}");
        // It goes on from there: so far each block has what was written last, wherever it was then.
        let writes = finish(target.child.stdin.as_mut().unwrap(), &target.stdout);
        assert!(!target.stdout.text().contains("failed"), "{}", target.stdout.text());
        assert_eq!(target.end().0, Some(0), "{disk}");
        assert_eq!(bench.there(), ["vda.raw"]);
        fs::rename(bench.folder().join("there/vda.raw"), &own).unwrap();
        assert_last_writes(&own, writes);
        // The image here is free, and still one.
        let image = disk.rsplit('=').next().unwrap();
        if image.ends_with("qcow2") {
            bench.host.does(&["disk", "check", bench.folder().join(image).to_str().unwrap()]);
        }
        drop(bench.start_load(disk));
    }
}

#[test]
fn disks_go_where_they_are_told_and_replace_nothing() {
    let bench = Bench::new();
    images(&bench);
    let mut source = bench.start_busy("vda.raw");
    let refused = |at: &str, words: &[&str], said: &str| {
        let target = bench.receive("target", &[&["--name", "vm1"], words].concat());
        let (status, _, stderr) = bench.migrate("vm0", "unix:target", &["--with-disks"]);
        assert!(status == Some(1) && stderr.contains(said), "{at}: {stderr}");
        assert!(stderr.contains("runs on here"), "{stderr}");
        assert_eq!(target.end().0, Some(1));
        bench.load_runs_on(&source);
    };
    refused("no folder", &[], "minivmm receive --disks FOLDER");
    refused("a folder that is not there", &["--disks", "nowhere"], "make it before, with `mkdir -p`");
    fs::write(bench.folder().join("there/vda.raw"), "another's").unwrap();
    refused("another's file", &["--disks", "there"], "is there already");
    assert_eq!(fs::read(bench.folder().join("there/vda.raw")).unwrap(), b"another's");
    source.type_in(b"!");
    source.expect(" kicks=", 1);
    source.type_in(b"!");
    let ended = source.end();
    assert_last_writes(&bench.folder().join("vda.raw"), number(&ended.stdout, "writes="));
}

#[test]
fn a_stream_with_disks_that_breaks_anywhere_leaves_nothing_there_and_all_here() {
    let bench = Bench::new();
    images(&bench);
    let mut source = bench.start_busy("vda.raw");
    let is_complete = STEPS[4];
    let fails = |at: usize, hit: fn(usize) -> Pass| {
        let target = bench.receive("target", &["--name", "vm1", "--disks", "there"]);
        let proxy = Proxy::start(&bench, "proxy", "target", move |number, kind, body| {
            if number == at || is_complete(kind, body) { hit(number) } else { Pass::On }
        });
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &["--with-disks"]);
        assert!(status == Some(1) && stderr.contains("runs on here"), "{at}: {stderr}");
        let frames = proxy.end();
        assert_eq!(target.end_after(at), Some(1), "{at}");
        assert_eq!(bench.there(), [""; 0], "{at}");
        bench.load_runs_on(&source);
        frames
    };
    let frames = fails(usize::MAX, |_| Pass::Cut(0));
    assert!(frames.iter().filter(|kind| **kind == 5).count() > 20, "{frames:?}");
    for tenth in 0..10 {
        fails(frames.len() * tenth / 10, |_| Pass::Cut(9));
        fails(frames.len() * tenth / 10, |number| Pass::Flip(number * 7919));
    }
    // All has come, and the machine there is not let run, or killed: what is there is gone, or is nobody's.
    let target = bench.receive("target", &["--name", "vm1", "--disks", "there"]);
    let refused = Proxy::start(&bench, "proxy", "target", |_, kind, body| {
        if is_go(kind, body) { Pass::Instead(b"\"accepted\"".to_vec()) } else { Pass::On }
    });
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &["--with-disks"]);
    assert!(status == Some(1) && stderr.contains("could not be started there"), "{stderr}");
    refused.end();
    assert_eq!((target.end().0, bench.there()), (Some(1), Vec::new()));
    bench.load_runs_on(&source);
    for step in [STEPS[2], |kind, _| kind == 5, is_complete] {
        let target = bench.receive("target", &["--name", "vm1", "--disks", "there"]);
        let proxy = bench.signals_at(step, target.pid(), libc::SIGKILL);
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &["--with-disks"]);
        assert!(status == Some(1) && stderr.contains("runs on here"), "{stderr}");
        proxy.end();
        target.end();
        assert!(!bench.there().contains(&"vda.raw".to_owned()));
        bench.load_runs_on(&source);
    }
    source.type_in(b"!");
    source.expect(" kicks=", 1);
    source.type_in(b"!");
    let ended = source.end();
    assert!(ended.status.success(), "{ended:?}");
    assert_last_writes(&bench.folder().join("vda.raw"), number(&ended.stdout, "writes="));
}

#[test]
fn a_block_device_is_copied_into_an_image_and_else_stays() {
    // What is on it makes no difference, and with direct I/O the page cache is no witness of what the guest has written.
    for (file, words) in [
        ("vda.raw", ""),
        ("vda.raw", ",direct"),
        ("vda.qcow2", ",format=qcow2"),
        ("vda.qcow2", ",format=qcow2,direct"),
    ] {
        let bench = Bench::new();
        images(&bench);
        let image = bench.folder().join(file);
        // An image on a device cannot make it larger.
        fs::File::options().write(true).open(&image).unwrap().set_len(16 << 20).unwrap();
        let Some(device) = LoopDevice::of(&image) else {
            return lacks("loop", "this user can attach no loop device (losetup --find): run it as root");
        };
        let source = bench.start_busy(&format!("{}{words}", device.0));
        let target = bench.receive("target", &["--name", "vm1", "--disks", "there"]);
        let (status, _, stderr) = bench.migrate("vm0", "unix:target", &[]);
        assert!(status == Some(1) && stderr.contains("--with-disks"), "{file}{words}: {stderr}");
        drop(target);
        bench.load_runs_on(&source);
        let saved = bench.folder().join("saved");
        let save = ["save", "vm0", saved.to_str().unwrap(), "--with-disks"];
        bench.host.fails(&save, 1, "is a block device");
        bench.host.fails(&[&save[..], &["--keep-running"]].concat(), 1, "is a block device");
        assert!(!saved.exists());
        bench.load_runs_on(&source);
        let mut target = bench.receive("target", &["--name", "vm1", "--disks", "there"]);
        let (status, _, stderr) = bench.migrate("vm0", "unix:target", &["--with-disks"]);
        assert_eq!(status, Some(0), "{file}{words}: {stderr} {}", target.stderr.text());
        assert!(source.end().status.success());
        let writes = finish(target.child.stdin.as_mut().unwrap(), &target.stdout);
        assert_eq!(target.end().0, Some(0));
        assert_last_writes(&bench.folder().join("there/vda.raw"), writes);
    }
}

/// A loop device on an image, detached at the end.
struct LoopDevice(String);

impl LoopDevice {
    fn of(image: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && Path::new(&device).exists()).then_some(LoopDevice(device))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
