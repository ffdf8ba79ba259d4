//! `minivmm restore`: a saved machine goes on.

use std::path::PathBuf;

use clap::ArgAction;

use super::daemon::ServiceArgs;
use super::exit::Status;
use super::{report_error, run_machine};
use crate::saved::SavedMachine;
use crate::spec::MachineName;

/// The saved machine, and how it goes on.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct RestoreArgs {
    /// The folder that `minivmm save` has made
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Its name from now on [default: as it was saved]
    #[arg(long, value_name = "NAME")]
    pub name: Option<MachineName>,
    /// How it runs.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpLong)]
    help: Option<bool>,
}

/// Runs the machine until it ends, here or in the background.
pub(super) fn run(args: &RestoreArgs) -> Status {
    let (mut spec, restore) = match SavedMachine::open(&args.folder).map(SavedMachine::into_parts) {
        Ok(parts) => parts,
        Err(error) => return report_error(&error, Status::Failed),
    };
    if let Some(name) = &args.name {
        spec.name = Some(name.clone());
    }
    run_machine(&spec, Some(restore), &args.service)
}
