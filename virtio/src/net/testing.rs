//! A wire that ends in memory: for tests and fuzz targets.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "support of tests: a wrong step shall stop the test where it is"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{HEADER_LEN, NetBackend, Offloads};
use crate::memory::{Memory, Segment};

/// A frame behind its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `struct virtio_net_hdr`.
    pub header: [u8; HEADER_LEN],
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// What is on the wire.
#[derive(Debug, Default)]
pub struct Ends {
    /// For the guest, by pair.
    pub to_guest: Vec<VecDeque<Frame>>,
    /// From the guest, with the pair.
    pub from_guest: Vec<(u16, Frame)>,
    /// Frames that the wire takes before it is full; `None`: all.
    pub credit: Option<usize>,
    /// Whether sent frames come back, without an event.
    pub echoes: bool,
    /// Whether sent frames are forgotten at once.
    pub forget: bool,
    /// No link.
    pub unplugged: bool,
    /// What was last asked for.
    pub offloads: Option<Offloads>,
    /// What was last asked for.
    pub enabled: u16,
    /// Calls of `receive` and `send`.
    pub calls: u64,
}

/// The wire. Clones are the same wire.
#[derive(Debug, Clone)]
pub struct Wire {
    ends: Arc<Mutex<Ends>>,
    /// A bell a pair, and the link's.
    bells: Arc<Vec<EventFd>>,
    offloads: Offloads,
}

impl Wire {
    /// One for `pairs` pairs of queues that can do `offloads`.
    pub fn new(pairs: u16, offloads: Offloads) -> Self {
        let bell = |_| EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let bells = (0..=pairs).map(bell).collect();
        let to_guest = (0..pairs).map(|_| VecDeque::new()).collect();
        let ends = Ends { to_guest, enabled: 1, ..Ends::default() };
        Wire { ends: Arc::new(Mutex::new(ends)), bells: Arc::new(bells), offloads }
    }

    /// Both ends.
    pub fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts frames on the wire for the guest, and rings.
    pub fn give(&self, pair: u16, frames: impl IntoIterator<Item = Frame>) {
        self.ends().to_guest[usize::from(pair)].extend(frames);
        self.ring(pair);
    }

    /// As if something had become ready.
    pub fn ring(&self, pair: u16) {
        self.bells[usize::from(pair)].write(1).expect("a bell");
    }

    /// Plugs the wire in or out.
    pub fn plug(&self, plugged: bool) {
        self.ends().unplugged = !plugged;
        self.bells.last().expect("the link's bell").write(1).expect("a bell");
    }
}

impl NetBackend for Wire {
    fn pairs(&self) -> u16 {
        self.bells.len() as u16 - 1
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn mtu(&self) -> u16 {
        1500
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.ends().offloads = Some(offloads);
        Ok(())
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        self.ends().enabled = pairs;
        Ok(())
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        Some(self.bells[usize::from(pair)].as_raw_fd())
    }

    fn link_fd(&self) -> Option<RawFd> {
        self.bells.last().map(AsRawFd::as_raw_fd)
    }

    fn link_is_up(&mut self) -> bool {
        !self.ends().unplugged
    }

    fn has_answer(&self, pair: u16) -> bool {
        let ends = self.ends();
        ends.echoes && !ends.to_guest[usize::from(pair)].is_empty()
    }

    fn receive(
        &mut self,
        pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let mut ends = self.ends();
        ends.calls += 1;
        let frame = ends.to_guest[usize::from(pair)].pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        *header = frame.header;
        let mut rest = frame.bytes.as_slice();
        for segment in room {
            let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
            memory.write_slice(now, segment.address).expect("segments are guest memory");
            rest = later;
        }
        let spilled = rest.len().min(spill.len());
        spill[..spilled].copy_from_slice(&rest[..spilled]);
        Ok(frame.bytes.len() - (rest.len() - spilled))
    }

    fn send(
        &mut self,
        pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        let mut ends = self.ends();
        ends.calls += 1;
        match &mut ends.credit {
            Some(0) => return Err(io::ErrorKind::WouldBlock.into()),
            Some(credit) => *credit -= 1,
            None => {}
        }
        let mut bytes = Vec::new();
        for segment in frame {
            let start = bytes.len();
            bytes.resize(start + segment.len as usize, 0);
            memory.read_slice(&mut bytes[start..], segment.address).expect("segments are guest memory");
        }
        if ends.echoes {
            ends.to_guest[usize::from(pair)].push_back(Frame { header: [0; HEADER_LEN], bytes });
        } else if !ends.forget {
            ends.from_guest.push((pair, Frame { header: *header, bytes }));
        }
        Ok(())
    }
}
