//! What passes of a pcapng stream: its frames are counted, and its statistics read.

/// Types of blocks (IETF draft-ietf-opsawg-pcapng).
const ENHANCED_PACKET: u32 = 6;
const INTERFACE_STATISTICS: u32 = 5;
/// Options of the statistics.
const END: u16 = 0;
const FRAMES_LOST: u16 = 5;
/// Type and length of a block.
const HEAD: usize = 8;
/// Least length of a block: its head, and its length again.
const LEAST: usize = HEAD + 4;
/// Most bytes of statistics that are looked at.
const MOST: usize = 256;

/// See the module. The stream comes from a machine of this version or another, so nothing in it is relied on.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The beginning of the present block: its head, or all of a block of statistics.
    kept: Vec<u8>,
    /// Bytes of the present block that are not of interest.
    skip: usize,
    pub(super) frames: u64,
    /// Frames that were lost; known at the end.
    pub(super) lost: Option<u64>,
}

impl Blocks {
    /// Looks at the next bytes.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.skip -= count;
                bytes = bytes.get(count..).unwrap_or_default();
                continue;
            }
            let wanted = self.wanted() - self.kept.len();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.kept.extend(now);
            bytes = later;
            if self.kept.len() == self.wanted() {
                self.look();
            }
        }
    }

    /// Bytes of the present block that have to be kept, as far as is known.
    fn wanted(&self) -> usize {
        match (u32_at(&self.kept, 0), u32_at(&self.kept, 4)) {
            (Some(INTERFACE_STATISTICS), Some(len)) => size(len).clamp(LEAST, MOST),
            _ => HEAD,
        }
    }

    /// Looks at what is kept of a block.
    fn look(&mut self) {
        let (kind, len) = (u32_at(&self.kept, 0), u32_at(&self.kept, 4).map_or(LEAST, size).max(LEAST));
        match kind {
            Some(ENHANCED_PACKET) => self.frames += 1,
            // Behind the head, the number of the interface and the time.
            Some(INTERFACE_STATISTICS) => self.lost = lost(self.kept.get(HEAD + 12..).unwrap_or_default()),
            _ => {}
        }
        self.skip = len.saturating_sub(self.kept.len());
        self.kept.clear();
    }
}

/// The frames that were lost, by the options of the statistics.
fn lost(mut options: &[u8]) -> Option<u64> {
    loop {
        let code = u16_at(options, 0).filter(|code| *code != END)?;
        let len = usize::from(u16_at(options, 2)?);
        if code == FRAMES_LOST {
            return options.get(4..12)?.try_into().ok().map(u64::from_ne_bytes);
        }
        options = options.get(4 + len.next_multiple_of(4)..)?;
    }
}

fn size(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::capture::{CaptureLimits, CapturePoint, Direction, StreamState};

    /// A capture of `frames` frames.
    fn capture(frames: usize) -> Vec<u8> {
        let point = CapturePoint::default();
        let mut stream = point.stream("net0", CaptureLimits::default()).unwrap();
        for len in 0..frames {
            point.frame(Direction::Inbound, len, |into| into.resize(into.len() + len, 7));
        }
        stream.finish();
        let (mut all, mut buffer) = (Vec::new(), Vec::new());
        while stream.next(&mut buffer, Duration::from_secs(60)) == StreamState::Bytes {
            all.extend(&buffer);
        }
        all
    }

    #[test]
    fn frames_are_counted_however_the_stream_is_cut() {
        let bytes = capture(70);
        for piece in [1, 2, 3, 7, 8, 9, 64, 4096, bytes.len()] {
            let mut blocks = Blocks::default();
            bytes.chunks(piece).for_each(|part| blocks.pass(part));
            assert_eq!((blocks.frames, blocks.lost), (70, Some(0)), "{piece}");
        }
        let mut blocks = Blocks::default();
        blocks.pass(&bytes[..bytes.len() - 10]);
        assert_eq!((blocks.frames, blocks.lost), (70, None), "the end is missing");
    }

    #[test]
    fn stream_of_anything_is_passed() {
        let mut seed = 1u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_ne_bytes()[3] % 7
        })
        .take(100_000)
        .collect();
        let mut blocks = Blocks::default();
        bytes.chunks(13).for_each(|part| blocks.pass(part));
        Blocks::default().pass(&[0xff; 4096]);
        Blocks::default().pass(&[0; 4096]);
    }
}
