//! The thread that owns a running machine: it boots, waits for what happens, and boots again or ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use devices::bus::Effect;

use super::boot_once::{Blueprint, Boot};
use super::events::MachineEvent;
use super::stats::Stats;
use super::vcpus::VcpuEvent;
use super::{BootNumber, Exit, PauseError};
use crate::spec::OnReboot;

/// What reaches the supervisor.
#[derive(Debug)]
pub(super) enum Event {
    /// A vCPU of one boot.
    Vcpu { boot: BootNumber, what: VcpuEvent },
    /// All vCPUs of one boot rest, as they were asked for the `round`th time.
    AtRest { boot: BootNumber, round: u64 },
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
    Pause(Sender<Rested>),
    /// Answered when it goes on.
    Resume(Sender<()>),
    Stats(Sender<Stats>),
}

type Rested = Result<(), PauseError>;

/// What was asked and must neither pile up nor wait for its turn: a boot takes its time, and anybody may ask for many.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// A [`Command::Reset`] waits to be taken, with nothing behind it that makes another one mean something else.
    reset: AtomicBool,
    kill: AtomicBool,
}

impl Orders {
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
enum Turn {
    BootAgain,
    End(Exit),
}

/// How far a boot is in pausing.
#[derive(Debug)]
enum Rest {
    Running,
    /// The vCPUs were asked to rest; these wait for it.
    Asked {
        round: u64,
        waiting: Vec<Sender<Rested>>,
    },
    Paused,
}

impl Rest {
    /// Tells those who wait for it what came instead.
    fn give_up(&mut self, why: &PauseError) {
        if let Rest::Asked { waiting, .. } = self {
            waiting.drain(..).for_each(|answer| reply(&answer, Err(why.clone())));
        }
    }
}

/// Runs until the machine ends.
pub(super) fn supervise(
    blueprint: &Blueprint,
    mut boot: Boot,
    events: &Receiver<Event>,
    sender: &Sender<Event>,
) -> Exit {
    let publisher = &blueprint.publisher;
    loop {
        let turn = Turns { blueprint, boot: &boot, rest: Rest::Running }.next(events);
        let number = boot.number;
        // The old boot gives back its memory and its interrupts before the new one takes its own.
        drop(boot);
        if let Turn::End(exit) = turn {
            return exit;
        }
        publisher.publish(MachineEvent::Reset);
        if blueprint.orders.killed() {
            return Exit::Killed;
        }
        match Boot::start(blueprint, number.next(), sender) {
            Ok(next) => boot = next,
            Err(error) => return Exit::Failed(error),
        }
        publisher.publish(MachineEvent::Booted);
    }
}

/// One boot's life as the supervisor sees it.
struct Turns<'a> {
    blueprint: &'a Blueprint,
    boot: &'a Boot,
    rest: Rest,
}

impl Turns<'_> {
    /// Serves what comes until this boot is over.
    fn next(mut self, events: &Receiver<Event>) -> Turn {
        let turn = self.serve(events);
        self.rest.give_up(match turn {
            Turn::BootAgain => &PauseError::Interrupted,
            Turn::End(_) => &PauseError::Ended,
        });
        turn
    }

    fn serve(&mut self, events: &Receiver<Event>) -> Turn {
        loop {
            match events.recv() {
                Ok(Event::Command(Command::Reset)) => {
                    self.blueprint.orders.taken();
                    return Turn::BootAgain;
                }
                // The supervisor holds a sender itself, so the channel cannot end; if it did, nobody could ask for more.
                Ok(Event::Command(Command::Kill)) | Err(_) => return Turn::End(Exit::Killed),
                Ok(Event::Command(command)) => self.obey(command),
                // What a vCPU of an earlier boot said last.
                Ok(Event::Vcpu { boot, .. } | Event::AtRest { boot, .. }) if boot != self.boot.number => {}
                Ok(Event::AtRest { round, .. }) => self.at_rest(round),
                Ok(Event::Vcpu { what, .. }) => return self.ended(what),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::PowerButton => self.boot.press_power_button(),
            Command::Pause(answer) => match &mut self.rest {
                Rest::Paused => reply(&answer, Ok(())),
                Rest::Asked { waiting, .. } => waiting.push(answer),
                Rest::Running => {
                    let round = self.boot.hold_vcpus();
                    self.rest = Rest::Asked { round, waiting: vec![answer] };
                }
            },
            Command::Resume(answer) => {
                self.boot.resume();
                self.rest.give_up(&PauseError::Interrupted);
                if let Rest::Paused = std::mem::replace(&mut self.rest, Rest::Running) {
                    self.blueprint.publisher.publish(MachineEvent::Resumed);
                }
                reply(&answer, ());
            }
            Command::Stats(answer) => reply(&answer, self.boot.stats()),
            // Ends the boot; see above.
            Command::Reset | Command::Kill => {}
        }
    }

    fn at_rest(&mut self, number: u64) {
        match &mut self.rest {
            Rest::Asked { round, waiting } if *round == number => {
                self.boot.pause_devices();
                self.blueprint.publisher.publish(MachineEvent::Paused);
                waiting.drain(..).for_each(|answer| reply(&answer, Ok(())));
                self.rest = Rest::Paused;
            }
            // Resumed before it came to that.
            _ => {}
        }
    }

    fn ended(&self, what: VcpuEvent) -> Turn {
        let exit = match what {
            VcpuEvent::Effect(Effect::PowerOff) => Exit::PoweredOff,
            VcpuEvent::Effect(Effect::Panicked) => Exit::Panicked,
            // Without a pvpanic driver a panic shows as its line on the console and the reset that `panic=-1` makes.
            VcpuEvent::Effect(Effect::Reset) if self.boot.panicked.load(Ordering::Acquire) => Exit::Panicked,
            VcpuEvent::Effect(Effect::Reset) => match self.blueprint.spec.on_reboot() {
                OnReboot::Reboot => return Turn::BootAgain,
                OnReboot::Exit => Exit::Rebooted,
            },
            VcpuEvent::Crashed(crash) => Exit::Crashed(crash),
            VcpuEvent::Failed(error) => Exit::Failed(error),
        };
        if let Exit::Panicked = exit {
            self.blueprint.publisher.publish(MachineEvent::Panicked);
        }
        Turn::End(exit)
    }
}

/// Whoever asked may have given up waiting.
fn reply<T>(to: &Sender<T>, with: T) {
    let _ = to.send(with);
}
