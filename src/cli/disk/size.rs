//! Sizes of disks as people write them.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

/// The unit of a disk.
const SECTOR: u64 = 512;
/// Below this a number without a unit is rather one whose unit was forgotten.
const LEAST_BARE: u64 = 1 << 20;
/// The largest size: that of a file (`off_t`).
const MAX: u64 = i64::MAX as u64 / SECTOR * SECTOR;

/// Why a text is no size of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskSizeError {
    /// Not a number, or an unknown unit.
    #[error("`{0}` is not the size of a disk; write a whole number with a unit, such as `60G` or `512M`")]
    NotASize(String),
    /// A small number without a unit.
    #[error("`{0}` would be bytes, since it has no unit; write `{0}G` or `{0}M`")]
    NoUnit(String),
    /// Nothing.
    #[error("a disk of `{0}` would have no sector; give it at least `1M`")]
    Zero(String),
    /// More than a file can have.
    #[error("`{0}` is more than a file can have (8 EiB)")]
    TooLarge(String),
}

/// A size in bytes: whole sectors, one at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize(u64);

impl DiskSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for DiskSize {
    type Err = DiskSizeError;

    fn from_str(text: &str) -> Result<Self, DiskSizeError> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start().to_ascii_lowercase();
        // Counted in powers of two however the unit is spelt, as for memory, and as qemu-img does.
        let shift = match unit.as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(DiskSizeError::NotASize(text.into())),
        };
        if number.is_empty() {
            return Err(DiskSizeError::NotASize(text.into()));
        }
        // Nothing but digits: what does not fit is too large.
        let too_large = || DiskSizeError::TooLarge(text.into());
        let number: u64 = number.parse().map_err(|_| too_large())?;
        let bytes = number.checked_mul(1 << shift).and_then(|bytes| bytes.checked_next_multiple_of(SECTOR));
        match bytes.filter(|bytes| *bytes <= MAX).ok_or_else(too_large)? {
            0 => Err(DiskSizeError::Zero(text.into())),
            _ if unit.is_empty() && number < LEAST_BARE => Err(DiskSizeError::NoUnit(trimmed.into())),
            bytes => Ok(DiskSize(bytes)),
        }
    }
}

/// A new size, or how much is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeChange {
    /// To so many bytes.
    To(u64),
    /// By so many bytes.
    By(u64),
}

impl SizeChange {
    /// The size of what has `size` bytes, after the change.
    ///
    /// # Errors
    /// It would be too large.
    pub(super) fn applied(self, size: u64) -> Result<u64, DiskSizeError> {
        match self {
            SizeChange::To(bytes) => Ok(bytes),
            SizeChange::By(more) => size
                .checked_add(more)
                .filter(|bytes| *bytes <= MAX)
                .ok_or_else(|| DiskSizeError::TooLarge(format!("{size} and {more} bytes"))),
        }
    }

    /// As the control socket has it: a number, or `"+N"`.
    pub(super) fn json(self) -> Value {
        match self {
            SizeChange::To(bytes) => json!(bytes),
            SizeChange::By(bytes) => json!(format!("+{bytes}")),
        }
    }
}

impl FromStr for SizeChange {
    type Err = DiskSizeError;

    fn from_str(text: &str) -> Result<Self, DiskSizeError> {
        match text.trim().strip_prefix('+') {
            // Of a machine's disk: what its file or device has now.
            Some("0") => Ok(SizeChange::By(0)),
            Some(more) => more.parse().map(|DiskSize(bytes)| SizeChange::By(bytes)),
            None => text.parse().map(|DiskSize(bytes)| SizeChange::To(bytes)),
        }
    }
}

/// Bytes in the largest unit that leaves a number before the point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(pub(super) u64);

impl Bytes {
    const UNITS: [(u32, &str); 6] =
        [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];

    /// The unit, as a shift and as a word; `None` for less than the smallest.
    fn unit(self) -> Option<(u32, &'static str)> {
        Self::UNITS.into_iter().find(|(shift, _)| self.0 >> shift > 0)
    }

    /// Whether the text says all of it.
    pub(super) fn is_exact(self) -> bool {
        self.unit().is_none_or(|(shift, _)| self.0.trailing_zeros() >= shift)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((shift, unit)) = self.unit() else { return write!(f, "{} bytes", self.0) };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        match (u128::from(rest) * 10) >> shift {
            0 => write!(f, "{whole} {unit}"),
            tenths => write!(f, "{whole}.{tenths} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<u64, DiskSizeError> {
        text.parse().map(DiskSize::bytes)
    }

    #[test]
    fn units_count_in_powers_of_two_and_sizes_are_whole_sectors() {
        assert_eq!(bytes("60G"), Ok(60 << 30));
        assert_eq!(bytes("512M"), Ok(512 << 20));
        assert_eq!(bytes("1 tib"), Ok(1 << 40));
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert_eq!(bytes("1000b"), Ok(1024));
        assert_eq!(bytes("64k"), Ok(64 << 10));
    }

    #[test]
    fn number_whose_unit_was_forgotten_is_refused_with_the_unit() {
        let said = bytes("60").unwrap_err().to_string();
        assert!(said.contains("`60G`") && said.contains("`60M`"), "{said}");
        let said = "+20".parse::<SizeChange>().unwrap_err().to_string();
        assert!(said.contains("`20G`"), "{said}");
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "G", "-5G", "1.5G", "five", "60GG", "0x200", "60G 1", "++5G", "60x"] {
            let said = text.parse::<SizeChange>().unwrap_err().to_string();
            assert!(said.contains("`60G`"), "{text}: {said}");
        }
        assert_eq!("+0".parse(), Ok(SizeChange::By(0)));
        for text in ["0", "0G", "+0G"] {
            assert!(matches!(text.parse::<SizeChange>(), Err(DiskSizeError::Zero(_))), "{text}");
        }
        for text in ["8192P", "9223372036854775808", "99999999999999999999999G"] {
            assert!(matches!(bytes(text), Err(DiskSizeError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn change_is_to_a_size_or_by_one() {
        assert_eq!("80G".parse(), Ok(SizeChange::To(80 << 30)));
        assert_eq!("+20G".parse(), Ok(SizeChange::By(20 << 30)));
        assert_eq!(SizeChange::By(20).applied(22), Ok(42));
        assert!(SizeChange::By(1 << 62).applied(1 << 62).is_err());
        assert!(SizeChange::By(u64::MAX).applied(u64::MAX).is_err());
        assert_eq!(SizeChange::By(512).json(), json!("+512"));
        assert_eq!(SizeChange::To(512).json(), json!(512));
    }

    #[test]
    fn bytes_are_told_in_the_unit_that_suits() {
        let said = [0, 512, 1 << 10, (3 << 30) + (1 << 29), 60 << 30, u64::MAX]
            .map(|bytes| Bytes(bytes).to_string());
        assert_eq!(said, ["0 bytes", "512 bytes", "1 KiB", "3.5 GiB", "60 GiB", "15.9 EiB"]);
    }
}
