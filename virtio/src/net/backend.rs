//! What a network device needs of the host: a wire that takes and gives frames, each behind a virtio header.

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;

use crate::memory::{Memory, Segment};

/// Bytes of `struct virtio_net_hdr` with `num_buffers` (virtio 1.3 §5.1.6): always so with VERSION_1.
pub const HEADER_LEN: usize = 12;

bitflags::bitflags! {
    /// What one side may leave to the other.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// Checksums. All others need it.
        const CSUM = 1 << 0;
        /// Cutting TCP over IPv4 into segments.
        const TSO4 = 1 << 1;
        /// Cutting TCP over IPv6 into segments.
        const TSO6 = 1 << 2;
        /// Cutting TCP that carries congestion notification.
        const ECN = 1 << 3;
        /// Cutting UDP into IP fragments.
        const UFO = 1 << 4;
        /// Cutting UDP into datagrams.
        const USO = 1 << 5;
    }
}

/// The host's side of a network device. It is used by one thread, and never blocks.
pub trait NetBackend: Debug + Send {
    /// Pairs of queues that it can serve, at least 1. One is enabled.
    fn pairs(&self) -> u16;

    /// What it can take from the guest and give to it.
    fn offloads(&self) -> Offloads;

    /// Largest packet of the wire, without its Ethernet header.
    fn mtu(&self) -> u16;

    /// What the guest takes from now on.
    ///
    /// # Errors
    /// The host refused; all is as before.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Spreads frames over the first `pairs` pairs.
    ///
    /// # Errors
    /// The host refused.
    fn enable(&mut self, pairs: u16) -> io::Result<()>;

    /// Readable, at an edge, when a frame comes for `pair`; writable when one can be sent after all.
    fn fd(&self, pair: u16) -> Option<RawFd>;

    /// Readable when the link may have changed.
    fn link_fd(&self) -> Option<RawFd>;

    /// Looks whether there is a link, and empties [`NetBackend::link_fd`].
    fn link_is_up(&mut self) -> bool;

    /// Whether [`NetBackend::receive`] may have a frame for `pair` of which no event will tell: an answer to one that was sent.
    fn has_answer(&self, _pair: u16) -> bool {
        false
    }

    /// Takes the next frame: its header into `header`, itself into `room` and, what does not fit there, into `spill`.
    /// Returns how long it is, without the header; what fits into neither is lost.
    ///
    /// # Errors
    /// `WouldBlock`: none has come. Anything else: none will.
    fn receive(
        &mut self,
        pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize>;

    /// Sends a frame behind `header`, which was checked.
    ///
    /// # Errors
    /// `WouldBlock`: not now. Anything else: this frame is lost.
    fn send(
        &mut self,
        pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()>;
}
