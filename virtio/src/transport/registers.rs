//! The common configuration structure (virtio 1.3 §4.1.4.3), but for what the worker shares.

use std::num::NonZeroU16;

use super::VirtioPci;
use crate::poll::Poller;
use crate::queue::QueueConfig;

/// Bits of the device status (virtio 1.3 §2.1).
pub(super) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    /// ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK and FAILED: what a driver may set.
    pub(crate) const DRIVERS: u8 = 1 | 2 | 4 | 8 | 128;
}

/// Offsets of the registers.
mod at {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const CONFIG_VECTOR: usize = 0x10;
    pub(super) const NUM_QUEUES: usize = 0x12;
    pub(super) const STATUS: usize = 0x14;
    pub(super) const GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_VECTOR: usize = 0x1a;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub(super) const QUEUE_DESC: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
}

/// What the driver wrote.
#[derive(Debug, Clone)]
pub(super) struct Registers {
    pub(super) offered: u64,
    pub(super) accepted: u64,
    pub(super) device_select: u32,
    pub(super) driver_select: u32,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueConfig>,
}

impl Registers {
    pub(super) fn new(offered: u64, queues: &[NonZeroU16]) -> Self {
        let queues = queues.iter().map(|max| QueueConfig::new(*max)).collect();
        Registers { offered, accepted: 0, device_select: 0, driver_select: 0, queue_select: 0, queues }
    }

    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            if let Some(max) = NonZeroU16::new(queue.max_size) {
                *queue = QueueConfig::new(max);
            }
        }
    }

    fn selected(&self) -> Option<&QueueConfig> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn select_mut(&mut self) -> Option<&mut QueueConfig> {
        self.queues.get_mut(usize::from(self.queue_select))
    }
}

/// The 32 bits of `features` that `select` names; there are 64 (§4.1.4.3.1).
fn window(features: u64, select: u32) -> u32 {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([b0, b1, b2, b3]),
        1 => u32::from_le_bytes([b4, b5, b6, b7]),
        _ => 0,
    }
}

impl<P: Poller + 'static> VirtioPci<P> {
    /// Any width at any offset, out of the structure as it is now.
    pub(super) fn read_common(&mut self, offset: usize, data: &mut [u8]) {
        let image = self.common();
        for (to, from) in data.iter_mut().zip(image.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    fn common(&mut self) -> [u8; 0x40] {
        // A reset that the worker has not finished shows in the status until it has.
        let status = self.status();
        let registers = &self.registers;
        let queue = registers.selected();
        let mut image = [0; 0x40];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in image.get_mut(at..).unwrap_or_default().iter_mut().zip(bytes) {
                *to = *from;
            }
        };
        put(at::DEVICE_FEATURE_SELECT, &registers.device_select.to_le_bytes());
        put(at::DEVICE_FEATURE, &window(registers.offered, registers.device_select).to_le_bytes());
        put(at::DRIVER_FEATURE_SELECT, &registers.driver_select.to_le_bytes());
        put(at::DRIVER_FEATURE, &window(registers.accepted, registers.driver_select).to_le_bytes());
        put(at::CONFIG_VECTOR, &self.shared.config_vector().to_le_bytes());
        put(at::NUM_QUEUES, &u16::try_from(registers.queues.len()).unwrap_or(0).to_le_bytes());
        put(at::STATUS, &[status]);
        put(at::GENERATION, &[self.info.config.generation()]);
        put(at::QUEUE_SELECT, &registers.queue_select.to_le_bytes());
        let Some(queue) = queue else { return image };
        put(at::QUEUE_SIZE, &queue.size.to_le_bytes());
        put(at::QUEUE_VECTOR, &self.shared.queue_vector(registers.queue_select).to_le_bytes());
        put(at::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        put(at::QUEUE_NOTIFY_OFF, &registers.queue_select.to_le_bytes());
        put(at::QUEUE_DESC, &queue.descriptors.to_le_bytes());
        put(at::QUEUE_DRIVER, &queue.driver.to_le_bytes());
        put(at::QUEUE_DEVICE, &queue.device.to_le_bytes());
        image
    }

    /// Writes of a register's natural width, and of the halves of a 64-bit one (§4.1.3.1). Others do nothing.
    pub(super) fn write_common(&mut self, offset: usize, data: &[u8]) {
        match *data {
            [byte] if offset == at::STATUS => self.write_status(byte),
            [b0, b1] => self.write_u16(offset, u16::from_le_bytes([b0, b1])),
            [b0, b1, b2, b3] => self.write_u32(offset, u32::from_le_bytes([b0, b1, b2, b3])),
            [b0, b1, b2, b3, b4, b5, b6, b7]
                if matches!(offset, at::QUEUE_DESC | at::QUEUE_DRIVER | at::QUEUE_DEVICE) =>
            {
                self.write_u32(offset, u32::from_le_bytes([b0, b1, b2, b3]));
                self.write_u32(offset + 4, u32::from_le_bytes([b4, b5, b6, b7]));
            }
            _ => log::trace!("{}: a write of {} bytes at {offset:#x}", self.info.name, data.len()),
        }
    }

    fn write_u16(&mut self, offset: usize, value: u16) {
        let select = self.registers.queue_select;
        match offset {
            at::CONFIG_VECTOR => self.shared.set_config_vector(value),
            at::QUEUE_SELECT => self.registers.queue_select = value,
            at::QUEUE_VECTOR => self.shared.set_queue_vector(select, value),
            at::QUEUE_SIZE => self.configure(|queue| queue.size = value),
            // §4.1.4.3.2: a driver must not write 0.
            at::QUEUE_ENABLE if value == 1 => self.configure(|queue| queue.enabled = true),
            _ => {}
        }
    }

    fn write_u32(&mut self, offset: usize, value: u32) {
        let low = |field: u64| field & !0xffff_ffff | u64::from(value);
        let high = |field: u64| field & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            at::DEVICE_FEATURE_SELECT => self.registers.device_select = value,
            at::DRIVER_FEATURE_SELECT => self.registers.driver_select = value,
            at::DRIVER_FEATURE => self.accept(value),
            at::QUEUE_DESC => self.configure(|queue| queue.descriptors = low(queue.descriptors)),
            at::QUEUE_DRIVER => self.configure(|queue| queue.driver = low(queue.driver)),
            at::QUEUE_DEVICE => self.configure(|queue| queue.device = low(queue.device)),
            _ => match offset.checked_sub(4) {
                Some(at::QUEUE_DESC) => self.configure(|queue| queue.descriptors = high(queue.descriptors)),
                Some(at::QUEUE_DRIVER) => self.configure(|queue| queue.driver = high(queue.driver)),
                Some(at::QUEUE_DEVICE) => self.configure(|queue| queue.device = high(queue.device)),
                _ => {}
            },
        }
    }

    fn accept(&mut self, value: u32) {
        let registers = &mut self.registers;
        // §3.1.1: features are settled once FEATURES_OK is.
        if self.shared.status() & status::FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match registers.driver_select {
            0 => registers.accepted = registers.accepted & !0xffff_ffff | value,
            1 => registers.accepted = registers.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// Changes the selected queue, unless it is enabled or the device runs: what was checked then stays (§4.1.4.3.2).
    fn configure(&mut self, change: impl FnOnce(&mut QueueConfig)) {
        let running = self.shared.status() & status::DRIVER_OK != 0;
        if let Some(queue) = self.registers.select_mut().filter(|queue| !queue.enabled && !running) {
            change(queue);
        }
    }
}
