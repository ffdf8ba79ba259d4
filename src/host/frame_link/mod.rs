//! Streams of Ethernet frames between a switch and its ports: many frames in one read, many in one write, and a bounded queue
//! behind a socket that is full.
//!
//! Two framings: that of a machine's port, where a virtio header stands before each frame and the two ends send each other
//! control messages, and that of QEMU, which has the frames alone. No call blocks. No frame is copied on its way from one
//! socket to another, unless the other one does not take it at once.

mod cutter;
mod outbox;
mod stream;

use virtio::net::Offloads;

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
const CONTROL: u32 = 1 << 31;
/// Kind of a control message: the offloads that its sender takes from now on.
const TAKES: u8 = 1;
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

/// What stands before a frame: its length, and its virtio header in a framing that has one.
#[derive(Debug)]
pub(crate) struct Before {
    bytes: [u8; PREFIX + HEADER],
    len: usize,
}

impl Before {
    /// `None`: no length says so much.
    pub(crate) fn new(framing: Framing, header: &[u8; HEADER], frame: usize) -> Option<Self> {
        let len = framing.header().checked_add(frame)?;
        let word = u32::try_from(len).ok().filter(|word| word & CONTROL == 0)?;
        let mut bytes = [0; PREFIX + HEADER];
        let (prefix, rest) = bytes.split_at_mut(PREFIX);
        prefix.copy_from_slice(&word.to_be_bytes());
        rest.copy_from_slice(header);
        Some(Before { bytes, len: PREFIX + framing.header() })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The control message, with its length before it, of one that takes `offloads` from now on.
pub(crate) fn takes_message(offloads: Offloads) -> [u8; PREFIX + 2] {
    let [a, b, c, d] = (CONTROL | 2).to_be_bytes();
    [a, b, c, d, TAKES, offloads.bits()]
}

/// What the sender of a control message takes from now on; `None` if it says something else.
pub(crate) fn taken(message: &[u8]) -> Option<Offloads> {
    match message {
        [TAKES, bits, ..] => Some(Offloads::from_bits_truncate(*bits)),
        _ => None,
    }
}
