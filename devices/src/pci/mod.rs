//! PCI: one segment, one bus, configuration space through ECAM alone.
//!
//! The guest reads configuration space from memory without an exit: every [`config::ConfigSpace`] writes each change
//! of itself to the [`EcamMirror`], so the two cannot differ. What the guest writes arrives at [`root::PciRoot`], which
//! applies it and keeps the address map. A function ([`function::PciFunction`]) knows its registers and
//! is told where its BARs are; it knows no slot, no window and no other function.
//!
//! Order of locks: the root's bus, then a function, then a vector of its MSI-X table.

pub mod access;
pub mod alloc;
pub mod bar;
pub mod config;
pub mod function;
pub mod host_bridge;
pub mod msix;
pub mod registers;
pub mod root;
pub mod slots;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::fmt;

/// Bytes of configuration space that a function takes in ECAM (PCI Express 5.0 §7.2.2).
pub const FUNCTION_ECAM: u64 = 4096;
/// Devices on a bus.
pub const DEVICES: u8 = 32;
/// Functions of a device.
pub const FUNCTIONS: u8 = 8;
/// Bytes of ECAM of a device.
pub const DEVICE_ECAM: u64 = 8 * FUNCTION_ECAM;
/// Bytes of ECAM of one bus.
pub const ECAM_SIZE: u64 = 32 * DEVICE_ECAM;
/// What the first doubleword of an absent device reads as (PCI 3.0 §6.1). The rest of it reads as zeros.
pub const ABSENT: [u8; 4] = [0xff; 4];

/// The memory that the guest reads configuration space from.
pub trait EcamMirror: fmt::Debug + Send + Sync {
    /// From now on the guest reads `bytes` at `offset` of the ECAM.
    fn publish(&self, offset: u64, bytes: &[u8]);
}

/// Where a function sits on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionAddress {
    device: u8,
    function: u8,
}

impl FunctionAddress {
    /// `device` 0 to 31, `function` 0 to 7; `None` for others.
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < DEVICES && function < FUNCTIONS {
            Some(FunctionAddress { device, function })
        } else {
            None
        }
    }

    /// Device number.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Where its configuration space starts in the ECAM.
    pub fn ecam_offset(self) -> u64 {
        (u64::from(self.device) * u64::from(FUNCTIONS) + u64::from(self.function)) * FUNCTION_ECAM
    }
}

impl fmt::Display for FunctionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}
