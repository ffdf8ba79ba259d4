//! `minivmm snapshot`, `snapshots` and `revert`: a machine as it was, under a name.
//!
//! A snapshot is a saved folder with copies of the disks, in `$XDG_STATE_HOME/minivmm/snapshots/MACHINE/NAME`.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use super::save::{contents, follow, say};
use super::show::{listing, size};
use super::{MachineClient, RevertArgs, ShowArgs, SnapshotArgs, VerbError};
use crate::cli::state_folder::{remove_hidden, snapshots_of};
use crate::control::save_routes::snapshot_body;
use crate::host::clock::LocalTime;
use crate::image::printable;
use crate::saved::{SavedMachineError, SavedSummary, is_disk_in_use, overlay_on, summary, sweep_unfinished};
use crate::shown::path as shown;
use crate::spec::MachineName;

/// Name of a snapshot: as that of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotName(MachineName);

impl SnapshotName {
    pub(in crate::cli) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(SnapshotName).map_err(|_| {
            "a snapshot's name has 1 to 63 of A-Z a-z 0-9 . _ - and does not begin with . or -".to_owned()
        })
    }
}

/// Why a snapshot cannot be found or deleted.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum SnapshotError {
    #[error(
        "there is no place for snapshots: neither XDG_STATE_HOME nor HOME is set to a path from the root; set one of them"
    )]
    NoPlace,
    #[error("the snapshots in {folder} cannot be used: {source}", folder = shown(folder))]
    Folder { folder: PathBuf, source: io::Error },
    #[error("{machine} has no snapshot called {name}; `minivmm snapshots {machine}` lists those it has")]
    None { machine: MachineName, name: String },
    #[error(
        "{machine} has a snapshot called {name} already; give another name, or delete it: `minivmm snapshot {machine} --delete {name}`"
    )]
    Exists { machine: MachineName, name: String },
    #[error("a machine runs on the disk {path} of the snapshot; end it first", path = shown(path))]
    InUse { path: PathBuf },
    #[error(
        "{path} lies on a disk of the snapshot, and is of no use without it; remove it first, or keep what it shows by `minivmm disk convert \
         {word} --backing {beneath} NEW.qcow2`", path = shown(path), word = diskimage::shell_word(path), beneath = diskimage::shell_word(beneath)
    )]
    Beneath { path: PathBuf, beneath: PathBuf },
    #[error(
        "no machine called {machine} runs here, so that there is none to go back; `minivmm restore --put-back {folder}` starts it as it was \
         then, with its disks of then", folder = diskimage::shell_word(folder)
    )]
    NotRunning { machine: MachineName, folder: PathBuf },
}

/// The folder of a machine's snapshots.
pub(in crate::cli) fn folder_of(machine: &MachineName) -> Result<PathBuf, SnapshotError> {
    snapshots_of(machine).ok_or(SnapshotError::NoPlace)
}

fn failed(folder: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Folder { folder: folder.into(), source }
}

/// Makes or deletes one.
pub(super) fn snapshot(args: &SnapshotArgs) -> Result<(), VerbError> {
    let (machine, folder) = (&args.name, folder_of(&args.name)?);
    let target = folder.join(args.snapshot.0.as_str());
    if args.delete {
        return Ok(delete(machine, &folder, args.snapshot.0.as_str())?);
    }
    let client = MachineClient::find(machine)?;
    if target.symlink_metadata().is_ok() {
        let (machine, name) = (machine.clone(), args.snapshot.0.to_string());
        return Err(SnapshotError::Exists { machine, name }.into());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed(&folder))?;
    let body = snapshot_body(target.to_str().ok_or_else(|| VerbError::NotUtf8(target.clone()))?);
    follow(&client, "/v1/snapshot", &body)?;
    let name = args.snapshot.0.as_str();
    say(&format_args!(
        "{machine} has the snapshot {name} in {}{}; `minivmm revert {machine} {name}` takes it back there",
        shown(&target),
        contents(&target)
    ));
    Ok(())
}

/// Takes a running machine back. What was lost is said.
pub(super) fn revert(args: &RevertArgs) -> Result<String, VerbError> {
    let (machine, name) = (&args.name, args.snapshot.0.as_str());
    let folder = folder_of(machine)?.join(name);
    let of = existing(machine, &folder, name)?;
    let client = match MachineClient::find(machine) {
        Err(VerbError::NoMachine(machine)) => {
            return Err(SnapshotError::NotRunning { machine, folder }.into());
        }
        client => client?,
    };
    let body = snapshot_body(folder.to_str().ok_or_else(|| VerbError::NotUtf8(folder.clone()))?);
    follow(&client, "/v1/revert", &body)?;
    let time = LocalTime::at(of.saved_at).seconds();
    Ok(format!(
        "{machine} goes on from {name}, {time}; what it did since then, in memory and on its disks, is dropped"
    ))
}

pub(in crate::cli) fn existing(
    machine: &MachineName,
    folder: &Path,
    name: &str,
) -> Result<SavedSummary, VerbError> {
    match summary(folder) {
        Err(SavedMachineError::NotSaved(_)) => {
            Err(SnapshotError::None { machine: machine.clone(), name: name.to_owned() }.into())
        }
        found => Ok(found?),
    }
}

/// Deletes one: it is there as a whole or not at all. A machine that has gone back to it may have its memory mapped, and keeps that.
fn delete(machine: &MachineName, folder: &Path, name: &str) -> Result<(), SnapshotError> {
    let target = folder.join(name);
    if let Some(path) = is_disk_in_use(&target) {
        return Err(SnapshotError::InUse { path });
    }
    if let Some((path, beneath)) = overlay_on(&target) {
        return Err(SnapshotError::Beneath { path, beneath });
    }
    if !remove_hidden(folder, name).map_err(failed(folder))? {
        return Err(SnapshotError::None { machine: machine.clone(), name: name.to_owned() });
    }
    sweep_unfinished(folder);
    // The last one takes the folder along.
    let _ = fs::remove_dir(folder);
    Ok(())
}

/// A line of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    name: String,
    #[serde(flatten)]
    summary: Option<SavedSummary>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// The snapshots of a machine, which need not run: a table or JSON, the oldest first.
pub(super) fn list(args: &ShowArgs) -> Result<String, VerbError> {
    let folder = folder_of(&args.name)?;
    let entries = match folder.read_dir() {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(&folder)(error).into()),
    };
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names =
        names.filter_map(|name| name.to_str().filter(|name| !name.starts_with('.')).map(str::to_owned));
    let mut list: Vec<_> = names
        .map(|name| match summary(&folder.join(&name)) {
            Ok(summary) => Listed { name, summary: Some(summary), problem: None },
            Err(error) => Listed { name, summary: None, problem: Some(error.to_string()) },
        })
        .collect();
    let time = |listed: &Listed| listed.summary.as_ref().map_or(0, |summary| summary.saved_at);
    list.sort_by(|one, other| (time(one), &one.name).cmp(&(time(other), &other.name)));
    if args.json {
        return Ok(serde_json::to_string_pretty(&list)?);
    }
    // Behind the table, whose columns a sentence would make wide.
    let problems = list.iter().filter_map(|Listed { name, problem, .. }| Some((name, problem.as_ref()?)));
    let problems: String =
        problems.map(|(name, problem)| format!("\n{}: {problem}", printable(name))).collect();
    let rows = list.into_iter().filter_map(|Listed { name, summary, .. }| {
        let SavedSummary { saved_at, size: bytes, memory, disks } = summary?;
        let disks = if disks.is_empty() { "-".to_owned() } else { disks.join(" ") };
        Some(vec![printable(&name), LocalTime::at(saved_at).seconds(), size(bytes), size(memory), disks])
    });
    Ok(listing(["NAME", "TIME", "SIZE", "MEM", "DISKS"], rows) + &problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_a_file_name() {
        assert!("before-upgrade_1.2".parse::<SnapshotName>().is_ok());
        for name in ["", ".", "..", ".hidden", "-d", "a/b", "a b", &"x".repeat(64)] {
            assert!(name.parse::<SnapshotName>().unwrap_err().contains("1 to 63"), "{name}");
        }
    }

    #[test]
    fn deletion_removes_all_of_one_and_what_a_killed_one_has_left() {
        let (root, machine) = (tempfile::tempdir().unwrap(), "vm0".parse().unwrap());
        let folder = root.path().join("vm0");
        for name in ["a", "b", ".c.1.deleted"] {
            fs::create_dir_all(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("memory"), "").unwrap();
        }
        delete(&machine, &folder, "a").unwrap();
        let left: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b"]);
        assert!(delete(&machine, &folder, "a").unwrap_err().to_string().contains("no snapshot called a"));
        delete(&machine, &folder, "b").unwrap();
        assert!(!folder.exists());
        assert!(delete(&machine, &folder, "b").unwrap_err().to_string().contains("no snapshot called b"));
    }
}
