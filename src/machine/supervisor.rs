//! The thread that owns a running machine: it boots, waits for what happens, and boots again or ends.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use devices::bus::Effect;

use super::boot_once::{Blueprint, Boot};
use super::events::MachineEvent;
use super::stats::Stats;
use super::vcpus::VcpuEvent;
use super::{BootNumber, Exit};
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
    /// Answered when the machine rests.
    Pause(Sender<()>),
    /// Answered when it goes on.
    Resume(Sender<()>),
    Stats(Sender<Stats>),
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
        waiting: Vec<Sender<()>>,
    },
    Paused,
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
        match turn {
            Turn::End(exit) => return exit,
            Turn::BootAgain => match Boot::start(blueprint, number.next(), sender) {
                Ok(next) => boot = next,
                Err(error) => return Exit::Failed(error),
            },
        }
        publisher.publish(MachineEvent::Reset);
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
        loop {
            match events.recv() {
                Ok(Event::Command(Command::Reset)) => return Turn::BootAgain,
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
                Rest::Paused => reply(&answer, ()),
                Rest::Asked { waiting, .. } => waiting.push(answer),
                Rest::Running => {
                    let round = self.boot.hold_vcpus();
                    self.rest = Rest::Asked { round, waiting: vec![answer] };
                }
            },
            Command::Resume(answer) => {
                if let Rest::Paused = self.rest {
                    self.blueprint.publisher.publish(MachineEvent::Resumed);
                }
                self.boot.resume();
                self.rest = Rest::Running;
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
                waiting.drain(..).for_each(|answer| reply(&answer, ()));
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
