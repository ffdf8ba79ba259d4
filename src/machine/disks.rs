//! The disks of a running machine, by id: what is needed to tell a guest that one has grown, was taken out or replaced, and how
//! much it may do.

mod change;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
mod hand_over;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;
use virtio::block::{DiskLimits, SECTOR};
use virtio::device::Message;
use virtio::transport::{DeviceHandle, TellError};

use super::events::Publisher;
use crate::host::disk::Drive;
use crate::spec::{DiskBps, DiskIops, DiskSpec, limits};

/// All disks, in the order of the spec. Clones are of the same ones. Keeps no disk open, and nothing of a
/// boot that is over.
#[derive(Debug, Clone)]
pub(super) struct Disks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    disks: Vec<Disk>,
    publisher: Publisher,
}

#[derive(Debug)]
struct Disk {
    id: String,
    spec: DiskSpec,
    drive: Weak<Drive>,
    /// The device of the present boot.
    device: Mutex<Option<DeviceHandle>>,
    limits: Mutex<DiskLimits>,
    /// Held while one is grown, taken out or put in.
    change: Mutex<()>,
}

/// A disk of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DiskState {
    /// Such as `vda`.
    pub id: String,
    /// The image or block device; `None` if it was taken out.
    #[serde(serialize_with = "as_text")]
    pub path: Option<PathBuf>,
    /// Bytes that the guest sees.
    pub size: u64,
    /// The guest cannot write.
    #[serde(rename = "ro")]
    pub read_only: bool,
    /// Most operations in a second; `None` is no limit.
    pub iops: Option<u64>,
    /// Most bytes in a second; `None` is no limit.
    pub bps: Option<u64>,
}

impl DiskState {
    /// Has `spec` describe the disk as it is now. The error is the id of a drive that is empty.
    pub(super) fn write_to(self, spec: &mut DiskSpec) -> Result<(), String> {
        let path = self.path.ok_or(self.id)?;
        if path != spec.image() {
            // Another one was inserted, read-only.
            spec.path = path;
        }
        spec.iops = self.iops.and_then(DiskIops::new);
        spec.bps = self.bps.and_then(DiskBps::new);
        Ok(())
    }
}

#[cfg(test)]
impl DiskState {
    /// For tests of those who show it.
    pub(crate) fn sample() -> Self {
        let (id, path) = ("vda".into(), Some("/vm0.raw".into()));
        DiskState { id, path, size: 1 << 20, read_only: false, iops: Some(500), bps: None }
    }
}

/// A path that is not UTF-8 is shown with replacement characters.
fn as_text<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    pub(super) fn new(specs: &[DiskSpec], drives: &[Arc<Drive>], publisher: Publisher) -> Self {
        let disk = |(index, (spec, drive)): (usize, (&DiskSpec, &Arc<Drive>))| Disk {
            id: disk_id(index),
            spec: spec.clone(),
            drive: Arc::downgrade(drive),
            device: Mutex::default(),
            limits: Mutex::new(limits(spec.iops, spec.bps)),
            change: Mutex::default(),
        };
        let disks = specs.iter().zip(drives).enumerate().map(disk).collect();
        Disks(Arc::new(Shared { disks, publisher }))
    }

    /// From now on `device` is disk `index`: that of a new boot.
    pub(super) fn attach(&self, index: usize, device: DeviceHandle) {
        if let Some(disk) = self.0.disks.get(index) {
            // It may have grown, or was exchanged, since the device was made.
            *locked(&disk.device) = Some(device.clone());
            let _ = disk.drive.upgrade().map(|drive| tell_size(&device, &drive));
            let _ = tell_limits(&device, disk);
        }
    }

    /// The limits of disk `index`.
    pub(super) fn limits(&self, index: usize) -> DiskLimits {
        self.0.disks.get(index).map(Disk::limits).unwrap_or_default()
    }

    /// Those that the guest can write to, with their places in the list.
    fn writable(&self) -> impl Iterator<Item = (usize, &Disk, Arc<Drive>)> {
        let disks = self.0.disks.iter().enumerate().filter(|(_, disk)| !disk.spec.read_only);
        disks.filter_map(|(index, disk)| Some((index, disk, disk.drive.upgrade()?)))
    }

    /// The same with their ids, for a copy.
    pub(super) fn written(&self) -> impl Iterator<Item = (usize, &str, Arc<Drive>)> {
        self.writable().map(|(index, disk, drive)| (index, disk.id.as_str(), drive))
    }

    /// All of them; none once the machine has ended.
    pub(super) fn states(&self) -> Vec<DiskState> {
        self.0.disks.iter().filter_map(Disk::state).collect()
    }
}

impl Disk {
    fn limits(&self) -> DiskLimits {
        *locked(&self.limits)
    }

    fn state(&self) -> Option<DiskState> {
        let medium = self.drive.upgrade()?.medium();
        let DiskLimits { iops, bps } = self.limits();
        Some(DiskState {
            id: self.id.clone(),
            path: medium.path().map(PathBuf::from),
            size: medium.sectors().saturating_mul(SECTOR),
            read_only: self.spec.read_only,
            iops: iops.map(Into::into),
            bps: bps.map(Into::into),
        })
    }

    /// Tells the device of the present boot. The next boot's is told when it is attached.
    fn tell(&self, tell: impl FnOnce(&DeviceHandle) -> Result<(), TellError>) -> Result<(), TellError> {
        let device = locked(&self.device).clone();
        match device.map(|device| (tell(&device), device)) {
            Some((Err(error), device)) if !device.is_gone() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Two threads that measure and tell at once tell the larger size last: it is looked up with the function locked.
fn tell_size(device: &DeviceHandle, drive: &Drive) -> Result<(), TellError> {
    let tell = device.with(|function| function.tell(Message::DiskSize { sectors: drive.medium().sectors() }));
    tell.unwrap_or(Err(TellError::Gone))
}

/// As [`tell_size`].
fn tell_limits(device: &DeviceHandle, disk: &Disk) -> Result<(), TellError> {
    let tell = device.with(|function| function.tell(Message::DiskLimits { limits: disk.limits() }));
    tell.unwrap_or(Err(TellError::Gone))
}

/// `vda`, `vdb`, ...: as Linux names the disks, in the order of their slots.
pub(crate) fn disk_id(index: usize) -> String {
    let letter = u8::try_from(index).ok().and_then(|index| b'a'.checked_add(index));
    letter
        .filter(u8::is_ascii_lowercase)
        .map_or_else(|| format!("disk{index}"), |letter| format!("vd{}", char::from(letter)))
}
