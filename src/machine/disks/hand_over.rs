//! Disks that move with their machine: another process opens the same images.

use std::thread::sleep;
use std::time::{Duration, Instant};

use virtio::block::SECTOR;

use super::{Disks, locked};
use crate::host::disk::{DiskMark, TakeBackError};
use crate::machine::SaveError;

/// Between two attempts to take a disk back.
const TICK: Duration = Duration::from_millis(20);

impl Disks {
    /// Whether another process can have all that the guest can write to, or `with_copies` of it.
    pub(in crate::machine) fn check_move(&self, with_copies: bool) -> Result<(), SaveError> {
        self.writable().filter(|(_, _, drive)| drive.medium().is_device()).try_for_each(|(_, disk, drive)| {
            match drive.medium().sector_size() {
                _ if !with_copies => Err(SaveError::DeviceStays(disk.id.clone())),
                SECTOR => Ok(()),
                _ => Err(SaveError::LargeSectors(disk.id.clone())),
            }
        })
    }

    /// Brings to the medium what the guest has written so far to those of which `of` says so, while it writes on.
    pub(in crate::machine) fn sync(&self, of: impl Fn(usize) -> bool) -> Result<(), SaveError> {
        self.writable().filter(|(index, ..)| of(*index)).try_for_each(|(_, disk, drive)| {
            drive.medium().sync().map_err(|source| SaveError::Disk { id: disk.id.clone(), source })
        })
    }

    /// Lets another process have those of which `goes` says so. The machine rests.
    pub(in crate::machine) fn release(&self, goes: impl Fn(usize) -> bool) -> Result<(), SaveError> {
        self.writable().filter(|(index, ..)| goes(*index)).try_for_each(|(_, disk, drive)| {
            // Nobody grows it meanwhile.
            let _one = locked(&disk.change);
            let released = drive.medium().release();
            released.map_err(|source| SaveError::Disk { id: disk.id.clone(), source })
        })
    }

    /// Takes back those that were released, for which it waits until `limit`. With their marks of then nobody may have written to them.
    pub(in crate::machine) fn take_back(
        &self,
        marks: Option<&[Option<DiskMark>]>,
        limit: Duration,
    ) -> Result<(), SaveError> {
        let begin = Instant::now();
        self.writable().try_for_each(|(index, disk, drive)| {
            let mark = marks.and_then(|marks| marks.get(index)?.as_ref());
            loop {
                match drive.medium().take_back(mark) {
                    Ok(()) => return Ok(()),
                    Err(TakeBackError::Busy) if begin.elapsed() < limit => sleep(TICK),
                    Err(error) => {
                        return Err(SaveError::DiskAway { id: disk.id.clone(), why: error.to_string() });
                    }
                }
            }
        })
    }
}
