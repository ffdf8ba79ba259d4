//! Amounts of memory as people write them.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// An amount of guest memory: at least 1 MiB, whole MiB, at most [`MemSize::MAX`].
///
/// ```
/// use minivmm::spec::MemSize;
///
/// let mem: MemSize = "2G".parse()?;
/// assert_eq!(mem, "2048".parse()?); // a bare number counts MiB
/// assert_eq!(mem.bytes(), 2 << 30);
/// assert_eq!(mem.to_string(), "2 GiB");
/// # Ok::<(), minivmm::spec::SizeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemSize {
    mib: u64,
}

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number, or an unknown unit.
    #[error("`{0}` is not an amount of memory; write MiB as a plain number, or a unit: `512`, `512M`, `2G`")]
    NotMemory(String),
    /// Zero.
    #[error(
        "a machine cannot have `{0}` of memory; give it at least `1M`, and a Debian guest `128M` or more"
    )]
    TooLittle(String),
    /// More than the maximum.
    #[error(
        "`{0}` is more memory than a machine can have (64 TiB); a plain number counts MiB, so 2 GiB is `2048` or `2G`"
    )]
    TooMuch(String),
    /// Not a number of processors.
    #[error("`{0}` is not a number of processors; write a whole number from 1 to 255, such as `2`")]
    NotCpus(String),
}

impl MemSize {
    /// The default.
    pub const DEFAULT: MemSize = MemSize { mib: 512 };
    /// The maximum: 64 TiB, which is what 46-bit physical addresses can reach.
    pub const MAX: MemSize = MemSize { mib: 64 << 20 };

    /// Makes an amount of MiB.
    ///
    /// # Errors
    /// [`SizeError::TooLittle`] for 0, [`SizeError::TooMuch`] above [`MemSize::MAX`].
    pub fn from_mib(mib: u64) -> Result<Self, SizeError> {
        match mib {
            0 => Err(SizeError::TooLittle("0 MiB".into())),
            _ if mib > Self::MAX.mib => Err(SizeError::TooMuch(format!("{mib} MiB"))),
            _ => Ok(MemSize { mib }),
        }
    }

    /// In MiB.
    pub fn mib(self) -> u64 {
        self.mib
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.mib << 20
    }
}

impl Default for MemSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The MiB of a text, which may be 0.
fn amount(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError::NotMemory(text.into());
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    // Memory is counted in powers of two however the unit is spelt.
    let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1 << 10,
        "t" | "tb" | "tib" => 1 << 20,
        _ => return Err(wrong()),
    };
    if number.is_empty() {
        return Err(wrong());
    }
    // Nothing but digits: what does not fit is too large.
    let too_much = || SizeError::TooMuch(text.into());
    let mib = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(too_much)?;
    if mib > MemSize::MAX.mib { Err(too_much()) } else { Ok(mib) }
}

impl FromStr for MemSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        match amount(text)? {
            0 => Err(SizeError::TooLittle(text.into())),
            mib => Ok(MemSize { mib }),
        }
    }
}

/// For messages, with a space: `512 MiB`, `2 GiB`.
impl fmt::Display for MemSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mib.is_multiple_of(1024) {
            write!(f, "{} GiB", self.mib / 1024)
        } else {
            write!(f, "{} MiB", self.mib)
        }
    }
}

/// A plain number of MiB, as the command line and the file accept it.
impl Serialize for MemSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.mib)
    }
}

impl<'de> Deserialize<'de> for MemSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(NumberOrText("an amount of memory, such as 512 (MiB) or \"2G\"", PhantomData))
    }
}

/// Size of the balloon in whole MiB; may be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BalloonSize {
    mib: u64,
}

impl BalloonSize {
    /// Makes an amount of MiB.
    ///
    /// # Errors
    /// [`SizeError::TooMuch`] above [`MemSize::MAX`].
    pub fn from_mib(mib: u64) -> Result<Self, SizeError> {
        if mib > MemSize::MAX.mib {
            Err(SizeError::TooMuch(format!("{mib} MiB")))
        } else {
            Ok(BalloonSize { mib })
        }
    }

    /// In MiB.
    pub fn mib(self) -> u64 {
        self.mib
    }
}

impl FromStr for BalloonSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        amount(text).map(|mib| BalloonSize { mib })
    }
}

impl fmt::Display for BalloonSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        MemSize { mib: self.mib }.fmt(f)
    }
}

/// A plain number of MiB.
impl Serialize for BalloonSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.mib)
    }
}

impl<'de> Deserialize<'de> for BalloonSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText("an amount of memory, such as 128 (MiB)", PhantomData))
    }
}

/// Reads a value from a number or from the text of the command line. It holds the message for other types.
pub(super) struct NumberOrText<T>(pub(super) &'static str, pub(super) PhantomData<T>);

impl<T: FromStr<Err = SizeError>> Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(text: &str) -> u64 {
        text.parse::<MemSize>().unwrap().mib()
    }

    #[test]
    fn units_count_in_powers_of_two() {
        assert_eq!(mib("512"), 512);
        assert_eq!(mib("512M"), 512);
        assert_eq!(mib("512MiB"), 512);
        assert_eq!(mib("512 mb"), 512);
        assert_eq!(mib("2G"), 2048);
        assert_eq!(mib("2gib"), 2048);
        assert_eq!(mib("1T"), 1 << 20);
    }

    #[test]
    fn what_is_no_amount_is_refused_with_an_example() {
        for text in ["", "M", "-5", "1.5G", "512K", "five", "512MM", "0x200", "512M 1"] {
            let error = text.parse::<MemSize>().unwrap_err();
            assert_eq!(error, SizeError::NotMemory(text.into()));
            assert!(error.to_string().contains("`512M`"), "{error}");
        }
    }

    #[test]
    fn none_and_more_than_any_host_has_are_refused() {
        assert!(matches!("0".parse::<MemSize>(), Err(SizeError::TooLittle(_))));
        assert!(matches!("0G".parse::<MemSize>(), Err(SizeError::TooLittle(_))));
        for text in ["536870912", "65T", "99999999999999999999", "18446744073709551615T"] {
            assert_eq!(text.parse::<MemSize>(), Err(SizeError::TooMuch(text.into())));
        }
        assert_eq!("64T".parse(), Ok(MemSize::MAX));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(MemSize::from_mib(1536).unwrap().to_string(), "1536 MiB");
        assert_eq!(MemSize::from_mib(3072).unwrap().to_string(), "3 GiB");
    }
}
