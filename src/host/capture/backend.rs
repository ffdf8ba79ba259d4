//! A wire whose frames are captured.

use std::io;
use std::os::fd::RawFd;

use virtio::memory::{Memory, Segment, total};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::Bytes;

use super::CapturePoint;
use super::pcapng::Direction;

/// A wire whose frames are captured while something is attached to its point.
#[derive(Debug)]
struct Captured {
    wire: Box<dyn NetBackend>,
    point: CapturePoint,
}

impl CapturePoint {
    /// `wire`, whose frames pass this point: the backend of one boot.
    pub(crate) fn around(&self, wire: Box<dyn NetBackend>) -> Box<dyn NetBackend> {
        Box::new(Captured { wire, point: self.clone() })
    }
}

impl NetBackend for Captured {
    fn pairs(&self) -> u16 {
        self.wire.pairs()
    }

    fn offloads(&self) -> Offloads {
        self.wire.offloads()
    }

    fn mtu(&self) -> u16 {
        self.wire.mtu()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.wire.set_offloads(offloads)
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        self.wire.enable(pairs)
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.wire.fd(pair)
    }

    fn link_fd(&self) -> Option<RawFd> {
        self.wire.link_fd()
    }

    fn link_is_up(&mut self) -> bool {
        self.wire.link_is_up()
    }

    fn has_answer(&self, pair: u16) -> bool {
        self.wire.has_answer(pair)
    }

    fn receive(
        &mut self,
        pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let len = self.wire.receive(pair, header, memory, room, spill)?;
        self.point.frame(Direction::Inbound, len, |into| {
            let start = into.len();
            copy(memory, room, len, into);
            let rest = len - (into.len() - start).min(len);
            into.extend(spill.get(..rest.min(spill.len())).unwrap_or_default());
        });
        Ok(len)
    }

    fn send(
        &mut self,
        pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        // Afterwards: a frame that the wire has no room for comes again.
        self.wire.send(pair, header, memory, frame)?;
        let len = usize::try_from(total(frame)).unwrap_or(usize::MAX);
        self.point.frame(Direction::Outbound, len, |into| copy(memory, frame, len, into));
        Ok(())
    }
}

/// Appends the first `len` bytes in `segments`, or all of them if there are fewer.
fn copy(memory: &Memory, segments: &[Segment], len: usize, into: &mut Vec<u8>) {
    let mut left = len;
    for segment in segments {
        let part = left.min(usize::try_from(segment.len).unwrap_or(usize::MAX));
        let start = into.len();
        into.resize(start + part, 0);
        let copied = into.get_mut(start..).map(|slice| memory.read_slice(slice, segment.address));
        left -= part;
        if left == 0 || !matches!(copied, Some(Ok(()))) {
            return;
        }
    }
}
