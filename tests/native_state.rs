//! A guest that keeps a disk busy is paused, saved and restored into a fresh machine, again and again: no completion, interrupt,
//! kick or byte is lost. What does not fit, or is damaged, is refused in a sentence.
//!
//! The guest is that of `native_load.rs`: it judges each completion, and one that gets no answer halts for ever.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use embedded::{LIMIT, Output};
use minivmm::spec::Spec;
use minivmm::{DeviceKind, DeviceStats, Exit, Machine, RestoreError, SaveError, SavedState, StartError};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;

struct Load {
    spec: Spec,
    image: PathBuf,
    _folder: TempDir,
}

/// A machine with the load guest, and what it has said.
struct Running {
    machine: Machine,
    output: Output,
}

impl Load {
    fn new(cpus: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [kernel, image] = ["load", "image"].map(|name| folder.path().join(name));
        fs::write(&kernel, tiny_guest::LOAD).unwrap();
        File::create(&image).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
        let spec = Spec::new(kernel).with_mem("16".parse().unwrap()).with_append("seed=7");
        let spec = spec.with_cpus(cpus.parse().unwrap()).with_disk(image.to_str().unwrap().parse().unwrap());
        Load { spec, image, _folder: folder }
    }

    fn boot(&self) -> Running {
        let output = Output::default();
        let machine = Machine::start(&self.spec, Box::new(output.clone())).unwrap();
        let running = Running { machine, output };
        running.until("ready", |running| running.output.text().contains("ready\n"));
        running
    }

    fn restore(&self, saved: Saved) -> Running {
        let output = Output::default();
        let Saved { state, memory } = saved;
        // Through text, as a file has it.
        let state: SavedState = serde_json::from_str(&state).unwrap();
        let builder = Machine::builder(&self.spec).output(output.clone()).restore(state, memory);
        Running { machine: builder.start().unwrap(), output }
    }
}

struct Saved {
    state: String,
    memory: File,
}

impl Running {
    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            let (text, stats) = (self.output.text(), self.machine.stats());
            assert!(Instant::now() < deadline && stats.is_some(), "{what}: {text} {stats:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn disk(&self) -> DeviceStats {
        let devices = self.machine.stats().unwrap().devices;
        devices.into_iter().find(|device| device.kind == DeviceKind::Block).unwrap()
    }

    fn save(&self) -> Saved {
        self.machine.pause(LIMIT).unwrap();
        let memory = tempfile::tempfile().unwrap();
        let state = serde_json::to_string(&self.machine.save(&memory).unwrap()).unwrap();
        Saved { state, memory }
    }

    /// Ends it, and says what its guest has said and its disk has done.
    fn end(self) -> (String, u64) {
        let requests = self.disk().requests;
        self.machine.kill();
        assert!(self.machine.wait_for(LIMIT).is_some());
        (self.output.text(), requests)
    }
}

#[test]
fn a_guest_at_work_goes_on_in_a_fresh_machine_and_misses_nothing() {
    let load = Load::new("1");
    let mut running = load.boot();
    let (mut said, mut requests) = (String::new(), 0);
    let mut chance = 1u64;
    for round in 0..40 {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_micros((chance >> 33) % 3000));
        let saved = running.save();
        if round % 8 == 0 {
            // Saving changes nothing: it goes on where it was, and is saved again.
            let before = running.disk().requests;
            running.machine.resume();
            running.until("it goes on", |running| running.disk().requests > before);
            drop(saved);
            let again = running.save();
            let (text, done) = running.end();
            (said, requests) = (said + &text, requests + done);
            running = load.restore(again);
        } else {
            let (text, done) = running.end();
            (said, requests) = (said + &text, requests + done);
            running = load.restore(saved);
        }
        running.until("it goes on after it was restored", |running| running.disk().requests > 0);
    }
    running.machine.console_input().write_all(b"!").unwrap();
    running.until("finished", |running| running.output.text().contains(" kicks="));
    running.until("all said", |running| running.output.text().ends_with('\n'));
    requests += running.disk().requests;
    said += &running.output.text();
    running.machine.console_input().write_all(b"!").unwrap();
    assert!(matches!(running.machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));

    let last = said.lines().last().unwrap();
    let number = |key: &str| -> u64 {
        let rest = last.split_once(key).unwrap_or_else(|| panic!("no {key} in {last}")).1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let [writes, reads, flushes] = ["writes=", "reads=", "flushes="].map(number);
    assert_eq!((requests, writes), (writes + reads + flushes, reads), "{last}");
    let mut expected = String::from("ready\n");
    (1..=writes / 512).for_each(|line| expected += &format!("at={}\n", 512 * line));
    assert!(said.starts_with(&expected) && said[expected.len()..].starts_with("finished "), "{said}");
    // Each block holds what was written to it last.
    let image = fs::read(&load.image).unwrap();
    for (at, block) in (0..BLOCKS).zip(image.chunks_exact(BLOCK)) {
        let last =
            ((writes + BLOCKS - at) / BLOCKS * BLOCKS + at).checked_sub(BLOCKS).filter(|last| *last > 0);
        let words = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let right = |(word, found)| last.map_or(0, |number| tiny_guest::load_word(number, word)) == found;
        assert!((0..).zip(words).all(right), "block {at} is not that of write {last:?} of {writes}");
    }
}
