//! One vector: its message, its masks, and the interrupt in the host that carries it.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::super::state::MsixVectorState;
use crate::irq::{Irq, MsiAllocator, MsiIrq};

const ADDRESS: u64 = 0;
const DATA: u64 = 8;
const CONTROL: u64 = 12;
const MASKED: u32 = 1;
/// The address is of a doubleword: its two low bits are zero.
const ADDRESS_BITS: u64 = !3;

/// Kinds of warnings: a message without a route, an interrupt that was not raised.
const UNROUTED: u8 = 1;
const LOST: u8 = 2;

/// A vector of a function, shared between its table and the part of the function that triggers it.
#[derive(Debug)]
pub(super) struct Vector {
    /// Whether a trigger goes straight to `irq`. Changed only with `entry` locked.
    live: AtomicBool,
    irq: OnceLock<Arc<dyn MsiIrq>>,
    allocator: Arc<dyn MsiAllocator>,
    entry: Mutex<Entry>,
    /// Warnings that were given, a bit for each kind: a guest may cause them all day.
    warned: AtomicU8,
}

#[derive(Debug)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
    /// MSI-X is on, for the whole function.
    enabled: bool,
    /// The whole function's mask is off.
    open: bool,
    /// What the host delivers now.
    route: Option<(u64, u32)>,
}

impl Entry {
    /// Neither its own mask nor the function's holds it back.
    fn is_deliverable(&self) -> bool {
        self.enabled && self.open && !self.masked
    }
}

/// After reset every vector is masked (PCI 3.0 §6.8.2.9).
const POWER_ON: Entry =
    Entry { address: 0, data: 0, masked: true, pending: false, enabled: false, open: true, route: None };

impl Vector {
    pub(super) fn new(allocator: Arc<dyn MsiAllocator>) -> Self {
        Vector {
            live: AtomicBool::new(false),
            irq: OnceLock::new(),
            allocator,
            entry: Mutex::new(POWER_ON),
            warned: AtomicU8::new(0),
        }
    }

    /// The four doublewords as the guest reads them.
    pub(super) fn entry(&self) -> [u8; 16] {
        let entry = self.lock();
        let control = if entry.masked { MASKED } else { 0 };
        let [address, rest] = [u128::from(entry.address), u128::from(entry.data)];
        (address | rest << 64 | u128::from(control) << 96).to_le_bytes()
    }

    pub(super) fn is_pending(&self) -> bool {
        self.lock().pending
    }

    /// The guest writes one or two doublewords at `at`, aligned to their size.
    pub(super) fn write(&self, at: u64, data: &[u8]) {
        let mut entry = self.lock();
        for (at, word) in (at..).step_by(4).zip(data.chunks_exact(4)) {
            let Ok(word) = <[u8; 4]>::try_from(word).map(u32::from_le_bytes) else { continue };
            let wide = u64::from(word);
            match at {
                ADDRESS => entry.address = (entry.address & !0xffff_ffff | wide) & ADDRESS_BITS,
                DATA => entry.data = word,
                CONTROL => entry.masked = word & MASKED != 0,
                _ => entry.address = entry.address & 0xffff_ffff | wide << 32,
            }
        }
        self.update(&mut entry);
    }

    pub(super) fn set_function(&self, enabled: bool, open: bool) {
        let mut entry = self.lock();
        (entry.enabled, entry.open) = (enabled, open);
        // A function whose MSI-X is off drops pending messages.
        entry.pending &= enabled;
        self.update(&mut entry);
    }

    pub(super) fn state(&self) -> MsixVectorState {
        let Entry { address, data, masked, pending, .. } = *self.lock();
        MsixVectorState { address, data, masked, pending }
    }

    /// Takes a saved entry; the vector stays silent until [`Vector::set_function`].
    pub(super) fn load(&self, saved: &MsixVectorState) {
        let mut entry = self.lock();
        self.live.store(false, Ordering::Release);
        let MsixVectorState { address, data, masked, pending } = *saved;
        let route = entry.route;
        *entry = Entry { address: address & ADDRESS_BITS, data, masked, pending, route, ..POWER_ON };
    }

    /// Makes the host follow the entry, and delivers what waited.
    fn update(&self, entry: &mut Entry) {
        if !entry.is_deliverable() {
            self.live.store(false, Ordering::Release);
            return;
        }
        match self.route(entry) {
            Ok(irq) => {
                self.live.store(true, Ordering::Release);
                if std::mem::take(&mut entry.pending)
                    && let Err(error) = irq.trigger()
                    && self.is_new(LOST)
                {
                    log::warn!("MSI-X: a pending interrupt could not be raised: {error}");
                }
            }
            Err(error) => {
                self.live.store(false, Ordering::Release);
                if self.is_new(UNROUTED) {
                    log::warn!(
                        "MSI-X: no route for message {:#x} to {:#x}: {error}",
                        entry.data,
                        entry.address
                    );
                }
            }
        }
    }

    /// Whether a warning of this kind is the first.
    fn is_new(&self, kind: u8) -> bool {
        self.warned.fetch_or(kind, Ordering::Relaxed) & kind == 0
    }

    /// The host's interrupt, delivering the entry's message.
    fn route(&self, entry: &mut Entry) -> io::Result<&Arc<dyn MsiIrq>> {
        let irq = match self.irq.get() {
            Some(irq) => irq,
            None => {
                let new = self.allocator.allocate()?;
                self.irq.get_or_init(|| new)
            }
        };
        let message = (entry.address, entry.data);
        if entry.route != Some(message) {
            entry.route = None;
            irq.set_route(entry.address, entry.data)?;
            entry.route = Some(message);
        }
        Ok(irq)
    }

    fn lock(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interrupt of one MSI-X vector, for the part of a function that raises it.
#[derive(Debug, Clone)]
pub struct MsixVector(pub(super) Arc<Vector>);

impl MsixVector {
    /// As [`Irq::trigger`]; `false` if MSI-X is off and no message is sent.
    ///
    /// # Errors
    /// The host could not raise the interrupt.
    pub fn raise(&self) -> io::Result<bool> {
        let vector = &self.0;
        if vector.live.load(Ordering::Acquire) {
            return vector.irq.get().map_or(Ok(()), |irq| irq.trigger()).map(|()| true);
        }
        let mut entry = vector.lock();
        if vector.live.load(Ordering::Acquire) {
            return vector.irq.get().map_or(Ok(()), |irq| irq.trigger()).map(|()| true);
        }
        entry.pending |= entry.enabled;
        if entry.is_deliverable() {
            // The host refused its route before, and may have room for it now.
            vector.route(&mut entry)?;
            vector.update(&mut entry);
        }
        Ok(entry.enabled)
    }
}

impl Irq for MsixVector {
    /// Unmasked: one load, then the host's interrupt. Masked: the pending bit. With MSI-X off: nothing, there is no
    /// other interrupt to fall back to. A trigger that races with the guest's masking counts as sent before it.
    fn trigger(&self) -> io::Result<()> {
        self.raise().map(drop)
    }

    /// None while it is masked: a trigger goes to the pending bit then.
    fn event(&self) -> Option<RawFd> {
        let vector = &self.0;
        if vector.live.load(Ordering::Acquire) { vector.irq.get()?.event() } else { None }
    }
}
