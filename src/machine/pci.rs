//! What sits on the machine's PCI bus, and how the guest reads its configuration space.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use boot::layout;
use devices::bus::Bus;
use devices::pci::alloc::Windows;
use devices::pci::function::PciFunction;
use devices::pci::host_bridge::HostBridge;
use devices::pci::root::PciRoot;
use devices::pci::{ABSENT, DEVICE_ECAM, EcamMirror, FunctionAddress, slots};
use virtio::console::Backend;
use virtio::transport::Platform;
use virtio::worker::Ready;
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use super::components::Components;
use super::resources::Resources;
use super::stats::DeviceCounters;
use crate::kvm::memory::GuestRam;

/// A function and its place on the bus.
#[derive(Debug)]
pub(super) struct Placed {
    /// Its id as a component.
    pub(super) id: String,
    pub(super) address: FunctionAddress,
    pub(super) function: Arc<Mutex<dyn PciFunction>>,
    /// What it does, if that is counted.
    pub(super) counted: Option<DeviceCounters>,
    /// Its workers that are being made already.
    pub(super) workers: Vec<Ready>,
}

impl Placed {
    /// One that counts nothing.
    pub(super) fn new(
        id: impl Into<String>,
        address: FunctionAddress,
        function: impl PciFunction + 'static,
    ) -> Self {
        Placed {
            id: id.into(),
            address,
            function: Arc::new(Mutex::new(function)),
            counted: None,
            workers: Vec::new(),
        }
    }
}

/// Makes a machine's functions for one boot, with these terminals.
pub(super) type MakeFunctions = fn(&Resources, Terminals, &Platform) -> Result<Vec<Placed>, StartError>;

/// The virtio consoles of one boot.
#[derive(Debug)]
pub(super) struct Terminals {
    pub(super) hvc0: Box<dyn Backend>,
    /// Woken when another one has more output than it shall have.
    pub(super) hold_up: Waker,
}

/// The host bridge, where people look for one.
pub(super) fn host_bridge() -> Result<Placed, StartError> {
    Ok(Placed::new("bridge", slot(slots::HOST_BRIDGE)?, HostBridge::new()))
}

/// The first function of a device's slot.
pub(super) fn slot(device: u8) -> Result<FunctionAddress, StartError> {
    FunctionAddress::new(device, 0).ok_or(StartError::Internal("the PCI slot table"))
}

/// The memory from which the guest reads the configuration space of a bus without functions. Four devices are one pattern: most of
/// the 32 are absent, and share its pages.
pub(super) fn empty_bus() -> io::Result<GuestRam> {
    const DEVICES: u64 = 4;
    let absent: Vec<_> = (0..DEVICES).map(|device| (device * DEVICE_ECAM, ABSENT)).collect();
    let ecam = layout::ECAM;
    GuestRam::read_only(ecam.start, ecam.end - ecam.start, DEVICES * DEVICE_ECAM, &absent)
}

/// Puts the PCI bus on the machine's memory bus. The components are the bus, then its functions.
pub(super) fn plug(
    bus: &mut Bus,
    windows: Windows,
    ecam: &Arc<GuestRam>,
    functions: Vec<Placed>,
) -> Result<Components, StartError> {
    let root = PciRoot::new(windows, Arc::new(RamMirror(ecam.clone())));
    let mut components = Components::default();
    components.push("pci", root.clone());
    for Placed { id, address, function, .. } in functions {
        root.insert(address, function.clone()).map_err(StartError::describe)?;
        components.push(id, function);
    }
    root.put_on(bus, layout::ECAM.start).map_err(StartError::describe)?;
    Ok(components)
}

/// The read-only memory slot that holds the configuration space: the guest reads it without an exit.
#[derive(Debug)]
struct RamMirror(Arc<GuestRam>);

impl EcamMirror for RamMirror {
    fn publish(&self, offset: u64, bytes: &[u8]) {
        let address = GuestAddress(layout::ECAM.start.saturating_add(offset));
        if let Err(error) = self.0.memory().write_slice(bytes, address) {
            log::error!("PCI configuration space ends before offset {offset:#x}: {error}");
        }
    }
}
