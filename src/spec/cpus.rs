//! The number of processors.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::size::{NumberOrText, SizeError};

/// Number of processors: from 1 to [`Cpus::MAX`]. KVM's own maximum is checked at the start of the machine.
///
/// ```
/// use minivmm::spec::Cpus;
///
/// assert_eq!("4".parse::<Cpus>()?.get(), 4);
/// assert!("0".parse::<Cpus>().is_err());
/// # Ok::<(), minivmm::spec::SizeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

impl Cpus {
    /// The default.
    pub const DEFAULT: Cpus = Cpus(1);

    /// The maximum: APIC ids have 8 bits, and 255 is the broadcast id. Linux needs an interrupt remapping unit for larger
    /// ids.
    pub const MAX: u32 = 255;

    /// Returns `None` for 0 and for more than [`Cpus::MAX`].
    pub fn new(count: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Cpus(count))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Cpus {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl FromStr for Cpus {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        text.trim().parse().ok().and_then(Cpus::new).ok_or_else(|| SizeError::NotCpus(text.into()))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText("a number of processors, such as 2", PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_count_from_one() {
        assert_eq!("1".parse(), Ok(Cpus::DEFAULT));
        assert_eq!("255".parse::<Cpus>().unwrap().get(), Cpus::MAX);
        for text in ["0", "-1", "two", "", "1.5", "256", "4294967296"] {
            assert_eq!(text.parse::<Cpus>(), Err(SizeError::NotCpus(text.into())));
        }
    }
}
