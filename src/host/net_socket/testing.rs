//! The device's end of a wire, for tests of what is at the other one.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, NetBackend};
use virtio::poll::{Epoll, Interest, Poller};
use vm_memory::{Bytes, GuestAddress};

use super::LONGEST_FRAME;

pub(in crate::host) const LIMIT: Duration = Duration::from_secs(60);

pub(in crate::host) fn segments(pieces: &[(u64, usize)]) -> Vec<Segment> {
    pieces.iter().map(|(at, len)| Segment { address: GuestAddress(*at), len: *len as u32 }).collect()
}

/// A frame that differs from others of its length.
pub(in crate::host) fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 7 + seed * 13) % 251) as u8).collect()
}

/// A device's end of the wire: a backend, memory, and what a worker waits in.
pub(in crate::host) struct End {
    pub(in crate::host) backend: Box<dyn NetBackend>,
    pub(in crate::host) memory: Memory,
    pub(in crate::host) poller: Epoll,
}

impl End {
    pub(in crate::host) fn new(backend: Box<dyn NetBackend>) -> End {
        let (memory, _) = virtio::testing::memory(1 << 20);
        let mut poller = Epoll::new().unwrap();
        poller.watch(backend.fd(0).unwrap(), 0, Interest::Both).unwrap();
        poller.watch(backend.link_fd().unwrap(), 1, Interest::Read).unwrap();
        End { backend, memory, poller }
    }

    /// The tokens of the next events; empty when none comes within `limit`.
    pub(in crate::host) fn events(&mut self, limit: Duration) -> Vec<u32> {
        let mut ready = Vec::new();
        self.poller.wait(Some(limit), &mut ready).unwrap();
        ready
    }

    /// Waits as a worker does until the link is as wanted. Frames are read on the way, and dropped.
    pub(in crate::host) fn wait_link(&mut self, up: bool) {
        let deadline = Instant::now() + LIMIT;
        while self.backend.link_is_up() != up {
            assert!(Instant::now() < deadline, "the link does not become {up}");
            while self.try_receive().is_ok() {}
            self.events(Duration::from_secs(1));
        }
    }

    pub(in crate::host) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.send_behind(&[0; HEADER_LEN], frame)
    }

    /// Sends a frame behind this header.
    pub(in crate::host) fn send_behind(&mut self, header: &[u8; HEADER_LEN], frame: &[u8]) -> io::Result<()> {
        self.memory.write_slice(&frame[..7], GuestAddress(0x1003)).unwrap();
        self.memory.write_slice(&frame[7..], GuestAddress(0x3000)).unwrap();
        let pieces = segments(&[(0x1003, 7), (0x3000, frame.len() - 7)]);
        self.backend.send(0, header, &self.memory, &pieces)
    }

    /// Waits for room as the device does: watched anew after each `WouldBlock`.
    pub(in crate::host) fn wait_room(&mut self) {
        let fd = self.backend.fd(0).unwrap();
        self.poller.unwatch(fd, 0).unwrap();
        self.poller.watch(fd, 0, Interest::Both).unwrap();
        loop {
            let events = self.events(LIMIT);
            assert!(!events.is_empty(), "no room comes");
            if events.contains(&0) {
                return;
            }
            let _ = self.backend.link_is_up();
        }
    }

    /// The next frame that has come, which has no header.
    pub(in crate::host) fn try_receive(&mut self) -> io::Result<Vec<u8>> {
        let (header, frame) = self.try_receive_both()?;
        assert_eq!(header, [0; HEADER_LEN]);
        Ok(frame)
    }

    /// The next frame that has come, and its header.
    pub(in crate::host) fn try_receive_both(&mut self) -> io::Result<([u8; HEADER_LEN], Vec<u8>)> {
        let mut spill = vec![0; LONGEST_FRAME + 1];
        let room = segments(&[(0x2_0001, 33), (0x3_0000, 600)]);
        loop {
            let mut header = [0xff; HEADER_LEN];
            match self.backend.receive(0, &mut header, &self.memory, &room, &mut spill) {
                Ok(len) => {
                    let mut got = vec![0; 633];
                    self.memory.read_slice(&mut got[..33], GuestAddress(0x2_0001)).unwrap();
                    self.memory.read_slice(&mut got[33..], GuestAddress(0x3_0000)).unwrap();
                    got.truncate(len);
                    got.extend(&spill[..len.saturating_sub(633)]);
                    return Ok((header, got));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next frame, waited for at edges as a worker waits.
    pub(in crate::host) fn receive(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.try_receive() {
                Ok(frame) => return frame,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < deadline, "no frame comes");
            if self.events(LIMIT).contains(&1) {
                let _ = self.backend.link_is_up();
            }
        }
    }
}
