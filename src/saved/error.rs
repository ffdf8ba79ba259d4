//! Why a saved machine cannot be written or read.

use std::io;
use std::path::PathBuf;

use super::manifest::FORMAT;
use crate::shown::path as shown;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedMachineError {
    /// There is something of that name.
    #[error(
        "{path} exists, and is no empty folder; give the name of a new or empty one",
        path = shown(.0)
    )]
    Exists(PathBuf),
    /// It is being written, or written to.
    #[error("{path} is being written by another process; wait until that is done", path = shown(.0))]
    Busy(PathBuf),
    /// The host did not take it.
    #[error("the machine cannot be saved to {folder}: {source}", folder = shown(folder))]
    Unwritable {
        /// The folder.
        folder: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A disk could not be copied into it.
    #[error("the disk {disk} cannot be copied into {folder}: {source}", folder = shown(folder))]
    Copy {
        /// The folder.
        folder: PathBuf,
        /// Such as `vda`.
        disk: String,
        /// What the host said.
        source: io::Error,
    },
    /// A copy of a disk could not be put back.
    #[error("what {path} held then cannot be put back: {source}", path = shown(path))]
    PutBack {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Somebody writes to an image that is to be replaced.
    #[error(
        "the disk {path} is in use{holder}, and cannot be put back meanwhile; end that machine (`minivmm stop NAME`), or have another one go on \
         with disks of its own (`minivmm restore --disks NEW-FOLDER`)",
        path = shown(path)
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// By whom, if that is known, with a space before.
        holder: String,
    },
    /// Not all disks are in the folder.
    #[error(
        "{path} has no copies of the machine's disks, so that they cannot be put back; `minivmm snapshot` makes such a folder",
        path = shown(.0)
    )]
    NoDisks(PathBuf),
    /// The folder of overlays cannot be made.
    #[error("the folder {folder} for the disks of the restored machine cannot be made: {source}", folder = shown(folder))]
    DisksFolder {
        /// The folder.
        folder: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// There is something where overlays are to be made.
    #[error(
        "{path} exists, and is no empty folder; give the disks of the restored machine a folder of their own",
        path = shown(.0)
    )]
    DisksExist(PathBuf),
    /// The folder has copies of disks, and it was not said where the guest's writes go.
    #[error(
        "{path} has copies of the machine's disks, which stay as they are: give `--disks NEW-FOLDER` to keep what the guest writes from now on \
         there, `--snapshot` to have it vanish at the machine's end, or `--put-back` to replace the machine's disks by them",
        path = shown(.0)
    )]
    NoPlaceForWrites(PathBuf),
    /// The guest would write to a disk of which the folder has no copy.
    #[error(
        "{folder} has no copy of the disk {disk}, to which the guest would write itself; leave out `--disks` and `--snapshot`, or save the \
         machine with `--with-disks`",
        folder = shown(folder), disk = shown(disk)
    )]
    NoCopy {
        /// The folder.
        folder: PathBuf,
        /// The image or device.
        disk: PathBuf,
    },
    /// Its guest waits for a command.
    #[error(
        "the guest in {path} waits for a command, which `minivmm run --warm` and the library's `Template::exec` give; save another machine to \
         restore it",
        path = shown(.0)
    )]
    TakesCommands(PathBuf),
    /// There is no saved machine.
    #[error(
        "{path} holds no saved machine, which is a folder with machine.json, state and memory; `minivmm save NAME FOLDER` makes one",
        path = shown(.0)
    )]
    NotSaved(PathBuf),
    /// A file of it cannot be read.
    #[error("{path} of the saved machine cannot be read: {source}", path = shown(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A disk of it is not there.
    #[error("the disk {path} of the saved machine cannot be used: {source}", path = shown(path))]
    Disk {
        /// The image or device.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A disk of it is another one now.
    #[error(
        "the disk {path} was written to since the machine was saved, and its guest would damage it; put the disk of that time there \
         (a copy by `cp -p` keeps the time that shows it), or boot the machine anew; `--trust-disks` takes the disk as it is",
        path = shown(.0)
    )]
    DiskChanged(PathBuf),
    /// Written in another format.
    #[error(
        "{folder} has format {found}, and this program reads format {FORMAT}; restore it with the version of minivmm that saved it",
        folder = shown(folder)
    )]
    Format {
        /// The folder.
        folder: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Not as it was written.
    #[error(
        "the saved machine {folder} is damaged: {reason}; use another copy of it, or save the machine again",
        folder = shown(folder)
    )]
    Damaged {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
