//! The host's memory behind a guest: merged with that of others, or read ahead, where that is asked for.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use embedded::{LIMIT, Output, spec};
use minivmm::spec::Spec;
use minivmm::{Exit, Machine, SavedMachine, Template};
use tiny_guest::Guest;

fn start(spec: &Spec) -> Machine {
    let output = Output::default();
    let machine = Machine::start(spec, Box::new(output.clone())).unwrap();
    assert!(output.wait_for(&["ready\n"]), "{}", output.text());
    machine
}

/// KiB of this process that are marked to be merged (proc_pid_smaps(5)).
fn marked() -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut size, mut sum) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Size:") => size = words.next().unwrap().parse().unwrap(),
            Some("VmFlags:") if words.any(|flag| flag == "mg") => sum += size,
            _ => {}
        }
    }
    sum
}

#[test]
fn memory_is_marked_to_be_merged_however_the_machine_begins() {
    let ksm = Path::new("/sys/kernel/mm/ksm/run");
    let folder = tempfile::tempdir().unwrap();
    let plain = spec(&folder, Guest::EchoInterrupt);
    let (size, merged) = (plain.mem().bytes() / 1024, plain.clone().with_merge(true));
    let unmarked = start(&plain);
    assert_eq!(marked(), 0);
    let first = start(&merged);
    if !ksm.exists() {
        // It was told in a warning.
        assert_eq!(marked(), 0);
        return;
    }
    assert_eq!(marked(), size, "a new machine");
    let second = start(&merged);
    assert_eq!(marked(), 2 * size);
    let template = Template::freeze(&second, LIMIT).unwrap();
    let clone = template.spawn().unwrap();
    assert_eq!(marked(), 3 * size, "a clone");
    let saved = folder.path().join("saved");
    second.save_and_end(&saved, LIMIT).unwrap();
    second.wait();
    let restored = SavedMachine::open(&saved).unwrap();
    assert_eq!(restored.spec().merge, Some(true));
    let restored = restored.into_builder().start().unwrap();
    assert_eq!(marked(), 3 * size, "a restored machine, and the saved one has ended");
    // The rest is the host's: only where its administrator has switched KSM on are pages shared.
    if fs::read_to_string(ksm).unwrap().trim() == "1" {
        let begin = Instant::now();
        while first.stats().unwrap().memory.merged == 0 {
            assert!(begin.elapsed() < Duration::from_secs(600), "ksmd runs, and nothing is merged");
            std::thread::sleep(Duration::from_millis(100));
        }
    } else {
        assert_eq!(first.stats().unwrap().memory.merged, 0);
    }
    for machine in [unmarked, first, clone, restored] {
        machine.kill();
        machine.wait();
    }
    assert_eq!(marked(), 0);
}

/// A guest that goes on from `saved`, answers and switches its machine off.
#[track_caller]
fn goes_on(saved: SavedMachine) {
    let output = Output::default();
    let machine = saved.into_builder().output(output.clone()).start().unwrap();
    machine.console_input().write_all(b"again\n").unwrap();
    assert!(output.wait_for(&["again\n"]), "{}", output.text());
    machine.console_input().write_all(b"\x04").unwrap();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)), "{}", output.text());
}

#[test]
fn what_a_restored_guest_uses_first_is_noted_anew_each_time_and_nothing_is_noted_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let machine = start(&spec(&folder, Guest::EchoInterrupt));
    let saved = folder.path().join("saved");
    machine.save_and_end(&saved, LIMIT).unwrap();
    let files = || {
        let mut names: Vec<_> =
            fs::read_dir(&saved).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    goes_on(SavedMachine::open(&saved).unwrap());
    assert_eq!(files(), ["machine.json", "memory", "state"]);
    let note = saved.join("working-set");
    let noted = || {
        let note: serde_json::Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
        let count = |range: &serde_json::Value| range[1].as_u64().unwrap();
        note["pages"].as_array().unwrap().iter().map(count).sum::<u64>()
    };
    let with_prefetch = || {
        let mut saved = SavedMachine::open(&saved).unwrap();
        saved.prefetch();
        saved
    };
    // The first time there is nothing to read.
    goes_on(with_prefetch());
    assert_eq!(files(), ["machine.json", "memory", "state", "working-set"]);
    let first = noted();
    assert!((1..=1024).contains(&first), "{first} pages of a guest of 4 MiB");
    goes_on(with_prefetch());
    assert!((1..=1024).contains(&noted()));
    // What is of no use is left out and written anew.
    for bad in ["", "{}", "\u{1b}[2J"] {
        fs::write(&note, bad).unwrap();
        goes_on(with_prefetch());
        assert!((1..=1024).contains(&noted()), "{bad:?}");
    }
    // A template reads it, and leaves it as it is.
    let before = fs::read(&note).unwrap();
    fs::write(&note, [&before[..], b" "].concat()).unwrap();
    let template = Template::from_saved(with_prefetch()).unwrap();
    let clone = template.spawn().unwrap();
    clone.kill();
    clone.wait();
    drop((clone, template));
    assert_eq!(fs::read(&note).unwrap(), [&before[..], b" "].concat());
    // A guest that runs for longer is noted while it runs.
    fs::remove_file(&note).unwrap();
    let clone = with_prefetch().into_builder().start().unwrap();
    let begin = Instant::now();
    while !note.exists() {
        assert!(begin.elapsed() < LIMIT, "nothing is noted");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(clone.wait_for(Duration::ZERO).is_none());
    clone.kill();
    clone.wait();
    assert_eq!(files(), ["machine.json", "memory", "state", "working-set"]);
}

/// Where a page of a file takes room of a limited memory once it is only looked at, nobody who looks takes any: a full one would answer
/// with SIGBUS.
#[test]
fn a_machine_that_goes_on_from_a_file_in_memory_takes_no_more_of_it() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let [saved, again] = ["saved", "again"].map(|name| folder.path().join(name));
    start(&spec(&folder, Guest::EchoInterrupt)).save_and_end(&saved, LIMIT).unwrap();
    let room = || saved.join("memory").metadata().unwrap().blocks();
    let before = room();
    assert!((1..4 * 2048).contains(&before), "{before}: a guest of 4 MiB has pages of zeros");
    let machine = SavedMachine::open(&saved).unwrap().into_builder().start().unwrap();
    // Who looks at all of it.
    machine.save_and_end(&again, LIMIT).unwrap();
    assert_eq!(room(), before);
    goes_on(SavedMachine::open(&again).unwrap());
}

#[test]
fn a_machine_whose_image_was_removed_is_not_saved_without_it_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, [7; 1 << 16]).unwrap();
    let spec = spec(&folder, Guest::EchoInterrupt).with_disk(image.display().to_string().parse().unwrap());
    let machine = start(&spec);
    fs::remove_file(&image).unwrap();
    let saved = folder.path().join("saved");
    let error = machine.save_and_end(&saved, LIMIT).unwrap_err().to_string();
    assert!(error.contains("vda was removed") && error.contains("--with-disks"), "{error}");
    assert!(!saved.exists());
    machine.console_input().write_all(b"\x04").unwrap();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
}
