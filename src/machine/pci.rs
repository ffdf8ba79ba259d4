//! What sits on the machine's PCI bus, and how the guest reads its configuration space.

use std::sync::{Arc, Mutex};

use boot::layout;
use devices::bus::Bus;
use devices::irq::MsiAllocator;
use devices::pci::alloc::Windows;
use devices::pci::function::PciFunction;
use devices::pci::host_bridge::HostBridge;
use devices::pci::root::PciRoot;
use devices::pci::{EcamMirror, FunctionAddress, slots};
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use crate::kvm::memory::GuestRam;
use crate::spec::Spec;

/// A function and its place on the bus.
pub(super) type Placed = (FunctionAddress, Arc<Mutex<dyn PciFunction>>);

/// Makes a machine's functions for one boot.
pub(super) type MakeFunctions = fn(&Spec, &Arc<dyn MsiAllocator>) -> Result<Vec<Placed>, StartError>;

/// The functions that a spec asks for.
pub(super) fn functions(_: &Spec, _: &Arc<dyn MsiAllocator>) -> Result<Vec<Placed>, StartError> {
    let address =
        FunctionAddress::new(slots::HOST_BRIDGE, 0).ok_or(StartError::Internal("the PCI slot table"))?;
    Ok(vec![(address, Arc::new(Mutex::new(HostBridge::new())))])
}

/// Puts the PCI bus on the machine's memory bus.
pub(super) fn plug(
    bus: &mut Bus,
    windows: Windows,
    ecam: &Arc<GuestRam>,
    functions: Vec<Placed>,
) -> Result<(), StartError> {
    let root = PciRoot::new(windows, Arc::new(RamMirror(ecam.clone())));
    for (address, function) in functions {
        root.insert(address, function).map_err(StartError::describe)?;
    }
    root.put_on(bus, layout::ECAM.start).map_err(StartError::describe)
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
