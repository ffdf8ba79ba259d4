//! How a device reaches its driver: a vector a queue and one for configuration (virtio 1.3 §4.1.5.1, §4.1.4.5).

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use devices::irq::Irq;
use devices::pci::msix::MsixVector;

/// What says that there is no vector (virtio 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// DEVICE_NEEDS_RESET (virtio 1.3 §2.1).
pub(crate) const NEEDS_RESET: u8 = 64;

/// Faults of a device that are logged.
const MOST_LOGGED: u32 = 4;

/// The part of a device's registers that its worker reaches too.
#[derive(Debug)]
pub struct Interrupts {
    vectors: Vec<MsixVector>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    isr: AtomicU8,
    /// The device status register, for [`NEEDS_RESET`].
    status: AtomicU8,
    faults: AtomicU32,
}

impl Interrupts {
    /// For `queues` queues, out of `vectors`.
    pub fn new(vectors: Vec<MsixVector>, queues: usize) -> Self {
        let queues = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        let config = AtomicU16::new(NO_VECTOR);
        Interrupts {
            vectors,
            config,
            queues,
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            faults: AtomicU32::new(0),
        }
    }

    /// Buffers of queue `index` were used.
    pub fn queue(&self, index: u16) {
        self.queue_by(index, |_| false);
    }

    /// As [`Interrupts::queue`]; where that means to write to an eventfd, `write` is asked first, and says whether it
    /// does it.
    pub(crate) fn queue_by(&self, index: u16, write: impl FnOnce(RawFd) -> bool) {
        let Some(vector) = self.queues.get(usize::from(index)) else { return };
        let event = self.vectors.get(usize::from(vector.load(Ordering::Acquire))).and_then(Irq::event);
        if !event.is_some_and(write) {
            self.raise(vector, ISR_QUEUE);
        }
    }

    /// The device's configuration or status changed.
    pub fn config(&self) {
        self.raise(&self.config, ISR_CONFIG);
    }

    /// The device cannot go on: §2.1.2, DEVICE_NEEDS_RESET, and the driver is told.
    pub fn needs_reset(&self) {
        if self.status.fetch_or(NEEDS_RESET, Ordering::SeqCst) & NEEDS_RESET == 0 {
            self.config();
        }
    }

    /// As [`Interrupts::needs_reset`], because of `fault`, with a line in the log: the first few times, since a guest may
    /// do it all day.
    pub(crate) fn fault(&self, device: &str, fault: &dyn std::fmt::Display) {
        match self.faults.fetch_add(1, Ordering::Relaxed) {
            0..MOST_LOGGED => log::warn!("{device}: {fault}; it waits for the guest to reset it"),
            MOST_LOGGED => log::warn!("{device}: more faults of its driver, which are not logged any more"),
            _ => {}
        }
        self.needs_reset();
    }

    fn raise(&self, vector: &AtomicU16, isr: u8) {
        match self.vectors.get(usize::from(vector.load(Ordering::Acquire))) {
            Some(vector) => {
                if let Err(error) = vector.trigger() {
                    log::error!("an interrupt of a virtio device could not be raised: {error}");
                }
            }
            // A driver without MSI-X polls the ISR register: there is no INTx.
            None => {
                self.isr.fetch_or(isr, Ordering::SeqCst);
            }
        }
    }

    pub(crate) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(crate) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Adds bits to the status without losing a [`NEEDS_RESET`] that a worker sets meanwhile.
    pub(crate) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Acquire)
    }

    pub(crate) fn queue_vector(&self, index: u16) -> u16 {
        self.queues.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// A vector that does not exist reads back as none (virtio 1.3 §4.1.5.1.2.1).
    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::Release);
    }

    pub(crate) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(own) = self.queues.get(usize::from(index)) {
            own.store(self.existing(vector), Ordering::Release);
        }
    }

    pub(crate) fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Release);
        for queue in &self.queues {
            queue.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::SeqCst);
        self.set_status(0);
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }
}
