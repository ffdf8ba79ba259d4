//! A completed flush survives a power cut: a machine writes to its disk in a recorded folder, and whatever of that the medium may
//! have lost is lost, again and again. What the guest was told is durable has to be there.
//!
//! The guest (`tests/guest/power`) notes each acknowledged flush on a second disk in the same folder, so that the recording has
//! both in their order. `POWER_SEED` sets what it writes, `POWER_CUTS` how often the power is cut. It needs root, to mount the
//! folder.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "power/mod.rs"]
mod power;
#[path = "support/vmm.rs"]
mod vmm;
#[path = "support/without.rs"]
mod without;

use std::time::{Instant, SystemTime};

use dose::dose;
use power::folder::Recorded;
use power::image::{Format, NO_NAME};
use power::machine::{WITNESS, machine};
use power::promise::Promise;
use power::recording::{Change, Event, Loss, Recording};
use tiny_guest::plan::Chance;
use vmm::{Heard, Owned, wait};

const ROUNDS: u64 = 60;
/// At so many events after a sync that failed the power is cut.
const AFTER_FAILED: usize = 100;

/// A machine's disk, and how its guest uses it.
#[derive(Debug, Clone, Copy)]
struct Setup {
    format: Format,
    /// Behind the disk's path.
    options: &'static str,
    /// With io_uring.
    uring: bool,
    /// The guest zeroes and discards, too.
    space: bool,
    /// The guest sends no flush: each write is durable when it is completed.
    through: bool,
    /// So many syncs of the disk's file there are up to one that fails.
    failing: Option<u64>,
}

impl Setup {
    const fn new(format: Format) -> Self {
        Setup { format, options: "", uring: true, space: true, through: false, failing: None }
    }

    const fn options(self, options: &'static str) -> Self {
        Setup { options, ..self }
    }

    const fn without_uring(self) -> Self {
        Setup { uring: false, ..self }
    }

    const fn failing(self, sync: u64) -> Self {
        Setup { failing: Some(sync), ..self }
    }

    const fn writing_through(self) -> Self {
        Setup { through: true, ..self }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// A run of a machine, and which round the guest had noted at which event.
#[derive(Clone)]
struct Run {
    setup: Setup,
    seed: u64,
    recording: Recording,
    noted: Vec<(usize, u64)>,
    /// The rounds whose flush failed.
    failed: Vec<u64>,
}

impl Run {
    /// `None` where the host has no FUSE, and the environment allows that.
    fn new(setup: Setup) -> Option<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = number("POWER_SEED").unwrap_or(now.subsec_nanos().into());
        let mut before = setup.format.make();
        before.add(WITNESS, vec![0; 4096]);
        let failing = setup.failing.map(|sync| (setup.format.name(), sync));
        let folder = Recorded::new(before, seed, failing)?;
        let disk = setup.format.disk(folder.path()) + setup.options;
        let [space, through, errors] = [setup.space, setup.through, setup.failing.is_some()].map(u8::from);
        let words = format!("seed={seed} rounds={ROUNDS} space={space} through={through} errors={errors}");
        let (mut command, _kernel) = machine(folder.path(), &disk, &words);
        if !setup.uring {
            vmm::forbid_io_uring(&mut command);
        }
        let mut machine = Owned(folder.start(command).unwrap());
        let (stdout, first) = Heard::listen(machine.stdout.take().unwrap());
        let (stderr, second) = Heard::listen(machine.stderr.take().unwrap());
        let said = || format!("seed {seed}, {setup:?}: {}\n{}", stdout.text(), stderr.text());
        let status = wait(&mut machine, said);
        drop(machine);
        // All of what it said was heard.
        [first, second].into_iter().for_each(|thread| thread.join().unwrap());
        let recording = folder.end();
        assert!(status.success() && stdout.text().contains("done"), "{}", said());
        let noted = noted(&recording);
        assert_eq!(noted.last().map(|(_, round)| *round), Some(ROUNDS), "{}", said());
        let failed = failed_flushes(&stdout.text());
        assert_eq!(failed.len(), usize::from(setup.failing.is_some()), "{}", said());
        Some(Run { setup, seed, recording, noted, failed })
    }

    /// Cuts the power before event `at`: what the disk then holds is checked. How many changes may have been lost.
    fn cut(&self, at: usize, loss: Loss, chance: &mut Chance) -> Result<usize, String> {
        let Run { setup, seed, .. } = *self;
        let acknowledged = self.noted.iter().rfind(|(event, _)| *event < at).map_or(0, |(_, round)| *round);
        let (folder, pending) = self.recording.cut(at, loss, chance);
        let on_base = setup.format.on_base();
        let promise = Promise::new(seed, acknowledged, setup.space, on_base, &self.failed);
        let all = self.recording.events.len();
        let held = match setup.format.read(&folder) {
            // Nobody has been told anything of a disk that is only being made.
            Err(error) if error == NO_NAME && setup.format == Format::Made && acknowledged == 0 => Ok(()),
            read => read.and_then(|disk| promise.check(&disk)),
        };
        held.map(|()| pending).map_err(|error| {
            format!(
                "seed {seed}, {setup:?}: cut at event {at} of {all}, {loss:?} lost of {pending} changes, after the \
                 flush of round {acknowledged} was acknowledged: {error}"
            )
        })
    }

    /// Makes the syncs of the disk none, but for the last one before each note: where these are.
    fn drop_inner_barriers(&mut self) -> Vec<usize> {
        let node = self.recording.before.names[self.setup.format.name().as_bytes()];
        let events = &mut self.recording.events;
        let mut from = 0;
        let mut kept = Vec::new();
        for (note, _) in &self.noted {
            let is_sync = |at: &usize| matches!(events[*at], Event::Sync(of) if of == node);
            let syncs: Vec<usize> = (from..*note).filter(is_sync).collect();
            let (last, inner) = syncs.split_last().unwrap();
            inner.iter().for_each(|at| events[*at] = Event::Sync(u64::MAX));
            kept.push(*last);
            from = *note;
        }
        kept
    }

    /// Cuts the power at each point after a sync that failed, where what it lost is not yet there again.
    fn cuts_after_failed_sync(&self, chance: &mut Chance) -> Result<(), String> {
        let Some(failed) = self.recording.events.iter().position(|event| matches!(event, Event::Lost(_)))
        else {
            return Ok(());
        };
        let after = (failed + 1..self.recording.events.len()).take(AFTER_FAILED);
        after
            .zip([Loss::Everything, Loss::One].into_iter().cycle())
            .try_for_each(|(at, loss)| self.cut(at, loss, chance).map(drop))
    }

    /// Cuts the power at many points.
    fn cuts(&self, times: u64) -> Result<(), String> {
        let mut chance = Chance(self.seed);
        let events = self.recording.events.len() as u64;
        let mut lost = 0;
        for (_, loss) in (0..times).zip(Loss::ALL.into_iter().cycle()) {
            let at = usize::try_from(chance.below(events + 1)).unwrap();
            lost += self.cut(at, loss, &mut chance)?;
        }
        self.cuts_after_failed_sync(&mut chance)?;
        assert!(lost > 0, "none of {times} cuts could lose anything");
        let end = self.recording.events.len();
        [Loss::Everything, Loss::Sectors]
            .into_iter()
            .try_for_each(|loss| self.cut(end, loss, &mut chance).map(drop))
    }
}

/// The rounds whose flush the guest said to have failed.
fn failed_flushes(said: &str) -> Vec<u64> {
    let round = |line: &str| line.strip_prefix("flush ")?.strip_suffix(" failed")?.parse().ok();
    said.lines().filter_map(|line| round(line.trim())).collect()
}

/// The rounds that were noted on the witness, each with the event of that.
fn noted(recording: &Recording) -> Vec<(usize, u64)> {
    let witness = recording.before.names[WITNESS.as_bytes()];
    let note = |(at, event): (usize, &Event)| match event {
        Event::Change(node, Change::Write { data, .. }) if *node == witness => {
            Some((at, u64::from_le_bytes(data[8..16].try_into().unwrap())))
        }
        _ => None,
    };
    recording.events.iter().enumerate().filter_map(note).collect()
}

#[track_caller]
fn survives(setup: Setup) {
    let began = Instant::now();
    let Some(run) = Run::new(setup) else { return };
    let ran = began.elapsed();
    let times = number("POWER_CUTS").unwrap_or(dose(200));
    run.cuts(times).unwrap_or_else(|error| panic!("{error}"));
    let events = run.recording.events.len();
    println!(
        "{setup:?}: {ROUNDS} rounds with {events} events in {ran:?}, {times} cuts in {:?}",
        began.elapsed() - ran
    );
}

#[test]
fn what_was_flushed_to_a_raw_image_survives_power_cuts() {
    survives(Setup::new(Format::Raw));
    survives(Setup::new(Format::Raw).without_uring());
}

#[test]
fn what_was_flushed_to_a_raw_image_survives_power_cuts_with_direct_io() {
    survives(Setup::new(Format::Raw).options(",direct"));
    survives(Setup::new(Format::Raw).options(",direct").without_uring());
}

#[test]
fn what_was_written_by_a_driver_without_flushes_survives_power_cuts() {
    survives(Setup::new(Format::Raw).writing_through());
    survives(Setup::new(Format::Raw).options(",direct").writing_through().without_uring());
}

/// Clusters of 512 bytes: all kinds of tables grow while it runs.
#[test]
fn what_was_flushed_to_a_qcow2_image_survives_power_cuts() {
    survives(Setup::new(Format::Qcow2(64 << 10)));
    survives(Setup::new(Format::Qcow2(512)));
    survives(Setup::new(Format::Qcow2(4096)).options(",direct"));
    survives(Setup::new(Format::Qcow2(64 << 10)).without_uring());
}

#[test]
fn what_was_flushed_to_an_overlay_survives_power_cuts() {
    survives(Setup::new(Format::Overlay(64 << 10)));
    survives(Setup::new(Format::Overlay(64 << 10)).options(",direct"));
    survives(Setup::new(Format::Chain(4096)).without_uring());
}

#[test]
fn what_was_flushed_to_an_overlay_that_the_machine_made_survives_power_cuts() {
    survives(Setup::new(Format::Made));
}

#[test]
fn what_was_written_to_an_overlay_without_flushes_survives_power_cuts() {
    survives(Setup::new(Format::Overlay(64 << 10)).writing_through());
}

/// The guest hears of a sync that failed, once, and what is flushed afterwards is durable. Two syncs one after the other, as a commit
/// of metadata has two.
#[test]
fn a_sync_that_fails_is_an_error_once_and_the_next_flush_tells_the_truth() {
    survives(Setup::new(Format::Raw).failing(20));
    for sync in [30, 31] {
        survives(Setup::new(Format::Qcow2(64 << 10)).failing(sync));
    }
    survives(Setup::new(Format::Qcow2(512)).failing(33).without_uring());
    // What was copied from the base into the clusters that the guest wrote to is not the guest's to write again.
    for sync in [20, 30, 31] {
        survives(Setup::new(Format::Overlay(64 << 10)).failing(sync));
    }
    survives(Setup::new(Format::Overlay(64 << 10)).options(",direct").failing(30));
}

/// The test itself: a run whose flushes are none, or are acknowledged when they begin, does not pass.
#[test]
fn a_broken_promise_is_found() {
    let Some(mut run) = Run::new(Setup::new(Format::Raw)) else { return };
    let cuts = 200;
    run.cuts(cuts).unwrap_or_else(|error| panic!("{error}"));
    let honest = run.noted.clone();
    let node = run.recording.before.names[Format::Raw.name().as_bytes()];
    let syncs = run
        .recording
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| matches!(event, Event::Sync(of) if *of == node));
    run.noted = syncs.map(|(at, _)| at).zip(1..=ROUNDS).collect();
    assert_eq!(run.noted.len() as u64, ROUNDS);
    run.cuts(cuts).expect_err("acknowledged too early");
    run.noted = honest;
    for event in &mut run.recording.events {
        if let Event::Sync(node) = event {
            *node = u64::MAX;
        }
    }
    run.cuts(cuts).expect_err("flushed without a sync");
}

/// The test itself, of images: without the barriers inside of a commit there are pointers to clusters whose refcounts are lost, and
/// to clusters without their data.
#[test]
fn metadata_that_come_before_data_and_refcounts_are_found() {
    for (format, wrong) in
        [(Format::Qcow2(64 << 10), ": qemu-img check"), (Format::Overlay(64 << 10), ": sector ")]
    {
        let Some(mut run) = Run::new(Setup::new(format)) else { return };
        let losses = [Loss::AllButOne, Loss::One, Loss::Changes];
        let cuts = |run: &Run, commits: &[usize]| {
            let mut chance = Chance(run.seed);
            let cut = |(at, loss): (&usize, Loss)| run.cut(at + 1, loss, &mut chance).err();
            commits.iter().zip(losses.into_iter().cycle()).filter_map(cut).find(|error| error.contains(wrong))
        };
        let honest = run.clone();
        let commits = run.drop_inner_barriers();
        assert_eq!(cuts(&honest, &commits[..20]), None);
        let again: Vec<_> = std::iter::repeat_n(&commits, 10).flatten().copied().collect();
        let found = cuts(&run, &again);
        println!("{found:?}");
        assert!(found.is_some(), "seed {}, {format:?}: pointers are in order without barriers", run.seed);
    }
}
