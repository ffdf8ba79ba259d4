//! What configuration spaces and MSI-X tables are at one moment, for snapshots. Both are checked like a stranger's.

use super::config::CONFIG_SIZE;

/// A saved configuration space.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConfigState {
    /// Layout of this structure; [`ConfigState::VERSION`].
    pub version: u16,
    /// The registers, 256 bytes.
    pub bytes: Vec<u8>,
}

impl ConfigState {
    /// The only layout so far.
    pub const VERSION: u16 = 1;

    pub(super) fn check_version(&self) -> Result<(), ConfigStateError> {
        if self.version == Self::VERSION { Ok(()) } else { Err(ConfigStateError::Version(self.version)) }
    }
}

/// A saved configuration space that is not this function's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigStateError {
    /// Written by another version of this program.
    #[error("the saved PCI function has version {0}, and only version {version} is understood; restore it with the program that saved it", version = ConfigState::VERSION)]
    Version(u16),
    /// Not 256 bytes.
    #[error(
        "the saved PCI function has {0} bytes of configuration space instead of {CONFIG_SIZE}; the file is damaged"
    )]
    Length(usize),
    /// A register that nothing can change was changed.
    #[error(
        "the saved PCI function is another one: its register {offset:#x} is {saved:#04x} and here it is {own:#04x}; restore it into a machine of the same specification"
    )]
    ReadOnly {
        /// Offset of the byte.
        offset: usize,
        /// What was saved.
        saved: u8,
        /// What this function has.
        own: u8,
    },
}

/// A saved MSI-X table. Its enable and mask bits are in the function's configuration space.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MsixState {
    /// Layout of this structure; [`MsixState::VERSION`].
    pub version: u16,
    /// One per vector.
    pub vectors: Vec<MsixVectorState>,
}

impl MsixState {
    /// The only layout so far.
    pub const VERSION: u16 = 1;
}

/// A saved MSI-X vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

/// A saved MSI-X table that is not this function's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MsixStateError {
    /// Written by another version of this program.
    #[error("the saved MSI-X table has version {0}, and only version {version} is understood; restore it with the program that saved it", version = MsixState::VERSION)]
    Version(u16),
    /// Another number of vectors.
    #[error(
        "the saved MSI-X table has {saved} vectors and this function has {own}; restore it into a machine of the same specification"
    )]
    Vectors {
        /// Vectors in the saved table.
        saved: usize,
        /// Vectors of this function.
        own: usize,
    },
}

/// The saved configuration spaces of a bus.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PciRootState {
    /// Layout of this structure; [`PciRootState::VERSION`].
    pub version: u16,
    /// One per function, in the order of their addresses.
    pub slots: Vec<PciSlotState>,
}

impl PciRootState {
    /// The only layout so far.
    pub const VERSION: u16 = 1;
}

/// A function's place and its saved configuration space.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PciSlotState {
    /// Device number.
    pub device: u8,
    /// Function number.
    pub function: u8,
    /// Its registers.
    pub config: ConfigState,
}
