//! Cuts the bytes that were read into frames and control messages.

use std::ops::Range;

use super::{CONTROL, ETHERNET, Framing, HEADER, LONGEST_CONTROL, LONGEST_FRAME, PREFIX};

/// A length that no frame and no control message has: nothing behind it can be made out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it sent a frame of {0} bytes, which is none of Ethernet")]
pub(crate) struct BadFrame(pub(crate) usize);

/// What stands in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A frame, as its place among the bytes.
    Frame {
        /// Its virtio header; zeros where the stream has none.
        header: [u8; HEADER],
        /// Where it is.
        at: Range<usize>,
    },
    /// A control message, as its place among the bytes.
    Control(Range<usize>),
}

/// Goes through bytes from their beginning.
#[derive(Debug)]
pub(crate) struct Cutter {
    framing: Framing,
    at: usize,
}

impl Cutter {
    pub(crate) fn new(framing: Framing) -> Self {
        Cutter { framing, at: 0 }
    }

    /// Bytes that were taken; the rest is the beginning of a frame.
    pub(crate) fn taken(&self) -> usize {
        self.at
    }

    /// The next whole frame or control message in `bytes`, which are the same in each call.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<Option<Item>, BadFrame> {
        let waiting = bytes.get(self.at..).unwrap_or_default();
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let word = u32::from_be_bytes(*prefix);
        let is_control = self.framing == Framing::Header && word & CONTROL != 0;
        let word = if is_control { word & !CONTROL } else { word };
        let len = usize::try_from(word).unwrap_or(usize::MAX);
        let before = self.framing.header();
        let possible =
            if is_control { 1..=LONGEST_CONTROL } else { before + ETHERNET..=before + LONGEST_FRAME };
        if !possible.contains(&len) {
            return Err(BadFrame(len));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.at + PREFIX;
        self.at = start + len;
        if is_control {
            return Ok(Some(Item::Control(start..self.at)));
        }
        let header = match self.framing {
            Framing::Header => rest.first_chunk().copied().unwrap_or_default(),
            Framing::Bare => [0; HEADER],
        };
        Ok(Some(Item::Frame { header, at: start + before..self.at }))
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]
mod tests {
    use super::*;

    fn word(len: usize) -> [u8; 4] {
        (len as u32).to_be_bytes()
    }

    #[test]
    fn frames_and_control_messages_are_found_where_they_stand() {
        let mut bytes = Vec::new();
        bytes.extend(word(HEADER + 14));
        bytes.extend([7; HEADER]);
        bytes.extend([1; 14]);
        bytes.extend((CONTROL | 2).to_be_bytes());
        bytes.extend([1, 9]);
        bytes.extend(word(HEADER + 20));
        bytes.extend([0; 31]);
        let mut cutter = Cutter::new(Framing::Header);
        assert_eq!(cutter.next(&bytes), Ok(Some(Item::Frame { header: [7; HEADER], at: 16..30 })));
        assert_eq!(cutter.next(&bytes), Ok(Some(Item::Control(34..36))));
        for end in 36..bytes.len() {
            assert_eq!(cutter.next(&bytes[..end]), Ok(None), "a frame that is not all there is waited for");
        }
        assert_eq!(cutter.taken(), 36);
    }

    #[test]
    fn a_length_that_no_frame_has_is_an_error() {
        let bad = |framing, word: u32| {
            let bytes = [word.to_be_bytes().as_slice(), &[0; 70]].concat();
            Cutter::new(framing).next(&bytes).is_err()
        };
        let longest = LONGEST_FRAME as u32;
        for word in [0, 1, 25, 12 + longest + 1, CONTROL, CONTROL | 65, u32::MAX] {
            assert!(bad(Framing::Header, word), "{word:x}");
        }
        for word in [26, 12 + longest, CONTROL | 1, CONTROL | 64] {
            assert!(!bad(Framing::Header, word), "{word:x}");
        }
        for word in [0, 13, longest + 1, CONTROL | 2, u32::MAX] {
            assert!(bad(Framing::Bare, word), "{word:x}");
        }
        assert!(!bad(Framing::Bare, 14) && !bad(Framing::Bare, longest));
    }
}
