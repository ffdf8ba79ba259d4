//! Changes of a disk while its machine runs: growth, limits, another disk in a drive.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use devices::thread::{self, Role};
use virtio::block::{DiskLimits, SECTOR};

use super::{Disk, DiskState, Disks, locked, tell_limits, tell_size};
use crate::host::disk::{Drive, DriveError, OpenDisk};
use crate::machine::MachineEvent;
use crate::machine::error::{DiskChangeError, ResizeError};
use crate::spec::{DiskGrowth, DiskLimitsChange, DiskQueues, DiskSpec};

/// How long the host may take to open a disk, and to end what is in flight on one.
const HOST_LIMIT: Duration = Duration::from_secs(20);

impl Disks {
    fn find(&self, id: &str) -> Result<&Disk, (String, Vec<String>)> {
        let disks = &self.0.disks;
        let found = disks.iter().find(|disk| disk.id == id);
        found.ok_or_else(|| (id.into(), disks.iter().map(|disk| disk.id.clone()).collect()))
    }

    fn drive(&self, id: &str) -> Result<(&Disk, Arc<Drive>), DiskChangeError> {
        let disk = self.find(id).map_err(|(id, ids)| DiskChangeError::NoDisk { id, ids })?;
        Ok((disk, disk.drive.upgrade().ok_or(DiskChangeError::Ended)?))
    }

    /// Grows an image, or takes over the size that the host's disk has now, and tells the guest. The size in bytes.
    pub(in crate::machine) fn grow(&self, id: &str, growth: DiskGrowth) -> Result<u64, ResizeError> {
        let disk = self.find(id).map_err(|(id, ids)| ResizeError::NoDisk { id, ids })?;
        let drive = disk.drive.upgrade().ok_or(ResizeError::Ended)?;
        let _one = locked(&disk.change);
        let before = drive.medium().sectors();
        disk.grow(&drive.medium(), growth)?;
        let sectors = drive.medium().sectors();
        disk.tell(|device| tell_size(device, &drive)).map_err(|_| ResizeError::Ended)?;
        let size = sectors.saturating_mul(SECTOR);
        if sectors != before {
            self.0.publisher.publish(MachineEvent::DiskResized { disk: id.into(), size });
        }
        Ok(size)
    }

    /// Sets limits, for this boot and those that come.
    pub(in crate::machine) fn set_limits(
        &self,
        id: &str,
        change: DiskLimitsChange,
    ) -> Result<DiskLimits, DiskChangeError> {
        let (disk, _drive) = self.drive(id)?;
        let limits = {
            let mut limits = locked(&disk.limits);
            *limits = change.of(*limits);
            *limits
        };
        disk.tell(|device| tell_limits(device, disk)).map_err(|_| DiskChangeError::Ended)?;
        Ok(limits)
    }

    /// Takes the disk out of a drive, and returns when its file is closed.
    pub(in crate::machine) fn eject(&self, id: &str) -> Result<(), DiskChangeError> {
        let (disk, drive) = self.drive(id)?;
        let _one = locked(&disk.change);
        drive.eject().map_err(|error| disk.refused(error))?;
        // From here on it is out, whatever the device says.
        self.0.publisher.publish(MachineEvent::DiskEjected { disk: id.into() });
        disk.tell(|device| tell_size(device, &drive)).map_err(|_| DiskChangeError::Ended)?;
        if drive.is_released(HOST_LIMIT) { Ok(()) } else { Err(DiskChangeError::InFlight { id: id.into() }) }
    }

    /// Opens `path` and puts it into an empty drive.
    pub(in crate::machine) fn insert(&self, id: &str, path: &Path) -> Result<DiskState, DiskChangeError> {
        let (disk, drive) = self.drive(id)?;
        let _one = locked(&disk.change);
        drive.can_insert().map_err(|error| disk.refused(error))?;
        let spec = disk.spec_of(path);
        let opened = within(HOST_LIMIT, move || OpenDisk::open(&spec));
        let opened = opened.map_err(|source| DiskChangeError::Host { id: id.into(), source })?;
        let Some(opened) = opened else {
            return Err(DiskChangeError::Unanswered { path: path.into(), limit: HOST_LIMIT });
        };
        let opened = opened?;
        let threads = disk.spec.threads.map_or(1, DiskQueues::get);
        if threads > opened.most_threads() {
            return Err(DiskChangeError::Threads { id: id.into(), path: path.into(), threads });
        }
        drive.insert(opened, path.into()).map_err(|error| disk.refused(error))?;
        self.0.publisher.publish(MachineEvent::DiskInserted { disk: id.into() });
        disk.tell(|device| tell_size(device, &drive)).map_err(|_| DiskChangeError::Ended)?;
        disk.state().ok_or(DiskChangeError::Ended)
    }
}

impl Disk {
    /// Grows the file behind `open`, if that is asked for, and measures it.
    fn grow(&self, open: &OpenDisk, growth: DiskGrowth) -> Result<(), ResizeError> {
        let id = || self.id.clone();
        let host = |source| ResizeError::Host { id: id(), source };
        if growth != DiskGrowth::By(0) {
            let has = open.present_length().map_err(host)?;
            let wanted = growth.of(has).ok_or_else(|| ResizeError::TooLarge { id: id() })?;
            if wanted < has {
                return Err(ResizeError::Smaller { id: id(), has, wanted });
            }
            if wanted > has {
                if open.is_device() {
                    return Err(ResizeError::Device { id: id(), has });
                }
                if open.is_read_only() {
                    return Err(ResizeError::ReadOnly { id: id() });
                }
                open.grow(wanted).map_err(host)?;
            }
        }
        open.measure().map(drop).map_err(host)
    }

    /// What is put in is opened as the disk of the start was. Its format is that of its ending, and it lies on nothing that is
    /// not beside it.
    fn spec_of(&self, path: &Path) -> DiskSpec {
        DiskSpec { direct: self.spec.direct, ..DiskSpec::new(path).read_only() }
    }

    fn refused(&self, error: DriveError) -> DiskChangeError {
        let id = self.id.clone();
        match error {
            DriveError::Fixed => DiskChangeError::Fixed { id },
            DriveError::Empty => DiskChangeError::Empty { id },
            DriveError::Full(path) => DiskChangeError::Full { id, path },
            DriveError::InFlight => DiskChangeError::InFlight { id },
            DriveError::Io(source) => DiskChangeError::Host { id, source },
        }
    }
}

/// Does `work` on a thread of its own, which is left to it behind `limit`: `None` then.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let worker = thread::spawn(Role::Blocking, "blocking", move || {
        // Nobody takes the result of work that was given up.
        let _ = sender.send(work());
    })?;
    match receiver.recv_timeout(limit) {
        Ok(done) => Ok(Some(done)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Ok(None),
        },
    }
}
