//! How a machine ends.

use std::fmt;

use super::StartError;

/// How a machine ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Exit {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest rebooted, and the spec says to leave then.
    Rebooted,
    /// The guest's kernel panicked: it said so to the pvpanic device, or its panic line on the console was followed
    /// by a reset.
    Panicked,
    /// The guest did something that neither it nor KVM can go on from.
    Crashed(Crash),
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
            Exit::Crashed(crash) => write!(f, "the guest crashed: {crash}"),
            Exit::Killed => f.write_str("the machine was ended"),
            Exit::Failed(error) => write!(f, "the host failed the machine: {error}"),
        }
    }
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
