//! The thread that owns a running machine: it boots, waits for what happens, and boots again or ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use devices::bus::Effect;

use super::boot_once::Boot;
use super::ends::{BootLoop, End, TICK};
use super::events::MachineEvent;
use super::resources::Resources;
use super::stats::Stats;
use super::vcpus::VcpuEvent;
use super::{BootNumber, Exit, GaveUp, PauseError};
use crate::spec::OnReboot;

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
    /// Whoever holds the machine.
    Command(Command),
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
    Stats(Sender<Stats>),
}

type PauseResult = Result<(), PauseError>;

/// What was asked and must neither pile up nor wait for its turn: a boot takes its time, and anybody may ask for many.
#[derive(Debug, Default)]
pub(super) struct UrgentRequests {
    /// A [`Command::Reset`] waits to be taken, with nothing behind it that makes another one mean something else.
    reset: AtomicBool,
    kill: AtomicBool,
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

    fn taken(&self) {
        self.reset.store(false, Ordering::Release);
    }

    fn killed(&self) -> bool {
        self.kill.load(Ordering::Acquire)
    }
}

/// What the guest's own actions lead to.
enum NextBoot {
    /// By command.
    BootAgain,
    /// The guest has reset itself.
    Reset,
    End(Exit),
}

/// How far a boot is in pausing.
#[derive(Debug)]
enum PauseState {
    Running,
    /// The vCPUs were asked to rest; these wait for it.
    Asked {
        round: u64,
        waiting: Vec<Sender<PauseResult>>,
    },
    Paused,
}

impl PauseState {
    /// Tells those who wait for it what came instead.
    fn give_up(&mut self, why: &PauseError) {
        if let PauseState::Asked { waiting, .. } = self {
            waiting.drain(..).for_each(|answer| reply(&answer, Err(why.clone())));
        }
    }
}

/// Runs until the machine ends.
pub(super) fn supervise(
    resources: &Resources,
    mut boot: Boot,
    events: &Receiver<Event>,
    sender: &Sender<Event>,
    urgent: &UrgentRequests,
) -> Exit {
    let publisher = &resources.publisher;
    let mut boot_loop = BootLoop::default();
    loop {
        let turn =
            BootRun { resources, urgent, boot: &boot, rest: PauseState::Running, look: None }.next(events);
        let (ran, came_up) = boot.watch.boot(boot.sent());
        let looped = match turn {
            NextBoot::Reset => boot_loop.after_reset(ran, came_up),
            _ => {
                boot_loop.after_command();
                None
            }
        };
        let number = boot.number;
        // The old boot gives back its memory and its interrupts before the new one takes its own.
        drop(boot);
        if let NextBoot::End(exit) = turn {
            return exit;
        }
        if let Some(boots) = looped {
            return Exit::GaveUp(GaveUp::BootLoop { boots });
        }
        publisher.publish(MachineEvent::Reset);
        if urgent.killed() {
            return Exit::Killed;
        }
        match Boot::start(resources, number.next(), sender) {
            Ok(next) => boot = next,
            Err(error) => return Exit::Failed(error),
        }
        publisher.publish(MachineEvent::Booted);
    }
}

/// One boot's life as the supervisor sees it.
struct BootRun<'a> {
    resources: &'a Resources,
    urgent: &'a UrgentRequests,
    boot: &'a Boot,
    rest: PauseState,
    /// When the guest is looked at next, because it seems to be at its end.
    look: Option<Instant>,
}

impl BootRun<'_> {
    /// Serves what comes until this boot is over.
    fn next(mut self, events: &Receiver<Event>) -> NextBoot {
        let turn = self.serve(events);
        self.rest.give_up(match turn {
            NextBoot::BootAgain | NextBoot::Reset => &PauseError::Interrupted,
            NextBoot::End(_) => &PauseError::Ended,
        });
        turn
    }

    fn serve(&mut self, events: &Receiver<Event>) -> NextBoot {
        loop {
            match self.receive(events) {
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(turn) = self.look() {
                        return turn;
                    }
                }
                Ok(Event::Command(Command::Reset)) => {
                    self.urgent.taken();
                    return NextBoot::BootAgain;
                }
                // The supervisor holds a sender itself, so the channel cannot end; if it did, nobody could ask for more.
                Ok(Event::Command(Command::Kill)) | Err(RecvTimeoutError::Disconnected) => {
                    return NextBoot::End(Exit::Killed);
                }
                Ok(Event::Command(Command::PowerButton)) => {
                    if let Some(end) = self.boot.watch.button() {
                        return self.turn(end);
                    }
                    self.boot.press_power_button();
                }
                Ok(Event::Command(command)) => self.obey(command),
                // What a vCPU of an earlier boot said last.
                Ok(
                    Event::Vcpu { boot, .. }
                    | Event::AtRest { boot, .. }
                    | Event::Suspect { boot }
                    | Event::OutputOver { boot },
                ) if boot != self.boot.number => {}
                Ok(Event::Suspect { .. }) => self.boot.watch.taken(),
                Ok(Event::OutputOver { .. }) => self.boot.call_vcpus(),
                Ok(Event::AtRest { round, .. }) => self.at_rest(round),
                Ok(Event::Vcpu { what, .. }) => return self.ended(what),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Pause(answer) => match &mut self.rest {
                PauseState::Paused => reply(&answer, Ok(())),
                PauseState::Asked { waiting, .. } => waiting.push(answer),
                PauseState::Running => {
                    self.boot.watch.stop();
                    let round = self.boot.hold_vcpus();
                    self.rest = PauseState::Asked { round, waiting: vec![answer] };
                }
            },
            Command::Resume(answer) => {
                self.boot.watch.go_on();
                self.boot.resume();
                self.rest.give_up(&PauseError::Interrupted);
                if let PauseState::Paused = std::mem::replace(&mut self.rest, PauseState::Running) {
                    self.resources.publisher.publish(MachineEvent::Resumed);
                }
                reply(&answer, ());
            }
            Command::Stats(answer) => reply(&answer, self.boot.stats()),
            // Ends the boot; see above.
            Command::PowerButton | Command::Reset | Command::Kill => {}
        }
    }

    fn at_rest(&mut self, number: u64) {
        match &mut self.rest {
            PauseState::Asked { round, waiting } if *round == number => {
                self.boot.pause_devices();
                self.resources.publisher.publish(MachineEvent::Paused);
                waiting.drain(..).for_each(|answer| reply(&answer, Ok(())));
                self.rest = PauseState::Paused;
            }
            // Resumed before it came to that.
            _ => {}
        }
    }

    /// What comes next, or nothing by the time of the next look.
    fn receive(&mut self, events: &Receiver<Event>) -> Result<Event, RecvTimeoutError> {
        // At rest nothing happens, and time stands still.
        let wanted = matches!(self.rest, PauseState::Running) && self.boot.watch.wants_samples();
        self.look = wanted.then(|| self.look.unwrap_or_else(|| Instant::now() + TICK));
        match self.look {
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Looks at a guest that seems to be at its end.
    fn look(&mut self) -> Option<NextBoot> {
        self.look = None;
        let (work, activity) = self.boot.sample();
        self.boot.watch.sample(work, activity).map(|end| self.turn(end))
    }

    fn ended(&self, what: VcpuEvent) -> NextBoot {
        let watch = &self.boot.watch;
        match what {
            VcpuEvent::Effect(Effect::PowerOff) => self.turn(End::PoweredOff),
            VcpuEvent::Effect(Effect::Panicked) => self.turn(End::Panicked),
            VcpuEvent::Effect(Effect::Reset) => self.turn(watch.reset()),
            VcpuEvent::TripleFault(crash) => match watch.triple_fault() {
                Some(end) => self.turn(end),
                None => NextBoot::End(Exit::Crashed(crash)),
            },
            VcpuEvent::Crashed(crash) => NextBoot::End(Exit::Crashed(crash)),
            VcpuEvent::Failed(error) => NextBoot::End(Exit::Failed(error)),
        }
    }

    fn turn(&self, end: End) -> NextBoot {
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

/// Whoever asked may have given up waiting.
fn reply<T>(to: &Sender<T>, with: T) {
    let _ = to.send(with);
}
