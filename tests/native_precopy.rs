//! Machines that are copied while they run: a guest that writes its memory all the time and looks at every page misses nothing, in the
//! copy or where it was; and each way out of a copy leaves the machine as it was, without the log of written pages.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/host.rs"]
mod host;
#[path = "support/load.rs"]
mod load;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use embedded::{LIMIT, Output};
use host::Host;
use minivmm::spec::{DiskSpec, Spec};
use minivmm::{
    CopyLimits, CopyProgress, Exit, Machine, MachineState, Otherwise, RevertError, SaveError, SaveOptions,
    SavedMachine,
};
use serde_json::Value;
use tempfile::TempDir;
use vmm::{Heard, Launch, Owned, Vmm, count, send_signal, wait};

/// A machine of 32 MiB in this process, with the guest that writes its memory.
struct Embedded {
    machine: Machine,
    output: Output,
    folder: TempDir,
}

impl Embedded {
    fn start(words: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, tiny_guest::WRITER).unwrap();
        let spec = Spec::new(kernel).with_mem("32".parse().unwrap()).with_append(words);
        let output = Output::default();
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        let embedded = Embedded { machine, output, folder };
        embedded.goes_on();
        embedded
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another round is over, and nothing was lost.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.output.text().matches("round").count();
        self.machine.console_input().write_all(b"?+").unwrap();
        let over = |text: &str| text.ends_with('\n') && text.matches("finished rounds").count() > 0;
        let begun = std::time::Instant::now();
        while !(over(&self.output.text()) && self.output.text().matches("round").count() > before) {
            assert!(
                begun.elapsed() < LIMIT && !self.output.text().contains("failed"),
                "{}",
                self.output.text()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// At the end of each round, so that the next one has all of the guest's pages again.
    #[track_caller]
    fn writes_meanwhile(&self, progress: &CopyProgress) {
        if progress.left == 0 && self.machine.state() == MachineState::Running {
            self.goes_on();
        }
    }

    fn save(
        &self,
        folder: &str,
        limits: CopyLimits,
        watch: &mut dyn FnMut(&CopyProgress) -> ControlFlow<()>,
    ) -> Result<minivmm::CopyReport, SaveError> {
        self.machine.save_running(self.folder(folder), limits, LIMIT, watch)
    }

    /// It runs, the log is off, and nothing is left of the folder.
    #[track_caller]
    fn is_as_before(&self, folder: &str) {
        assert_eq!(self.machine.state(), MachineState::Running);
        assert!(matches!(self.machine.take_written(), Err(SaveError::Log(_))));
        assert_eq!(self.machine.controls().copy_progress(), None);
        let left = |name: String| self.folder(&name).exists();
        assert!(!left(folder.to_owned()) && !left(format!(".{folder}.part")));
        self.goes_on();
    }
}

fn on(_: &CopyProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn copy_of_a_running_machine_is_the_machine_in_its_pause() {
    let embedded = Embedded::start("pages=2048");
    let mut seen = Vec::new();
    let mut limits = CopyLimits::default();
    // Never: all rounds are made before it is paused all the same.
    limits.downtime = Duration::ZERO;
    let report = embedded
        .save("saved", limits, &mut |progress| {
            seen.push(*progress);
            embedded.writes_meanwhile(progress);
            assert_eq!(embedded.machine.controls().copy_progress(), Some(*progress));
            ControlFlow::Continue(())
        })
        .unwrap();
    let last = seen.last().unwrap();
    assert!(
        report.rounds > 3 && report.rounds == last.round && report.sent == last.sent,
        "{report:?} {last:?}"
    );
    assert!(seen.windows(2).all(|two| two[0].round <= two[1].round && two[0].sent <= two[1].sent));
    assert_eq!((seen[0].total, last.left), (32 << 20, 0));
    assert!(report.paused_ms <= report.total_ms);
    embedded.goes_on();
    assert!(matches!(embedded.machine.take_written(), Err(SaveError::Log(_))));
    // Both, at the same time, and the copy of the copy.
    let mut folder = embedded.folder("saved");
    for round in 0..3 {
        let output = Output::default();
        let builder = SavedMachine::open(&folder).unwrap().into_builder();
        let machine = builder.output(output.clone()).start().unwrap();
        let restored = Embedded { machine, output, folder: tempfile::tempdir().unwrap() };
        restored.goes_on();
        // It was told that it is another machine now, before it went on.
        assert!(restored.output.text().contains("renewed=1"), "{}", restored.output.text());
        let next = embedded.folder(&format!("saved{round}"));
        restored.machine.save_running(&next, CopyLimits::default(), LIMIT, &mut on).unwrap();
        restored.goes_on();
        folder = next;
    }
    embedded.goes_on();
    assert!(!embedded.output.text().contains("renewed=1"));
}

impl Embedded {
    /// The guest waits behind a round: types this, and waits until it waits again.
    fn waits_after(&self, typed: &[u8]) {
        let finished = |text: &str| text.matches("finished rounds").count();
        let before = finished(&self.output.text());
        self.machine.console_input().write_all(typed).unwrap();
        let begun = std::time::Instant::now();
        while !(finished(&self.output.text()) > before && self.output.text().ends_with('\n')) {
            assert!(
                begun.elapsed() < LIMIT && !self.output.text().contains("failed"),
                "{}",
                self.output.text()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn pages_that_are_emptied_meanwhile_are_empty_in_the_copy() {
    // In a round while it runs, and in the one while it rests.
    for (downtime, rounds) in [(Duration::ZERO, 3), (Duration::from_secs(10), 2)] {
        let embedded = Embedded::start("pages=2048");
        embedded.waits_after(b"?");
        let (mut limits, mut written) = (CopyLimits::default(), false);
        limits.downtime = downtime;
        let report = embedded
            .save("saved", limits, &mut |progress| {
                if progress.left == 0 && !std::mem::replace(&mut written, true) {
                    // One round of the guest, no more: what it empties, and had something in it before, it leaves as it is.
                    embedded.waits_after(b"+?");
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        // One that writes anything else meanwhile takes more of them.
        assert!(report.rounds >= rounds, "{report:?}");
        let output = Output::default();
        let builder = SavedMachine::open(embedded.folder("saved")).unwrap().into_builder();
        let machine = builder.output(output.clone()).start().unwrap();
        let restored = Embedded { machine, output, folder: tempfile::tempdir().unwrap() };
        restored.waits_after(b"+?");
    }
}

/// Bytes of a disk of which the guest writes the first 8 MiB.
const DISK: usize = 64 << 20;

#[test]
fn raw_disk_is_copied_while_its_guest_writes_and_the_pause_is_for_the_rest_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let [kernel, image, saved, overlays] =
        ["kernel", "vda.raw", "saved", "overlays"].map(|name| folder.path().join(name));
    fs::write(&kernel, tiny_guest::LOAD).unwrap();
    // Where the guest writes there are holes, and behind it data.
    let mut contents: Vec<u8> = (0..DISK / 8).flat_map(|word| (word as u64 | 1).to_le_bytes()).collect();
    contents[..8 << 20].fill(0);
    let file = File::create(&image).unwrap();
    file.set_len(DISK as u64).unwrap();
    file.write_all_at(&contents[8 << 20..], 8 << 20).unwrap();
    let spec = Spec::new(kernel).with_mem("16".parse().unwrap()).with_disk(DiskSpec::new(&image));
    let output = Output::default();
    let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
    let (controls, lines) = (machine.controls(), || output.text().matches("at=").count());
    let mut limits = CopyLimits::default();
    // Never: rounds are made until they come no closer.
    limits.downtime = Duration::ZERO;
    let mut watch = |progress: &CopyProgress| {
        if progress.left == 0 && machine.state() == MachineState::Running {
            // It has written to every block of its part meanwhile, or to many.
            let (before, begun) = (lines(), std::time::Instant::now());
            while lines() < before + 2 {
                assert!(begun.elapsed() < LIMIT, "{}", output.text());
                thread::sleep(Duration::from_millis(1));
            }
        }
        ControlFlow::Continue(())
    };
    let options = SaveOptions::new().with_disks();
    let report = controls.save_running_with(&saved, options, limits, LIMIT, &mut watch).unwrap();
    assert!(report.rounds > 3 && report.sent > DISK as u64, "{report:?}");
    // All that both may have written last, and by far not the disk.
    assert!(report.paused_sent < 32 << 20, "{report:?}");
    // What it wrote last is in the copy, when it has done what was in flight.
    let words = ["restore", "saved", "--disks", "overlays"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(words).current_dir(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut restored = Owned::start(&mut command);
    let (said, _) = Heard::listen(restored.stdout.take().unwrap());
    restored.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    assert!(said.wait(|heard| count(heard, " kicks=") > 0), "{}", said.text());
    restored.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    assert!(wait(&mut restored, || said.text()).success());
    let converted = folder.path().join("copy.raw");
    let mut convert = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    convert.args(["disk", "convert", "--backing"]).arg(saved.join("vda.raw"));
    let done = convert.arg(overlays.join("vda.qcow2")).arg(&converted).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    load::assert_last_writes(&converted, load::number(&said.text(), "writes="));
    assert!(fs::read(&converted).unwrap()[8 << 20..] == contents[8 << 20..]);
    // The original writes on, to its own.
    machine.console_input().write_all(b"!").unwrap();
    assert!(output.wait_for_word(" kicks="), "{}", output.text());
    machine.console_input().write_all(b"!").unwrap();
    assert!(matches!(*machine.wait(), Exit::PoweredOff));
    load::assert_last_writes(&image, load::number(&output.text(), "writes="));
}

#[test]
fn disk_that_is_made_larger_meanwhile_ends_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let [kernel, image, saved] = ["kernel", "vda.raw", "saved"].map(|name| folder.path().join(name));
    fs::write(&kernel, tiny_guest::LOAD).unwrap();
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let spec = Spec::new(kernel).with_mem("16".parse().unwrap()).with_disk(DiskSpec::new(&image));
    let machine = Machine::start(&spec, Box::new(Output::default())).unwrap();
    let controls = machine.controls();
    let options = SaveOptions::new().with_disks();
    let mut grow = |_: &CopyProgress| {
        controls.grow_disk("vda", "16M".parse().unwrap()).unwrap();
        ControlFlow::Continue(())
    };
    let failed = controls.save_running_with(&saved, options, CopyLimits::default(), LIMIT, &mut grow);
    let error = failed.unwrap_err();
    assert!(matches!(&error, SaveError::DiskResized(id) if id == "vda"), "{error}");
    assert!(!saved.exists() && machine.state() == MachineState::Running);
    controls.save_running_with(&saved, options, CopyLimits::default(), LIMIT, &mut on).unwrap();
    assert_eq!(fs::metadata(saved.join("vda.raw")).unwrap().len(), 16 << 20);
}

#[test]
fn each_way_out_of_a_copy_leaves_the_machine_as_it_was() {
    let embedded = Embedded::start("pages=2048");
    let failed = |limits, watch: &mut dyn FnMut(&CopyProgress) -> ControlFlow<()>| {
        let error = embedded.save("saved", limits, watch).unwrap_err();
        embedded.is_as_before("saved");
        error
    };
    let limits = CopyLimits::default();
    let controls = embedded.machine.controls();
    assert!(matches!(failed(limits, &mut |_| ControlFlow::Break(())), SaveError::Cancelled));
    // By somebody else, in any round.
    for number in [1, 2, 3] {
        let mut never = limits;
        never.downtime = Duration::ZERO;
        let mut watch = |progress: &CopyProgress| {
            embedded.writes_meanwhile(progress);
            if progress.round == number {
                controls.cancel_copy();
            }
            ControlFlow::Continue(())
        };
        assert!(matches!(failed(never, &mut watch), SaveError::Cancelled), "{number}");
    }
    // Another guest is in the machine afterwards.
    let mut reset = false;
    let error = failed(limits, &mut |_| {
        if !std::mem::replace(&mut reset, true) {
            controls.reset();
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(error, SaveError::Reset), "{error}");
    // A guest that writes too much, for somebody who cannot have a longer pause.
    let mut short = limits;
    (short.downtime, short.otherwise) = (Duration::ZERO, Otherwise::GiveUp);
    let error = failed(short, &mut |progress| {
        embedded.writes_meanwhile(progress);
        ControlFlow::Continue(())
    });
    assert!(matches!(error, SaveError::Diverges { .. }), "{error}");
    assert!(error.to_string().contains("MiB are left"), "{error}");
    // Written pages are for one of them.
    let (mut others, mut last) = (Vec::new(), limits);
    last.bandwidth = Some(1 << 40);
    let error = failed(last, &mut |_| {
        let other = embedded.save("other", limits, &mut on).map(drop);
        others.extend([other, embedded.machine.log_writes(true), embedded.machine.log_writes(false)]);
        others.push(embedded.machine.take_written().map(drop));
        ControlFlow::Break(())
    });
    assert!(matches!(error, SaveError::Cancelled));
    assert!(
        others.len() == 4 && others.iter().all(|other| matches!(other, Err(SaveError::LogInUse))),
        "{others:?}"
    );
    embedded.machine.log_writes(true).unwrap();
    assert!(matches!(embedded.save("saved", limits, &mut on), Err(SaveError::LogInUse)));
    embedded.machine.log_writes(false).unwrap();
    // Resumed by somebody else while the last pages are copied.
    let mut never = limits;
    never.downtime = Duration::ZERO;
    let error = failed(never, &mut |progress| {
        embedded.writes_meanwhile(progress);
        if controls.state() == MachineState::Paused {
            controls.resume();
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(error, SaveError::Resumed), "{error}");
    // One that was paused stays so.
    embedded.machine.pause(LIMIT).unwrap();
    embedded.save("paused", limits, &mut on).unwrap();
    assert_eq!(embedded.machine.state(), MachineState::Paused);
    embedded.machine.resume();
    embedded.goes_on();
    let error = embedded.save("saved", limits, &mut |_| {
        embedded.machine.kill();
        ControlFlow::Continue(())
    });
    assert!(matches!(error, Err(SaveError::Ended)), "{error:?}");
    assert!(matches!(&*embedded.machine.wait(), Exit::Killed));
}

#[test]
fn a_machine_that_rests_for_a_copy_rests_on_for_those_who_want_that_and_for_nobody_else() {
    let embedded = Embedded::start("pages=2048");
    let controls = embedded.machine.controls();
    let mut never = CopyLimits::default();
    never.downtime = Duration::ZERO;
    let in_pause = |folder: &str, act: &mut dyn FnMut()| {
        let mut acted = false;
        let saved = embedded.save(folder, never, &mut |progress| {
            embedded.writes_meanwhile(progress);
            if controls.state() == MachineState::Paused && !std::mem::replace(&mut acted, true) {
                act();
            }
            ControlFlow::Continue(())
        });
        assert!(acted);
        saved.map(drop)
    };
    // Somebody else needs it at rest as well, for a while: neither goes on too early.
    fs::create_dir_all(embedded.folder("exists/already")).unwrap();
    let mut other = Vec::new();
    in_pause("saved", &mut || {
        other.push(controls.save_and_end(embedded.folder("exists"), LIMIT));
        assert_eq!(controls.state(), MachineState::Paused);
    })
    .unwrap();
    assert!(matches!(other[..], [Err(SaveError::Folder(_))]), "{other:?}");
    assert_eq!(controls.state(), MachineState::Running);
    embedded.goes_on();
    // Somebody pauses it: it stays so.
    in_pause("kept", &mut || controls.pause(LIMIT).unwrap()).unwrap();
    assert_eq!(controls.state(), MachineState::Paused);
    controls.resume();
    embedded.goes_on();
    // The last of the memory is copied, and the copy is cancelled before that of the disks.
    let cancelled = embedded.save("cancelled", never, &mut |progress| {
        embedded.writes_meanwhile(progress);
        if controls.state() == MachineState::Paused && progress.left == 0 {
            controls.cancel_copy();
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(cancelled, Err(SaveError::Cancelled)), "{cancelled:?}");
    embedded.is_as_before("cancelled");
}

#[test]
fn a_way_back_that_is_cancelled_leaves_the_machine_where_it_is() {
    let embedded = Embedded::start("pages=2048");
    let folder = embedded.folder("first");
    embedded.machine.snapshot_to(&folder, LIMIT).unwrap();
    embedded.goes_on();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                embedded.machine.controls().cancel_copy();
            }
        });
        let begun = std::time::Instant::now();
        let error = loop {
            match embedded.machine.revert_to(&folder) {
                Ok(()) => assert!(begun.elapsed() < LIMIT),
                Err(error) => break error,
            }
        };
        over.store(true, Ordering::Relaxed);
        assert!(matches!(error, RevertError::Cancelled), "{error}");
    });
    assert_eq!(embedded.machine.state(), MachineState::Running);
    embedded.goes_on();
    embedded.machine.revert_to(&folder).unwrap();
    embedded.goes_on();
}

/// A machine with a name, of 32 MiB, with that guest.
struct Named {
    host: Host,
    machine: Vmm,
}

impl Named {
    fn start(words: &[&str]) -> Self {
        let host = Host::new();
        let kernel = host.0.path().join("kernel");
        fs::write(&kernel, tiny_guest::WRITER).unwrap();
        let mut launch = Launch::kernel(&kernel, tempfile::tempdir().unwrap());
        launch.command.env("XDG_RUNTIME_DIR", host.0.path());
        let machine =
            launch.args(&["--name", "vm0", "--mem", "32"]).args(words).stdin(Stdio::piped()).spawn();
        machine.expect("round=4\n", 1);
        Named { host, machine }
    }

    fn folder(&self) -> &Path {
        self.host.0.path()
    }

    fn path(&self, name: &str) -> String {
        self.folder().join(name).to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn ends_well(mut self) {
        self.machine.type_in(b"!!");
        let ended = self.machine.end();
        assert!(ended.status.success() && ended.stdout.contains("finished"), "{ended:?}");
    }
}

#[test]
fn a_machine_with_a_read_only_disk_is_saved_by_the_verb_and_runs_on() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let named = Named::start(&["--disk", &format!("{},ro", image.path().display())]);
    let saved = named.path("saved");
    let report: Value =
        named.host.json(&["save", "vm0", &saved, "--keep-running", "--json", "--downtime", "1s"]);
    assert!(report["rounds"].as_u64().unwrap() > 1 && report["sent"].as_u64().unwrap() > 6 << 20, "{report}");
    let again = named.path("again");
    let output = named.host.run(&["save", "vm0", &again, "--keep-running", "--bandwidth", "1G"]);
    let [said, beside] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success() && beside.contains("vm0 is saved in"), "{said} {beside}");
    assert!(said.starts_with("saved in ") && said.contains("paused for "), "{said}");
    named.host.fails(&["save", "vm0", &saved, "--keep-running"], 1, "exists");
    named.host.fails(&["save", "vm0", &saved, "--downtime", "1s"], 2, "--keep-running");
    named.host.fails(&["save", "vm0", &saved, "--keep-running", "--downtime", "1"], 2, "300ms");
    let body = format!("{{\"folder\": \"{saved}\", \"downtime\": 1}}");
    assert_eq!(named.host.http("vm0", "POST", "/v1/save", &body).0, 400);
    let (host, folder) = (&named.host, named.folder());
    let mut command = host.verb(&["restore", "--name", "vm1", &saved]);
    let mut child = Owned::start(command.current_dir(folder).stdin(Stdio::piped()));
    let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"!!").unwrap();
    let status = wait(&mut child, || stdout.text());
    assert!(
        status.success() && stdout.wait(|heard| count(heard, "finished rounds=") == 1),
        "{}",
        stdout.text()
    );
    named.ends_well();
}

#[test]
fn a_save_is_cancelled_by_a_signal_or_a_request_and_follows_no_reset() {
    let named = Named::start(&[]);
    let saved = named.path("saved");
    let begin = || {
        let words = ["save", "vm0", &saved, "--keep-running", "--bandwidth", "64K"];
        let verb = Owned::start(&mut named.host.verb(&words));
        let begun = std::time::Instant::now();
        while named.host.http("vm0", "GET", "/v1/copy", "").0 != 200 {
            assert!(begun.elapsed() < vmm::LIMIT);
            thread::sleep(Duration::from_millis(1));
        }
        verb
    };
    let ended = |mut verb: Owned| {
        let (stderr, reader) = Heard::listen(verb.stderr.take().unwrap());
        let status = wait(&mut verb, || stderr.text());
        reader.join().unwrap();
        assert!(!Path::new(&saved).exists());
        (status.code(), stderr.text())
    };
    let verb = begin();
    named.host.fails(&["save", "vm0", &named.path("other"), "--keep-running"], 1, "being copied already");
    // Another one's, as a migration that broke off cancels.
    assert_eq!(named.host.http("vm0", "DELETE", "/v1/copy", "{\"copy\":\"other\"}").0, 204);
    let sent = || {
        let (status, body) = named.host.http("vm0", "GET", "/v1/copy", "");
        assert_eq!(status, 200, "it was cancelled");
        serde_json::from_str::<Value>(&body).unwrap()["sent"].as_u64().unwrap()
    };
    let (before, begun) = (sent(), std::time::Instant::now());
    while sent() == before {
        assert!(begun.elapsed() < vmm::LIMIT);
        thread::sleep(Duration::from_millis(1));
    }
    send_signal(i32::try_from(verb.id()).unwrap(), libc::SIGINT);
    let (status, said) = ended(verb);
    assert!(status == Some(130) && said.contains("the machine is as it was"), "{status:?} {said}");
    let verb = begin();
    assert_eq!(named.host.http("vm0", "DELETE", "/v1/copy", "").0, 204);
    let (status, said) = ended(verb);
    assert!(status == Some(1) && said.contains("cancelled"), "{status:?} {said}");
    let verb = begin();
    named.host.does(&["reset", "vm0"]);
    named.host.http("vm0", "DELETE", "/v1/copy", "");
    ended(verb);
    named.machine.expect("ready\n", 2);
    named.ends_well();
}

#[test]
fn a_guest_that_writes_to_a_disk_is_not_saved_while_it_runs() {
    let image = tempfile::NamedTempFile::new().unwrap();
    File::options().write(true).open(image.path()).unwrap().set_len(1 << 20).unwrap();
    let named = Named::start(&["--disk", image.path().to_str().unwrap()]);
    named.host.fails(
        &["save", "vm0", &named.path("saved"), "--keep-running"],
        1,
        "the guest can write to vda",
    );
    assert!(!Path::new(&named.path("saved")).exists());
    named.ends_well();
}
