//! The user-mode network behind a machine's network device.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio::memory::{Memory, Segment, total};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::Bytes;

use super::super::iovecs::scatter;
use super::ports::Changes;
use super::wire::{OFFLOADS, Wire};

/// The network of one boot, between guest memory and the host's sockets.
#[derive(Debug)]
pub(crate) struct UserBackend {
    wire: Wire,
    changes: Arc<Changes>,
}

impl UserBackend {
    /// Puts the device in front of a network whose ports may change.
    pub(super) fn new(wire: Wire, changes: Arc<Changes>) -> Self {
        UserBackend { wire, changes }
    }
}

impl NetBackend for UserBackend {
    fn pairs(&self) -> u16 {
        1
    }

    fn offloads(&self) -> Offloads {
        OFFLOADS
    }

    fn mtu(&self) -> u16 {
        self.wire.mtu()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.wire.set_offloads(offloads);
        Ok(())
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        if pairs == 1 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        (pair == 0).then(|| self.wire.fd())
    }

    fn link_fd(&self) -> Option<RawFd> {
        None
    }

    fn link_is_up(&mut self) -> bool {
        true
    }

    fn has_answer(&self, _pair: u16) -> bool {
        self.wire.has_answer()
    }

    fn receive(
        &mut self,
        _pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        self.changes.apply(&mut self.wire);
        let (head, frame) = self.wire.next_frame()?;
        *header = head;
        scatter(frame, memory, room, spill)?;
        Ok(frame.len())
    }

    fn send(
        &mut self,
        _pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        let len = usize::try_from(total(frame)).map_err(io::Error::other)?;
        self.wire.input_with(header, len, |mut room| {
            for segment in frame {
                let len = usize::try_from(segment.len).map_err(io::Error::other)?;
                let (part, rest) = room.split_at_mut_checked(len).ok_or(io::ErrorKind::InvalidInput)?;
                memory.read_slice(part, segment.address).map_err(io::Error::other)?;
                room = rest;
            }
            Ok(())
        })
    }
}
