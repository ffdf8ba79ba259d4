//! A guest that keeps a disk and its console busy is paused again and again, and ended in the midst of it: no
//! completion, interrupt, kick or byte is lost, none comes twice, and at rest nothing moves. What the machine counts is
//! what the guest counts. One that mistreats its disk is told of.
//!
//! The guest (`tests/guest/load`) judges each completion; one that gets no answer halts for ever. `PAUSES` and
//! `PAUSE_SEED` set how often and when. On its own in this file: it looks at the threads of its process.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/embedded.rs"]
mod embedded;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dose::dose;
use embedded::{LIMIT, Output};
use minivmm::spec::Spec;
use minivmm::{DeviceKind, DeviceStats, Exit, Machine, MachineEvent, VcpuStats};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;
/// One pause in so many is looked at at once, and one at length: all of it, for this long.
const GLANCE: u64 = 5;
const SAMPLE: u64 = 100;
const REST: Duration = Duration::from_millis(5);

/// One machine at a time: its threads are found by their names.
static ALONE: Mutex<()> = Mutex::new(());

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

struct Load {
    machine: Machine,
    output: Output,
    image: PathBuf,
    _folder: TempDir,
}

impl Load {
    /// With these words on its command line, and these options of its disk.
    fn start(words: &str, options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [kernel, image] = ["load", "image"].map(|name| folder.path().join(name));
        fs::write(&kernel, tiny_guest::LOAD).unwrap();
        File::create(&image).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
        let spec = Spec::new(kernel).with_mem("16".parse().unwrap()).with_append(words);
        let spec = spec.with_disk(format!("{}{options}", image.display()).parse().unwrap());
        let output = Output::default();
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        Load { machine, output, image, _folder: folder }
    }

    /// Begun to work, or a panic.
    fn ready(self) -> Self {
        self.until("ready", |load| load.output.text().contains("ready\n"));
        self
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: {} {:?}", self.output.text(), self.machine.stats());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn disk(&self) -> DeviceStats {
        let devices = self.machine.stats().unwrap().devices;
        devices.into_iter().find(|device| device.kind == DeviceKind::Block).unwrap()
    }

    /// Counters of its processors and devices. Its memory is left out: the host may change that at any time.
    fn done(&self) -> (Vec<VcpuStats>, Vec<DeviceStats>) {
        let stats = self.machine.stats().unwrap();
        (stats.vcpus, stats.devices)
    }

    /// Whatever would change if the guest or its devices did anything.
    fn trace(&self) -> ((Vec<VcpuStats>, Vec<DeviceStats>), Vec<u8>, String) {
        (self.done(), fs::read(&self.image).unwrap(), self.output.text())
    }

    /// No counter of a paused machine changes, and its processor does not run.
    fn rests(&self) {
        let mut before = self.trace();
        let ran = time_of("vcpu0");
        let began = Instant::now();
        thread::sleep(REST);
        let ran = time_of("vcpu0") - ran;
        let after = self.trace();
        assert!(ran < began.elapsed() / 2, "the processor ran for {ran:?}");
        // The console's thread writes earlier output.
        assert!(after.2.starts_with(&before.2));
        before.2.clone_from(&after.2);
        assert!(before.1 == after.1, "the image changes");
        assert_eq!((before.0, before.2), (after.0, after.2));
    }

    /// The guest ends its work; returns its counters of each kind.
    fn finish(&self) -> [u64; 6] {
        self.machine.console_input().write_all(b"!").unwrap();
        self.until("finished", |load| load.output.text().contains(" kicks="));
        self.until("all said", |load| load.output.text().ends_with('\n'));
        let text = self.output.text();
        let last = text.lines().last().unwrap();
        ["writes=", "reads=", "flushes=", "waits=", "interrupts=", "kicks="].map(|key| {
            let rest = last.split_once(key).unwrap_or_else(|| panic!("no {key} in {text}")).1;
            rest.split(' ').next().unwrap().parse().unwrap()
        })
    }

    fn power_off(&self) {
        self.machine.console_input().write_all(b"!").unwrap();
        let exit = self.machine.wait_for(LIMIT);
        assert!(matches!(exit.as_deref(), Some(Exit::PoweredOff)), "{exit:?}: {}", self.output.text());
    }
}

/// How long the thread of this name has run so far.
fn time_of(name: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let is_it = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let task = tasks.into_iter().find(is_it).unwrap();
    let schedstat = fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

/// Block `at` as the `number`th write leaves it.
fn is_written(block: &[u8], number: u64) -> bool {
    let words = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    (0..)
        .map(|word| tiny_guest::load_word(number, word))
        .zip(words)
        .all(|(expected, found)| expected == found)
}

/// The last of `writes` writes that went to block `at`. They are numbered from 1 and go round the blocks.
fn last_write(at: u64, writes: u64) -> Option<u64> {
    let last = (writes + BLOCKS - at) / BLOCKS * BLOCKS + at;
    last.checked_sub(BLOCKS).filter(|last| *last > 0)
}

/// Each block has its last content, of `writes` in all.
fn holds(image: &Path, writes: u64) {
    let image = fs::read(image).unwrap();
    for (at, block) in (0..BLOCKS).zip(image.chunks_exact(BLOCK)) {
        let last = last_write(at, writes);
        let right = last.map_or_else(|| block.iter().all(|byte| *byte == 0), |last| is_written(block, last));
        assert!(right, "block {at} is not that of write {last:?} of {writes}");
    }
}

#[test]
fn pauses_lose_no_request_of_a_disk() {
    pauses_lose_nothing("", number("PAUSES").unwrap_or(dose(10_000)));
}

/// Past the host's page cache, so that requests take their time, and pauses find them in flight; with a second thread, which a
/// pause stops as well.
#[test]
fn pauses_wait_for_what_a_slow_disk_has_in_flight() {
    pauses_lose_nothing(",direct,queues=2,threads=2", number("PAUSES").unwrap_or(dose(10_000)) / 10);
}

fn pauses_lose_nothing(options: &str, pauses: u64) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number("PAUSE_SEED").unwrap_or_else(|| std::process::id().into());
    let began = Instant::now();
    let load = Load::start(&format!("seed={seed}"), options).ready();
    let mut chance = seed;
    let mut before = 0;
    for round in 0..pauses {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_micros((chance >> 33) % 300));
        load.machine.pause(LIMIT).unwrap();
        if round % GLANCE == 0 {
            // Directly after the pause: operations in flight have completed.
            let before = load.done();
            thread::sleep(Duration::from_micros(300));
            assert_eq!(load.done(), before, "pause {round}, seed {seed}");
        }
        if round % SAMPLE == 0 {
            load.rests();
            let now = load.disk().requests;
            load.machine.resume();
            // Distinguishes a halted guest from a slow one.
            load.until("it goes on", |load| load.disk().requests > now);
            assert!(now > before || round == 0, "{now} requests, seed {seed}");
            before = now;
        } else {
            load.machine.resume();
        }
    }
    let took = began.elapsed();
    let [writes, reads, flushes, _, interrupts, kicks] = load.finish();
    let disk = load.disk();
    println!(
        "seed {seed}, {pauses} pauses in {took:?}: {} {disk:?}",
        load.output.text().lines().last().unwrap()
    );
    assert_eq!((disk.name.as_str(), disk.errors), ("vda", 0));
    let names = load.machine.stats().unwrap().devices.into_iter().map(|device| device.name);
    assert_eq!(names.collect::<Vec<_>>(), ["vda", "console0", "rng0", "balloon0"]);
    assert_eq!((disk.requests, writes), (writes + reads + flushes, reads));
    assert_eq!((disk.bytes_out, disk.bytes_in), (writes * BLOCK as u64, reads * BLOCK as u64));
    assert!(interrupts <= disk.interrupts && disk.kicks <= kicks, "more than were made");
    holds(&load.image, writes);
    let mut said = String::from("ready\n");
    (1..=writes / 512).for_each(|line| said += &format!("at={}\n", 512 * line));
    let text = load.output.text();
    assert!(text.starts_with(&said) && text[said.len()..].starts_with("finished "), "{text}");
    load.power_off();
}

#[test]
fn a_machine_paused_in_the_midst_of_its_requests_can_be_reset_killed_and_dropped() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for round in 0..10 {
        let load = Load::start("", "").ready();
        load.machine.pause(LIMIT).unwrap();
        load.rests();
        load.machine.reset();
        load.until("it boots again", |load| load.output.text().matches("ready\n").count() == 2);
        load.until("it works again", |load| load.disk().requests > 100);
        load.machine.pause(LIMIT).unwrap();
        let writes = load.disk().bytes_out / BLOCK as u64;
        match round % 3 {
            0 => {
                load.machine.kill();
                assert!(matches!(load.machine.wait_for(LIMIT).as_deref(), Some(Exit::Killed)));
            }
            1 => {
                load.machine.reset();
                load.machine.kill();
                assert!(load.machine.wait_for(LIMIT).is_some());
            }
            _ => {}
        }
        let Load { machine, image, _folder, .. } = load;
        drop(machine);
        if round % 3 != 1 {
            let image = fs::read(&image).unwrap();
            let there = (0..BLOCKS).zip(image.chunks_exact(BLOCK));
            let there = there
                .filter(|(at, block)| last_write(*at, writes).is_some_and(|last| is_written(block, last)));
            // Those that are left out were still to be written.
            assert!(there.count() as u64 + 5 > writes.min(BLOCKS), "{writes} writes");
        }
    }
}

#[test]
fn a_device_that_its_driver_mistreats_is_said_once_each_time_and_serves_after_its_reset() {
    const TIMES: u64 = 2000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let load = Load::start(&format!("bad={TIMES}"), "");
    load.until("asking", |load| load.output.text() == "asking\n");
    let events = load.machine.events();
    load.machine.console_input().write_all(b"!").unwrap();
    let load = load.ready();
    // Without a reader, events of a guest could accumulate: some are kept, and the number of the others is
    // reported.
    let missed = match events.next_within(LIMIT) {
        Some(MachineEvent::Missed(missed)) => missed,
        other => panic!("{other:?}"),
    };
    let mut reasons = Vec::new();
    while let Some(event) = events.next_within(Duration::ZERO) {
        match event {
            MachineEvent::DeviceFailed { device, reason } if device == "vda" => reasons.push(reason),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(missed + reasons.len() as u64, TIMES);
    assert!(reasons.len() > 10);
    let (chain, ring) = ("queue 0: a descriptor chain is longer", "queue 0: queue size 3 is not one");
    for (reason, expected) in reasons.iter().rev().zip([ring, chain].into_iter().cycle()) {
        assert!(reason.starts_with(expected), "{reason}");
    }
    load.until("it works", |load| load.disk().requests > 100);
    let [writes, ..] = load.finish();
    holds(&load.image, writes);
    load.power_off();
}
