//! A function's registers, as its driver finds them in BAR 0 and in configuration space.

use devices::pci::bar::BarIndex;
use devices::pci::function::PciFunction;

use super::Guest;
use crate::poll::Poller;

pub(super) const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;

impl<P: Poller + 'static> Guest<P> {
    /// Reads `data.len()` bytes of the BAR.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.function().bar_read(bar(), offset, data);
    }

    /// Writes to the BAR.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.function().bar_write(bar(), offset, data);
    }

    /// A byte of the common configuration.
    pub fn common_u8(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.read(COMMON + offset, &mut data);
        data[0]
    }

    /// Two bytes of the common configuration.
    pub fn common_u16(&mut self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.read(COMMON + offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The device status.
    pub fn status(&mut self) -> u8 {
        self.common_u8(0x14)
    }

    /// Writes the device status.
    pub fn set_status(&mut self, status: u8) {
        self.write(COMMON + 0x14, &[status]);
    }

    /// The ISR register, which reading clears.
    pub fn isr(&mut self) -> u8 {
        let mut data = [0];
        self.read(ISR, &mut data);
        data[0]
    }

    /// Bytes of the device's configuration.
    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        // As a driver does: in pieces of at most 8 bytes.
        for (at, part) in data.chunks_mut(8).enumerate() {
            self.function().bar_read(bar(), DEVICE + offset + 8 * at as u64, part);
        }
        data
    }

    /// Writes to the device's configuration.
    pub fn set_config(&mut self, offset: u64, data: &[u8]) {
        self.write(DEVICE + offset, data);
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        let mut features = 0;
        for select in [0u32, 1] {
            self.write(COMMON, &select.to_le_bytes());
            let mut half = [0; 4];
            self.read(COMMON + 4, &mut half);
            features |= u64::from(u32::from_le_bytes(half)) << (32 * select);
        }
        features
    }

    /// Writes the driver's features.
    pub fn accept(&mut self, features: u64) {
        for select in [0u32, 1] {
            self.write(COMMON + 8, &select.to_le_bytes());
            self.write(COMMON + 12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
    }

    /// The driver's features, read back.
    pub fn accepted(&mut self) -> u64 {
        let mut features = 0;
        for select in [0u32, 1] {
            self.write(COMMON + 8, &select.to_le_bytes());
            let mut half = [0; 4];
            self.read(COMMON + 12, &mut half);
            features |= u64::from(u32::from_le_bytes(half)) << (32 * select);
        }
        features
    }

    /// How many queues the device has.
    pub fn queues(&mut self) -> u16 {
        self.common_u16(0x12)
    }

    /// Offset of the first capability with this id.
    pub fn capability(&self, id: u8) -> Option<u16> {
        let function = self.function();
        let config = function.config();
        let mut at = config.read_u16(0x34) & 0xff;
        while at != 0 {
            let word = config.read_u16(at);
            if word & 0xff == u16::from(id) {
                return Some(at);
            }
            at = word >> 8;
        }
        None
    }
}

fn bar() -> BarIndex {
    BarIndex::new(0).expect("BAR 0")
}
