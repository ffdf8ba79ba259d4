//! Streams of Ethernet frames between a switch and its ports: many frames in one read, many in one write, and a bounded queue
//! behind a socket that is full.
//!
//! Two framings: that of a machine's port, where a virtio header stands before each frame and the two ends send each other
//! control messages, and that of QEMU, which has the frames alone. No call blocks. No frame is copied on its way from one
//! socket to another, unless the other one does not take it at once.

mod cutter;
mod outbox;
mod stream;

pub(crate) use cutter::{BadFrame, Cutter, Item};
pub(crate) use stream::{FrameStream, Read, ReceiveBuffer};

/// Bytes of `struct virtio_net_hdr` with `num_buffers` (virtio 1.3 §5.1.6).
pub(crate) const HEADER: usize = 12;
/// Bytes of the length before a frame, the most significant first.
pub(crate) const PREFIX: usize = 4;
/// An Ethernet header: no frame is shorter.
pub(crate) const ETHERNET: usize = 14;
/// Longest frame: an IP packet of 64 KiB behind an Ethernet header with a VLAN tag.
pub(crate) const LONGEST_FRAME: usize = 65535 + ETHERNET + 4;
/// Marks the length of a control message.
pub(crate) const CONTROL: u32 = 1 << 31;
/// Kind of a control message: the offloads that its sender takes from now on.
pub(crate) const TAKES: u8 = 1;
/// Longest control message.
const LONGEST_CONTROL: usize = 64;

/// How frames stand in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Behind a length and a virtio header; control messages between them.
    Header,
    /// Behind a length.
    Bare,
}

impl Framing {
    /// Bytes between the length and the frame.
    pub(crate) const fn header(self) -> usize {
        match self {
            Framing::Header => HEADER,
            Framing::Bare => 0,
        }
    }
}
