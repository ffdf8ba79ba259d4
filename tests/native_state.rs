//! A guest that keeps a disk, a network and its console busy is paused, saved and restored into a fresh machine, again and again: no completion,
//! interrupt, kick, frame or byte is lost, doubled or changed. What does not fit, or is damaged, is refused in a sentence.
//!
//! The guest is that of `native_load.rs`: it judges each completion, and one that gets no answer halts for ever.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/closed.rs"]
mod closed;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/frames.rs"]
mod frames;
#[path = "support/load.rs"]
mod load;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use closed::until_closed;
use embedded::{LIMIT, Output};
use frames::{Counts, Peer};
use load::{BLOCK, BLOCKS, assert_last_writes, number};
use minivmm::spec::Spec;
use minivmm::{DeviceKind, DeviceStats, Exit, GuestClock, Machine, SaveError, SavedState, StartError};
use tempfile::TempDir;
use tiny_guest::Guest;

struct Load {
    spec: Spec,
    image: PathBuf,
    folder: TempDir,
}

/// A machine with the load guest, and its output so far.
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
        Load { spec, image, folder }
    }

    /// The same with a network that is busy too.
    fn with_network() -> (Self, Peer) {
        let load = Load::new("1");
        let (peer, net) = Peer::new(load.folder.path());
        let spec = load.spec.with_append("seed=7 frames=1").with_net(net);
        (Load { spec, ..load }, peer)
    }

    fn boot(&self) -> Running {
        let output = Output::default();
        let machine = Machine::start(&self.spec, Box::new(output.clone())).unwrap();
        let running = Running { machine, output };
        running.until("ready", |running| running.output.text().contains("ready\n"));
        running
    }

    fn restore(&self, saved: Saved) -> Running {
        until_closed(&self.image, LIMIT);
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

impl Saved {
    /// The VM generation ID, where the ACPI tables say that it is.
    fn generation(&self) -> [u8; 16] {
        let mut id = [0; 16];
        self.memory.read_exact_at(&mut id, 0xf_f000).unwrap();
        id
    }
}

impl Running {
    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            let (text, stats) = (self.output.text(), self.machine.stats());
            let ended = self.machine.exit_status();
            assert!(Instant::now() < deadline && stats.is_some(), "{what}: {text} {stats:?} {ended:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn disk(&self) -> DeviceStats {
        let stats = self.machine.stats();
        let devices = stats
            .unwrap_or_else(|| {
                panic!("it has ended: {:?} {}", self.machine.wait_for(LIMIT), self.output.text())
            })
            .devices;
        devices.into_iter().find(|device| device.kind == DeviceKind::Block).unwrap()
    }

    fn save(&self) -> Saved {
        self.machine.pause(LIMIT).unwrap();
        let memory = tempfile::tempfile().unwrap();
        let state = serde_json::to_string(&self.machine.save(&memory).unwrap()).unwrap();
        Saved { state, memory }
    }

    /// Ends it; returns its guest's output and its disk's counters.
    fn end(self) -> (String, u64) {
        let requests = self.disk().requests;
        self.machine.kill();
        assert!(self.machine.wait_for(LIMIT).is_some());
        (self.output.text(), requests)
    }
}

#[test]
fn a_guest_at_work_goes_on_in_a_fresh_machine_and_misses_nothing() {
    let (load, peer) = Load::with_network();
    let mut running = load.boot();
    peer.begin();
    let (mut said, mut requests) = (String::new(), 0);
    let mut chance = 1u64;
    let mut generations = BTreeSet::new();
    for round in 0..if dose::soak() { 1000 } else { 30 } {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_micros((chance >> 33) % 3000));
        let mut saved = running.save();
        assert!(generations.insert(saved.generation()), "it has the generation ID of an earlier machine");
        if round % 8 == 0 {
            // Saving changes nothing: it continues, and is saved again.
            let before = running.disk().requests;
            running.machine.resume();
            running.until("it goes on", |running| running.disk().requests > before);
            let again = running.save();
            assert_eq!(saved.generation(), again.generation());
            saved = again;
        }
        // What was sent to a machine that has read it comes; what its socket has goes with it.
        peer.rest();
        let (text, done) = running.end();
        (said, requests) = (said + &text, requests + done);
        running = load.restore(saved);
        let before = peer.until("nothing is wrong", LIMIT, |_| true);
        peer.begin();
        running.until("it goes on after it was restored", |running| running.disk().requests > 0);
        peer.until("frames go on in both directions", LIMIT, |counts| {
            counts.came > before.came && counts.guest_has > before.guest_has
        });
    }
    peer.finish();
    let all =
        |counts: &Counts| counts.guest_has + counts.lost == counts.sent && counts.guest_last == counts.sent;
    let counts = peer.until("every frame has come", LIMIT, all);
    println!("{counts:?}");
    assert!(counts.guest_has > 30 && counts.came > 30, "{counts:?}");
    running.machine.console_input().write_all(b"!").unwrap();
    running.until("finished", |running| running.output.text().contains(" kicks="));
    running.until("all said", |running| running.output.text().ends_with('\n'));
    requests += running.disk().requests;
    said += &running.output.text();
    running.machine.console_input().write_all(b"!").unwrap();
    assert!(matches!(running.machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));

    let last = said.lines().last().unwrap();
    let [writes, reads, flushes] = ["writes=", "reads=", "flushes="].map(|key| number(last, key));
    assert_eq!((requests, writes), (writes + reads + flushes, reads), "{last}");
    let mut expected = String::from("ready\n");
    (1..=writes / 512).for_each(|line| expected += &format!("at={}\n", 512 * line));
    assert!(said.starts_with(&expected) && said[expected.len()..].starts_with("finished "), "{said}");
    assert_last_writes(&load.image, writes);
}

#[test]
fn the_log_names_what_guest_and_disk_write_while_the_machine_runs() {
    let load = Load::new("1");
    let running = load.boot();
    let contents = || {
        let memory = tempfile::tempfile().unwrap();
        running.machine.save(&memory).unwrap();
        let mut bytes = vec![0; memory.metadata().unwrap().len().try_into().unwrap()];
        memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(matches!(running.machine.take_written(), Err(SaveError::Log(_))));
    running.machine.pause(LIMIT).unwrap();
    running.machine.log_writes(true).unwrap();
    let mut before = contents();
    for _ in 0..5 {
        let done = running.disk().requests;
        running.machine.resume();
        running.until("it goes on", |running| running.disk().requests > done + 100);
        running.machine.pause(LIMIT).unwrap();
        let written = running.machine.take_written().unwrap();
        assert!(written.windows(2).all(|pair| pair[0].end < pair[1].start), "{written:?}");
        let after = contents();
        let is_written = |at: usize| written.iter().any(|range| range.contains(&(at as u64)));
        let mut changed = 0;
        for (page, (old, new)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
            changed += usize::from(old != new);
            assert!(
                old == new || is_written(4096 * page),
                "page {page} was written and is not in {written:?}"
            );
        }
        // And no others, of 4096, but for a few that were written with what stood there.
        let pages: u64 = written.iter().map(|range| (range.end - range.start) / 4096).sum();
        assert!(changed > 4 && pages <= changed as u64 + 8, "{pages} pages written, {changed} changed");
        before = after;
    }
    assert_eq!(running.machine.take_written().unwrap(), [], "nothing is written while it is paused");
    running.machine.log_writes(false).unwrap();
    assert!(matches!(running.machine.take_written(), Err(SaveError::Log(_))));
}

#[test]
fn a_state_that_does_not_fit_or_is_damaged_is_refused_in_a_sentence() {
    let load = Load::new("2");
    let running = load.boot();
    let memory = || tempfile::tempfile().unwrap();
    assert!(matches!(running.machine.save(&memory()), Err(SaveError::NotPaused)));
    let Saved { state, memory: contents } = running.save();
    running.end();
    let said = |spec: &Spec, state: &str, memory: &File| {
        let state: SavedState = serde_json::from_str(state).unwrap();
        let builder = Machine::builder(spec).restore(state, memory.try_clone().unwrap());
        match builder.start() {
            Err(StartError::Restore(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let refuses = |spec: &Spec, state: &str, why: &str| {
        let said = said(spec, state, &contents);
        assert!(said.contains(why) && said.contains("; "), "{said}");
    };
    // Other machines.
    let spec = &load.spec;
    refuses(&spec.clone().with_cpus("1".parse().unwrap()), &state, "the saved machine has a `vcpu1`");
    refuses(&spec.clone().with_cpus("3".parse().unwrap()), &state, "the saved machine has no `vcpu2`");
    let mut without_disk = spec.clone();
    without_disk.disk.clear();
    refuses(&without_disk, &state, "the saved machine has a `vda`");
    refuses(&spec.clone().with_rtc(minivmm::spec::Rtc::Utc), &state, "the saved machine has no `rtc`");
    refuses(
        &spec.clone().with_mem("32".parse().unwrap()),
        &state,
        "16777216 bytes and this machine 33554432",
    );
    // Damaged ones.
    let value: serde_json::Value = serde_json::from_str(&state).unwrap();
    let changed = |path: &str, to: serde_json::Value| {
        let mut value = value.clone();
        *value.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = to;
        value.to_string()
    };
    refuses(spec, &changed("/version", 7.into()), "version 7");
    refuses(
        spec,
        &changed("/components/vcpu0/version", 7.into()),
        "vcpu0: the saved state of vcpu has version 7",
    );
    refuses(
        spec,
        &changed("/components/vcpu0/kind", "clock".into()),
        "vcpu0: the saved state is of a component \"clock\"",
    );
    refuses(
        spec,
        &changed("/components/vcpu1/data/lapic", "00".into()),
        "vcpu1: the saved state of vcpu is damaged",
    );
    refuses(
        spec,
        &changed("/components/irqchip/data/ioapic", "00".repeat(520).into()),
        "irqchip: the saved state of",
    );
    // A part that is in another one's place.
    for (id, component) in value["components"].as_object().unwrap() {
        for data in [serde_json::Value::Null, vec![component["data"].clone(); 2].into()] {
            let said = said(spec, &changed(&format!("/components/{id}/data"), data), &contents);
            assert!(
                said.starts_with(&format!("{id}: the saved state of")) && said.contains("is damaged"),
                "{said}"
            );
        }
    }
    // Contents that were cut off.
    contents.set_len(4096).unwrap();
    refuses(spec, &state, "4096 bytes and this machine 16777216");
    assert!(serde_json::from_str::<SavedState>(&state[..state.len() / 2]).is_err());
}

/// The TSC of each vCPU and kvm-clock in nanoseconds, the TSCs' offsets, and their frequency in kHz.
fn clocks(state: &str) -> ([u64; 2], u64, [Option<u64>; 2], u64) {
    let state: serde_json::Value = serde_json::from_str(state).unwrap();
    let vcpu = |id: &str| state["components"][id]["data"].clone();
    let tsc = |id: &str| {
        let msrs = vcpu(id)["msrs"].as_array().unwrap().clone();
        msrs.iter().find(|msr| msr[0] == 0x10).unwrap()[1].as_u64().unwrap()
    };
    let clock = state["components"]["clock"]["data"]["nanoseconds"].as_u64().unwrap();
    let offsets = ["vcpu0", "vcpu1"].map(|id| vcpu(id)["tsc_offset"].as_u64());
    (["vcpu0", "vcpu1"].map(tsc), clock, offsets, vcpu("vcpu0")["tsc_khz"].as_u64().unwrap())
}

#[test]
fn clocks_go_on_from_the_hosts_time_or_from_that_of_the_save() {
    const HOUR: u64 = 3600 * 1_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    // Not the load guest, which takes an hour without an answer for a lost one.
    let spec = embedded::spec(&folder, Guest::EchoInterrupt).with_cpus("2".parse().unwrap());
    let output = Output::default();
    let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
    assert!(output.wait_for(&["ready\n"]));
    let Saved { state, memory } = Running { machine, output }.save();
    let (before, clock, offsets, khz) = clocks(&state);
    // As if it had been saved then.
    let saved_at = |change: &dyn Fn(u64) -> u64| {
        let mut value: serde_json::Value = serde_json::from_str(&state).unwrap();
        let realtime = value.pointer_mut("/components/clock/data/realtime").unwrap();
        *realtime = change(realtime.as_u64().unwrap()).into();
        value
    };
    let mut old = saved_at(&|realtime| realtime - HOUR);
    old["components"]["clock"]["version"] = 1.into();
    for later in ["realtime", "host_tsc"] {
        old["components"]["clock"]["data"].as_object_mut().unwrap().remove(later);
    }
    let an_hour_ago = saved_at(&|realtime| realtime - HOUR);
    let cases = [
        (&an_hour_ago, GuestClock::Host, HOUR),
        (&an_hour_ago, GuestClock::Saved, 0),
        // The host's clock was set back meanwhile.
        (&saved_at(&|realtime| realtime + HOUR), GuestClock::Host, 0),
        // By a program that did not write down the time.
        (&old, GuestClock::Host, 0),
    ];
    for (state, from, passed) in cases {
        let state: SavedState = serde_json::from_str(&state.to_string()).unwrap();
        let output = Output::default();
        let builder = Machine::builder(&spec).output(output.clone());
        let builder = builder.restore(state, memory.try_clone().unwrap()).clock(from);
        let machine = builder.start().unwrap();
        machine.console_input().write_all(b"?").unwrap();
        assert!(output.wait_for(&["?"]), "it goes on");
        let Saved { state, .. } = Running { machine, output }.save();
        let (after, clock_after, offsets_after, _) = clocks(&state);
        // The test itself takes less than half an hour.
        let whole = |passed_ns: u64| (passed..passed + HOUR / 2).contains(&passed_ns);
        assert!(whole(clock_after - clock), "{from:?}: kvm-clock went from {clock} to {clock_after}");
        for (before, after) in before.into_iter().zip(after) {
            let passed = u128::from(after - before) * 1_000_000 / u128::from(khz);
            // kvm_pvm cannot shift it: its guests see the host's.
            let fixed = offsets.iter().all(|offset| *offset == Some(0));
            let whole = whole(passed.try_into().unwrap());
            assert!(whole || fixed, "{from:?}: a TSC went from {before} to {after}, offsets {offsets:?}");
        }
        let distance = |[first, second]: [Option<u64>; 2]| Some(second?.wrapping_sub(first?));
        assert_eq!(distance(offsets_after), distance(offsets), "the TSCs differ as before");
    }
}

#[test]
fn a_restore_reads_no_kernel() {
    let load = Load::new("1");
    let running = load.boot();
    let saved = running.save();
    running.end();
    // The saved memory has the kernel.
    fs::write(load.spec.kernel.as_ref().unwrap(), "no kernel").unwrap();
    let running = load.restore(saved);
    running.until("it goes on", |running| running.disk().requests > 0);
    running.end();
}

#[test]
fn memory_that_may_have_changed_while_it_was_saved_is_no_saved_memory() {
    let load = Load::new("1");
    let running = load.boot();
    running.machine.pause(LIMIT).unwrap();
    // A file that is not read before the machine goes on.
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let error = running.machine.save(&File::from(std::os::fd::OwnedFd::from(write))).unwrap_err();
    assert!(matches!(error, SaveError::Memory { .. }), "{error}");
    running.machine.kill();
    running.machine.wait_for(LIMIT).unwrap();
    let error = running.machine.save(&tempfile::tempfile().unwrap()).unwrap_err();
    assert!(matches!(error, SaveError::Ended), "{error}");
}
