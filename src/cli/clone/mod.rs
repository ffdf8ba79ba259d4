//! `minivmm clone`: a second machine of one that runs, was saved or is off.
//!
//! A clone of a running machine is a save with its disks and a restore of that: the original is paused for the end of the save only. It
//! is made by the process that then runs it, in the background; the process that was called waits.

mod args;
mod disks;
mod error;
mod folder;
mod identity;
mod report;
mod source;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use args::CloneArgs;
use disks::{Following, Owner};
use error::CloneError;
use folder::{CloneFolder, Unfinished};
use identity::{at_next_boot, check_switches, identity};
use report::Report;
use source::{MACHINE_FILE, Source};

use super::daemon::{Notify, Parent, What, launch};
use super::disk::progress::Bar;
use super::exit::Status;
use super::verbs::save::ask;
use super::verbs::{MachineClient, VerbError};
use super::{print, report_error, serve};
use crate::control::save_routes::save_body;
use crate::control::{ClaimError, RunningMachine, find_lasting};
use crate::machine::files::Restore;
use crate::machine::{CopyLimits, CopyReport};
use crate::saved::{SavedMachine, with_absolute_paths};
use crate::spec::{MachineName, ShareOrigin, Spec};

/// Makes the clone; runs it until it ends, if it runs.
pub(super) fn run(args: &CloneArgs) -> Status {
    let source = match Source::find(args) {
        Ok(source) => source,
        Err(error) => return failed(&error),
    };
    if let Source::Off(file) = &source {
        return match clone_off(args, file) {
            Ok(text) => print(&text, Status::Done),
            Err(error) => failed(&error),
        };
    }
    launch(What::Machine, Notify::take(), |notify, parent| match clone_running(args, &source, &parent) {
        Ok(Begun { spec, restore, unfinished }) => {
            let finish = unfinished.finish();
            serve(&spec, Some(restore), &args.service(), (notify, Some(parent)), finish)
        }
        Err(error) => failed(&error),
    })
}

fn failed(error: &CloneError) -> Status {
    match error {
        CloneError::Interrupted(signal) => report_error(error, Status::Signal(*signal)),
        _ => report_error(error, Status::Failed),
    }
}

/// A clone whose guest is about to run.
struct Begun {
    spec: Spec,
    restore: Restore,
    unfinished: Unfinished,
}

/// The clone's folder, absolute.
fn folder_of(args: &CloneArgs) -> Result<PathBuf, CloneError> {
    let folder = args.folder.clone().unwrap_or_else(|| args.name.as_str().into());
    std::path::absolute(&folder).map_err(|source| CloneError::Unwritable { path: folder, source })
}

/// Early, so that nothing is copied in vain. It is made sure of when the clone takes its name.
fn check_name(name: &MachineName) -> Result<(), CloneError> {
    match find_lasting(name) {
        Some(RunningMachine { name, pid, .. }) => Err(ClaimError::Taken { name, pid }.into()),
        None => Ok(()),
    }
}

fn clone_running(args: &CloneArgs, source: &Source, parent: &Parent) -> Result<Begun, CloneError> {
    check_name(&args.name)?;
    let target = folder_of(args)?;
    if let Source::Running(name, client) = source {
        let spec = source::spec_of(name, client)?;
        let clone = identity(&spec, args, &target, true, &mut Report::default())?.settled()?;
        check_switches(&spec, &clone, name)?;
        if args.linked {
            disks::check_linked(&spec)?;
        }
    }
    let folder = CloneFolder::create(&target)?;
    let mut report = report_of(args, &target);
    report.pid = Some(std::process::id());
    let mut bar = Bar::without_signals();
    let mut saved = match source {
        Source::Running(_, client) => {
            let copied = save(client, &folder, &mut bar, parent)?;
            report.paused_ms = Some(copied.paused_ms);
            SavedMachine::open(folder.beginning())?
        }
        Source::Saved(path) | Source::Off(path) => {
            let saved = SavedMachine::open(path)?;
            saved.check_disks()?;
            folder.begin()?;
            saved
        }
    };
    let owner = match source {
        Source::Running(..) => Owner::Clone,
        Source::Saved(path) | Source::Off(path) => Owner::Saved(path),
    };
    let mut spec = identity(saved.spec(), args, &target, true, &mut report)?;
    if let Source::Running(name, _) = source {
        spec.share.iter_mut().for_each(|share| share.origin = ShareOrigin::Machine(name.to_string()));
    }
    let is_given_up = || parent.is_gone();
    let following = &mut Following { progress: &mut bar, is_given_up: &is_given_up };
    disks::place(saved.take_written(), owner, &mut spec, args, &folder, following, &mut report)?;
    drop(bar);
    write_file(&folder, &spec, args)?;
    let text = report.text(args.json)?;
    let unfinished = folder.keep()?;
    parent.announce(text);
    Ok(Begun { spec: spec.settled()?, restore: saved.into_restore(), unfinished })
}

/// Saves a running machine into the clone's folder.
fn save(
    client: &MachineClient,
    folder: &CloneFolder,
    bar: &mut Bar,
    parent: &Parent,
) -> Result<CopyReport, CloneError> {
    let path = folder.beginning();
    let path = path.to_str().ok_or_else(|| VerbError::NotUtf8(folder.target().into()))?;
    let body = save_body(path, Some(CopyLimits::default()), true);
    let copied = ask(client, &body, bar, &|| parent.is_gone());
    Ok(CopyReport::deserialize(copied.map_err(|error| error::of_save(error, path, folder.target()))?)?)
}

/// A machine that is off is copied as it is, and stays off.
fn clone_off(args: &CloneArgs, file: &Path) -> Result<String, CloneError> {
    check_name(&args.name)?;
    let target = folder_of(args)?;
    if args.pidfile.is_some() || args.log.is_some() {
        return Err(CloneError::NoProcess(target.join(MACHINE_FILE)));
    }
    let original = with_absolute_paths(Spec::from_file(file)?)
        .map_err(|source| CloneError::Unwritable { path: target.clone(), source })?;
    let mut report = report_of(args, &target);
    let mut spec = identity(&original, args, &target, false, &mut report)?;
    let folder = CloneFolder::create(&target)?;
    let mut bar = Bar::begin().map_err(VerbError::Terminal)?;
    let written = disks::written_by(&spec)?;
    let following = &mut Following { progress: &mut bar, is_given_up: &|| false };
    let placed = disks::place(written, Owner::Original, &mut spec, args, &folder, following, &mut report);
    placed.map_err(|error| bar.interrupted().map_or(error, CloneError::Interrupted))?;
    drop(bar);
    write_file(&folder, &spec, args)?;
    let text = report.text(args.json)?;
    folder.keep()?.finish()().map_err(|source| CloneError::Unwritable { path: target, source })?;
    Ok(text)
}

fn report_of(args: &CloneArgs, target: &Path) -> Report {
    Report::new(args.name.as_str(), target)
}

/// The file that boots the clone later. What is in its folder has paths that count from there.
fn write_file(folder: &CloneFolder, spec: &Spec, args: &CloneArgs) -> Result<(), CloneError> {
    let mut spec = at_next_boot(spec.clone(), args.same_mac);
    spec.clone().settled()?;
    for path in spec.paths_mut() {
        if let Ok(inside) = path.strip_prefix(folder.target()) {
            *path = inside.to_owned();
        }
    }
    let text = format!(
        "# Made by `minivmm clone`. `minivmm -d --config {MACHINE_FILE}` boots it.\n{}",
        spec.to_toml()?
    );
    folder.write(MACHINE_FILE, &text)
}
