//! The arguments of `minivmm switch`.

use std::path::PathBuf;

use clap::ArgAction;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::cli::verbs::{CaptureOutput, ListArgs};
use crate::spec::{SwitchName, Uplink};

/// A switch, or a verb for one that runs.
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct SwitchArgs {
    /// The verb, if any; without one a switch is run.
    #[command(subcommand)]
    pub verb: Option<SwitchVerb>,
    /// The switch, as in `--net switch=NAME`
    #[arg(required = true)]
    pub name: Option<SwitchName>,
    /// Go on without machines, until `minivmm switch stop`
    ///
    /// Without it the switch ends some seconds after its last machine has left.
    #[arg(long)]
    pub keep: bool,
    /// user, tap=NAME or socket=PATH; also ,vlan= ,delay= ...
    ///
    /// What connects the switch to the world beside its machines, once for each. `tap=NAME`: a TAP of the host, for host-only
    /// and bridged networks. `socket=PATH`: the switch listens there for one program with QEMU's bytes, such as QEMU or passt. `user`:
    /// a network behind the host's sockets with DHCP for all machines, with `forward=HOST:MACHINE:PORT`, `subnet=`, `host-loopback=on`
    /// and `restrict=on`. The options of a port follow: `vlan=`, `trunk=`, `isolated`, `delay=`, `jitter=`, `loss=`, `rate=`.
    #[arg(long = "uplink", value_name = "KIND", value_parser = OsStringValueParser::new().try_map(|text| Uplink::parse(&text)))]
    pub(crate) uplinks: Vec<Uplink>,
    /// In the background, as a machine; also --log FILE
    ///
    /// Returns when the switch listens, and prints the number of its process.
    #[arg(short, long)]
    pub daemonize: bool,
    /// Write messages to this file too, with the time
    ///
    /// Without it, a switch in the background leaves that to the host's log (journald or syslog).
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub log: Option<PathBuf>,
    /// A machine starts it, and attaches at once.
    #[arg(long, hide = true)]
    pub for_machine: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A verb for a switch that runs.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum SwitchVerb {
    /// List the switches that run
    Ls(ListArgs),
    /// Show a switch's ports, addresses and counters
    Show(SwitchShowArgs),
    /// Change options of a port while it runs
    Set(SwitchSetArgs),
    /// Copy the frames of a port to a file or a program
    Capture(SwitchCaptureArgs),
    /// End a switch, and wait until it has ended
    Stop(SwitchNameArgs),
}

/// A switch, and the output format.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct SwitchShowArgs {
    /// The switch
    pub name: SwitchName,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A change to a port.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct SwitchSetArgs {
    /// The switch
    pub name: SwitchName,
    /// The port, as `minivmm switch show` has it, such as vm0.net0
    pub port: String,
    /// Such as delay=20ms, loss=1%, rate=10mbit, vlan=2; delay=0 ends it
    ///
    /// `delay=`, `jitter=`, `loss=` and `rate=` are for both directions, `delay-in=` for frames to the guest and `delay-out=` for
    /// those from it. `vlan=2` makes an access port, `trunk=2+3` and `trunk=all` a trunk. `isolated=on` and `secure=on`, or `off`.
    /// What is not named stays.
    #[arg(required = true, value_name = "OPTION")]
    pub options: Vec<String>,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// What to capture, and where it goes.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct SwitchCaptureArgs {
    /// The switch
    pub name: SwitchName,
    /// The port, as `minivmm switch show` has it, such as vm0.net0
    pub port: String,
    /// Where the frames go.
    #[command(flatten)]
    pub output: CaptureOutput,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A switch.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct SwitchNameArgs {
    /// The switch
    pub name: SwitchName,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}
