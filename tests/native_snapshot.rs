//! Machines that are saved with copies of their disks, in folders that are restored again and again, and snapshots: under a guest that compares
//! what is in its memory with what is on its disk.
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
use std::path::PathBuf;

use bench::{Bench, finish};
use dose::dose;
use load::{BLOCK, BLOCKS};
use vmm::{Owned, Vmm};

/// A machine that has written for a while.
fn start(bench: &Bench, options: &str) -> Vmm {
    bench.start(options, "at=1536\n")
}

#[test]
fn a_folder_with_copies_of_disks_is_restored_again_and_again() {
    for options in ["", ",overlay=top.qcow2"] {
        let bench = Bench::new();
        let options = options.replace("top", bench.path("top").to_str().unwrap());
        let machine = start(&bench, &options);
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
        assert!(bench.fails(&["restore", "saved", "--snapshot"]).contains("no regular file"));
    }
}

#[test]
fn memory_and_disk_go_back_together_as_often_as_it_is_asked_for() {
    for overlay in [false, true] {
        let bench = Bench::new();
        let machine = start(&bench, &bench.options(overlay));
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
        let list = bench.does(&["snapshots", "vm0", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
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
    let machine = start(&bench, "");
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
    let machine = start(&bench, "");
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
    // What is damaged is said behind the others.
    fs::create_dir(bench.snapshot("second")).unwrap();
    fs::write(bench.snapshot("second").join("machine.json"), "{").unwrap();
    let list = bench.does(&["snapshots", "vm0"]);
    let lines: Vec<_> = list.lines().collect();
    assert!(lines.len() == 3 && lines[0].len() < 80 && lines[1].starts_with("first "), "{list}");
    assert!(lines[2].starts_with("second: the saved machine") && lines[2].contains("damaged"), "{list}");
    bench.does(&["snapshot", "vm0", "second", "--delete"]);
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
    // A start that fails leaves the disk as it is.
    let first = bench.snapshot("first");
    let first = first.to_str().unwrap();
    let now = fs::read(&bench.image).unwrap();
    fs::rename(bench.path("kernel"), bench.path("gone")).unwrap();
    assert!(bench.fails(&["restore", "--put-back", first]).contains("kernel"));
    fs::rename(bench.path("gone"), bench.path("kernel")).unwrap();
    bench.fails(&["restore", "--put-back", "--pidfile", "none/there", first]);
    assert!(fs::read(&bench.image).unwrap() == now, "the disk was put back for nothing");
    let beside = fs::read_dir(bench.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!beside.into_iter().any(|name| name.to_str().unwrap().ends_with(".part")));
    let restored = bench.restore(&["--put-back", first]);
    restored.says("at=8192\n");
    // What a machine runs on is not replaced, and not deleted.
    let said =
        bench.fails(&["restore", "--put-back", "--name", "vm1", bench.snapshot("first").to_str().unwrap()]);
    assert!(said.contains("image.raw is in use") && said.contains("restore --disks"), "{said}");
    let (writes, _) = restored.finish();
    bench.assert_disk(&bench.image, &[], writes);
    let other = bench.restore(&["--snapshot", bench.snapshot("first").to_str().unwrap()]);
    other.says("at=8192\n");
    assert!(bench.fails(&["snapshot", "vm0", "first", "--delete"]).contains("runs on the disk"));
    other.finish();
    bench.does(&["snapshot", "vm0", "first", "--delete"]);
}

#[test]
fn an_image_that_was_removed_is_there_again_when_its_machine_goes_back() {
    for overlay in [false, true] {
        let bench = Bench::new();
        let machine = start(&bench, &bench.options(overlay));
        let (image, below) = bench.disk(overlay);
        bench.does(&["snapshot", "vm0", "first"]);
        let lines = vmm::count(&machine.stdout.bytes(), "at=");
        let far = format!("at={}\n", (lines + 4) * 512);
        machine.expect(&far, 1);
        fs::remove_file(&image).unwrap();
        bench.does(&["revert", "vm0", "first"]);
        machine.expect(&far, 2);
        let (writes, _) = finish(machine);
        bench.assert_disk(&image, &below, writes);
        fs::remove_file(&image).unwrap();
        // A start that fails leaves it as it is: not there.
        let first = bench.snapshot("first");
        let first = first.to_str().unwrap();
        bench.fails(&["restore", "--put-back", "--pidfile", "none/there", first]);
        assert!(!image.exists());
        let restored = bench.restore(&["--put-back", first]);
        restored.says(&far);
        let (writes, _) = restored.finish();
        bench.assert_disk(&image, &below, writes);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&image).unwrap()) & 0o777;
        assert_eq!(mode, 0o600);
        if let [base] = below.as_slice() {
            fs::remove_file(&image).unwrap();
            fs::rename(base, bench.path("away")).unwrap();
            let said = bench.fails(&["restore", "--put-back", first]);
            assert!(said.contains("image.raw, on which it lay"), "{said}");
            assert!(!image.exists());
        }
    }
}

#[test]
fn what_killed_machines_have_left_goes_with_the_next_snapshot_save_or_start() {
    let bench = Bench::new();
    let rest = |folder: PathBuf| {
        fs::create_dir_all(&folder).unwrap();
        for name in ["memory", "vda.raw"] {
            fs::write(folder.join(name), "half").unwrap();
        }
        folder
    };
    let before = [rest(bench.path(".killed.part")), rest(bench.snapshot(".second.part"))];
    let mut launch = bench.launch("");
    launch.command.env("XDG_STATE_HOME", bench.path("state"));
    let machine = launch.spawn();
    machine.expect("at=1536\n", 1);
    assert!(!before.iter().any(|rest| rest.exists()), "a start leaves them");
    let left = rest(bench.snapshot(".second.part"));
    bench.does(&["snapshot", "vm0", "first"]);
    assert!(!left.exists());
    let left = rest(bench.snapshot(".second.part"));
    bench.does(&["snapshot", "vm0", "first", "--delete"]);
    assert!(!left.exists());
    let (left, mine) = (rest(bench.path("saves/.killed.part")), rest(bench.path("saves/.mine.part")));
    fs::write(mine.join("notes"), "").unwrap();
    bench.does(&["save", "vm0", "saves/saved", "--keep-running", "--with-disks"]);
    assert!(!left.exists() && mine.join("memory").exists());
    finish(machine);
}

#[test]
fn the_next_save_after_one_whose_verb_was_killed_has_its_folder() {
    let bench = Bench::new();
    let machine = start(&bench, "");
    let words = ["save", "vm0", "saved", "--keep-running", "--with-disks"];
    for _ in 0..4 {
        let mut verb = Owned(bench.verb(&[&words[..], &["--bandwidth", "1M"]].concat()).spawn().unwrap());
        let begun = std::time::Instant::now();
        while !bench.path(".saved.part/memory").exists() {
            assert!(begun.elapsed() < vmm::LIMIT);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        verb.kill().unwrap();
        verb.wait().unwrap();
        bench.does(&words);
        fs::remove_dir_all(bench.path("saved")).unwrap();
    }
    finish(machine);
}

#[test]
fn whenever_it_is_killed_a_snapshot_is_whole_and_a_disk_is_the_old_or_the_new_one() {
    let bench = Bench::new();
    for round in 0..dose(50) {
        let mut machine = start(&bench, "");
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
    let machine = start(&bench, "");
    bench.does(&["snapshot", "vm0", "first"]);
    // The guest writes below this, and a copy of its disk ends beyond.
    set_file_limit(machine.pid(), written);
    for verb in [["snapshot", "vm0", "second"], ["revert", "vm0", "first"]] {
        let said = bench.fails(&verb);
        assert!(said.contains("File too large"), "{said}");
    }
    assert!(!bench.snapshot("second").exists());
    let left: Vec<_> =
        fs::read_dir(bench.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
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
fn forwards_that_were_added_or_removed_are_part_of_a_saved_machine_and_stay_in_one_that_goes_back() {
    let bench = Bench::new();
    let machine = bench.launch("").args(&["--net", "user,forward=0:22"]).spawn();
    machine.expect("at=1024\n", 1);
    bench.does(&["snapshot", "vm0", "first"]);
    bench.does(&["forward", "vm0", "0:80"]);
    bench.does(&["forward", "vm0", "--remove", "0:22"]);
    let has_only_80 = || {
        let list = bench.does(&["forward", "vm0"]);
        assert!(list.contains("80") && !list.contains("port 22"), "{list}");
    };
    has_only_80();
    // Whatever the snapshot had: these are the process's.
    bench.does(&["revert", "vm0", "first"]);
    has_only_80();
    bench.does(&["save", "vm0", "saved"]);
    assert_eq!(machine.end().status.code(), Some(0));
    let restored = bench.restore(&["saved"]);
    restored.says("at=");
    has_only_80();
    let said = bench.does(&["clone", "vm0", "vm1"]);
    assert!(said.contains("the forward 0:80 stays the original's"), "{said}");
    bench.does(&["kill", "vm1"]);
    restored.finish();
}

#[test]
fn a_machine_that_runs_on_is_saved_with_its_disks() {
    let bench = Bench::new();
    let machine = start(&bench, "");
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
