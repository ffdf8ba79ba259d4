//! A host without room for what a guest writes: with `on-full=pause` the machine is paused, and its guest misses nothing once there
//! is room and it is resumed.
//!
//! The guest is that of `native_load.rs`: it judges each completion. The image is on a small tmpfs, which a mount namespace of its
//! own keeps from the host: each test runs itself again in one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/closed.rs"]
mod closed;
#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/inside.rs"]
mod inside;
#[path = "support/load.rs"]
mod load;
#[path = "support/without.rs"]
mod without;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use closed::until_closed;
use embedded::{LIMIT, Output};
use inside::{inside, mount};
use load::{BLOCK, BLOCKS, assert_last_writes, number};
use minivmm::spec::{DiskSpec, OnFull, Spec};
use minivmm::{Events, Exit, Machine, MachineEvent, MachineState, SavedState};
use tempfile::TempDir;

/// A sparse image on a tmpfs with less room than it may need.
struct Host {
    folder: TempDir,
    small: PathBuf,
    image: PathBuf,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let small = folder.path().join("small");
        fs::create_dir(&small).unwrap();
        let host = Host { image: small.join("vm0.raw"), folder, small };
        assert!(mount(&host.small, &["-t", "tmpfs", "-o", "size=2m", "none"]));
        File::create(&host.image).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
        host
    }

    fn make_room(&self) {
        assert!(mount(&self.small, &["-o", "remount,size=32m"]));
    }

    fn spec(&self, on_full: OnFull) -> Spec {
        let kernel = self.folder.path().join("load");
        fs::write(&kernel, tiny_guest::LOAD).unwrap();
        let disk = DiskSpec::new(&self.image).with_on_full(on_full);
        Spec::new(kernel).with_mem("16".parse().unwrap()).with_append("seed=7").with_disk(disk)
    }

    fn start(&self, on_full: OnFull) -> (Machine, Output) {
        until_closed(&self.image, LIMIT);
        let output = Output::default();
        (Machine::start(&self.spec(on_full), Box::new(output.clone())).unwrap(), output)
    }
}

fn until(what: &str, output: &Output, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: {}", output.text());
        thread::sleep(Duration::from_millis(1));
    }
}

fn until_full(machine: &Machine, output: &Output) {
    until("it is paused for its disk", output, || {
        machine.state() == MachineState::Paused && machine.full_disks() == ["vda"]
    });
}

/// The events up to a pause.
fn until_paused(events: &Events) -> Vec<MachineEvent> {
    let mut seen = Vec::new();
    while seen.last() != Some(&MachineEvent::Paused) {
        seen.push(events.next_within(LIMIT).unwrap_or_else(|| panic!("{seen:?}, and no pause")));
    }
    seen
}

#[test]
fn a_guest_on_a_full_host_waits_and_misses_nothing() {
    inside("a_guest_on_a_full_host_waits_and_misses_nothing", || {
        let host = Host::new();
        let (machine, output) = host.start(OnFull::Pause);
        until_full(&machine, &output);
        let full =
            MachineEvent::DiskFull { disk: "vda".into(), path: host.image.to_str().unwrap().to_owned() };
        // Resumed too early it is paused again, as often as somebody tries.
        for _ in 0..3 {
            let events = machine.events();
            machine.resume();
            assert_eq!(until_paused(&events), [MachineEvent::Resumed, full.clone(), MachineEvent::Paused]);
        }
        // What waits goes with the machine that is saved.
        let memory = tempfile::tempfile().unwrap();
        let state = serde_json::to_string(&machine.save(&memory).unwrap()).unwrap();
        let said = output.text();
        drop(machine);
        let state: SavedState = serde_json::from_str(&state).unwrap();
        let output = Output::default();
        let builder = Machine::builder(&host.spec(OnFull::Pause)).output(output.clone());
        let machine = builder.restore(state, memory).start().unwrap();
        until_full(&machine, &output);
        host.make_room();
        machine.resume();
        let requests = |machine: &Machine| {
            machine
                .stats()
                .map_or(0, |stats| stats.devices.iter().find(|device| device.name == "vda").unwrap().requests)
        };
        until("all blocks were written", &output, || requests(&machine) > 3 * BLOCKS);
        assert_eq!((machine.state(), machine.full_disks()), (MachineState::Running, Vec::new()));
        machine.console_input().write_all(b"!").unwrap();
        until("finished", &output, || output.text().contains(" kicks=") && output.text().ends_with('\n'));
        machine.console_input().write_all(b"!").unwrap();
        assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)), "{}", output.text());
        let said = said + &output.text();
        assert!(!said.contains("failed"), "{said}");
        assert_last_writes(&host.image, number(said.lines().last().unwrap(), "writes="));
    });
}

#[test]
fn a_machine_that_waits_for_room_is_reset_and_ended_as_any_other() {
    inside("a_machine_that_waits_for_room_is_reset_and_ended_as_any_other", || {
        let host = Host::new();
        let (machine, output) = host.start(OnFull::Pause);
        until_full(&machine, &output);
        let events = machine.events();
        machine.reset();
        let seen = until_paused(&events);
        assert_eq!(seen[..2], [MachineEvent::Reset, MachineEvent::Booted]);
        assert!(matches!(seen[2], MachineEvent::DiskFull { .. }), "{seen:?}");
        until_full(&machine, &output);
        // A pause by hand changes nothing, nor does a look.
        machine.pause(LIMIT).unwrap();
        assert!(machine.stats().is_some());
        machine.kill();
        assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::Killed)));
        // It is said a moment after those who wait hear of the end.
        until("it has no full disk", &output, || machine.full_disks().is_empty());
        // Its image is free again.
        let (machine, output) = host.start(OnFull::Report);
        until("its guest gets the error", &output, || output.text().contains("failed"));
        assert!(machine.full_disks().is_empty());
    });
}
