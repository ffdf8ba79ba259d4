//! A descriptor chain that was popped: buffers to read and buffers to write.

use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::memory::{Memory, Segment, cut, total};

/// A chain of a queue, checked. It goes back with [`super::Queue::complete`], once: it cannot be copied.
#[derive(Debug)]
#[must_use = "a chain that is not completed is lost to the driver"]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
    written: u32,
}

impl Chain {
    pub(super) fn new(head: u16, segments: Vec<Segment>, readable: usize) -> Self {
        Chain { head, segments, readable, written: 0 }
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// Index of its first descriptor: unique among the queue's chains in flight, unless the guest misbehaves.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that went to the driver so far.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// What the device may read.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// Reads from its first byte on.
    pub fn reader<'a>(&'a self, memory: &'a Memory) -> Reader<'a> {
        Reader { memory, segments: self.readable(), at: 0 }
    }

    /// Writes from its first byte on, counting what it writes into [`Chain::written`] (which starts anew).
    pub fn writer<'a>(&'a mut self, memory: &'a Memory) -> Writer<'a> {
        self.written = 0;
        let segments = self.segments.get(self.readable..).unwrap_or_default();
        Writer { memory, segments, at: 0, written: &mut self.written }
    }
}

/// Reads a chain's device-readable part, front to back.
#[derive(Debug)]
pub struct Reader<'a> {
    memory: &'a Memory,
    segments: &'a [Segment],
    /// Bytes of the first segment that are read.
    at: u32,
}

/// Fewer bytes than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is too short")]
pub struct TooShort;

impl Reader<'_> {
    /// Copies what fits into `into` and returns how much that was.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some((address, len)) = take(&mut self.segments, &mut self.at, rest.len()) else { break };
            // The segment was checked when the chain was popped, and guest memory does not shrink.
            let Some(part) = rest.get_mut(..len) else { break };
            if self.memory.read_slice(part, address).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// The next object.
    ///
    /// # Errors
    /// `TooShort` if less is left.
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, TooShort> {
        let mut object = T::zeroed();
        let want = object.as_slice().len();
        if self.read(object.as_mut_slice()) < want { Err(TooShort) } else { Ok(object) }
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        total(self.segments) - u64::from(self.at)
    }
}

/// Writes a chain's device-writable part, front to back, and counts.
#[derive(Debug)]
pub struct Writer<'a> {
    memory: &'a Memory,
    segments: &'a [Segment],
    at: u32,
    written: &'a mut u32,
}

impl Writer<'_> {
    /// Copies what fits of `from` and returns how much that was.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let Some((address, len)) = take(&mut self.segments, &mut self.at, rest.len()) else { break };
            let Some(part) = rest.get(..len) else { break };
            if self.memory.write_slice(part, address).is_err() {
                break;
            }
            done += len;
        }
        self.count(done);
        done
    }

    /// Writes an object.
    ///
    /// # Errors
    /// `TooShort` if there is no room; part of it may be written then.
    pub fn write_obj<T: ByteValued>(&mut self, object: &T) -> Result<(), TooShort> {
        let bytes = object.as_slice();
        if self.write(bytes) < bytes.len() { Err(TooShort) } else { Ok(()) }
    }

    /// Counts bytes that a backend has put into the segments by itself, and goes on behind them. Returns how many there
    /// was room for.
    pub fn advance(&mut self, bytes: u64) -> u64 {
        let mut left = bytes;
        let logged = self.memory.is_logged();
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX);
            let Some((address, len)) = take(&mut self.segments, &mut self.at, want) else { break };
            if logged {
                self.memory.written(address, len as u64);
            }
            self.count(len);
            left -= len as u64;
        }
        bytes - left
    }

    /// Room that is left, in bytes.
    pub fn left(&self) -> u64 {
        total(self.segments) - u64::from(self.at)
    }

    /// The next `len` bytes (fewer if there are fewer), for a backend to fill; then say so with [`Writer::advance`].
    pub fn next_segments(&self, len: u64, out: &mut Vec<Segment>) {
        cut(self.segments, self.at.into(), len, out);
    }

    fn count(&mut self, bytes: usize) {
        // A chain has fewer than 2^32 bytes.
        *self.written = self.written.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

/// Takes at most `want` bytes from the front of `segments`, all from one of them.
fn take(segments: &mut &[Segment], at: &mut u32, want: usize) -> Option<(GuestAddress, usize)> {
    loop {
        let (first, rest) = segments.split_first()?;
        let left = first.len.checked_sub(*at)?;
        if left == 0 {
            *segments = rest;
            *at = 0;
            continue;
        }
        let len = left.min(u32::try_from(want).unwrap_or(u32::MAX));
        let address = GuestAddress(first.address.0.checked_add(u64::from(*at))?);
        *at += len;
        return Some((address, usize::try_from(len).ok()?));
    }
}
