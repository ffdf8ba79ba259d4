//! The PCI bus: takes the guest's configuration writes, and decodes addresses to functions.
//!
//! A BAR answers when its function's memory enable bit is set, it lies in one of the machine's windows whole, and no
//! BAR of a lower slot lies there already. Anywhere else (over RAM, over the ECAM, over another BAR) it is nowhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::access::{Ecam, PciWindow};
use super::alloc::{BarAllocator, WindowFull, Windows};
use super::bar::BarIndex;
use super::config::CONFIG_SIZE;
use super::function::PciFunction;
use super::state::{FunctionState, KIND, RootState, VERSION};
use super::{ABSENT, EcamMirror, FUNCTION_ECAM, FUNCTIONS, FunctionAddress};
use crate::bus::{Bus, BusConflict};
use crate::component::{Component, State, StateError};

pub(super) type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// Segment 0, bus 0.
#[derive(Debug)]
pub struct PciRoot {
    mirror: Arc<dyn EcamMirror>,
    windows: Windows,
    bus: Mutex<BusState>,
    /// The BARs that answer, by address; replaced as a whole, with `bus` locked.
    decoded: RwLock<Vec<Mapping>>,
}

#[derive(Debug)]
struct BusState {
    slots: BTreeMap<FunctionAddress, Slot>,
    free: BarAllocator,
}

#[derive(Debug)]
struct Slot {
    function: SharedFunction,
    /// Where its registers put its BARs.
    wanted: Vec<BarRange>,
    /// Where they are; the function was told.
    placed: Vec<BarRange>,
}

type BarRange = (BarIndex, Range<u64>);

#[derive(Debug, Clone)]
struct Mapping {
    range: Range<u64>,
    bar: BarIndex,
    function: SharedFunction,
}

/// A function that does not go on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// The slot is in use.
    #[error("PCI slot {0} is taken already")]
    Taken(FunctionAddress),
    /// No addresses left.
    #[error(transparent)]
    WindowFull(#[from] WindowFull),
}

impl PciRoot {
    /// An empty bus whose functions answer in `windows` and whose configuration space the guest reads from `mirror`,
    /// which must be that of an empty bus: [`ABSENT`] at each multiple of [`super::DEVICE_ECAM`], zeros elsewhere.
    pub fn new(windows: Windows, mirror: Arc<dyn EcamMirror>) -> Arc<Self> {
        let free = BarAllocator::new(&windows);
        let bus = Mutex::new(BusState { slots: BTreeMap::new(), free });
        Arc::new(PciRoot { mirror, windows, bus, decoded: RwLock::default() })
    }

    /// Puts a function on the bus: presets its BARs, publishes its configuration space. Before the guest runs.
    ///
    /// # Errors
    /// [`PciError`]; the function is not on the bus then.
    pub fn insert(&self, address: FunctionAddress, function: SharedFunction) -> Result<(), PciError> {
        let bus = &mut *self.lock_bus();
        if bus.slots.contains_key(&address) {
            return Err(PciError::Taken(address));
        }
        let wanted = {
            let mut function = lock(&function);
            let config = function.config_mut();
            let bars: Vec<_> = config.bars().collect();
            for bar in &bars {
                config.set_bar_address(bar, bus.free.allocate(bar)?);
            }
            config.attach(self.mirror.clone(), address.ecam_offset());
            wanted(&*function)
        };
        bus.slots.insert(address, Slot { function, wanted, placed: Vec::new() });
        let siblings = bus.slots.keys().filter(|other| other.device() == address.device()).count();
        let first = FunctionAddress::new(address.device(), 0).and_then(|first| bus.slots.get(&first));
        if let (true, Some(first)) = (siblings > 1, first) {
            lock(&first.function).config_mut().set_multifunction();
        }
        self.place(bus);
        Ok(())
    }

    /// Puts configuration space, at `ecam`, and the windows on the machine's memory bus.
    ///
    /// # Errors
    /// [`BusConflict`] where something else is there already.
    pub fn put_on(self: &Arc<Self>, bus: &mut Bus, ecam: u64) -> Result<(), BusConflict> {
        bus.insert_shared(ecam, Arc::new(self.ecam()))?;
        for range in [&self.windows.low, &self.windows.high].into_iter().filter(|range| !range.is_empty()) {
            let window = PciWindow { root: self.clone(), range: range.clone() };
            bus.insert_shared(range.start, Arc::new(window))?;
        }
        Ok(())
    }

    /// The device through which the guest writes configuration space, and reads it where the host has no read-only
    /// memory: [`super::ECAM_SIZE`] bytes.
    pub fn ecam(self: &Arc<Self>) -> Ecam {
        Ecam(self.clone())
    }

    /// One function's part of a configuration read: zeros for an absent one, except for its id.
    pub(super) fn config_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((address, register)) = split_ecam(offset) else { return };
        match self.lock_bus().slots.get(&address) {
            Some(slot) => lock(&slot.function).config().read(register, data),
            None if address.function() == 0 => {
                let word = ABSENT.get(usize::from(register)..).unwrap_or_default();
                for (to, from) in data.iter_mut().zip(word) {
                    *to = *from;
                }
            }
            None => {}
        }
    }

    /// One function's part of a configuration write.
    pub(super) fn config_write(&self, offset: u64, data: &[u8]) {
        let Some((address, register)) = split_ecam(offset) else { return };
        let bus = &mut *self.lock_bus();
        let Some(slot) = bus.slots.get_mut(&address) else { return };
        let len = data.len().min(CONFIG_SIZE.saturating_sub(usize::from(register)));
        let (Some(data), Ok(count)) = (data.get(..len), u16::try_from(len)) else { return };
        if data.is_empty() {
            return;
        }
        let mut function = lock(&slot.function);
        function.config_mut().guest_write(register, data);
        function.config_written(register..register + count);
        let wanted = wanted(&*function);
        drop(function);
        if wanted != slot.wanted {
            slot.wanted = wanted;
            self.place(bus);
        }
    }

    /// Updates the address map from the functions' registers, and tells the functions whose BARs changed: first all ranges
    /// that end, then all that begin.
    fn place(&self, bus: &mut BusState) {
        let mut taken: Vec<Mapping> = Vec::new();
        let mut next: Vec<Vec<BarRange>> = Vec::new();
        for slot in bus.slots.values() {
            let mut placed = Vec::new();
            for (bar, range) in &slot.wanted {
                let clash = |other: &Mapping| other.range.start < range.end && range.start < other.range.end;
                if self.windows.hold(range) && !taken.iter().any(clash) {
                    taken.push(Mapping { range: range.clone(), bar: *bar, function: slot.function.clone() });
                    placed.push((*bar, range.clone()));
                }
            }
            next.push(placed);
        }
        for (slot, next) in bus.slots.values().zip(&next) {
            for gone in slot.placed.iter().filter(|place| !next.contains(place)) {
                lock(&slot.function).bar_changed(gone.0, None);
            }
        }
        taken.sort_unstable_by_key(|mapping| mapping.range.start);
        *self.decoded.write().unwrap_or_else(PoisonError::into_inner) = taken;
        for (slot, next) in bus.slots.values_mut().zip(next) {
            for come in next.iter().filter(|place| !slot.placed.contains(place)) {
                lock(&slot.function).bar_changed(come.0, Some(come.1.start));
            }
            slot.placed = next;
        }
    }

    /// The function and BAR that answer to the whole of an access, and the offset in the BAR.
    pub(super) fn find(&self, address: u64, len: usize) -> Option<(SharedFunction, BarIndex, u64)> {
        let end = address.checked_add(len as u64)?;
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        let after = decoded.partition_point(|mapping| mapping.range.start <= address);
        let mapping = decoded.get(after.checked_sub(1)?)?;
        (end <= mapping.range.end)
            .then(|| (mapping.function.clone(), mapping.bar, address - mapping.range.start))
    }

    fn lock_bus(&self) -> MutexGuard<'_, BusState> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The configuration spaces, and with them where the BARs are. The functions are components of their own.
impl Component for Arc<PciRoot> {
    fn save(&self) -> Result<State, StateError> {
        let bus = self.lock_bus();
        let functions = bus.slots.iter().map(|(address, slot)| FunctionState {
            device: address.device(),
            function: address.function(),
            config: lock(&slot.function).config().bytes().to_vec(),
        });
        State::new(KIND, VERSION, &RootState { functions: functions.collect() })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let RootState { functions } = state.open(KIND, VERSION)?;
        let bus = &mut *self.lock_bus();
        let saved = functions.iter().map(|saved| FunctionAddress::new(saved.device, saved.function));
        if !saved.eq(bus.slots.keys().map(|address| Some(*address))) {
            return Err(StateError::mismatch(KIND, "it has devices in other slots"));
        }
        for ((address, slot), saved) in bus.slots.iter().zip(&functions) {
            if let Err(error) = lock(&slot.function).config().check(&saved.config) {
                return Err(StateError::mismatch(KIND, format_args!("the device at {address}: {error}")));
            }
        }
        for (slot, saved) in bus.slots.values_mut().zip(&functions) {
            let mut function = lock(&slot.function);
            let Ok(checked) = function.config().check(&saved.config) else { continue };
            function.config_mut().load(checked);
            function.config_written(WHOLE);
            slot.wanted = wanted(&*function);
        }
        self.place(bus);
        Ok(())
    }
}

/// All of a function's configuration space.
const WHOLE: Range<u16> = 0..256;
const _: () = assert!(WHOLE.end as usize == CONFIG_SIZE);

pub(super) fn lock(function: &SharedFunction) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a function's registers put its BARs; nowhere while its memory enable bit is off.
fn wanted(function: &dyn PciFunction) -> Vec<BarRange> {
    let config = function.config();
    if !config.memory_enabled() {
        return Vec::new();
    }
    config.bars().filter_map(|bar| Some((bar.index(), bar.range_at(config.bar_address(&bar))?))).collect()
}

/// Function and register of an ECAM offset (PCI Express 5.0 §7.2.2).
fn split_ecam(offset: u64) -> Option<(FunctionAddress, u16)> {
    let function = offset / FUNCTION_ECAM;
    let device = u8::try_from(function / u64::from(FUNCTIONS)).ok()?;
    let address = FunctionAddress::new(device, u8::try_from(function % u64::from(FUNCTIONS)).ok()?)?;
    Some((address, u16::try_from(offset % FUNCTION_ECAM).ok()?))
}
