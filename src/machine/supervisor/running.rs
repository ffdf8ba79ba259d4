//! One boot's life as the supervisor sees it: commands, pauses, and the guest's own end.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::Instant;

use devices::bus::Effect;

use super::{Command, Event, PauseResult, Supervisor, receive};
use crate::machine::boot_once::Boot;
use crate::machine::ends::{End, TICK};
use crate::machine::events::MachineEvent;
use crate::machine::full_disks::FullDisk;
use crate::machine::precopy::{CopyStart, LogUser};
use crate::machine::resources::Resources;
use crate::machine::revert::{Revert, RevertError};
use crate::machine::saved::{SaveError, SavedParts, current_spec};
use crate::machine::template::Shared;
use crate::machine::vcpus::VcpuEvent;
use crate::machine::{Exit, GaveUp, PauseError, StartError};
use crate::spec::OnReboot;

/// What comes after a boot.
pub(super) enum NextBoot {
    /// Another one, by command.
    BootAgain,
    /// Another one, since the guest has reset itself.
    Reset,
    /// One that goes on from a snapshot. Whoever wants it waits for the answer.
    Revert(Box<Revert>, Sender<Result<(), RevertError>>),
    End(Exit),
}

/// How far a boot is in pausing.
#[derive(Debug)]
enum PauseState {
    Running,
    /// The vCPUs were asked to rest. Those in `resumed` have asked it to go on since, and wait for a disk to be quiesced.
    Stopping {
        round: u64,
        waiting: Vec<Sender<PauseResult>>,
        resumed: Vec<Sender<()>>,
    },
    /// They rest, and the devices are being quiesced. Those in `resumed` have asked it to go on since.
    Quiescing {
        waiting: Vec<Sender<PauseResult>>,
        resumed: Vec<Sender<()>>,
    },
    /// Guest memory does not change for as long as there is what this holds.
    Paused(Arc<()>),
}

impl PauseState {
    /// Tells those who wait for a pause what came instead.
    fn give_up(&mut self, why: &PauseError) {
        if let PauseState::Stopping { waiting, .. } | PauseState::Quiescing { waiting, .. } = self {
            waiting.drain(..).for_each(|answer| reply(&answer, Err(why.clone())));
        }
    }
}

/// See the module.
pub(super) struct RunningBoot<'a> {
    supervisor: &'a Supervisor,
    resources: &'a Arc<Resources>,
    boot: &'a Arc<Boot>,
    pause: PauseState,
    /// Somebody has paused it: it rests whether it is held or not.
    asked: bool,
    /// The holds for which it rests, or is about to.
    holds: BTreeSet<u64>,
    /// Disks that wait for room on the host: they repeat their requests when they were quiesced and go on.
    full: Vec<String>,
    /// Who has the log of written pages, if it is on.
    log: Option<LogUser>,
    /// It may run elsewhere, or soon: it stays paused.
    leaving: bool,
    /// When the guest is looked at next, because it seems to be at its end.
    look: Option<Instant>,
}

impl<'a> RunningBoot<'a> {
    pub(super) fn new(
        supervisor: &'a Supervisor,
        resources: &'a Arc<Resources>,
        boot: &'a Arc<Boot>,
    ) -> Self {
        let pause = if boot.is_held {
            boot.watch.stop();
            resources.publisher.publish(MachineEvent::Paused);
            PauseState::Paused(Arc::default())
        } else {
            PauseState::Running
        };
        RunningBoot {
            supervisor,
            resources,
            boot,
            pause,
            asked: false,
            holds: BTreeSet::new(),
            full: Vec::new(),
            log: None,
            leaving: boot.is_held,
            look: None,
        }
    }

    /// Serves the `deferred` events and what comes behind them, until this boot is over.
    pub(super) fn run(mut self, deferred: &mut VecDeque<Event>) -> NextBoot {
        let next = self.serve(deferred);
        self.pause.give_up(match &next {
            NextBoot::BootAgain | NextBoot::Reset | NextBoot::Revert(..) => &PauseError::Interrupted,
            NextBoot::End(_) => &PauseError::Ended,
        });
        next
    }

    fn serve(&mut self, deferred: &mut VecDeque<Event>) -> NextBoot {
        loop {
            let next = match deferred.pop_front() {
                Some(event) => self.event(event),
                None => match self.receive() {
                    Ok(event) => self.event(event),
                    Err(RecvTimeoutError::Timeout) => self.look(),
                    // The channel cannot end, since the supervisor has a sender; if it did, nobody could ask for more.
                    Err(RecvTimeoutError::Disconnected) => Some(NextBoot::End(Exit::Killed)),
                },
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// Serves an event; it may be the end of this boot.
    fn event(&mut self, event: Event) -> Option<NextBoot> {
        if !event.concerns(self.boot.number) {
            return None;
        }
        match event {
            Event::Command(command) => return self.command(command),
            Event::Suspect { .. } => self.boot.watch.taken(),
            Event::OutputOver { .. } => self.boot.call_vcpus(),
            Event::DiskFull { disk, .. } => self.disk_full(disk),
            Event::AtRest { round, .. } => self.vcpus_rest(round),
            Event::Quiesced { .. } => self.quiesced(),
            Event::Vcpu { what, .. } => return Some(self.ended(what)),
            Event::JobPanicked => {
                return Some(NextBoot::End(Exit::Failed(StartError::Internal("a device"))));
            }
            Event::NextBoot | Event::Released | Event::Saved | Event::Reported => {}
        }
        None
    }

    fn command(&mut self, command: Command) -> Option<NextBoot> {
        match command {
            Command::Reset => {
                self.supervisor.urgent.taken();
                if self.leaving {
                    return None;
                }
                return Some(NextBoot::BootAgain);
            }
            Command::Kill => return Some(NextBoot::End(Exit::Killed)),
            Command::PowerButton => match self.boot.watch.button() {
                Some(end) => return Some(self.next(end)),
                None => self.boot.press_power_button(),
            },
            Command::Pause(answer) => {
                self.asked = true;
                self.pause(answer);
            }
            Command::Hold(hold, answer) => {
                self.holds.insert(hold);
                self.pause(answer);
            }
            Command::Release(hold, answer) => self.release(hold, answer),
            // It may run elsewhere already.
            Command::Resume(_) if self.leaving => {}
            Command::Resume(answer) => {
                self.asked = false;
                self.resume(answer);
            }
            Command::Stats(answer) => reply(&answer, self.boot.stats()),
            Command::Save(copied, answer) => self.save(copied, answer),
            Command::EndSaved(saved, answer) => return self.end_saved(&saved, &answer),
            Command::Spec(answer) => reply(&answer, current_spec(self.resources)),
            Command::Revert(_, answer) if self.leaving => reply(&answer, Err(RevertError::Migrating)),
            Command::Revert(revert, answer) => return Some(NextBoot::Revert(revert, answer)),
            Command::Share(answer) => reply(&answer, Shared::of(self.resources)),
            Command::Leave(saved, answer) => reply(&answer, self.leave(saved)),
            Command::EndLeft(answer) => {
                let left = self.leaving;
                reply(&answer, if left { Ok(()) } else { Err(SaveError::Resumed) });
                return left.then_some(NextBoot::End(Exit::Migrated));
            }
            Command::LogWrites(user, on, answer) => reply(&answer, self.log_writes(user, on)),
            Command::TakeWritten(user, answer) => reply(&answer, self.take_written(user)),
        }
        None
    }

    /// Pauses for a disk without room, as if somebody had asked for it.
    fn disk_full(&mut self, disk: FullDisk) {
        // Of a disk on several threads, each may say so.
        if self.full.contains(&disk.id) {
            return;
        }
        self.full.push(disk.id.clone());
        let path =
            disk.spec(self.resources).map_or_else(String::new, |spec| spec.image().display().to_string());
        self.resources.publisher.publish(MachineEvent::DiskFull { disk: disk.id.clone(), path });
        self.asked = true;
        if matches!(self.pause, PauseState::Running) {
            self.stop(Vec::new());
        }
        let resources = self.resources.clone();
        self.supervisor.blocking.run(&self.supervisor.sender, move || {
            disk.report(&resources);
            Event::Reported
        });
    }

    fn stop(&mut self, waiting: Vec<Sender<PauseResult>>) {
        self.boot.watch.stop();
        let round = self.boot.hold_vcpus();
        self.pause = PauseState::Stopping { round, waiting, resumed: Vec::new() };
    }

    fn pause(&mut self, answer: Sender<PauseResult>) {
        match &mut self.pause {
            PauseState::Paused(_) => reply(&answer, Ok(())),
            PauseState::Stopping { waiting, resumed, .. } | PauseState::Quiescing { waiting, resumed } => {
                // Behind a resume: it stays where it is after all.
                resumed.drain(..).for_each(|answer| reply(&answer, ()));
                waiting.push(answer);
            }
            PauseState::Running => self.stop(vec![answer]),
        }
    }

    /// It goes on if that was the last hold, and nobody has paused it.
    fn release(&mut self, hold: u64, answer: Sender<()>) {
        // One of a boot before is over already.
        if self.holds.remove(&hold) && self.holds.is_empty() && !self.asked && !self.leaving {
            self.resume(answer);
        } else {
            reply(&answer, ());
        }
    }

    fn resume(&mut self, answer: Sender<()>) {
        self.pause.give_up(&PauseError::Interrupted);
        match &mut self.pause {
            // Devices cannot go on before they are quiesced, and a full disk goes on in no other way.
            PauseState::Quiescing { resumed, .. } => return resumed.push(answer),
            PauseState::Stopping { resumed, .. } if !self.full.is_empty() => return resumed.push(answer),
            PauseState::Paused(_) => {
                self.go_on(Boot::resume);
                self.resources.publisher.publish(MachineEvent::Resumed);
            }
            // The devices were not stopped yet.
            PauseState::Running | PauseState::Stopping { .. } => self.go_on(Boot::resume_vcpus),
        }
        reply(&answer, ());
    }

    fn go_on(&mut self, resume: impl FnOnce(&Boot)) {
        self.boot.watch.go_on();
        // First, so that nobody takes memory that changes for memory that was saved.
        self.pause = PauseState::Running;
        self.full.clear();
        resume(self.boot);
    }

    fn save(&self, copied: Vec<usize>, answer: Sender<Result<SavedParts, SaveError>>) {
        let PauseState::Paused(paused) = &self.pause else {
            return reply(&answer, Err(SaveError::NotPaused));
        };
        let (boot, paused) = (self.boot.clone(), Arc::downgrade(paused));
        let (resources, spec) = (self.resources.clone(), current_spec(self.resources));
        self.supervisor.blocking.run(&self.supervisor.sender, move || {
            let saved = boot.save(paused.clone(), spec, &resources.files.drives, &copied);
            // A resume that came meanwhile is the reason to tell, not the first component that is at work.
            reply(&answer, if paused.strong_count() > 0 { saved } else { Err(SaveError::Resumed) });
            Event::Saved
        });
    }

    fn leave(&mut self, saved: Option<Weak<()>>) -> Result<(), SaveError> {
        let rests =
            |saved: &Weak<()>| matches!(self.pause, PauseState::Paused(_)) && saved.strong_count() > 0;
        match saved {
            Some(saved) if !rests(&saved) => Err(SaveError::Resumed),
            saved => {
                self.leaving = saved.is_some();
                Ok(())
            }
        }
    }

    fn log_writes(&mut self, user: LogUser, on: bool) -> Result<CopyStart, SaveError> {
        self.check_log(user)?;
        self.boot.log_writes(on)?;
        self.log = on.then_some(user);
        Ok(CopyStart { ram: self.boot.ram().clone(), spec: current_spec(self.resources) })
    }

    fn take_written(&self, user: LogUser) -> Result<Vec<Range<u64>>, SaveError> {
        self.check_log(user)?;
        self.boot.take_written()
    }

    /// Whether nobody else has the log.
    fn check_log(&self, user: LogUser) -> Result<(), SaveError> {
        if self.log.is_none_or(|owner| owner == user) { Ok(()) } else { Err(SaveError::LogInUse) }
    }

    /// Ends a machine that was saved, if it has not gone on since.
    fn end_saved(&self, saved: &Weak<()>, answer: &Sender<Result<(), SaveError>>) -> Option<NextBoot> {
        if self.leaving {
            // What runs elsewhere is not to go on from a folder as well.
            reply(answer, Err(SaveError::LogInUse));
            return None;
        }
        let rests = matches!(&self.pause, PauseState::Paused(_)) && saved.strong_count() > 0;
        reply(answer, if rests { Ok(()) } else { Err(SaveError::Resumed) });
        rests.then_some(NextBoot::End(Exit::Saved))
    }

    /// The vCPUs rest: now the devices.
    fn vcpus_rest(&mut self, number: u64) {
        match &mut self.pause {
            PauseState::Stopping { round, waiting, resumed } if *round == number => {
                let (waiting, resumed) = (std::mem::take(waiting), std::mem::take(resumed));
                self.pause = PauseState::Quiescing { waiting, resumed };
                let boot = self.boot.clone();
                self.supervisor.blocking.run(&self.supervisor.sender, move || {
                    boot.pause_devices();
                    Event::Quiesced { boot: boot.number }
                });
            }
            // Resumed before it came to that.
            _ => {}
        }
    }

    fn quiesced(&mut self) {
        let PauseState::Quiescing { waiting, resumed } = &mut self.pause else { return };
        let (waiting, resumed) = (std::mem::take(waiting), std::mem::take(resumed));
        if resumed.is_empty() {
            self.pause = PauseState::Paused(Arc::default());
            self.resources.publisher.publish(MachineEvent::Paused);
            waiting.iter().for_each(|answer| reply(answer, Ok(())));
        } else {
            // Who was told of a full disk is told that it goes on.
            let was_full = !self.full.is_empty();
            self.go_on(Boot::resume);
            if was_full {
                self.resources.publisher.publish(MachineEvent::Resumed);
            }
            resumed.iter().for_each(|answer| reply(answer, ()));
        }
    }

    /// What comes next, or nothing by the time of the next look.
    fn receive(&mut self) -> Result<Event, RecvTimeoutError> {
        // At rest nothing happens, and time stands still.
        let wanted = matches!(self.pause, PauseState::Running) && self.boot.watch.wants_samples();
        self.look = wanted.then(|| self.look.unwrap_or_else(|| Instant::now() + TICK));
        receive(&self.supervisor.events, self.look)
    }

    /// Looks at a guest that seems to be at its end.
    fn look(&mut self) -> Option<NextBoot> {
        self.look = None;
        let (work, activity) = self.boot.sample();
        self.boot.watch.sample(work, activity).map(|end| self.next(end))
    }

    fn ended(&self, what: VcpuEvent) -> NextBoot {
        let watch = &self.boot.watch;
        match what {
            VcpuEvent::Effect(Effect::PowerOff) => self.next(End::PoweredOff),
            VcpuEvent::Effect(Effect::Panicked) => self.next(End::Panicked),
            VcpuEvent::Effect(Effect::Reset) => self.next(watch.reset()),
            VcpuEvent::TripleFault(crash) => match watch.triple_fault() {
                Some(end) => self.next(end),
                None => NextBoot::End(Exit::Crashed(crash)),
            },
            VcpuEvent::Crashed(crash) => NextBoot::End(Exit::Crashed(crash)),
            VcpuEvent::Failed(error) => NextBoot::End(Exit::Failed(error)),
        }
    }

    fn next(&self, end: End) -> NextBoot {
        if let End::Panicked | End::GaveUp = end {
            self.resources.publisher.publish(MachineEvent::Panicked);
        }
        NextBoot::End(match end {
            End::PoweredOff => Exit::PoweredOff,
            End::Panicked => Exit::Panicked,
            End::GaveUp => Exit::GaveUp(GaveUp::Initramfs),
            End::Reset => match self.resources.spec.on_reboot() {
                OnReboot::Reboot => return NextBoot::Reset,
                OnReboot::Exit => Exit::Rebooted,
            },
        })
    }
}

/// The caller may have timed out and dropped its receiver.
fn reply<T>(to: &Sender<T>, with: T) {
    let _ = to.send(with);
}
