//! Why there is no clone.

use std::io;
use std::path::{Path, PathBuf};

use crate::cli::verbs::VerbError;
use crate::cli::verbs::snapshot::SnapshotError;
use crate::control::ClaimError;
use crate::control::client::ClientError;
use crate::host::disk::DiskError;
use crate::saved::SavedMachineError;
use crate::shown::path as shown;
use crate::spec::{MachineName, SpecError};

/// See the module. The original is as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloneError {
    #[error(
        "no machine called {path} runs here, and {path} is no folder of `minivmm save`, no folder of a clone and no machine's file; \
         `minivmm ls` lists the machines that run", path = shown(.0)
    )]
    NoMachine(PathBuf),
    #[error("{path}, from which the clone is to be made, cannot be read: {source}", path = shown(path))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "the machine is off, and so is its clone: there is no process for `--pidfile` and `--log`; give them when you start it, as with \
         `minivmm -d --config {file} --log FILE`", file = diskimage::shell_word(.0)
    )]
    NoProcess(PathBuf),
    #[error(
        "{id} is on the switch {switch} with {machine}, and a switch takes no second port with one MAC address; put the clone on another one \
         (`--net switch=NAME`)"
    )]
    SameSwitch { id: String, switch: String, machine: MachineName },
    #[error("`--snapshot` is for the name of a machine, and {path} is none", path = shown(.0))]
    NoName(PathBuf),
    #[error("{path} exists, and is no empty folder; give the name of a new or empty one with `--folder`", path = shown(.0))]
    Exists(PathBuf),
    #[error("{path} is being made by another process; wait until that is done", path = shown(.0))]
    Busy(PathBuf),
    #[error("the clone cannot be written to {path}: {source}", path = shown(path))]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "{id} is on {link}, where two machines cannot have one MAC address, and a guest that runs takes no other one; give the clone another \
         network of its kind, such as `{other}`, or say `--same-mac`{only}"
    )]
    SharedNet { id: String, link: String, other: &'static str, only: &'static str },
    #[error("the original has {has}, and the clone is given {given}; say `--net` once for each")]
    NetCount { has: String, given: usize },
    #[error("a guest that runs goes on with the MAC address {mac}; leave out `mac=` at {id}")]
    NetMac { id: String, mac: String },
    #[error(
        "the description of {0}, as it runs, cannot be read; it runs in another version of minivmm, or has a path that is not UTF-8"
    )]
    Description(MachineName),
    #[error(
        "{id} ({path}) lies on no base, so that its clone is a copy of all of it; leave out `--linked` for that, or use `overlay=FILE` at the \
         original's disk", path = shown(path)
    )]
    NoBase { id: String, path: PathBuf },
    #[error(
        "{folder} has no copy of {id}, whose image another machine may go on with; `--full` copies it, `minivmm save --with-disks` \
         saves a machine with its disks", folder = shown(folder)
    )]
    NoCopy { id: String, folder: PathBuf },
    #[error(
        "the guest writes to {id} ({path}), as two machines cannot, and block devices are not copied; use an image, or `ro`", path = shown(path)
    )]
    Device { id: String, path: PathBuf },
    #[error("the disk {id} cannot be copied to {to}: {source}", to = shown(to))]
    Copy { id: String, to: PathBuf, source: io::Error },
    #[error("the process that wanted the clone has ended")]
    GivenUp,
    #[error("interrupted; there is no clone")]
    Interrupted(u8),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Taken(#[from] ClaimError),
    #[error(transparent)]
    Verb(#[from] VerbError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Saved(#[from] SavedMachineError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("what was done cannot be shown: {0}")]
    Json(#[from] serde_json::Error),
}

/// The error of a machine that was told to save itself to `inner`, a part of `target` of which nobody has heard.
pub(super) fn of_save(error: VerbError, inner: &str, target: &Path) -> VerbError {
    match error {
        VerbError::Machine { name, source: ClientError::Refused { status, reason } } => {
            let reason = reason.replace(inner, &target.display().to_string());
            VerbError::Machine { name, source: ClientError::Refused { status, reason } }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_that_cannot_be_saved_is_told_with_the_folder_that_was_asked_for() {
        let inner = "/srv/.vm1.part/.minivmm-beginning";
        let reason = format!("The disk vda cannot be copied into {inner}: no space.");
        let source = ClientError::Refused { status: 409, reason };
        let error = VerbError::Machine { name: "vm0".parse().unwrap(), source };
        assert_eq!(
            of_save(error, inner, Path::new("/srv/vm1")).to_string(),
            "vm0: The disk vda cannot be copied into /srv/vm1: no space."
        );
    }
}
