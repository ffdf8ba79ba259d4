//! The range coder of LZMA: bits with probabilities, which follow the bits.

use super::Bytes;

/// Probabilities are 11 bits, and 1/2 at first.
const PROBABILITY_BITS: u32 = 11;
pub(super) const EVEN: u16 = 1 << (PROBABILITY_BITS - 1);
/// How quickly they follow.
const SHIFT: u32 = 5;
/// Below this another byte is read.
const LEAST_RANGE: u32 = 1 << 24;

#[derive(Debug)]
pub(super) struct Range<'a> {
    from: &'a [u8],
    range: u32,
    code: u32,
}

impl<'a> Range<'a> {
    pub(super) fn new(chunk: &'a [u8]) -> Option<Self> {
        let mut from = Bytes(chunk);
        let code = match *from.take(5)? {
            [0, a, b, c, d] => u32::from_be_bytes([a, b, c, d]),
            _ => return None,
        };
        Some(Range { from: from.0, range: u32::MAX, code })
    }

    /// Whether all of the chunk was used, as it is at its end.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.fill().is_some() && self.from.is_empty() && self.code == 0
    }

    fn fill(&mut self) -> Option<()> {
        if self.range < LEAST_RANGE {
            let (byte, rest) = self.from.split_first()?;
            self.from = rest;
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(*byte);
        }
        Some(())
    }

    /// A bit with the probability at `at`.
    pub(super) fn bit(&mut self, probabilities: &mut [u16], at: usize) -> Option<usize> {
        let probability = probabilities.get_mut(at)?;
        self.fill()?;
        let bound = (self.range >> PROBABILITY_BITS) * u32::from(*probability);
        if self.code < bound {
            self.range = bound;
            *probability += ((1 << PROBABILITY_BITS) - *probability) >> SHIFT;
            Some(0)
        } else {
            self.range -= bound;
            self.code -= bound;
            *probability -= *probability >> SHIFT;
            Some(1)
        }
    }

    /// Bits that are as likely as not, the highest first.
    pub(super) fn plain(&mut self, count: u32) -> Option<usize> {
        let mut value = 0;
        for _ in 0..count {
            self.fill()?;
            self.range >>= 1;
            let is_set = self.code >= self.range;
            if is_set {
                self.code -= self.range;
            }
            value = value << 1 | usize::from(is_set);
        }
        Some(value)
    }

    /// A number of `bits` bits, the highest first, each with a probability by those before it.
    pub(super) fn number(&mut self, probabilities: &mut [u16], bits: u32) -> Option<usize> {
        let mut node = 1;
        for _ in 0..bits {
            node = node << 1 | self.bit(probabilities, node)?;
        }
        Some(node - (1 << bits))
    }

    /// The same with the lowest bit first; the first node is behind `base`.
    pub(super) fn reversed(&mut self, probabilities: &mut [u16], base: usize, bits: u32) -> Option<usize> {
        let (mut node, mut value) = (1, 0);
        for place in 0..bits {
            let bit = self.bit(probabilities, base + node)?;
            node = node << 1 | bit;
            value |= bit << place;
        }
        Some(value)
    }
}
