//! The bytes that came from a stream, cut into frames.

use std::io;
use std::ops::Range;

use super::super::frame_link::{BadFrame, Cutter, Framing, HEADER, Item, LONGEST_FRAME, PREFIX};

/// Most bytes of one read.
const READ: usize = 128 << 10;
/// Room for a read behind the beginning of the longest frame.
const CAPACITY: usize = PREFIX + HEADER + LONGEST_FRAME + READ;

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// A frame behind its virtio header, which is zero where the stream has none.
    Frame([u8; HEADER], &'a [u8]),
    /// A control message.
    Control(&'a [u8]),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Inbox {
    framing: Framing,
    buffer: Vec<u8>,
    /// Bytes that were read and not taken.
    filled: Range<usize>,
}

impl Inbox {
    pub(super) fn new(framing: Framing) -> Self {
        Inbox { framing, buffer: Vec::new(), filled: 0..0 }
    }

    /// Takes the next whole frame or control message; `None` if more has to be read for it.
    pub(super) fn next(&mut self) -> Result<Option<Received<'_>>, BadFrame> {
        let waiting = self.buffer.get(self.filled.clone()).unwrap_or_default();
        let mut cutter = Cutter::new(self.framing);
        let item = cutter.next(waiting)?;
        self.filled.start += cutter.taken();
        let bytes = |at: Range<usize>| waiting.get(at).unwrap_or_default();
        Ok(item.map(|item| match item {
            Item::Frame { header, at } => Received::Frame(header, bytes(at)),
            Item::Control(at) => Received::Control(bytes(at)),
        }))
    }

    /// Reads more with `read`; 0 is the end of the stream.
    pub(super) fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        // Memory is only taken when it is used.
        self.buffer.resize(CAPACITY, 0);
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.start > 0 && CAPACITY - self.filled.end < READ {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let room = self.buffer.get_mut(self.filled.end..).unwrap_or_default();
        let most = room.len().min(READ);
        let count = read(room.get_mut(..most).unwrap_or_default())?;
        self.filled.end += count.min(most);
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]
mod tests {
    use super::*;

    fn framed(frame: &[u8]) -> Vec<u8> {
        let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
        bytes.extend(frame);
        bytes
    }

    /// Gives `bytes` to an inbox, at most `step` at a time, and returns the frames.
    fn cut(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let (mut inbox, mut frames, mut rest) = (Inbox::new(Framing::Bare), Vec::new(), bytes);
        loop {
            while let Some(received) = inbox.next().unwrap() {
                let Received::Frame(_, frame) = received else { panic!("{received:?}") };
                frames.push(frame.to_vec());
            }
            let read = inbox.fill(|room| {
                let count = step.min(room.len()).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok(count)
            });
            if read.unwrap() == 0 {
                return frames;
            }
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let frame = |len: usize| (0..len).map(|at| (at * 7 % 251) as u8).collect::<Vec<_>>();
        let frames = [14, 60, 1514, LONGEST_FRAME, 15, LONGEST_FRAME, LONGEST_FRAME - 1, 1514].map(frame);
        let bytes = frames.iter().flat_map(|frame| framed(frame)).collect::<Vec<_>>();
        for step in [1, 3, 1518, 4096, READ, usize::MAX] {
            assert!(cut(&bytes, step) == frames, "{step} bytes a read");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_stream_and_takes_no_memory() {
        for len in [0u32, 13, LONGEST_FRAME as u32 + 1, u32::MAX] {
            let mut inbox = Inbox::new(Framing::Bare);
            inbox
                .fill(|room| {
                    room[..4].copy_from_slice(&len.to_be_bytes());
                    Ok(4)
                })
                .unwrap();
            assert_eq!(inbox.next(), Err(BadFrame(len as usize)));
            assert_eq!(inbox.buffer.len(), CAPACITY);
        }
    }
    #[test]
    fn headers_and_control_messages_come_with_the_frames() {
        let mut bytes = vec![0x80, 0, 0, 2, 1, 7, 0, 0, 0, 26];
        bytes.extend([9; HEADER]);
        bytes.extend([5; 14]);
        let mut inbox = Inbox::new(Framing::Header);
        let give = |inbox: &mut Inbox, bytes: &[u8]| {
            let read = inbox.fill(|room| {
                room[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            });
            assert_eq!(read.unwrap(), bytes.len());
        };
        give(&mut inbox, &bytes[..11]);
        assert_eq!(inbox.next(), Ok(Some(Received::Control(&[1, 7]))));
        assert_eq!(inbox.next(), Ok(None));
        give(&mut inbox, &bytes[11..]);
        assert_eq!(inbox.next(), Ok(Some(Received::Frame([9; HEADER], &[5; 14]))));
        assert_eq!(inbox.next(), Ok(None));
    }
}
