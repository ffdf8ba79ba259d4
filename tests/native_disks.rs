//! Disks that change while their machine runs: grown, limited, taken out and put in, by the verbs and by the library, under
//! guests that watch them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/host.rs"]
mod host;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use dose::dose;
use embedded::{LIMIT, Output};
use host::Host;
use minivmm::spec::{DiskGrowth, Spec};
use minivmm::{DeviceStats, DiskChangeError, Machine, MachineEvent, ResizeError};
use serde_json::json;
use tempfile::TempDir;
use vmm::{Launch, Vmm};

const MIB: u64 = 1 << 20;

fn image(folder: &Path, name: &str, size: u64, first: u8) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, [first; 512]).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    path
}

/// Whether this process has it open no more, which ends its lock too.
fn is_closed(path: &Path) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    !open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|open| open == path)
}

/// A machine in this process, whose guest is a program (`tests/guest`).
struct Tiny {
    machine: Machine,
    output: Output,
    folder: TempDir,
}

impl Tiny {
    /// With disks of one MiB, each with these options.
    fn start(kernel: &[u8], size: u64, disks: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, kernel).unwrap();
        let mut spec = Spec::new(path).with_mem("16".parse().unwrap());
        for (number, options) in (0..).zip(disks) {
            let image = image(folder.path(), &number.to_string(), size, number);
            spec = spec.with_disk(format!("{}{options}", image.display()).parse().unwrap());
        }
        let output = Output::default();
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        Tiny { machine, output, folder }
    }

    #[track_caller]
    fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}: {} {:?}", self.output.text(), self.machine.stats());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the guest says next.
    #[track_caller]
    fn says(&self, typed: &[u8], said: &str) {
        let before = self.output.text().len();
        self.machine.console_input().write_all(typed).unwrap();
        self.until(said, |tiny| tiny.output.text()[before..].ends_with('\n'));
        assert_eq!(&self.output.text()[before..], &format!("{said}\n"));
    }

    fn disk(&self) -> DeviceStats {
        let devices = self.machine.stats().unwrap().devices;
        devices.into_iter().find(|device| device.name == "vda").unwrap()
    }
}

fn word(byte: u8) -> String {
    format!("status=0 word={:x}", u64::from_ne_bytes([byte; 8]))
}

#[test]
fn a_guest_is_interrupted_for_a_disk_that_grows_and_reads_its_new_end() {
    let tiny = Tiny::start(tiny_guest::DISK, MIB, &[""]);
    tiny.until("its size", |tiny| tiny.output.text() == "capacity=2048\n");
    let events = tiny.machine.events();
    assert_eq!(tiny.machine.grow_disk("vda", "+1M".parse().unwrap()).unwrap(), 2 * MIB);
    tiny.says(b"w", "capacity=4096");
    tiny.says(b"l", "status=0 word=0");
    assert_eq!(tiny.machine.grow_disk("vda", DiskGrowth::To(3 * MIB - 100)).unwrap(), 3 * MIB);
    tiny.says(b"w", "capacity=6144");
    // Something else has made it larger.
    let path = tiny.folder.path().join("0");
    File::options().write(true).open(&path).unwrap().set_len(4 * MIB).unwrap();
    assert_eq!(tiny.machine.grow_disk("vda", "+0".parse().unwrap()).unwrap(), 4 * MIB);
    tiny.says(b"w", "capacity=8192");
    for resized in [2, 3, 4] {
        let event = MachineEvent::DiskResized { disk: "vda".into(), size: resized * MIB };
        assert_eq!(events.next_within(LIMIT), Some(event));
    }
    for (growth, expected) in [("1M", "only grows"), ("8192P", "as large as"), ("+8192P", "as large as")] {
        let said = tiny.machine.grow_disk("vda", growth.parse().unwrap()).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    assert!(matches!(tiny.machine.grow_disk("vdb", DiskGrowth::By(1)), Err(ResizeError::NoDisk { .. })));
    // A boot that comes has it, too.
    tiny.says(b"b", "capacity=8192");
    assert_eq!(fs::metadata(path).unwrap().len(), 4 * MIB);
    tiny.machine.kill();
    tiny.machine.wait();
    assert!(matches!(tiny.machine.grow_disk("vda", DiskGrowth::By(1)), Err(ResizeError::Ended)));
}

#[test]
fn two_hundred_live_growths_lose_nothing_of_a_guest_at_work() {
    let tiny = Tiny::start(tiny_guest::LOAD, 8 * MIB, &[",queues=1"]);
    tiny.until("ready", |tiny| tiny.output.text().contains("ready\n"));
    let mut size = 8 * MIB;
    for round in 0..dose(2000).max(200) {
        let before = tiny.disk().requests;
        size += 64 << 10;
        assert_eq!(tiny.machine.grow_disk("vda", DiskGrowth::By(64 << 10)).unwrap(), size);
        if round % 20 == 0 {
            tiny.until("it works", |tiny| tiny.disk().requests > before);
        }
    }
    tiny.machine.console_input().write_all(b"!").unwrap();
    tiny.until("finished", |tiny| tiny.output.text().contains(" kicks="));
    assert_eq!(tiny.disk().errors, 0);
    assert!(!tiny.output.text().contains("failed"), "{}", tiny.output.text());
    assert_eq!(fs::metadata(tiny.folder.path().join("0")).unwrap().len(), size);
    assert_eq!(tiny.machine.disks()[0].size, size);
}

#[test]
fn a_limit_holds_for_the_whole_disk_until_it_is_lifted() {
    for options in [",iops=100", ",iops=100,queues=4,threads=3", ",bps=400K"] {
        let begin = Instant::now();
        let tiny = Tiny::start(tiny_guest::LOAD, 8 * MIB, &[options]);
        tiny.until("it waits", |tiny| tiny.disk().throttled > 3);
        // In this order: a slow host makes the bound larger, never the count.
        let done = u128::from(tiny.disk().requests);
        let most = begin.elapsed().as_millis() / 10 + 10 + 8;
        assert!(done <= most, "{options}: {done} requests, and {most} are due");
        tiny.machine.set_disk_limits("vda", "iops=off,bps=off".parse().unwrap()).unwrap();
        let before = tiny.disk().requests;
        tiny.until("it goes on", |tiny| tiny.disk().requests > before + 2000);
        assert_eq!((tiny.machine.disks()[0].iops, tiny.machine.disks()[0].bps), (None, None));
        tiny.machine.set_disk_limits("vda", "iops=50".parse().unwrap()).unwrap();
        let throttled = tiny.disk().throttled;
        tiny.until("it waits again", |tiny| tiny.disk().throttled > throttled);
        assert_eq!(tiny.disk().errors, 0);
    }
}

#[test]
fn a_limit_that_was_set_holds_behind_a_reboot() {
    let tiny = Tiny::start(tiny_guest::LOAD, 8 * MIB, &[""]);
    // One that is reset before it has said that would say it once.
    tiny.until("ready", |tiny| tiny.output.text().contains("ready\n"));
    tiny.machine.set_disk_limits("vda", "iops=20".parse().unwrap()).unwrap();
    tiny.machine.reset();
    tiny.until("it boots", |tiny| tiny.output.text().matches("ready\n").count() == 2);
    tiny.until("it waits", |tiny| tiny.disk().throttled > 1);
    assert_eq!(tiny.machine.disks()[0].iops, Some(20));
    // A machine rests at once, whatever waits.
    tiny.machine.pause(LIMIT).unwrap();
    let done = tiny.disk().requests;
    tiny.machine.set_disk_limits("vda", "iops=off".parse().unwrap()).unwrap();
    assert_eq!(tiny.disk().requests, done);
    tiny.machine.resume();
    tiny.until("it goes on", |tiny| tiny.disk().requests > done + 1000);
}

#[test]
fn a_disk_is_taken_out_and_another_put_in_under_the_guest() {
    let tiny = Tiny::start(tiny_guest::DISK, MIB, &["", ",ro"]);
    let [first, second] = [(1, MIB), (2, 3 * MIB)]
        .map(|(number, size)| image(tiny.folder.path(), &number.to_string(), size, number));
    let machine = &tiny.machine;
    tiny.until("its size", |tiny| tiny.output.text() == "capacity=2048\n");
    tiny.says(b"f", &word(1));
    let events = machine.events();
    assert!(!is_closed(&first));
    machine.eject_disk("vdb").unwrap();
    assert!(is_closed(&first));
    tiny.says(b"w", "capacity=0");
    tiny.says(b"f", "status=1 word=ffffffffffffffff");
    assert!(matches!(machine.eject_disk("vdb"), Err(DiskChangeError::Empty { .. })));
    // Neither a reboot nor a rest puts one in.
    tiny.says(b"b", "capacity=0");
    machine.pause(LIMIT).unwrap();
    let state = machine.insert_disk("vdb", &second).unwrap();
    assert_eq!((state.path.as_ref(), state.size), (Some(&second), 3 * MIB));
    machine.resume();
    tiny.says(b"w", "capacity=6144");
    tiny.says(b"f", &word(2));
    tiny.says(b"l", "status=0 word=0");
    assert!(!is_closed(&second));
    tiny.says(b"b", "capacity=6144");
    tiny.says(b"f", &word(2));
    assert!(matches!(machine.insert_disk("vdb", &first), Err(DiskChangeError::Full { .. })));
    assert!(matches!(machine.eject_disk("vda"), Err(DiskChangeError::Fixed { .. })));
    let happened: Vec<_> = std::iter::from_fn(|| events.next_within(Duration::ZERO)).collect();
    for event in
        [MachineEvent::DiskEjected { disk: "vdb".into() }, MachineEvent::DiskInserted { disk: "vdb".into() }]
    {
        assert_eq!(happened.iter().filter(|other| **other == event).count(), 1, "{happened:?}");
    }
    // Paused, and with the guest before its driver: it is closed all the same.
    machine.pause(LIMIT).unwrap();
    machine.eject_disk("vdb").unwrap();
    assert!(is_closed(&second));
    machine.kill();
    machine.wait();
    assert!(matches!(machine.insert_disk("vdb", &first), Err(DiskChangeError::Ended)));
    assert!(machine.disks().is_empty());
}

#[test]
fn a_disk_that_cannot_be_put_in_leaves_the_drive_empty_and_says_what_a_start_says() {
    let tiny = Tiny::start(tiny_guest::DISK, MIB, &["", ",ro"]);
    tiny.machine.eject_disk("vdb").unwrap();
    let folder = tiny.folder.path();
    let [empty, used] = [folder.join("empty"), folder.join("0")];
    File::create(&empty).unwrap();
    for (path, expected) in [
        (folder.join("missing"), "there is no disk"),
        (empty, "is empty"),
        (folder.to_owned(), "is a directory"),
        (used, "is in use by this very process"),
    ] {
        let said = tiny.machine.insert_disk("vdb", &path).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
        assert_eq!(tiny.machine.disks()[1].path, None);
    }
    tiny.machine.insert_disk("vdb", folder.join("1")).unwrap();
}

/// A guest of the command, told what to do with its last disk.
fn start(host: &Host, disks: &[&str]) -> Vmm {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, tiny_guest::DISK).unwrap();
    let mut launch =
        Launch::kernel(&kernel, folder).args(&["--name", "vm0", "--mem", "16"]).stdin(Stdio::piped());
    launch.command.env("XDG_RUNTIME_DIR", host.0.path()).current_dir(host.0.path());
    for disk in disks {
        launch = launch.args(&["--disk", disk]);
    }
    let machine = launch.spawn();
    machine.expect("capacity=", 1);
    machine
}

#[test]
fn verbs_grow_limit_and_exchange_disks() {
    let host = Host::new();
    let folder = host.0.path();
    for (name, number) in [("a.raw", 1), ("b.raw", 2), ("c.raw", 3)] {
        image(folder, name, u64::from(number) * MIB, number);
    }
    let machine = start(&host, &["a.raw,iops=700", "b.raw,ro"]);
    assert!(host.does(&["disk", "resize", "vm0:vda", "+20G"]).contains("20"));
    assert_eq!(fs::metadata(folder.join("a.raw")).unwrap().len(), (20 << 30) + MIB);
    host.fails(&["disk", "resize", "vm0:vda", "1M"], 1, "only grows");
    host.fails(&["disk", "resize", "vm0:vdb", "+1M"], 1, "read-only");
    host.fails(&["disk", "resize", "vm0:vdc", "+1M"], 1, "its disks are: vda, vdb");
    host.fails(&["disk", "resize", "vm9:vda", "+1M"], 1, "no machine called vm9");
    host.does(&["disk", "set", "vm0:vdb", "bps=10M"]);
    host.does(&["disk", "set", "vm0:vda", "iops=off,bps=1G"]);
    host.fails(&["disk", "set", "vm0:vda", "speed=5"], 2, "iops=500,bps=10M");
    host.does(&["disk", "eject", "vm0:vdb"]);
    host.fails(&["disk", "eject", "vm0:vdb"], 1, "there is no disk in vdb");
    host.fails(&["disk", "eject", "vm0:vda"], 1, "only one that is read-only");
    let shown = host.does(&["info", "vm0"]);
    assert!(shown.contains("no disk in it") && shown.contains("1 GiB"), "{shown}");
    // From the verb's folder, and not the machine's.
    let mut insert = host.verb(&["disk", "insert", "vm0:vdb", "c.raw"]);
    let output = insert.current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let disks = host.json(&["info", "vm0", "--json"])["disks"].clone();
    let c = fs::canonicalize(folder).unwrap().join("c.raw");
    assert_eq!(disks[1]["size"], json!(3 * MIB));
    assert_eq!(fs::canonicalize(disks[1]["path"].as_str().unwrap()).unwrap(), c);
    assert_eq!((&disks[1]["bps"], &disks[0]["iops"]), (&json!(10 << 20), &json!(null)));
    let (status, body) =
        host.http("vm0", "PATCH", "/v1/disks/vda", "{\"size\": \"+1M\", \"limits\": {\"iops\": 9}}");
    assert!(status == 200 && body.contains("\"iops\":9"), "{status} {body}");
    for (method, path, body, expected) in [
        ("PATCH", "/v1/disks/vda", "{\"size\": -1}", 400),
        ("PATCH", "/v1/disks/vda", "{\"size\": 512}", 400),
        ("PATCH", "/v1/disks/vdz", "{}", 404),
        ("POST", "/v1/disks/vdb/insert", "{\"path\": \"c.raw\"}", 400),
        ("POST", "/v1/disks/vdb/insert", "{\"path\": \"/c.raw\"}", 409),
    ] {
        let (status, said) = host.http("vm0", method, path, body);
        assert_eq!(status, expected, "{method} {path} {body}: {said}");
    }
    host.does(&["kill", "vm0"]);
    machine.end();
}
