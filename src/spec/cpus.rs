//! The number of processors.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::size::{NumberOrText, SizeError};

/// How many processors a machine has: at least one. KVM's own maximum is checked when the machine is made.
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

    /// `count` processors; `None` for 0.
    pub fn new(count: u32) -> Option<Self> {
        (count > 0).then_some(Cpus(count))
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
        for text in ["0", "-1", "two", "", "1.5", "4294967296"] {
            assert_eq!(text.parse::<Cpus>(), Err(SizeError::NotCpus(text.into())));
        }
    }
}
