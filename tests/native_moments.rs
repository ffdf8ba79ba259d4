//! Machines that are saved at each moment that is special to a processor, and go on from there: within string I/O, halted, with an
//! interrupt that has not arrived, with a timer that runs, and with a second processor that waits to be started. `native_state.rs` has
//! those of a disk.
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

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use dose::soak;
use embedded::{LIMIT, Output, spec};
use minivmm::spec::Spec;
use minivmm::{Exit, Machine, SavedState};
use tempfile::TempDir;
use tiny_guest::Guest;

/// A machine that is made again and again, and what its guest has said in all its lives.
struct Lives {
    spec: Spec,
    machine: Machine,
    output: Output,
    said: String,
    _folder: TempDir,
}

impl Lives {
    fn start(guest: Guest, configure: impl FnOnce(Spec) -> Spec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (spec, output) = (configure(spec(&folder, guest)), Output::default());
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        Lives { spec, machine, output, said: String::new(), _folder: folder }
    }

    #[track_caller]
    fn says(&self, word: &str) {
        assert!(self.output.wait_for(&[word]), "no {word:?}: {}{}", self.said, self.output.text());
    }

    fn types(&self, bytes: &[u8]) {
        self.machine.console_input().write_all(bytes).unwrap();
    }

    fn pause(&self) {
        self.machine.pause(LIMIT).unwrap();
    }

    /// Saves it, which is paused, and goes on in a fresh machine. Gives the saved state.
    fn next(&mut self) -> serde_json::Value {
        let memory = tempfile::tempfile().unwrap();
        let state = serde_json::to_value(self.machine.save(&memory).unwrap()).unwrap();
        self.machine.kill();
        self.machine.wait_for(LIMIT).unwrap();
        self.said += &self.output.text();
        self.output = Output::default();
        let saved: SavedState = serde_json::from_value(state.clone()).unwrap();
        let builder = Machine::builder(&self.spec).output(self.output.clone()).restore(saved, memory);
        self.machine = builder.start().unwrap();
        state
    }

    /// Waits until its guest has said another line, and ends it; whether all that it said is how `expected` begins.
    #[track_caller]
    fn goes_on(mut self, expected: &str) -> bool {
        let until = Instant::now() + LIMIT;
        while self.output.text().len() < 64 {
            assert!(Instant::now() < until, "it has stopped: {}{}", self.said, self.output.text());
            thread::sleep(Duration::from_millis(1));
        }
        self.machine.kill();
        self.machine.wait_for(LIMIT).unwrap();
        self.said += &self.output.text();
        expected.starts_with(&self.said)
    }

    /// Waits until its guest has switched it off; gives all that it said.
    #[track_caller]
    fn ends(mut self) -> String {
        let exit = self.machine.wait_for(LIMIT);
        self.said += &self.output.text();
        assert!(matches!(exit.as_deref(), Some(Exit::PoweredOff)), "{exit:?}: {}", self.said);
        self.said
    }
}

/// Four bytes of a register of the local APIC (Intel SDM vol. 3, table 11-1).
fn apic(state: &serde_json::Value, vcpu: &str, register: usize) -> u32 {
    let hex = state["components"][vcpu]["data"]["lapic"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    u32::from_le_bytes([0, 1, 2, 3].map(|at| byte(register + at)))
}

#[test]
fn string_output_goes_on_where_it_was() {
    let expected: String = (0..4096).map(|line| format!("{line:08x}{:.<55}\n", "")).collect();
    let mut lives = Lives::start(Guest::Flood, |spec| spec);
    let mut within_a_line = 0;
    for round in 0u64..if soak() { 1000 } else { 30 } {
        // A line is written by one instruction.
        thread::sleep(Duration::from_micros(round * 7919 % 3000));
        lives.pause();
        lives.next();
        within_a_line += u32::from(!lives.said.ends_with('\n'));
        if lives.said.len() > expected.len() / 2 {
            // It was fast, and has not ended; the rounds go on with the next one.
            assert!(lives.goes_on(&expected));
            lives = Lives::start(Guest::Flood, |spec| spec);
        }
    }
    println!("{within_a_line} times within a line");
    assert!(within_a_line > 0);
    assert!(lives.goes_on(&expected));
}

#[test]
fn a_halted_guest_hears_what_is_typed_before_and_after() {
    let mut lives = Lives::start(Guest::EchoInterrupt, |spec| spec);
    lives.says("ready\n");
    let rounds = if soak() { 1000u64 } else { 30 };
    for round in 0..rounds {
        let (before, after) = (format!("<{round}"), format!(">{round}\n"));
        lives.types(before.as_bytes());
        if round % 2 == 0 {
            lives.says(&before);
        }
        // Some of it has been taken by the guest, by its port, or by nobody.
        lives.pause();
        lives.next();
        lives.types(after.as_bytes());
        lives.says(&after);
    }
    lives.types(&[4]);
    let said = lives.ends();
    let typed: String = (0..rounds).map(|round| format!("<{round}>{round}\n")).collect();
    assert!(said.starts_with(&format!("ready\n{typed}\nechoed={:08x} interrupts=", typed.len())), "{said}");
}

#[test]
fn an_interrupt_that_came_while_the_machine_rested_is_not_lost() {
    let mut lives = Lives::start(Guest::PowerButton, |spec| spec);
    lives.says("ready\n");
    lives.pause();
    lives.machine.power_button();
    lives.next();
    assert_eq!(lives.ends(), "ready\nbutton\ndone\n");
}

#[test]
fn a_timer_goes_on_and_fires_once() {
    let mut was_running = false;
    for _ in 0..if soak() { 20 } else { 3 } {
        let mut lives = Lives::start(Guest::SlowTimer, |spec| spec);
        lives.says("armed\n");
        for _ in 0..2 {
            lives.pause();
            // What is left of its time.
            was_running |= apic(&lives.next(), "vcpu0", 0x390) > 0;
        }
        assert_eq!(lives.ends(), "armed\nwoke\ndone\n");
    }
    assert!(was_running, "a host that is so slow shows nothing");
}

#[test]
fn a_processor_that_waits_to_be_started_is_started() {
    let two = |spec: Spec| spec.with_cpus("2".parse().unwrap()).with_append("cpus=2");
    let mut lives = Lives::start(Guest::SmpLater, two);
    lives.says("ready\n");
    for _ in 0..3 {
        lives.pause();
        lives.next();
    }
    lives.types(b"!");
    assert_eq!(lives.ends(), "ready\naps=0001\ndone\n");
}

/// Memory above 4 GiB is another slot, whose log begins at 0 again.
#[test]
fn the_log_names_what_is_written_below_and_above_the_hole() {
    let lives = Lives::start(Guest::HighWriter, |spec| spec.with_mem("5G".parse().unwrap()));
    lives.says("ready\n");
    lives.pause();
    lives.machine.log_writes(true).unwrap();
    lives.machine.take_written().unwrap();
    for byte in ["a", "b"] {
        lives.machine.resume();
        lives.types(byte.as_bytes());
        lives.says(byte);
        lives.pause();
        let written = lives.machine.take_written().unwrap();
        for page in [0x30_0000, 0x1_0000_5000] {
            assert!(written.iter().any(|range| range.contains(&page)), "{page:#x} is not in {written:x?}");
        }
        assert!(!written.iter().any(|range| range.contains(&0x5000)), "{written:x?}");
        assert!(!written.iter().any(|range| range.contains(&0x1_0030_0000)), "{written:x?}");
    }
    lives.machine.kill();
    lives.machine.wait_for(LIMIT).unwrap();
}

/// Linux takes a long time in which nothing ran for a lockup, unless it is told.
#[test]
fn a_guest_is_told_that_it_was_stopped_whether_it_goes_on_here_or_in_a_fresh_machine() {
    let mut lives = Lives::start(Guest::StoppedClock, |spec| spec);
    lives.says("ready\n");
    // Each answer is another one than that before.
    let mut asked = 0;
    let mut asks = |lives: &Lives, answer: &str| {
        lives.types(b"?");
        asked += 1;
        assert!(lives.output.wait_for(&[answer]), "question {asked}: {}{}", lives.said, lives.output.text());
    };
    asks(&lives, "\n0\n");
    for _ in 0..5 {
        lives.pause();
        lives.machine.resume();
        asks(&lives, "1\n");
        asks(&lives, "0\n");
        lives.pause();
        lives.next();
        asks(&lives, "1\n");
        asks(&lives, "0\n");
    }
    lives.machine.kill();
}
