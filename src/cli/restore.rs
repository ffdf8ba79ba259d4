//! `minivmm restore`: a saved machine goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ArgAction;

use super::daemon::ServiceArgs;
use super::exit::Status;
use super::{in_place, report_error, serve};
use crate::host::lock::is_locked;
use crate::machine::GuestClock;
use crate::machine::files::Restore;
use crate::saved::{ExchangedDisks, SavedMachine, SavedMachineError};
use crate::spec::{MachineName, Spec};

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
    /// Keep writes to FOLDER's disks in overlays here
    ///
    /// For a FOLDER with copies of the disks, which stay as they are: what the guest writes from now on goes to overlays in this folder,
    /// which is new or empty.
    #[arg(long, value_name = "FOLDER", conflicts_with = "snapshot")]
    pub disks: Option<PathBuf>,
    /// Drop writes to FOLDER's disks at the end
    #[arg(long)]
    pub snapshot: bool,
    /// Put FOLDER's disks back first
    ///
    /// They take the place of the machine's disks, whose contents are lost. It goes on from a snapshot so.
    #[arg(long, conflicts_with_all = ["disks", "snapshot"])]
    pub put_back: bool,
    /// Take the disks as they are
    ///
    /// Without this option a disk is refused whose length or time of change is another one than when the machine was saved: a guest
    /// that goes on with such a disk damages the file systems on it. A copy without `cp -p` has another time, and the same content.
    #[arg(long)]
    pub trust_disks: bool,
    /// Read ahead what the guest used first last time
    ///
    /// The pages of the memory that the guest used in its first second when FOLDER was restored last with this option; they are noted anew
    /// each time, in the file `working-set` of FOLDER. The guest answers sooner if FOLDER is on a slow disk and not in the host's memory.
    #[arg(long)]
    pub prefetch: bool,
    /// From when its guest's clocks go on [default: host]
    ///
    /// `host`: the guest sees that time has passed since it was saved; timers that were to fire meanwhile fire at once. `saved`: no time
    /// has passed for the guest, whose clock is behind from then on.
    #[arg(
        long,
        value_name = "host|saved",
        default_value = "host",
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub clock: GuestClock,
    /// How it runs.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// Runs the machine until it ends, here or in the background.
pub(super) fn run(args: &RestoreArgs) -> Status {
    // The saved machine's files have to be opened by the process that runs it.
    in_place(&args.service, |notify, parent| match open(args) {
        Ok(Opened { spec, restore, overlays, put_back }) => {
            let runs = overlays.runs.clone();
            // Dropped uncalled if the start fails: then the disks are those of before.
            let begun = move || {
                runs.store(true, Ordering::Relaxed);
                if let Some(disks) = put_back {
                    disks.keep();
                }
                Ok(())
            };
            serve(&spec, Some(restore), &args.service, (notify, parent), begun)
        }
        Err(error) => report_error(&error, Status::Failed),
    })
}

/// A saved machine whose start may still fail.
struct Opened {
    spec: Spec,
    restore: Restore,
    overlays: NewOverlays,
    put_back: Option<ExchangedDisks>,
}

/// The overlays of `--disks`. Dropped before the guest runs, they are gone, so that the same command can be given again.
#[derive(Debug, Default)]
struct NewOverlays {
    files: Vec<PathBuf>,
    /// The folder, if it was made for them.
    folder: Option<PathBuf>,
    runs: Arc<AtomicBool>,
}

impl NewOverlays {
    /// Those of a machine of which nothing but the spec is there; the folder was empty.
    fn in_folder(spec: &Spec, folder: &Path, is_new: bool) -> Self {
        let files = spec.disk.iter().filter_map(|disk| disk.overlay.clone());
        let files = files.filter(|file| file.parent() == Some(folder)).collect();
        NewOverlays { files, folder: is_new.then(|| folder.into()), runs: Arc::default() }
    }
}

impl Drop for NewOverlays {
    fn drop(&mut self) {
        if !self.runs.load(Ordering::Relaxed) {
            // One that is in use is another machine's, which was quicker.
            let is_used = |path: &Path| File::open(path).is_ok_and(|file| is_locked(&file).unwrap_or(true));
            self.files.iter().filter(|path| !is_used(path)).for_each(|path| drop(fs::remove_file(path)));
            let _ = self.folder.as_ref().map(fs::remove_dir);
        }
    }
}

fn open(args: &RestoreArgs) -> Result<Opened, SavedMachineError> {
    let mut saved = SavedMachine::open(&args.folder)?;
    if saved.takes_commands() {
        return Err(SavedMachineError::TakesCommands(args.folder.clone()));
    }
    if !args.trust_disks {
        saved.check_disks()?;
    }
    let (mut overlays, mut put_back) = (NewOverlays::default(), None);
    match &args.disks {
        Some(disks) => {
            let is_new = disks.symlink_metadata().is_err();
            saved.keep_disks_in(disks)?;
            let folder = std::path::absolute(disks)
                .map_err(|source| SavedMachineError::Disk { path: disks.clone(), source })?;
            overlays = NewOverlays::in_folder(saved.spec(), &folder, is_new);
        }
        None if args.put_back => put_back = Some(saved.put_disks_back()?),
        // The guest writes to copies, or to nothing that stays.
        None if args.snapshot => saved.check_copies()?,
        None if saved.has_disks() => {
            return Err(SavedMachineError::NoPlaceForWrites(args.folder.clone()));
        }
        None => {}
    }
    if args.prefetch {
        saved.prefetch();
    }
    if let Some(name) = &args.name {
        saved.set_name(Some(name.clone()));
    }
    let (spec, restore) = saved.into_parts();
    Ok(Opened { spec, restore: restore.with_clock(args.clock), overlays, put_back })
}
