//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A sum of 16-bit words that is not folded yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// The pseudo header of a transport's packet: 64 KiB at most, so the length has one form for both families.
    pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Self {
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Sum::default().add(&source.octets()).add(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Sum::default().add(&source.octets()).add(&destination.octets())
            }
            _ => Sum::default(),
        };
        Sum(sum.0 + u64::from(protocol) + len as u64)
    }

    /// Adds bytes, which begin at an even place of what is summed up.
    #[must_use]
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
        let mut last = [0; 4];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Sum(self.0 + sum + u64::from(u32::from_be_bytes(last)))
    }

    /// The sum in 16 bits, not complemented.
    pub(crate) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// The checksum.
    pub(crate) fn checksum(self) -> u16 {
        !self.folded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_that_of_rfc_1071_for_every_length() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).folded(), 0xddf2);
        for len in 0..bytes.len() {
            let slow: u32 = bytes[..len]
                .chunks(2)
                .map(|word| (u32::from(word[0]) << 8) + u32::from(*word.get(1).unwrap_or(&0)))
                .sum();
            let slow = (slow & 0xffff) + (slow >> 16);
            assert_eq!(u32::from(Sum::default().add(&bytes[..len]).folded()), slow, "{len}");
        }
    }
}
