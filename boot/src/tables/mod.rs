//! Writes the structures for a kernel's entry: those of the protocol, GDT, page tables and command line.

mod boot_params;
mod paging;
mod pvh;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::entry::{GDT_ENTRIES, Protocol, gdt};
use crate::layout;
use crate::plan::BootPlan;

/// Guest memory that does not match the plan's RAM layout.
#[derive(Debug, thiserror::Error)]
#[error("The {what} cannot be written to guest memory at {address:#x}.")]
pub struct TablesError {
    what: &'static str,
    address: u64,
    #[source]
    source: GuestMemoryError,
}

impl BootPlan {
    /// Writes all tables. `rsdp` is the address of the ACPI root pointer, 0 for none. Everything goes to the
    /// first megabyte, each structure in one write, and does not depend on the loaded pieces: it may run
    /// before, after or in parallel with the loading.
    pub fn write_tables<M: GuestMemory>(&self, mem: &M, rsdp: u64) -> Result<(), TablesError> {
        let mut bytes = [0; GDT_ENTRIES * size_of::<u64>()];
        for (to, entry) in bytes.chunks_exact_mut(size_of::<u64>()).zip(gdt(&self.cpu_state())) {
            to.copy_from_slice(&entry.to_le_bytes());
        }
        write(mem, "GDT", layout::GDT, &bytes)?;
        write(mem, "kernel command line", layout::CMDLINE, &self.cmdline)?;
        match self.protocol {
            Protocol::Linux64 => {
                write(mem, "zero page", layout::ZERO_PAGE, &boot_params::page(self, rsdp))?;
                paging::write_identity_map(mem)
            }
            Protocol::Linux32 => write(mem, "zero page", layout::ZERO_PAGE, &boot_params::page(self, rsdp)),
            Protocol::Pvh => {
                write(mem, "PVH start info", layout::PVH_START_INFO, &pvh::start_info(self, rsdp))
            }
        }
    }
}

fn write<M: GuestMemory>(mem: &M, what: &'static str, at: u64, bytes: &[u8]) -> Result<(), TablesError> {
    mem.write_slice(bytes, GuestAddress(at)).map_err(|source| TablesError { what, address: at, source })
}

/// A structure in a local buffer. The offsets are the structure's own, so all are within it; a store outside
/// of it is dropped, and the tests compare every field.
struct Layout<const N: usize>([u8; N]);

impl<const N: usize> Layout<N> {
    fn put<const L: usize>(&mut self, at: usize, bytes: [u8; L]) {
        self.put_slice(at, &bytes);
    }

    fn put_slice(&mut self, at: usize, bytes: &[u8]) {
        let to = self.0.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
        debug_assert!(to.is_some(), "{at:#x} + {} lies outside of the structure", bytes.len());
        if let Some(to) = to {
            to.copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
