//! A running machine goes back to a snapshot: its boot ends, its disks are exchanged, and the next boot goes on from the saved state.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::StartError;
use super::boot_once::Origin;
use super::resources::Resources;
use super::saved::{Restore, Unsaveable};
use crate::host::disk::OpenDisk;
use crate::saved::{NewDisks, SavedMachine, SavedMachineError};
use crate::shown::path as shown;
use crate::spec::{NetLink, Spec};

/// What a machine goes back to: its disks are in new files beside the images.
#[derive(Debug)]
pub(super) struct Revert {
    disks: NewDisks,
    restore: Restore,
}

/// Why a machine did not go back. It runs on, unless it has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevertError {
    /// It has ended.
    #[error("the machine has ended")]
    Ended,
    /// The caller wanted no more.
    #[error("the way back was cancelled, and the machine is as it was")]
    Cancelled,
    /// It is about to run elsewhere.
    #[error("the machine migrates just now, and does not go back to a snapshot meanwhile")]
    Migrating,
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] SavedMachineError),
    /// It is of another machine.
    #[error(
        "{folder} is of a machine that differs in {differs}; this one does not go back to it, `minivmm restore` makes a machine from it",
        folder = shown(folder)
    )]
    Another {
        /// The folder.
        folder: PathBuf,
        /// Such as `disk`.
        differs: String,
    },
    /// The machine as it is cannot be compared with a saved one.
    #[error("the machine cannot go back to a snapshot: {0}")]
    Unsaveable(#[from] Unsaveable),
}

impl Revert {
    /// Checks that `saved` is of the machine of `spec`, and copies its disks beside the images, for as long as `wanted` says so.
    pub(super) fn prepare(
        saved: SavedMachine,
        spec: &Spec,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Self, RevertError> {
        if let Some(differs) = differences(saved.spec(), spec) {
            return Err(RevertError::Another { folder: saved.folder().into(), differs });
        }
        let disks = saved.copy_disks_back(wanted)?;
        Ok(Revert { disks, restore: saved.into_restore() })
    }

    /// Exchanges the disks, when no boot uses them.
    pub(super) fn exchange_disks(self, resources: &Resources) -> Result<Origin<'static>, StartError> {
        self.disks.replace(|index, _| {
            let (Some(spec), Some(drive)) =
                (resources.spec.disk.get(index), resources.files.drives.get(index))
            else {
                return Err(StartError::Internal("the disks"));
            };
            drive.replace(OpenDisk::open(spec).map_err(StartError::Disk)?);
            Ok(())
        })?;
        Ok(Origin::State(self.restore))
    }
}

/// The parts in which two machines differ so that neither's state fits the other; none if there are none.
fn differences(one: &Spec, other: &Spec) -> Option<String> {
    let parts = |spec: &Spec| {
        let mut spec = spec.clone();
        // What can be changed while a machine runs, and what no device has: a UUID that is not given follows the name.
        (spec.name, spec.uuid, spec.balloon) = (None, None, None);
        for disk in &mut spec.disk {
            (disk.iops, disk.bps) = (None, None);
        }
        for net in &mut spec.net {
            if let NetLink::User(user) = &mut net.link {
                user.forward.clear();
            }
        }
        match serde_json::to_value(spec) {
            Ok(Value::Object(parts)) => Some(parts),
            _ => None,
        }
    };
    let (Some(one), Some(other)) = (parts(one), parts(other)) else {
        return Some("a path that is not UTF-8".into());
    };
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let differ: Vec<_> = keys
        .into_iter()
        .filter(|key| one.get(*key) != other.get(*key))
        .map(|key| format!("`{key}`"))
        .collect();
    (!differ.is_empty()).then(|| differ.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DiskSpec;

    #[test]
    fn machines_differ_in_what_their_guests_see_and_where_their_disks_are() {
        let spec =
            Spec::new("/vmlinuz").with_disk(DiskSpec::new("/vm0.raw")).with_net("user".parse().unwrap());
        let mut same = spec.clone().with_name("vm1".parse().unwrap());
        same.balloon = Some("64".parse().unwrap());
        same = same.settled().unwrap();
        same.net.iter_mut().for_each(|net| net.mac = None);
        same.disk[0].iops = "100".parse().ok();
        same.net = vec!["user,forward=5555:22".parse().unwrap()];
        assert_eq!(differences(&spec, &same), None);
        let mut other = spec.clone().with_disk(DiskSpec::new("/vm1.raw"));
        other.mem = "1G".parse().ok();
        assert_eq!(differences(&spec, &other).unwrap(), "`disk`, `mem`");
    }
}
