//! The registers that a worker shares with the transport: status, interrupt status and vectors; with them a device raises its
//! interrupts, one for each queue and one for configuration (virtio 1.3 §4.1.5.1, §4.1.4.5).

use std::fmt::Display;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use devices::irq::Irq;
use devices::pci::msix::MsixVector;

/// No vector (virtio 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// Bits of the ISR register.
pub(crate) const ISR_BITS: u8 = ISR_QUEUE | ISR_CONFIG;
/// DEVICE_NEEDS_RESET (virtio 1.3 §2.1).
pub(crate) const NEEDS_RESET: u8 = 64;

/// Failures of a device that are logged.
const MOST_LOGGED: u32 = 4;

/// Is told of devices that cannot go on.
pub trait Failures: std::fmt::Debug + Send + Sync {
    /// `device` waits for its driver to reset it, because of `reason`. Once for each failure, on any thread, which must not
    /// be kept waiting: a guest may make its devices fail all day.
    fn failed(&self, device: &str, reason: &str);

    /// The host has no room for a request of `disk` that moves `bytes` bytes: it waits, and the disk begins nothing more, until
    /// the disk was stopped and started again. Once for each start, on any thread, which must not be kept waiting.
    fn full(&self, disk: &str, bytes: u64, error: &io::Error) {
        let _ = (disk, bytes, error);
    }
}

/// The part of a device's registers that its worker reaches too.
#[derive(Debug)]
pub struct SharedRegisters {
    vectors: Vec<MsixVector>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    isr: AtomicU8,
    /// The device status register, for [`NEEDS_RESET`].
    status: AtomicU8,
    failures: AtomicU32,
    /// The device's name, and the listener that is told of failures.
    listener: Option<(String, Arc<dyn Failures>)>,
}

impl SharedRegisters {
    /// For `queues` queues, out of `vectors`.
    pub fn new(vectors: Vec<MsixVector>, queues: usize) -> Self {
        let queues = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        let config = AtomicU16::new(NO_VECTOR);
        SharedRegisters {
            vectors,
            config,
            queues,
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            failures: AtomicU32::new(0),
            listener: None,
        }
    }

    /// Those of the device `name`, whose failures `listener` is told of.
    #[must_use]
    pub fn heard_by(mut self, name: String, listener: Arc<dyn Failures>) -> Self {
        self.listener = Some((name, listener));
        self
    }

    /// Buffers of queue `index` were used.
    pub fn queue(&self, index: u16) {
        self.queue_by(index, |_| false);
    }

    /// As [`SharedRegisters::queue`]; where that means to write to an eventfd, `write` is asked first, and returns whether it
    /// does it.
    pub(crate) fn queue_by(&self, index: u16, write: impl FnOnce(RawFd) -> bool) {
        let Some(vector) = self.queues.get(usize::from(index)) else { return };
        let event = self.vectors.get(usize::from(vector.load(Ordering::Acquire))).and_then(Irq::event);
        if !event.is_some_and(write) {
            self.raise(vector, ISR_QUEUE);
        }
    }

    /// The device's configuration or status changed. §4.1.4.5.1: the ISR register says so under MSI-X too.
    pub fn config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        self.raise(&self.config, ISR_CONFIG);
    }

    /// The device cannot go on, because of what its driver did ([`log::Level::Warn`]) or the host refused
    /// ([`log::Level::Error`]): §2.1.2: sets DEVICE_NEEDS_RESET, tells the listener and the driver. The log has the first few,
    /// since a guest may cause them all day.
    pub(crate) fn fail(&self, level: log::Level, reason: &dyn Display) {
        let device = self.listener.as_ref().map_or("a device", |(name, _)| name);
        match self.failures.fetch_add(1, Ordering::Relaxed) {
            0..MOST_LOGGED => log::log!(level, "{device}: {reason}; it waits for the guest to reset it"),
            MOST_LOGGED => log::warn!("{device}: more failures, which are not logged any more"),
            _ => {}
        }
        if self.status.fetch_or(NEEDS_RESET, Ordering::SeqCst) & NEEDS_RESET == 0 {
            if let Some((device, listener)) = &self.listener {
                listener.failed(device, &reason.to_string());
            }
            self.config();
        }
    }

    fn raise(&self, vector: &AtomicU16, isr: u8) {
        match self.vectors.get(usize::from(vector.load(Ordering::Acquire))) {
            Some(vector) => match vector.raise() {
                Ok(true) => {}
                Ok(false) => self.show(isr),
                Err(error) => {
                    self.fail(log::Level::Error, &format_args!("the host refused an interrupt: {error}"));
                }
            },
            None => self.show(isr),
        }
    }

    /// A driver without MSI-X polls the ISR register: there is no INTx.
    fn show(&self, isr: u8) {
        self.isr.fetch_or(isr, Ordering::SeqCst);
    }

    /// The ISR register, which stays as it is.
    pub(crate) fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    pub(crate) fn set_isr(&self, isr: u8) {
        self.isr.store(isr, Ordering::SeqCst);
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
