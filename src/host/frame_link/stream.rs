//! One end of a stream of frames: a socket with its outbox and the beginning of a frame that is not all there.

use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use virtio::net::Offloads;

use super::super::socket_address::has_hung_up;
use super::outbox::{Outbox, Refused};
use super::{Framing, HEADER, LONGEST_FRAME, PREFIX};

/// Most bytes of one read.
const READ: usize = 256 << 10;
/// The same for a stream of small frames: each costs time, and other streams wait.
const SHORT_READ: usize = 32 << 10;
/// Frames of one read that make the next one short.
const MANY: usize = 1000;
/// The beginning of the longest frame, and a read behind it.
const CAPACITY: usize = PREFIX + HEADER + LONGEST_FRAME + READ;

/// The bytes of one batch. One buffer serves all streams.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

/// The outcome of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// There are new bytes in the buffer.
    Bytes,
    /// None have come.
    Nothing,
    /// The other end has closed the connection.
    End,
}

impl ReceiveBuffer {
    pub(crate) fn new() -> Self {
        ReceiveBuffer { bytes: vec![0; CAPACITY], filled: 0 }
    }

    /// The bytes of the batch.
    pub(crate) fn filled(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    /// Empties it for a batch of whole frames.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Room for one frame and its header behind those that are there; `None` if it is full.
    pub(crate) fn room(&mut self) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.filled..self.filled + HEADER + LONGEST_FRAME)
    }

    /// Takes `count` bytes of the room.
    pub(crate) fn take(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.bytes.len());
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FrameStream {
    socket: UnixStream,
    framing: Framing,
    /// The beginning of a frame.
    begun: Vec<u8>,
    /// There may be whole frames in it: nobody has looked yet.
    is_unread: bool,
    outbox: Outbox,
    /// Most bytes of the next read.
    most: usize,
}

impl FrameStream {
    /// A stream over `socket`, of which `begun` was read before.
    pub(crate) fn new(socket: UnixStream, framing: Framing, begun: Vec<u8>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let is_unread = !begun.is_empty();
        Ok(FrameStream { socket, framing, begun, is_unread, outbox: Outbox::default(), most: READ })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether the other end has closed the connection.
    pub(crate) fn is_hung_up(&self) -> bool {
        has_hung_up(&self.socket)
    }

    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// Fills `buffer` with what was left and one read.
    pub(crate) fn fill(&mut self, buffer: &mut ReceiveBuffer) -> io::Result<Read> {
        let begun = self.begun.len().min(CAPACITY - READ);
        let (start, room) = buffer.bytes.split_at_mut(begun);
        start.copy_from_slice(self.begun.get(..begun).unwrap_or_default());
        buffer.filled = begun;
        let room = room.get_mut(..self.most).unwrap_or_default();
        let is_unread = std::mem::take(&mut self.is_unread);
        loop {
            match (&self.socket).read(room) {
                Ok(count @ 1..) => {
                    buffer.filled += count;
                    return Ok(Read::Bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Frames that came together with the request that made the stream come before its end.
                _ if is_unread => return Ok(Read::Bytes),
                Ok(_) => return Ok(Read::End),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Read::Nothing),
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps what is left of a batch of `frames` behind the first `taken` bytes: less than a frame.
    pub(crate) fn keep(&mut self, buffer: &ReceiveBuffer, taken: usize, frames: usize) {
        self.most = if frames > MANY { SHORT_READ } else { READ };
        let rest = buffer.filled().get(taken..).unwrap_or_default();
        self.begun.clear();
        self.begun.extend_from_slice(rest);
    }

    /// Adds a frame to the batch that goes out.
    pub(crate) fn send(
        &mut self,
        header: &[u8; HEADER],
        parts: &[&[u8]],
        received: &[u8],
    ) -> Result<(), Refused> {
        self.outbox.frame(self.framing, header, parts, received)
    }

    /// Tells the other end what this one takes from now on; nothing where the stream has no control messages.
    pub(crate) fn takes(&mut self, offloads: Offloads) -> Result<(), Refused> {
        match self.framing {
            Framing::Header => self.outbox.takes(offloads),
            Framing::Bare => Ok(()),
        }
    }

    /// Sends the batch. True if bytes wait for room afterwards.
    pub(crate) fn flush(&mut self, received: &[u8]) -> io::Result<bool> {
        self.outbox.flush(&self.socket, received)?;
        Ok(self.outbox.is_waiting())
    }

    /// Sends what waits. True if bytes wait for room afterwards.
    pub(crate) fn drain(&mut self) -> io::Result<bool> {
        self.outbox.drain(&self.socket)?;
        Ok(self.outbox.is_waiting())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_came_before_the_stream_was_made_come_before_its_end() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut stream = FrameStream::new(here, Framing::Bare, b"frame".to_vec()).unwrap();
        let mut buffer = ReceiveBuffer::new();
        drop(there);
        assert_eq!(stream.fill(&mut buffer).unwrap(), Read::Bytes);
        assert_eq!(buffer.filled(), b"frame");
        stream.keep(&buffer, 3, 1);
        assert_eq!(stream.fill(&mut buffer).unwrap(), Read::End, "less than a frame is left");
    }

    #[test]
    fn beginning_of_a_frame_is_nothing_new() {
        let (here, _there) = UnixStream::pair().unwrap();
        let mut stream = FrameStream::new(here, Framing::Bare, b"frame".to_vec()).unwrap();
        let mut buffer = ReceiveBuffer::new();
        assert_eq!(stream.fill(&mut buffer).unwrap(), Read::Bytes);
        stream.keep(&buffer, 0, 0);
        assert_eq!(stream.fill(&mut buffer).unwrap(), Read::Nothing);
    }
}
