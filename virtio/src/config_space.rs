//! A device's configuration structure (virtio 1.3 §2.5): read by vCPUs, changed by the device, written in part by
//! the driver.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::shared_registers::SharedRegisters;

/// The bytes that both sides see, and a count of their changes.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    /// Which bits the driver may write.
    writable: Vec<u8>,
    generation: AtomicU8,
    shared: OnceLock<Arc<SharedRegisters>>,
}

impl ConfigSpace {
    /// One that begins as `bytes`, of which the driver may write nothing.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::with_writable(bytes, Vec::new())
    }

    /// One whose bits that are set in `writable` the driver may write.
    pub fn with_writable(bytes: Vec<u8>, writable: Vec<u8>) -> Self {
        ConfigSpace {
            bytes: Mutex::new(bytes),
            writable,
            generation: AtomicU8::new(0),
            shared: OnceLock::new(),
        }
    }

    /// The device changes `data.len()` bytes at `offset` and tells the driver, if they differ from before.
    pub fn set(&self, offset: usize, data: &[u8]) {
        let mut bytes = self.lock();
        let mut changed = false;
        for (to, from) in bytes.get_mut(offset..).unwrap_or_default().iter_mut().zip(data) {
            changed |= to != from;
            *to = *from;
        }
        if changed {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        drop(bytes);
        if let Some(shared) = self.shared.get().filter(|_| changed) {
            shared.config();
        }
    }

    /// Has the driver read it once more, as after a change.
    pub(crate) fn announce(&self) {
        if let Some(shared) = self.shared.get() {
            shared.config();
        }
    }

    /// Sets `data.len()` bytes at `offset` as they were saved: the driver knows them already.
    pub(crate) fn load(&self, offset: usize, data: &[u8]) {
        for (to, from) in self.lock().get_mut(offset..).unwrap_or_default().iter_mut().zip(data) {
            *to = *from;
        }
    }

    /// Sets [`ConfigSpace::generation`] as it was saved.
    pub(crate) fn load_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Reads at `offset`; beyond the end there are zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.lock().get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// The 32-bit field at `offset`.
    pub fn read_u32(&self, offset: usize) -> u32 {
        let mut field = [0; 4];
        self.read(offset, &mut field);
        u32::from_le_bytes(field)
    }

    /// The driver writes; read-only bits stay. Devices read the fields when they need them.
    pub(crate) fn driver_writes(&self, offset: usize, data: &[u8]) {
        let mut bytes = self.lock();
        let masks = self.writable.get(offset..).unwrap_or_default();
        for ((to, from), mask) in bytes.get_mut(offset..).unwrap_or_default().iter_mut().zip(data).zip(masks)
        {
            *to = (*to & !mask) | (from & mask);
        }
    }

    /// Which bits of byte `offset` the driver may write.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn mask(&self, offset: usize) -> u8 {
        self.writable.get(offset).copied().unwrap_or(0)
    }

    /// Bytes of it.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Count of the changes: a driver that reads several fields reads it before and after (§2.5.3).
    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The way to tell the driver of changes, once.
    pub(crate) fn attach(&self, shared: Arc<SharedRegisters>) {
        // A device belongs to one transport for life.
        let _ = self.shared.set(shared);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
