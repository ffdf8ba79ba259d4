//! Machines that `minivmm run --warm NAME` has kept: each is a saved machine whose guest waits for a command, in
//! `$XDG_STATE_HOME/minivmm/warm/NAME`. `minivmm warm` lists and removes them.

mod key;
mod store;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ArgAction;
use serde::Serialize;

pub(super) use key::{FileMark, Key};
pub(super) use store::WarmMachine;

use super::exit::Status;
use super::verbs::{ListArgs, listing, size};
use super::{print, report_error};
use crate::host::clock::LocalTime;
use crate::image::printable;
use crate::saved::{SavedSummary, summary};
use crate::shown::path as shown;
use crate::spec::MachineName;

/// Name of a warm machine: as that of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmName(MachineName);

impl WarmName {
    fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for WarmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WarmName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(WarmName).map_err(|_| {
            "a warm machine's name has 1 to 63 of A-Z a-z 0-9 . _ - and does not begin with . or -".to_owned()
        })
    }
}

/// What to do with warm machines.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true, disable_help_subcommand = true)]
pub struct WarmArgs {
    /// The verb.
    #[command(subcommand)]
    pub verb: WarmVerb,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A verb for warm machines.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum WarmVerb {
    /// List them, with the room that they take
    Ls(ListArgs),
    /// Remove them
    ///
    /// A run that has begun goes on. The next one with this name boots.
    Rm(WarmRemoveArgs),
}

/// Those to remove.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct WarmRemoveArgs {
    /// As they were called with --warm
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<WarmName>,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// Why a warm machine cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum WarmError {
    /// The environment names no folder.
    #[error(
        "there is no place for warm machines: neither XDG_STATE_HOME nor HOME is set to a path from the root; set one of them"
    )]
    NoPlace,
    /// The folder of all of them.
    #[error("the warm machines in {folder} cannot be used: {source}", folder = shown(folder))]
    Folder { folder: PathBuf, source: io::Error },
    /// There is none of that name.
    #[error("there is no warm machine called {0}; `minivmm warm ls` lists them")]
    None(WarmName),
    /// Runs would write to one disk.
    #[error(
        "with --warm many runs go on from one machine, and cannot all write to its disk {0}; add `ro` or `snapshot` to that disk"
    )]
    WritableDisk(String),
    /// Runs would have one address.
    #[error(
        "with --warm many runs go on from one machine, and cannot all have its address on {0}; use `--net user`, which each run has for itself"
    )]
    Net(String),
}

/// Lists or removes.
pub(super) fn run(args: &WarmArgs) -> Status {
    let done = match &args.verb {
        WarmVerb::Ls(args) => list(args.json).map(|text| print(&text, Status::Done)),
        WarmVerb::Rm(args) => args.names.iter().try_for_each(store::remove).map(|()| Status::Done),
    };
    done.unwrap_or_else(|error| report_error(&error, Status::Failed))
}

/// A line of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    name: String,
    folder: PathBuf,
    #[serde(flatten)]
    summary: Option<SavedSummary>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// A table or JSON, sorted by name.
fn list(json: bool) -> Result<String, WarmError> {
    let list: Vec<_> = store::names()?
        .into_iter()
        .map(|(name, folder)| match summary(&folder) {
            Ok(summary) => Listed { name, folder, summary: Some(summary), problem: None },
            Err(error) => Listed { name, folder, summary: None, problem: Some(error.to_string()) },
        })
        .collect();
    if json {
        let failed = |source: serde_json::Error| WarmError::Folder {
            folder: list.first().map(|listed| listed.folder.clone()).unwrap_or_default(),
            source: source.into(),
        };
        return serde_json::to_string_pretty(&list).map_err(failed);
    }
    // Behind the table, whose columns a sentence would make wide.
    let problems = list.iter().filter_map(|Listed { name, problem, .. }| Some((name, problem.as_ref()?)));
    let problems: String =
        problems.map(|(name, problem)| format!("\n{}: {problem}", printable(name))).collect();
    let rows = list.into_iter().filter_map(|Listed { name, summary, .. }| {
        let SavedSummary { saved_at, size: bytes, memory, .. } = summary?;
        Some(vec![printable(&name), LocalTime::at(saved_at).seconds(), size(bytes), size(memory)])
    });
    Ok(listing(["NAME", "TIME", "SIZE", "MEM"], rows) + &problems)
}
