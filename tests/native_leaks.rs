//! Machines leave nothing behind. The only test of its file: it counts resources of the whole process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say so by a panic")]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/embedded.rs"]
mod embedded;

use std::fs::{self, File};
use std::time::{Duration, Instant};

use dose::dose;
use embedded::{LIMIT, Output, start};
use minivmm::spec::{ConsoleChoice, Spec};
use minivmm::{DeviceKind, Machine};
use tempfile::TempDir;
use tiny_guest::Guest;

/// Threads, open descriptors, memory mappings and the KiB of them of this process.
fn count() -> [usize; 4] {
    let entries = |path: &str| fs::read_dir(path).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size = size.trim().trim_end_matches(" kB").parse().unwrap();
    [entries("/proc/self/task"), entries("/proc/self/fd"), maps, size]
}

/// A machine with a disk that its guest keeps busy, and a port: threads, rings and sockets beside those of the processors. It
/// is paused, reset at rest now and then, and dropped amid its work or at rest.
fn work(folder: &TempDir, round: usize) {
    let [kernel, image, socket] = ["load", "image", "socket"].map(|name| folder.path().join(name));
    fs::write(&kernel, tiny_guest::LOAD).unwrap();
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let options = if round.is_multiple_of(2) { "" } else { ",direct" };
    let spec = Spec::new(kernel)
        .with_mem("16".parse().unwrap())
        .with_disk(format!("{}{options}", image.display()).parse().unwrap())
        .with_port(format!("name=leaks,socket={}", socket.display()).parse().unwrap());
    let output = Output::default();
    let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
    works(&machine);
    machine.pause(LIMIT).unwrap();
    if round.is_multiple_of(3) {
        machine.reset();
        works(&machine);
        machine.pause(LIMIT).unwrap();
    }
    if round % 4 < 2 {
        machine.resume();
    }
}

/// Its driver has reached the disk, and the disk answers.
fn works(machine: &Machine) {
    let begun = Instant::now();
    let done = |machine: &Machine| {
        let devices = machine.stats().unwrap().devices;
        devices.iter().any(|device| device.kind == DeviceKind::Block && device.requests > 50)
    };
    while !done(machine) {
        assert!(begun.elapsed() < LIMIT, "the disk does nothing: {:?}", machine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn machines_in_a_row_leave_no_thread_descriptor_or_mapping() {
    let folder = tempfile::tempdir().unwrap();
    let machines = |number: u64| {
        for at in 0..usize::try_from(number).unwrap() {
            if at % 8 == 7 {
                work(&folder, at / 8);
                continue;
            }
            let guest = [Guest::Halt, Guest::Busy, Guest::Ports, Guest::TripleFault][at % 4];
            let (machine, output) = start(&folder, guest);
            if at % 8 < 3 {
                // The others are dropped where they are, before the guest ran or amid its boot.
                assert!(output.wait_for(&["ing\n", "done\n"]));
            }
            drop(machine);
        }
    };
    // The allocator and the thread library keep some of what they once had: the first machines show how much.
    machines(100);
    let before = at_rest();
    machines(dose(1000));
    let after = settled(|now| none_more(now, &before));
    assert!(none_more(&after, &before), "threads, descriptors: {before:?}, {after:?}");
    // A machine has more than ten mappings and 5 MiB: what 100 of them left would be far beyond this.
    assert!(after[2] <= before[2] + 8, "mappings: {before:?}, {after:?}");
    // One more arena of the allocator is 64 MiB.
    assert!(after[3] <= before[3] + (256 << 10), "address space: {before:?}, {after:?}");
    what_is_kept_of_machines_that_ended_keeps_no_descriptor(&folder);
}

/// No more threads and descriptors than before.
fn none_more(now: &[usize; 4], before: &[usize; 4]) -> bool {
    now.iter().zip(before).take(2).all(|(now, before)| now <= before)
}

/// The resources once `enough` accepts them, or at the time limit: a joined thread is listed a moment longer, on a busy host for
/// longer than that.
fn settled(enough: impl Fn(&[usize; 4]) -> bool) -> [usize; 4] {
    let until = Instant::now() + LIMIT;
    let mut now = count();
    while !enough(&now) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        now = count();
    }
    now
}

/// The resources of a process at rest: the fewest threads and descriptors that were seen for half a second.
fn at_rest() -> [usize; 4] {
    let mut least = count();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
        let now = count();
        if !none_more(&least, &now) {
            (least, since) = (now, Instant::now());
        }
    }
    least
}

/// A service may keep the output of ended machines, and its handles to them.
fn what_is_kept_of_machines_that_ended_keeps_no_descriptor(folder: &TempDir) {
    for choice in [ConsoleChoice::Ttys0, ConsoleChoice::Hvc0] {
        let before = at_rest();
        let kept: Vec<_> = (0..20)
            .map(|at| {
                let spec = embedded::spec(folder, Guest::Busy).with_console(choice);
                let machine = Machine::builder(&spec).start().unwrap();
                machine.set_balloon(1).unwrap();
                let kept = (machine.console(), machine.console_input(), machine.controls(), machine.events());
                // One that has ended and is held still has nothing either.
                machine.kill();
                machine.wait();
                (kept, (at % 2 == 0).then_some(machine))
            })
            .collect();
        let after = settled(|now| none_more(now, &before));
        assert!(none_more(&after, &before), "threads, descriptors: {choice:?}: {before:?}, {after:?}");
        drop(kept);
    }
}
