//! The VM generation ID (Microsoft, "Virtual Machine Generation ID"): 16 random bytes in guest memory, others after each boot, restore and
//! clone. A guest that listens makes its random numbers anew when they change, and so differs from every other guest that goes on
//! from the same state.

use std::io;
use std::sync::Arc;

use boot::acpi::GenerationId;
use boot::layout;
use devices::irq::Irq;
use devices::ports;
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use crate::kvm::memory::GuestRam;

/// Where the guest finds it, and what tells of a change.
pub(super) const GENERATION_ID: GenerationId =
    GenerationId { address: layout::GENERATION_ID, gsi: ports::GENERATION_ID_GSI };

/// Writes a new one to the memory of a guest that does not run.
pub(super) fn renew(ram: &GuestRam) -> Result<(), StartError> {
    let mut id = [0u8; 16];
    getrandom::fill(&mut id).map_err(StartError::describe)?;
    ram.memory().write_slice(&id, GuestAddress(GENERATION_ID.address)).map_err(StartError::describe)
}

/// Says to a guest that goes on that it has another one.
#[derive(Debug)]
pub(super) struct GenerationChange(pub(super) Arc<dyn Irq>);

impl GenerationChange {
    pub(super) fn announce(&self) -> io::Result<()> {
        self.0.trigger()
    }
}
