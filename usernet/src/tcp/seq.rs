//! Sequence numbers (RFC 9293 §3.4): they wrap, so that only their distance says which comes first.

use std::ops::{Add, AddAssign};

/// A sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    /// How far `self` is behind `other`; negative if it is before.
    pub(super) fn since(self, other: Seq) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// Bytes from `other` up to `self`; 0 if `self` is before.
    pub(super) fn beyond(self, other: Seq) -> usize {
        usize::try_from(self.since(other)).unwrap_or(0)
    }

    pub(super) fn before(self, other: Seq) -> bool {
        self.since(other) < 0
    }

    pub(super) fn max(self, other: Seq) -> Seq {
        if self.before(other) { other } else { self }
    }

    pub(super) fn back(self, by: u32) -> Seq {
        Seq(self.0.wrapping_sub(by))
    }
}

impl Add<usize> for Seq {
    type Output = Seq;

    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
    fn add(self, bytes: usize) -> Seq {
        Seq(self.0.wrapping_add(bytes as u32))
    }
}

impl AddAssign<usize> for Seq {
    fn add_assign(&mut self, bytes: usize) {
        *self = *self + bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let low = Seq(u32::MAX - 1);
        let high = low + 5;
        assert_eq!(high, Seq(3));
        assert!(low.before(high) && !high.before(low) && !low.before(low));
        assert_eq!((high.beyond(low), low.beyond(high)), (5, 0));
        assert_eq!(low.max(high), high);
        assert_eq!(high.back(5), low);
    }
}
