//! The words that these verbs take.

use clap::ArgAction;

use crate::spec::{BalloonSize, MachineName};

/// A verb for machines with a name.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum NameVerb {
    /// List the machines that run and have a name
    Ls(ListArgs),
    /// Say what a machine is made of, and whether it runs
    Info(ShowArgs),
    /// Press the power button, and end the machine if that does not
    Stop(StopArgs),
    /// Wait until a machine ends, and end with its exit status
    Wait(NameArgs),
    /// End a machine where it is
    Kill(NameArgs),
    /// Show a machine's console here, and type into it
    Console(NameArgs),
    /// Bring a machine to rest
    Pause(NameArgs),
    /// Let a paused machine go on
    Resume(NameArgs),
    /// Stop the guest where it is and boot it again
    Reset(NameArgs),
    /// Take so much of its memory back from a guest
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

/// What to show of a machine, and how.
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
    /// Seconds that the guest has to shut down
    #[arg(long, value_name = "S", default_value_t = 90)]
    pub timeout: u32,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// What a guest shall leave to the host.
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
