//! The number of processors.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::size::{NumberOrText, SizeError};

/// How many processors a machine has: from 1 to [`Cpus::MAX`]. KVM's own maximum is checked when the machine is made.
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
    /// What a machine gets that does not say.
    pub const DEFAULT: Cpus = Cpus(1);

    /// As many as APIC ids of 8 bits can tell apart, one of the 256 being all of them. Linux without an interrupt remapping
    /// unit uses no processor with a larger id.
    pub const MAX: u32 = 255;

    /// `count` processors; `None` for 0 and for more than [`Cpus::MAX`].
    pub fn new(count: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Cpus(count))
    }

    /// The count.
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
