//! A bus: address ranges and the devices behind them.
//!
//! Built once before the machine runs, then shared read-only by the vCPUs; a device's own lock is taken only for an
//! access to that device.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a device asks of the machine as the result of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be reset.
    Reset,
    /// The guest's kernel reported a panic.
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

/// A device that several vCPUs may enter at once, with its own locks: an address decoder such as a PCI window. A device with
/// registers is a [`BusDevice`].
pub trait SharedDevice: Debug + Send + Sync {
    /// As [`BusDevice::size`].
    fn size(&self) -> u64;
    /// As [`BusDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]) -> Option<Effect>;
    /// As [`BusDevice::write`].
    fn write(&self, offset: u64, data: &[u8]) -> Option<Effect>;
}

/// A device behind its lock. A vCPU that panicked in it has not made it unusable for the others.
#[derive(Debug)]
struct Locked(Arc<Mutex<dyn BusDevice>>);

impl Locked {
    fn lock(&self) -> MutexGuard<'_, dyn BusDevice + 'static> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedDevice for Locked {
    fn size(&self) -> u64 {
        self.lock().size()
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        self.lock().read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Effect> {
        self.lock().write(offset, data)
    }
}

/// Serves a read of any width as byte reads at successive offsets, lowest first: what the ISA bus does with a wide
/// access to an 8-bit device.
pub fn read_bytewise(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) {
    for (at, byte) in (offset..).zip(data) {
        *byte = read(at);
    }
}

/// Serves a write of any width as byte writes at successive offsets, lowest first. The first effect wins; the bytes
/// after it are not written.
pub fn write_bytewise(
    offset: u64,
    data: &[u8],
    mut write: impl FnMut(u64, u8) -> Option<Effect>,
) -> Option<Effect> {
    (offset..).zip(data).find_map(|(at, byte)| write(at, *byte))
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
    devices: BTreeMap<u64, (u64, Arc<dyn SharedDevice>)>,
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
        self.insert_shared(base, Arc::new(Locked(device)))
    }

    /// Puts a device at `base` that takes no lock for the bus.
    ///
    /// # Errors
    /// As [`Bus::insert`].
    pub fn insert_shared(&mut self, base: u64, device: Arc<dyn SharedDevice>) -> Result<(), BusConflict> {
        let size = device.size();
        let conflict = BusConflict { base, size };
        let last = size.checked_sub(1).and_then(|n| base.checked_add(n)).ok_or(conflict.clone())?;
        if let Some((start, (len, _))) = self.devices.range(..=last).next_back() {
            // A device that starts inside the new range, or one from before that reaches into it.
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
            Some((offset, device)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                None
            }
        }
    }

    /// A guest's write. One that no device claims whole goes nowhere, as on a PC.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Effect> {
        let (offset, device) = self.find(address, data.len())?;
        device.write(offset, data)
    }

    /// The device that claims the whole access, and where in it the access starts.
    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn SharedDevice)> {
        let (base, (size, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(len as u64)?;
        (end <= *size).then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it was asked.
    #[derive(Debug, Default)]
    struct Probe {
        size: u64,
        writes: Vec<(u64, Vec<u8>)>,
        effect: Option<Effect>,
    }

    impl BusDevice for Probe {
        fn size(&self) -> u64 {
            self.size
        }
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
            read_bytewise(offset, data, |at| at as u8 + 1);
            self.effect
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
            self.writes.push((offset, data.to_vec()));
            self.effect
        }
    }

    fn probe(size: u64) -> Arc<Mutex<Probe>> {
        Arc::new(Mutex::new(Probe { size, ..Probe::default() }))
    }

    #[test]
    fn every_width_reaches_the_device_with_its_offset() {
        let mut bus = Bus::new();
        let device = probe(16);
        bus.insert(0x1000, device.clone()).unwrap();
        for width in [1usize, 2, 4, 8] {
            let mut data = vec![0; width];
            assert_eq!(bus.read(0x1004, &mut data), None);
            assert_eq!(data, (5..).take(width).collect::<Vec<u8>>());
            bus.write(0x1008, &data);
            assert_eq!(device.lock().unwrap().writes.pop(), Some((8, data)));
        }
    }

    #[test]
    fn an_access_that_straddles_the_end_of_a_device_is_nobodys() {
        let mut bus = Bus::new();
        let (first, second) = (probe(4), probe(4));
        bus.insert(0x10, first.clone()).unwrap();
        bus.insert(0x14, second.clone()).unwrap();
        let mut data = [0; 4];
        bus.read(0x12, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.write(0x12, &[1, 2, 3, 4]);
        bus.write(0x16, &[1, 2, 3, 4]);
        bus.write(0x0e, &[1, 2, 3, 4]);
        assert!(first.lock().unwrap().writes.is_empty());
        assert!(second.lock().unwrap().writes.is_empty());
    }

    #[test]
    fn an_empty_address_reads_as_all_ones_and_swallows_writes() {
        let bus = Bus::new();
        let mut data = [0; 8];
        assert_eq!(bus.read(u64::MAX, &mut data), None);
        assert_eq!(data, [0xff; 8]);
        assert_eq!(bus.write(0, &data), None);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x100, probe(0x10)).unwrap();
        for (base, size) in
            [(0x100, 0x10), (0xf8, 0x9), (0x10f, 1), (0x104, 2), (0x80, 0x1000), (0x50, 0), (u64::MAX, 2)]
        {
            assert_eq!(bus.insert(base, probe(size)), Err(BusConflict { base, size }), "{base:#x}+{size:#x}");
        }
        bus.insert(0x110, probe(1)).unwrap();
        bus.insert(0xff, probe(1)).unwrap();
        bus.insert(u64::MAX, probe(1)).unwrap();
    }

    #[test]
    fn the_last_address_of_all_is_reachable() {
        let mut bus = Bus::new();
        bus.insert(u64::MAX, probe(1)).unwrap();
        let mut data = [0; 1];
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [1]);
        let mut wide = [0; 2];
        bus.read(u64::MAX, &mut wide);
        assert_eq!(wide, [0xff; 2]);
    }

    #[test]
    fn an_effect_comes_back_to_the_caller_and_ends_a_bytewise_write() {
        let mut bus = Bus::new();
        let device = probe(4);
        device.lock().unwrap().effect = Some(Effect::Reset);
        bus.insert(0, device).unwrap();
        assert_eq!(bus.write(0, &[1]), Some(Effect::Reset));
        let mut seen = Vec::new();
        let effect = write_bytewise(6, &[1, 2, 3], |at, byte| {
            seen.push((at, byte));
            (byte == 2).then_some(Effect::PowerOff)
        });
        assert_eq!((effect, seen), (Some(Effect::PowerOff), vec![(6, 1), (7, 2)]));
    }

    #[test]
    fn a_device_that_panicked_once_is_still_served() {
        let mut bus = Bus::new();
        let device = probe(4);
        bus.insert(0, device.clone()).unwrap();
        let poison = device.clone();
        let _ = std::thread::spawn(move || {
            let _guard = poison.lock().unwrap();
            panic!("poison the lock");
        })
        .join();
        assert_eq!(bus.write(0, &[1]), None);
    }
}
