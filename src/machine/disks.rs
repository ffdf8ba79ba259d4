//! The disks of a running machine, by id: what is needed to tell a guest that one has grown.

use std::sync::{Arc, Mutex, PoisonError};

use virtio::block::SECTOR;
use virtio::device::Message;
use virtio::transport::{DeviceHandle, TellError};

use super::error::ResizeError;
use crate::host::disk::{OpenDisk, WeakDisk};

/// All disks, in the order of the spec. Clones are of the same ones. Keeps no disk open, and nothing of a
/// boot that is over.
#[derive(Debug, Clone)]
pub(super) struct Disks(Arc<Vec<Disk>>);

#[derive(Debug)]
struct Disk {
    open: WeakDisk,
    /// The device of the present boot.
    device: Mutex<Option<DeviceHandle>>,
}

impl Disks {
    pub(super) fn new(open: &[OpenDisk]) -> Self {
        let disk = |open: &OpenDisk| Disk { open: open.downgrade(), device: Mutex::default() };
        Disks(Arc::new(open.iter().map(disk).collect()))
    }

    /// From now on `device` is disk `index`: that of a new boot.
    pub(super) fn attach(&self, index: usize, device: DeviceHandle) {
        if let Some(disk) = self.0.get(index) {
            // It may have grown since the device was made.
            let _ = disk.open.upgrade().map(|open| tell_size(&device, &open));
            *disk.device.lock().unwrap_or_else(PoisonError::into_inner) = Some(device);
        }
    }

    /// Takes over the size that the host's file has now, and tells the guest. The size in bytes.
    pub(super) fn resize(&self, id: &str) -> Result<u64, ResizeError> {
        let disk = (0..).zip(self.0.iter()).find(|(index, _)| disk_id(*index) == id);
        let Some((_, Disk { open, device })) = disk else {
            let ids = (0..self.0.len()).map(disk_id).collect::<Vec<_>>();
            return Err(ResizeError::NoDisk { id: id.into(), ids });
        };
        let open = open.upgrade().ok_or(ResizeError::Ended)?;
        open.measure().map_err(|source| ResizeError::Host { id: id.into(), source })?;
        let device = device.lock().unwrap_or_else(PoisonError::into_inner).clone();
        device
            .map_or(Err(TellError::Gone), |device| tell_size(&device, &open))
            .map_err(|_| ResizeError::Ended)
    }
}

/// Two threads that measure and tell at once tell the larger size last: it is looked up with the function locked.
fn tell_size(device: &DeviceHandle, open: &OpenDisk) -> Result<u64, TellError> {
    let told = device.with(|function| {
        let sectors = open.sectors();
        function.tell(Message::DiskSize { sectors }).map(|()| sectors.saturating_mul(SECTOR))
    });
    told.unwrap_or(Err(TellError::Gone))
}

/// `vda`, `vdb`, ...: as Linux names the disks, in the order of their slots.
pub(crate) fn disk_id(index: usize) -> String {
    let letter = u8::try_from(index).ok().and_then(|index| b'a'.checked_add(index));
    letter
        .filter(u8::is_ascii_lowercase)
        .map_or_else(|| format!("disk{index}"), |letter| format!("vd{}", char::from(letter)))
}
