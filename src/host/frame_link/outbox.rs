//! Frames on their way into one stream.
//!
//! While a batch is switched, a frame is noted as pieces: places in the receive buffer, and bytes of our own before and between
//! them. At the end of the batch all pieces go out in one call. What the socket does not take is copied into a queue, whose
//! bound is kept when a frame is added: a slow reader loses whole frames, and nobody else waits for it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::ops::Range;

use virtio::net::Offloads;

use super::{Before, Framing, HEADER, takes_message};

/// Most bytes that wait for one stream.
const QUEUE: usize = 1 << 20;
/// Room beside [`QUEUE`] for control messages, which are few.
const CONTROL_ROOM: usize = 4 << 10;
/// Pieces of one call (`UIO_MAXIOV`).
const PIECES: usize = 1024;
/// A queue that was longer is given back to the host when it is empty.
const KEPT: usize = 64 << 10;

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Bytes of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// In the receive buffer.
    Received(Range<usize>),
    /// In `own`.
    Own(Range<usize>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: Vec<Piece>,
    own: Vec<u8>,
    /// Bytes of all pieces.
    gathered: usize,
    queue: VecDeque<u8>,
}

impl Outbox {
    /// Whether bytes wait for the socket.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Adds a frame in `parts`. Parts that lie in `received` are not copied.
    pub(crate) fn frame(
        &mut self,
        framing: Framing,
        header: &[u8; HEADER],
        parts: &[&[u8]],
        received: &[u8],
    ) -> Result<(), Refused> {
        let frame = parts.iter().map(|part| part.len()).sum();
        let before = Before::new(framing, header, frame).ok_or(Refused)?;
        let before = before.bytes();
        let len = before.len() + frame;
        if self.queue.len() + self.gathered + len > QUEUE {
            return Err(Refused);
        }
        self.gathered += len;
        let mut parts = parts.iter();
        // The bytes before a frame that goes on as it came are the same, too.
        match parts.as_slice() {
            [whole] if let Some(at) = place_behind(before, whole, received) => {
                self.add_received(at);
                return Ok(());
            }
            _ => self.add_own(before),
        }
        parts.try_for_each(|part| {
            match place(part, received) {
                Some(at) => self.add_received(at),
                None => self.add_own(part),
            }
            Ok(())
        })
    }

    /// Adds the control message that says what this end takes from now on.
    pub(crate) fn takes(&mut self, offloads: Offloads) -> Result<(), Refused> {
        let message = takes_message(offloads);
        if self.queue.len() + self.gathered + message.len() > QUEUE + CONTROL_ROOM {
            return Err(Refused);
        }
        self.gathered += message.len();
        self.add_own(&message);
        Ok(())
    }

    fn add_received(&mut self, at: Range<usize>) {
        match self.pieces.last_mut() {
            Some(Piece::Received(last)) if last.end == at.start => last.end = at.end,
            _ => self.pieces.push(Piece::Received(at)),
        }
    }

    fn add_own(&mut self, bytes: &[u8]) {
        let start = self.own.len();
        self.own.extend_from_slice(bytes);
        match self.pieces.last_mut() {
            Some(Piece::Own(last)) => last.end = self.own.len(),
            _ => self.pieces.push(Piece::Own(start..self.own.len())),
        }
    }

    /// Sends the frames of a batch; what `socket` does not take waits in the queue. `received` is the buffer of the batch.
    pub(crate) fn flush(&mut self, mut socket: impl Write, received: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        if self.queue.is_empty() {
            let slices: Vec<_> =
                self.pieces.iter().map(|piece| IoSlice::new(bytes(piece, &self.own, received))).collect();
            sent = send(&mut socket, slices, self.gathered)?;
        }
        for piece in &self.pieces {
            let piece = bytes(piece, &self.own, received);
            let skipped = sent.min(piece.len());
            sent -= skipped;
            self.queue.extend(piece.get(skipped..).unwrap_or_default());
        }
        self.pieces.clear();
        self.own.clear();
        self.gathered = 0;
        Ok(())
    }

    /// Sends what waits.
    pub(crate) fn drain(&mut self, mut socket: impl Write) -> io::Result<()> {
        let (front, back) = self.queue.as_slices();
        let sent = send(&mut socket, vec![IoSlice::new(front), IoSlice::new(back)], self.queue.len())?;
        self.queue.drain(..sent);
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
        Ok(())
    }
}

/// Writes `slices`, `len` bytes in all, as far as `socket` takes them. Returns how many bytes those are.
fn send(socket: &mut impl Write, mut slices: Vec<IoSlice<'_>>, len: usize) -> io::Result<usize> {
    let (mut sent, mut rest) = (0, slices.as_mut_slice());
    while sent < len {
        let most = rest.len().min(PIECES);
        match socket.write_vectored(rest.get(..most).unwrap_or_default()) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                sent += count;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

fn bytes<'a>(piece: &Piece, own: &'a [u8], received: &'a [u8]) -> &'a [u8] {
    match piece {
        Piece::Received(at) => received.get(at.clone()).unwrap_or_default(),
        Piece::Own(at) => own.get(at.clone()).unwrap_or_default(),
    }
}

/// Where `part` lies in `received`, if it does.
fn place(part: &[u8], received: &[u8]) -> Option<Range<usize>> {
    // Addresses are only compared: no pointer is made of them.
    let start = part.as_ptr().addr().checked_sub(received.as_ptr().addr())?;
    let end = start.checked_add(part.len())?;
    (end <= received.len()).then_some(start..end)
}

/// The same with the bytes before it, if those are `before`.
fn place_behind(before: &[u8], part: &[u8], received: &[u8]) -> Option<Range<usize>> {
    let at = place(part, received)?;
    let start = at.start.checked_sub(before.len())?;
    (received.get(start..at.start)? == before).then_some(start..at.end)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]
mod tests {
    use super::super::PREFIX;
    use super::*;

    /// A socket that takes `room` bytes.
    struct Socket {
        got: Vec<u8>,
        room: usize,
        calls: usize,
        pieces: usize,
    }

    impl Socket {
        fn new(room: usize) -> Self {
            Socket { got: Vec::new(), room, calls: 0, pieces: 0 }
        }
    }

    impl Write for &mut Socket {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            unreachable!("one call for all pieces")
        }

        fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            assert!(pieces.len() <= PIECES);
            (self.calls, self.pieces) = (self.calls + 1, self.pieces + pieces.len());
            if self.room == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            let count = all.len().min(self.room);
            self.got.extend(&all[..count]);
            self.room -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn framed(header: &[u8; HEADER], frame: &[u8]) -> Vec<u8> {
        [&((HEADER + frame.len()) as u32).to_be_bytes(), header.as_slice(), frame].concat()
    }

    #[test]
    fn frames_that_go_on_as_they_came_are_one_piece() {
        let frames = [vec![1; 60], vec![2; 1514], vec![3; 60]];
        let received = frames.iter().flat_map(|frame| framed(&[0; HEADER], frame)).collect::<Vec<_>>();
        let (mut outbox, mut socket, mut at) = (Outbox::default(), Socket::new(usize::MAX), 0);
        for frame in &frames {
            at += PREFIX + HEADER;
            let part = &received[at..at + frame.len()];
            at += frame.len();
            outbox.frame(Framing::Header, &[0; HEADER], &[part], &received).unwrap();
        }
        outbox.flush(&mut socket, &received).unwrap();
        assert_eq!((socket.calls, socket.pieces), (1, 1));
        assert!(socket.got == received);
    }

    #[test]
    fn changed_frames_are_put_together_of_their_parts() {
        let received = framed(&[0; HEADER], &[5; 60]);
        let part = &received[PREFIX + HEADER..];
        let (mut outbox, mut socket) = (Outbox::default(), Socket::new(usize::MAX));
        outbox.frame(Framing::Header, &[1; HEADER], &[&part[..12], &[8, 1], &part[12..]], &received).unwrap();
        outbox.frame(Framing::Bare, &[1; HEADER], &[part], &received).unwrap();
        outbox.takes(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6).unwrap();
        outbox.flush(&mut socket, &received).unwrap();
        let tagged = [&[5; 12], [8, 1].as_slice(), &[5; 48]].concat();
        let control = [0x80, 0, 0, 2, 1, 7];
        let expected = [framed(&[1; HEADER], &tagged), vec![0, 0, 0, 60], vec![5; 60], control.into()];
        assert!(socket.got == expected.concat());
        assert!(!outbox.is_waiting());
    }

    #[test]
    fn what_a_socket_does_not_take_waits_in_order_and_within_a_bound() {
        let received = framed(&[0; HEADER], &[5; 60_000]);
        let part = &received[PREFIX + HEADER..];
        let (mut outbox, mut socket) = (Outbox::default(), Socket::new(1000));
        let mut taken = 0;
        for _ in 0..100 {
            while outbox.frame(Framing::Header, &[0; HEADER], &[part], &received).is_ok() {
                taken += 1;
            }
            outbox.flush(&mut socket, &received).unwrap();
            assert!(outbox.is_waiting() && outbox.queue.len() <= QUEUE);
        }
        assert!((15..=18).contains(&taken), "{taken} frames of 60 KB wait in 1 MiB");
        assert!(outbox.takes(Offloads::empty()).is_ok(), "a control message has room");
        outbox.flush(&mut socket, &received).unwrap();
        while outbox.is_waiting() {
            socket.room = 10_000;
            outbox.drain(&mut socket).unwrap();
        }
        let expected = [received.repeat(taken), vec![0x80, 0, 0, 2, 1, 0]].concat();
        assert!(socket.got == expected, "no frame is cut, none changes its place");
        assert_eq!(outbox.queue.capacity(), 0);
    }
}
