//! What is saved of configuration spaces and MSI-X tables. Both are checked as hostile.

use serde::{Deserialize, Serialize};

use crate::component::hex;

/// Kind of the PCI bus in a saved state.
pub(super) const KIND: &str = "pci";
pub(super) const VERSION: u16 = 1;

/// The saved configuration spaces of a bus. Its functions are components of their own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootState {
    /// One for each function, in the order of their addresses.
    pub(super) functions: Vec<FunctionState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionState {
    /// Address on the bus.
    pub(super) device: u8,
    pub(super) function: u8,
    /// The registers.
    #[serde(with = "hex")]
    pub(super) config: Vec<u8>,
}

/// A saved MSI-X vector. Enable and mask bits of the function are in its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixVectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The vector's own mask bit.
    pub masked: bool,
    /// A message waits for the mask to go.
    pub pending: bool,
}
