//! The host's memory behind a guest: merged with that of others where that is asked for.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use embedded::{LIMIT, Output, spec};
use minivmm::spec::Spec;
use minivmm::{Machine, SavedMachine, Template};
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
