//! What a switch needs of its surroundings: ports that take frames.

use crate::HEADER_LEN;

/// A port of a switch. No later port has the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl PortId {
    /// A small number that no other present port has; a later port may.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// What a port takes as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepts {
    /// Partial checksums.
    pub checksum: bool,
    /// Large packets of TCP over IPv4.
    pub tso4: bool,
    /// Large packets of TCP over IPv6.
    pub tso6: bool,
    /// Large packets of TCP with congestion notification.
    pub ecn: bool,
}

/// The ports' outer ends.
pub trait Ports {
    /// What the port takes now.
    fn accepts(&self, port: PortId) -> Accepts;

    /// Sends the frame that consists of `parts`, at most five and none of them empty, behind `header`. A frame that goes on as
    /// it came is one part. Returns whether there was room for it.
    fn send(&mut self, port: PortId, header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> bool;
}
