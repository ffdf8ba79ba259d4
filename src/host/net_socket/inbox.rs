//! The bytes that came from a stream, cut into frames: each behind its length, 4 bytes with the most significant first.

use std::io;
use std::ops::Range;

use super::{ETHERNET, LONGEST_FRAME};

/// Bytes of the length.
pub(super) const PREFIX: usize = 4;
/// Most bytes of one read.
const READ: usize = 64 << 10;
/// Room for a read behind the beginning of the longest frame.
const CAPACITY: usize = PREFIX + LONGEST_FRAME + READ;

/// A length that no frame has: nothing behind it can be made out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadLength(pub(super) usize);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    /// Bytes that were read and not taken.
    filled: Range<usize>,
}

impl Inbox {
    /// Takes the next whole frame; `None` if more has to be read for it.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let waiting = self.buffer.get(self.filled.clone()).unwrap_or_default();
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if !(ETHERNET..=LONGEST_FRAME).contains(&len) {
            return Err(BadLength(len));
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.filled.start += PREFIX + len;
        Ok(Some(frame))
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
        let (mut inbox, mut frames, mut rest) = (Inbox::default(), Vec::new(), bytes);
        loop {
            while let Some(frame) = inbox.next().unwrap() {
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
            let mut inbox = Inbox::default();
            inbox
                .fill(|room| {
                    room[..4].copy_from_slice(&len.to_be_bytes());
                    Ok(4)
                })
                .unwrap();
            assert_eq!(inbox.next(), Err(BadLength(len as usize)));
            assert_eq!(inbox.buffer.len(), CAPACITY);
        }
    }
}
