//! The arguments of `minivmm clone`.

use std::path::PathBuf;

use clap::ArgAction;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::cli::daemon::ServiceArgs;
use crate::cli::verbs::SnapshotName;
use crate::spec::{MachineName, NetSpec};

/// The machine, its clone, and in what they differ.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct CloneArgs {
    /// A running machine, a saved one or a machine's file
    #[arg(value_name = "MACHINE")]
    pub machine: PathBuf,
    /// Name of the clone
    #[arg(value_name = "NAME")]
    pub name: MachineName,
    /// Folder of the clone's files [default: ./NAME]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// From this snapshot of MACHINE, which need not run
    #[arg(long, value_name = "SNAPSHOT")]
    pub snapshot: Option<SnapshotName>,
    /// Copy all of its disks, with their base images
    ///
    /// The clone needs nothing of the original then. Without it the clone's disks lie on what the original's disks lie on, and of a saved
    /// machine on the folder's copies.
    #[arg(long, conflicts_with = "linked")]
    pub full: bool,
    /// Refuse a disk that would be copied as a whole
    ///
    /// That is one that has no base image, of a machine that runs or is off. The original's image never becomes a base itself: its next start
    /// would write to it. Without this option such a disk is copied.
    #[arg(long)]
    pub linked: bool,
    /// Its network, once for each of the original's
    ///
    /// As `--net` at a start. Two machines cannot have one MAC address on one network, and a guest that runs does not take another
    /// one: the clone of a running or saved machine that is not on a user network needs its networks named.
    #[arg(long, value_name = "KIND", value_parser = OsStringValueParser::new().try_map(|text| NetSpec::parse(&text)))]
    pub net: Vec<NetSpec>,
    /// Keep the MAC addresses, also on one network
    #[arg(long)]
    pub same_mac: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
    /// File with the number of its process, while it runs
    ///
    /// As `--pidfile` at a start. The original's is the original's.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub pidfile: Option<PathBuf>,
    /// Write its messages to this file too, with the time
    ///
    /// As `--log` at a start. The original's is the original's.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub log: Option<PathBuf>,
    /// It always runs in the background
    #[arg(short = 'd', long = "daemonize", hide = true)]
    daemonize: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

impl CloneArgs {
    /// A clone runs in the background: it has a name, by which its console is found.
    pub(super) fn service(&self) -> ServiceArgs {
        ServiceArgs { daemonize: true, pidfile: self.pidfile.clone(), log: self.log.clone() }
    }
}
