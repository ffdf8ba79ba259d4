//! The thread that owns a running machine: it boots, waits for what happens, and boots again or ends. It never waits for
//! the host: what may take long is a job of the [`BlockingThread`], and an event says when it is done.

mod running;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::blocking::BlockingThread;
use super::boot_once::{Beginning, Boot, Origin};
use super::deadline::Progress;
use super::ends::BootLoop;
use super::events::MachineEvent;
use super::full_disks::FullDisk;
use super::precopy::{CopyStart, LogUser};
use super::resources::Resources;
use super::revert::{Revert, RevertError};
use super::saved::{SaveError, SavedParts, Unsaveable};
use super::stats::UnfinishedStats;
use super::template::Shared;
use super::vcpus::VcpuEvent;
use super::{BootNumber, Exit, GaveUp, PauseError, StartError};
use crate::spec::Spec;
use running::{NextBoot, RunningBoot};

/// How long a machine that was killed waits for calls of the host that are under way, such as a write of a disk. They go on
/// without it after that.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// What reaches the supervisor.
#[derive(Debug)]
pub(super) enum Event {
    /// A vCPU of one boot.
    Vcpu { boot: BootNumber, what: VcpuEvent },
    /// A boot seems to be at its end: it has to be looked at.
    Suspect { boot: BootNumber },
    /// All vCPUs of one boot rest, as they were asked for the `round`th time.
    AtRest { boot: BootNumber, round: u64 },
    /// A device of one boot has put out more than its console's reader has taken.
    OutputOver { boot: BootNumber },
    /// A disk of one boot found no room on the host.
    DiskFull { boot: BootNumber, disk: FullDisk },
    /// What people are told of such a disk was said.
    Reported,
    /// All devices of one boot are quiesced.
    Quiesced { boot: BootNumber },
    /// A boot was saved, and the caller has its state.
    Saved,
    /// The boot before was dropped, and the next one runs or could not be made.
    NextBoot,
    /// All that the machine had is given back.
    Released,
    /// A job of the blocking thread panicked.
    JobPanicked,
    /// From a holder of the machine.
    Command(Command),
}

impl Event {
    /// Whether the boot `number` has to hear of it. A boot sends its own as soon as its vCPUs run, and that is before
    /// the supervisor knows that it was made.
    fn concerns(&self, number: BootNumber) -> bool {
        match self {
            Event::Vcpu { boot, .. }
            | Event::Suspect { boot }
            | Event::AtRest { boot, .. }
            | Event::OutputOver { boot }
            | Event::DiskFull { boot, .. }
            | Event::Quiesced { boot } => *boot == number,
            Event::Command(_) | Event::JobPanicked => true,
            // While a boot runs, no other one is made and nothing is given back.
            Event::Saved | Event::Reported | Event::NextBoot | Event::Released => false,
        }
    }
}

/// What can be asked of a running machine. An answer that never comes shows as its channel's end.
#[derive(Debug)]
pub(super) enum Command {
    PowerButton,
    Reset,
    Kill,
    /// Answered when the machine rests, or why it did not.
    Pause(Sender<PauseResult>),
    /// Answered when it goes on.
    Resume(Sender<()>),
    /// As `Pause`, for the hold of this number; see [`Hold`](super::hold::Hold).
    Hold(u64, Sender<PauseResult>),
    /// The hold is over. Answered when it goes on, or if it does not.
    Release(u64, Sender<()>),
    Stats(Sender<UnfinishedStats>),
    /// Answered when it is saved; the machine has to be paused. Its disks are brought to rest, but for those of these places in the list, of
    /// which there are copies.
    Save(Vec<usize>, Sender<Result<SavedParts, SaveError>>),
    /// Ends the machine if it still rests as it did when it was saved. Answered before it ends.
    EndSaved(Weak<()>, Sender<Result<(), SaveError>>),
    /// What the machine is made of now. Answered at once.
    Spec(Sender<Result<Spec, Unsaveable>>),
    /// Answered when it goes on from there.
    Revert(Box<Revert>, Sender<Result<(), RevertError>>),
    /// Has it stay paused whoever wants it to go on or boot again, if it still rests as it did when it was saved; or no longer. Answered at
    /// once.
    Leave(Option<Weak<()>>, Sender<Result<(), SaveError>>),
    /// Ends one that stays paused for that. Answered before it ends.
    EndLeft(Sender<Result<(), SaveError>>),
    /// Answered at once.
    LogWrites(LogUser, bool, Sender<Result<CopyStart, SaveError>>),
    /// Answered at once.
    Share(Sender<Shared>),
    /// Answered at once.
    TakeWritten(LogUser, Sender<Result<Vec<Range<u64>>, SaveError>>),
}

type PauseResult = Result<(), PauseError>;

/// Requests that must neither pile up nor wait for their turn.
#[derive(Debug, Default)]
pub(super) struct UrgentRequests {
    /// A [`Command::Reset`] waits to be taken, with nothing behind it that makes another one mean something else.
    reset: AtomicBool,
    /// Whatever is being done for the machine is to end soon.
    kill: Arc<AtomicBool>,
}

impl UrgentRequests {
    /// Whether a [`Command::Reset`] is to be sent: not if one waits already.
    pub(super) fn reset(&self) -> bool {
        !self.reset.swap(true, Ordering::AcqRel)
    }

    /// Another command follows: a reset behind it is one of its own.
    pub(super) fn other(&self) {
        self.reset.store(false, Ordering::Release);
    }

    /// The machine shall not boot again.
    pub(super) fn kill(&self) {
        self.kill.store(true, Ordering::Release);
    }

    /// Set once the machine is killed.
    fn killed(&self) -> Arc<AtomicBool> {
        self.kill.clone()
    }

    fn taken(&self) {
        self.reset.store(false, Ordering::Release);
    }
}

/// Where the next boot comes, unless it is wanted no more.
type NextResult = Receiver<Result<Boot, StartError>>;

/// What the machine ends with: to be dropped on the blocking thread.
#[derive(Debug)]
enum LastBoot {
    Made(#[expect(dead_code, reason = "only dropped")] Arc<Boot>),
    Coming(#[expect(dead_code, reason = "only dropped")] NextResult),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) blocking: BlockingThread,
    pub(super) urgent: Arc<UrgentRequests>,
    pub(super) events: Receiver<Event>,
    /// To give to boots and jobs.
    pub(super) sender: Sender<Event>,
}

impl Supervisor {
    /// Runs until the machine has ended and given back what it had.
    pub(super) fn run(self, resources: Resources, boot: Boot) -> Exit {
        let resources = Arc::new(resources);
        let (exit, last) = self.run_boots(&resources, boot);
        self.release(last, resources, matches!(exit, Exit::Killed));
        exit
    }

    /// Runs one boot after the other, until the machine ends with the last one.
    fn run_boots(&self, resources: &Arc<Resources>, first: Boot) -> (Exit, LastBoot) {
        let mut boot_loop = BootLoop::default();
        let (mut boot, mut deferred) = (Arc::new(first), VecDeque::new());
        loop {
            let next = RunningBoot::new(self, resources, &boot).run(&mut deferred);
            boot.stop_vcpus();
            let (ran, came_up) = boot.watch.boot(boot.sent());
            let (looped, revert) = match next {
                NextBoot::End(exit) => return (exit, LastBoot::Made(boot)),
                NextBoot::Reset => (boot_loop.after_reset(ran, came_up), None),
                NextBoot::BootAgain => {
                    boot_loop.after_command();
                    (None, None)
                }
                NextBoot::Revert(revert, answer) => {
                    boot_loop.after_command();
                    (None, Some((revert, answer)))
                }
            };
            if let Some(boots) = looped {
                return (Exit::GaveUp(GaveUp::BootLoop { boots }), LastBoot::Made(boot));
            }
            let (revert, answer) = revert.unzip();
            let event = if revert.is_some() { MachineEvent::Reverted } else { MachineEvent::Booted };
            if revert.is_none() {
                resources.publisher.publish(MachineEvent::Reset);
            }
            boot = match self.boot_again(resources, boot, revert, &mut deferred) {
                Ok(next) => Arc::new(next),
                Err((exit, last)) => return (exit, LastBoot::Coming(last)),
            };
            resources.publisher.publish(event);
            // The caller may have gone.
            let _ = answer.map(|answer: Sender<_>| answer.send(Ok(())));
        }
    }

    /// Drops a boot and makes the next one, from its files or what `revert` says, on the blocking thread. What comes for it meanwhile waits in `deferred`.
    fn boot_again(
        &self,
        resources: &Arc<Resources>,
        old: Arc<Boot>,
        revert: Option<Box<Revert>>,
        deferred: &mut VecDeque<Event>,
    ) -> Result<Boot, (Exit, NextResult)> {
        let (resources, sender) = (resources.clone(), self.sender.clone());
        let progress = Progress::until(self.urgent.killed());
        let (made, result) = mpsc::channel();
        let number = old.number.next();
        self.blocking.run(&self.sender, move || {
            // The old boot gives back its memory and its interrupts before the new one takes its own.
            drop(old);
            let begin =
                |origin: Origin<'_>| Beginning::new(&resources.kvm, &resources.spec, origin, &progress);
            let beginning = match revert {
                Some(revert) => revert.exchange_disks(&resources).and_then(begin),
                None => resources.find_files(&progress).and_then(|files| begin(Origin::Files(&files))),
            };
            let boot = beginning
                .and_then(|beginning| Boot::start(&resources, beginning, number, &sender, &progress));
            let _ = made.send(boot);
            Event::NextBoot
        });
        loop {
            match self.events.recv() {
                Ok(Event::NextBoot | Event::JobPanicked) => {
                    let next = result.try_recv().unwrap_or(Err(StartError::Internal("a boot")));
                    return next.map_err(|error| (Exit::Failed(error), result));
                }
                // The channel cannot end, since `self.sender` is one of its senders.
                Ok(Event::Command(Command::Kill)) | Err(_) => return Err((Exit::Killed, result)),
                // Nobody presses a button twice while nobody can see it.
                Ok(Event::Command(Command::PowerButton))
                    if matches!(deferred.back(), Some(Event::Command(Command::PowerButton))) => {}
                Ok(event) if event.concerns(number) => deferred.push_back(event),
                // From the boot before.
                Ok(_) => {}
            }
        }
    }

    /// Gives back the last boot, then the resources. Waits for calls of the host that are under way, for [`KILL_LIMIT`] at most
    /// once the machine is killed.
    fn release(self, last: LastBoot, resources: Arc<Resources>, killed: bool) {
        self.blocking.run(&self.sender, move || {
            drop(last);
            drop(resources);
            Event::Released
        });
        let mut until = killed.then(|| Instant::now() + KILL_LIMIT);
        loop {
            match receive(&self.events, until) {
                Ok(Event::Released | Event::JobPanicked) => return,
                Ok(Event::Command(Command::Kill)) => {
                    until.get_or_insert_with(|| Instant::now() + KILL_LIMIT);
                }
                // A command that is dropped here is told that the machine has ended.
                Ok(_) => {}
                Err(_) => break,
            }
        }
        log::warn!(
            "the machine was killed, and the host has not ended yet what it was asked for; its disks stay locked until it has"
        );
        self.blocking.leave();
    }
}

/// The next event; none by `until`, if there is such a time.
fn receive(events: &Receiver<Event>, until: Option<Instant>) -> Result<Event, RecvTimeoutError> {
    match until {
        Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
    }
}
