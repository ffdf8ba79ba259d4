//! The thread that owns a running machine: it boots, waits for what happens, and boots again or ends.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use devices::bus::Effect;

use super::boot_once::{Blueprint, Boot};
use super::vcpus::VcpuEvent;
use super::{BootNumber, Exit};
use crate::spec::OnReboot;

/// What reaches the supervisor.
#[derive(Debug)]
pub(super) enum Event {
    /// A vCPU of one boot.
    Vcpu { boot: BootNumber, what: VcpuEvent },
    /// Whoever holds the machine.
    Command(Command),
}

/// What can be asked of a running machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    PowerButton,
    Reset,
    Kill,
}

/// What the guest's own actions lead to.
enum Turn {
    BootAgain,
    End(Exit),
}

/// Runs until the machine ends.
pub(super) fn supervise(
    blueprint: &Blueprint,
    mut boot: Boot,
    events: &Receiver<Event>,
    sender: &Sender<Event>,
) -> Exit {
    loop {
        let turn = next_turn(blueprint, &boot, events);
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
    }
}

fn next_turn(blueprint: &Blueprint, boot: &Boot, events: &Receiver<Event>) -> Turn {
    loop {
        match events.recv() {
            Ok(Event::Command(Command::PowerButton)) => boot.press_power_button(),
            Ok(Event::Command(Command::Reset)) => return Turn::BootAgain,
            // The supervisor holds a sender itself, so the channel cannot end; if it did, nobody could ask for more.
            Ok(Event::Command(Command::Kill)) | Err(_) => return Turn::End(Exit::Killed),
            // What a vCPU of an earlier boot said last.
            Ok(Event::Vcpu { boot: number, .. }) if number != boot.number => {}
            Ok(Event::Vcpu { what, .. }) => return guest_turn(blueprint, boot, what),
        }
    }
}

fn guest_turn(blueprint: &Blueprint, boot: &Boot, what: VcpuEvent) -> Turn {
    Turn::End(match what {
        VcpuEvent::Effect(Effect::PowerOff) => Exit::PoweredOff,
        VcpuEvent::Effect(Effect::Panicked) => Exit::Panicked,
        // Without a pvpanic driver a panic shows as its line on the console and the reset that `panic=-1` makes.
        VcpuEvent::Effect(Effect::Reset) if boot.panicked.load(Ordering::Acquire) => Exit::Panicked,
        VcpuEvent::Effect(Effect::Reset) => match blueprint.spec.on_reboot() {
            OnReboot::Reboot => return Turn::BootAgain,
            OnReboot::Exit => Exit::Rebooted,
        },
        VcpuEvent::Crashed(crash) => Exit::Crashed(crash),
        VcpuEvent::Failed(error) => Exit::Failed(error),
    })
}
