//! How a machine ends.

use std::fmt;

use super::StartError;

/// How a machine ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Exit {
    /// The guest switched itself off, or halted for good.
    PoweredOff,
    /// The guest rebooted, and the spec says to leave then.
    Rebooted,
    /// The guest's kernel panicked: it said so to the pvpanic device, or its panic line on a console was followed
    /// by a reset, or by nothing at all.
    Panicked,
    /// The guest boots and never comes up.
    GaveUp(GaveUp),
    /// The guest did something that neither it nor KVM can go on from.
    Crashed(Crash),
    /// It was saved to a folder, from which it can go on: [`Controls::save_and_end`](super::Controls::save_and_end).
    Saved,
    /// It runs on elsewhere: another process has taken it over.
    Migrated,
    /// [`super::Machine::kill`] was called, or the machine was dropped.
    Killed,
    /// The host failed the machine: it could not be built again for a reboot, a vCPU's thread could not begin, or a part of the
    /// machine panicked.
    Failed(StartError),
}

/// A sentence's worth, such as `the guest switched itself off`.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::PoweredOff => f.write_str("the guest switched itself off"),
            Exit::Rebooted => f.write_str("the guest rebooted"),
            Exit::Panicked => f.write_str("the guest's kernel panicked"),
            Exit::GaveUp(why) => why.fmt(f),
            Exit::Crashed(crash) => write!(f, "the guest crashed: {crash}"),
            Exit::Saved => f.write_str("the machine was saved"),
            Exit::Migrated => f.write_str("the machine was migrated, and runs on there"),
            Exit::Killed => f.write_str("the machine was ended"),
            Exit::Failed(error) => write!(f, "the host failed the machine: {error}"),
        }
    }
}

/// Why a guest that boots again and again is not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GaveUp {
    /// Its initramfs found no root file system, and rebooted because the command line has `panic=`.
    #[error(
        "the guest's initramfs could not mount its root file system, and rebooted because of panic= on the kernel command \
         line (with panic=0 it gives a shell instead)"
    )]
    Initramfs,
    /// It reset itself so many times in a row, each time within seconds and before it had run a program.
    #[error(
        "the guest has reset itself {boots} times in a row, each time within {limit} s of its start and before it had run a \
         program; where its console is silent, console=ttyS0 on the kernel command line shows why",
        limit = super::ends::SHORT_BOOT.as_secs()
    )]
    BootLoop {
        /// How many times.
        boots: u32,
    },
}

/// What a vCPU could not go on from, as a sentence, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("vCPU {vcpu} stopped{}: {reason}", at(.rip))]
pub struct Crash {
    /// Number of the vCPU.
    pub vcpu: u32,
    /// Its instruction pointer, where it is known.
    pub rip: Option<u64>,
    /// What happened and, where one is known, the cure.
    pub reason: String,
}

fn at(rip: &Option<u64>) -> String {
    rip.map(|rip| format!(" at rip {rip:#x}")).unwrap_or_default()
}
