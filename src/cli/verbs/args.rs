//! The arguments of these verbs.

use clap::ArgAction;

use crate::spec::{BalloonSize, MachineName};

/// A verb for machines with a name.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum NameVerb {
    /// List the machines that run and have a name
    Ls(ListArgs),
    /// Show a machine's parts and its state
    Info(ShowArgs),
    /// Press the power button, and end the machine if that does not
    Stop(StopArgs),
    /// Wait until a machine ends, and end with its exit status
    Wait(NameArgs),
    /// End a machine at once, and wait until it has ended
    Kill(NameArgs),
    /// Show a machine's console here, and type into it
    ///
    /// The last output of the guest is shown first, up to 64 KiB. Several may look and
    /// type at the same time.
    ///
    /// On a terminal Ctrl-] opens a menu: d detaches, and the machine runs on; p
    /// presses the power button; r resets the machine; ? lists these keys; Ctrl-] once
    /// more sends Ctrl-] to the guest. With pipes in place of a terminal every byte is
    /// the guest's.
    #[command(verbatim_doc_comment)]
    Console(ConsoleArgs),
    /// Pause a machine
    Pause(NameArgs),
    /// Resume a paused machine
    Resume(NameArgs),
    /// Stop the guest where it is and boot it again
    Reset(NameArgs),
    /// Take memory back from a guest
    Balloon(BalloonArgs),
    /// Say what a machine has done since its guest booted
    Stats(ShowArgs),
}

/// A machine.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct NameArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The machine whose console is shown.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ConsoleArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpLong)]
    help: Option<bool>,
}

/// How to list machines.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ListArgs {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A machine, and the output format.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ShowArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// How to stop a machine.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct StopArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Seconds until the machine is ended by force
    #[arg(long, value_name = "SEC", default_value_t = 90)]
    pub timeout: u32,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The size of a machine's balloon.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct BalloonArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// How much: 256 (MiB), 256M, 1G; 0 gives all of it back to the guest
    #[arg(value_name = "MIB", allow_hyphen_values = true)]
    pub size: BalloonSize,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}
