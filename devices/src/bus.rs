//! A bus: address ranges and the devices behind them.
//!
//! Built once before the machine runs, then shared read-only by the vCPUs; a device's own lock is taken only for an
//! access to that device.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// What a device asks of the machine as the result of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be reset.
    Reset,
    /// The guest's kernel said that it panicked.
    Panicked,
}

/// A device on a bus. Offsets count from the device's base; `data.len()` is the width of the access: 1, 2, 4 or 8,
/// and the whole access lies inside [`BusDevice::size`].
pub trait BusDevice: Debug + Send {
    /// Bytes of address space that the device takes.
    fn size(&self) -> u64;
    /// The guest reads: fill `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect>;
    /// The guest writes `data`.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect>;
}

/// Two devices wanted the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address range {base:#x}+{size:#x} is empty, wraps or is taken already")]
pub struct BusConflict {
    /// First address asked for.
    pub base: u64,
    /// Bytes asked for.
    pub size: u64,
}

/// An address space of devices.
#[derive(Debug, Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<Mutex<dyn BusDevice>>)>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `base`.
    ///
    /// # Errors
    /// [`BusConflict`] if its range is empty, wraps or overlaps another.
    pub fn insert(&mut self, base: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusConflict> {
        let size = device.lock().unwrap_or_else(PoisonError::into_inner).size();
        let conflict = BusConflict { base, size };
        let last = size.checked_sub(1).and_then(|n| base.checked_add(n)).ok_or(conflict.clone())?;
        if let Some((start, (len, _))) = self.devices.range(..=last).next_back() {
            if *start >= base || base - *start < *len {
                return Err(conflict);
            }
        }
        self.devices.insert(base, (size, device));
        Ok(())
    }

    /// A guest's read. An access that no device claims whole reads as all ones, as on a PC.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Option<Effect> {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data)
            }
            None => {
                data.fill(0xff);
                None
            }
        }
    }

    /// A guest's write. One that no device claims whole goes nowhere, as on a PC.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Effect> {
        let (offset, device) = self.find(address, data.len())?;
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (base, (size, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(len as u64)?;
        (end <= *size).then_some((offset, device.as_ref()))
    }
}
