//! The Internet checksum (RFC 1071).

/// A sum of 16-bit words that is not folded yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes, which begin at an even place of what is summed up.
    #[must_use]
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        // Two sums at a time, each of words of 32 bits: they are far from an overflow.
        let (blocks, rest) = bytes.as_chunks::<8>();
        let mut sums = [self.0, 0];
        for [a, b, c, d, e, f, g, h] in blocks {
            let [even, odd] = &mut sums;
            *even += u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
            *odd += u64::from(u32::from_be_bytes([*e, *f, *g, *h]));
        }
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        let last = u64::from_be_bytes(last);
        let [even, odd] = sums;
        Sum(even + odd + (last >> 32) + (last & 0xffff_ffff))
    }

    /// Adds a number.
    #[must_use]
    pub(crate) fn add_number(self, number: u64) -> Self {
        Sum(self.0 + number)
    }

    /// The sum in 16 bits, not complemented.
    pub(crate) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// The checksum. Never 0, which in UDP says that there is none; the other 0 of ones' complement is as good everywhere.
    pub(crate) fn checksum(self) -> u16 {
        match !self.folded() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_that_of_rfc_1071_for_every_length() {
        let bytes: Vec<u8> = (0..40).map(|number: u8| number.wrapping_mul(37) ^ 0xa5).collect();
        for len in 0..bytes.len() {
            let words = bytes[..len].chunks(2);
            let slow: u32 =
                words.map(|word| (u32::from(word[0]) << 8) + u32::from(*word.get(1).unwrap_or(&0))).sum();
            let slow = (slow & 0xffff) + (slow >> 16);
            assert_eq!(u32::from(Sum::default().add(&bytes[..len]).folded()), slow, "{len}");
        }
        assert_eq!(Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), 0xddf2);
        assert_eq!(Sum::default().add(&[0xff, 0xff]).checksum(), 0xffff);
    }
}
