//! Stand-ins for the host and a function to try the bus with: for tests and fuzz targets, here and in other crates.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::bar::{Bar, BarIndex, BarKind};
use super::config::{ConfigSpace, Identity};
use super::function::PciFunction;
use super::msix::{Msix, MsixLayout};
use super::state::MsixVectorState;
use super::{ABSENT, DEVICE_ECAM, ECAM_SIZE, EcamMirror};
use crate::bus::Effect;
use crate::component::{Component, State, StateError};
use crate::irq::{Irq, MsiAllocator, MsiIrq};

/// The memory that a guest would read configuration space from.
#[derive(Debug)]
pub struct TestMirror(Mutex<Vec<u8>>);

/// Of a bus without devices.
impl Default for TestMirror {
    fn default() -> Self {
        let mut memory = vec![0; usize::try_from(ECAM_SIZE).unwrap_or(0)];
        for device in memory.chunks_mut(usize::try_from(DEVICE_ECAM).unwrap_or(usize::MAX)) {
            if let Some(word) = device.first_chunk_mut() {
                *word = ABSENT;
            }
        }
        TestMirror(Mutex::new(memory))
    }
}

impl TestMirror {
    /// Reads as the guest would.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let memory = lock(&self.0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(memory.get(start..).unwrap_or_default()) {
            *to = *from;
        }
    }
}

impl EcamMirror for TestMirror {
    fn publish(&self, offset: u64, bytes: &[u8]) {
        let mut memory = lock(&self.0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in memory.get_mut(start..).unwrap_or_default().iter_mut().zip(bytes) {
            *to = *from;
        }
    }
}

/// A message-signalled interrupt that remembers what it delivered.
#[derive(Debug, Default)]
pub struct TestMsi {
    route: Mutex<Option<(u64, u32)>>,
    delivered: Mutex<Vec<(u64, u32)>>,
    routes_set: AtomicUsize,
}

impl TestMsi {
    /// Address and data of each delivery.
    pub fn delivered(&self) -> Vec<(u64, u32)> {
        lock(&self.delivered).clone()
    }

    /// How many there were.
    pub fn delivered_count(&self) -> usize {
        lock(&self.delivered).len()
    }

    /// The message that a trigger delivers now.
    pub fn route(&self) -> Option<(u64, u32)> {
        *lock(&self.route)
    }

    /// How often the route was set.
    pub fn routes_set(&self) -> usize {
        self.routes_set.load(Ordering::Relaxed)
    }
}

impl Irq for TestMsi {
    fn trigger(&self) -> io::Result<()> {
        if let Some(message) = self.route() {
            lock(&self.delivered).push(message);
        }
        Ok(())
    }
}

impl MsiIrq for TestMsi {
    fn set_route(&self, address: u64, data: u32) -> io::Result<()> {
        self.routes_set.fetch_add(1, Ordering::Relaxed);
        *lock(&self.route) = Some((address, data));
        Ok(())
    }

    fn clear_route(&self) -> io::Result<()> {
        *lock(&self.route) = None;
        Ok(())
    }
}

/// Hands out [`TestMsi`]s and remembers them.
#[derive(Debug, Default)]
pub struct TestMsiAllocator {
    all: Mutex<Vec<Arc<TestMsi>>>,
    refuse: AtomicBool,
}

impl TestMsiAllocator {
    /// Every interrupt handed out so far.
    pub fn all(&self) -> Vec<Arc<TestMsi>> {
        lock(&self.all).clone()
    }

    /// Whether to have none left.
    pub fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }
}

impl MsiAllocator for TestMsiAllocator {
    fn allocate(&self) -> io::Result<Arc<dyn MsiIrq>> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let msi = Arc::new(TestMsi::default());
        lock(&self.all).push(msi.clone());
        Ok(msi)
    }
}

/// A function with 16 bytes of scratch memory repeated through a 4 KiB 32-bit BAR 0, and MSI-X of three vectors in a
/// 16 KiB 64-bit BAR 2. A write of one to the last byte of BAR 0 raises vector 0.
#[derive(Debug)]
pub struct Scratch {
    config: ConfigSpace,
    /// MSI-X, to look at.
    pub msix: Msix,
    /// Where BAR 0 to 5 are, as the root said.
    pub places: [Option<u64>; 6],
    /// Calls that broke the root's promises.
    pub broken_promises: usize,
    memory: [u8; 16],
}

/// The BARs of a [`Scratch`].
pub const SCRATCH_BAR: Option<BarIndex> = BarIndex::new(0);
/// The BAR of its MSI-X table (at 0) and pending bits (at 0x1000).
pub const SCRATCH_MSIX_BAR: Option<BarIndex> = BarIndex::new(2);
const SCRATCH_SIZE: u64 = 0x1000;
const SCRATCH_MSIX_SIZE: u64 = 0x4000;

impl Scratch {
    /// One as after power-on; `None` only if the rules for BARs or MSI-X changed.
    pub fn new(allocator: &Arc<dyn MsiAllocator>) -> Option<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x10ff,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 1,
        });
        let (scratch, table) = (SCRATCH_BAR?, SCRATCH_MSIX_BAR?);
        config.add_bar(Bar::new(scratch, BarKind::Memory32, SCRATCH_SIZE).ok()?).ok()?;
        config.add_bar(Bar::new(table, BarKind::Memory64, SCRATCH_MSIX_SIZE).ok()?).ok()?;
        let layout = MsixLayout { bar: table, table: 0, pending: 0x1000 };
        let msix = Msix::new(&mut config, 3, layout, allocator).ok()?;
        config.add_capability(0x09, &[8, 0x11, 0x22, 0x33], &[0, 0, 0xf0, 0xff]).ok()?;
        Some(Scratch { config, msix, places: [None; 6], broken_promises: 0, memory: [0; 16] })
    }

    fn expect(&mut self, promise: bool) {
        self.broken_promises += usize::from(!promise);
    }
}

const KIND: &str = "scratch";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScratchState {
    memory: [u8; 16],
    msix: Vec<MsixVectorState>,
}

impl Component for Scratch {
    fn save(&self) -> Result<State, StateError> {
        State::new(KIND, VERSION, &ScratchState { memory: self.memory, msix: self.msix.state() })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let ScratchState { memory, msix } = state.open(KIND, VERSION)?;
        if msix.len() != self.msix.len() {
            return Err(StateError::mismatch(KIND, "it has another number of vectors"));
        }
        self.memory = memory;
        self.msix.load(&msix);
        Ok(())
    }

    fn go(&mut self) {
        self.msix.go(&self.config);
    }
}

impl PciFunction for Scratch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_written(&mut self, written: Range<u16>) {
        self.msix.config_written(&self.config, &written);
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) -> Option<Effect> {
        let size = if Some(bar) == SCRATCH_BAR { SCRATCH_SIZE } else { SCRATCH_MSIX_SIZE };
        self.expect(offset < size && data.len() as u64 <= size - offset);
        if Some(bar) == SCRATCH_MSIX_BAR {
            self.msix.read(offset, data);
            return None;
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at % 16).ok().and_then(|at| self.memory.get(at)).copied().unwrap_or(0);
        }
        None
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) -> Option<Effect> {
        let size = if Some(bar) == SCRATCH_BAR { SCRATCH_SIZE } else { SCRATCH_MSIX_SIZE };
        self.expect(offset < size && data.len() as u64 <= size - offset);
        if Some(bar) == SCRATCH_MSIX_BAR {
            self.msix.write(offset, data);
            return None;
        }
        for (at, byte) in (offset..).zip(data) {
            if let Some(slot) = usize::try_from(at % 16).ok().and_then(|at| self.memory.get_mut(at)) {
                *slot = *byte;
            }
            if (at, *byte) == (SCRATCH_SIZE - 1, 1) {
                let raised = self.msix.vector(0).map(|vector| vector.trigger().is_ok());
                self.expect(raised == Some(true));
            }
        }
        None
    }

    fn bar_changed(&mut self, bar: BarIndex, address: Option<u64>) {
        let place = self.places.get_mut(usize::from(bar.get()));
        // It comes from nowhere, or goes there.
        let promise = place.as_ref().is_some_and(|place| place.is_some() != address.is_some());
        if let Some(place) = place {
            *place = address;
        }
        self.expect(promise);
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
