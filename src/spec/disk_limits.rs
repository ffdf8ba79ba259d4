//! Limits of a disk: operations and bytes a second.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use virtio::block::DiskLimits;

use super::disk_size::{UNITS, bytes};
use super::words::{DeviceError, once};

/// Number of operations of a disk in a second, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskIops(NonZeroU64);

impl DiskIops {
    /// The maximum: one in a nanosecond.
    pub const MAX: u64 = 1_000_000_000;

    /// Returns `None` for 0 and for more than [`DiskIops::MAX`].
    pub fn new(count: u64) -> Option<Self> {
        NonZeroU64::new(count).filter(|count| count.get() <= Self::MAX).map(DiskIops)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl TryFrom<u64> for DiskIops {
    type Error = DeviceError;

    fn try_from(count: u64) -> Result<Self, DeviceError> {
        Self::new(count).ok_or_else(|| DeviceError::Iops(count.to_string()))
    }
}

impl From<DiskIops> for u64 {
    fn from(iops: DiskIops) -> u64 {
        iops.get()
    }
}

impl FromStr for DiskIops {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| DeviceError::Iops(text.into()))
    }
}

impl fmt::Display for DiskIops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Number of bytes that a disk reads and writes in a second, at least a sector.
///
/// ```
/// use minivmm::spec::DiskBps;
///
/// let bps: DiskBps = "10M".parse()?;
/// assert_eq!((bps.get(), bps.to_string().as_str()), (10 << 20, "10M"));
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBps(NonZeroU64);

impl DiskBps {
    /// The minimum: a sector.
    pub const MIN: u64 = 512;
    /// The maximum: 1 PiB.
    pub const MAX: u64 = 1 << 50;

    /// Returns `None` for less than [`DiskBps::MIN`] and for more than [`DiskBps::MAX`].
    pub fn new(bytes: u64) -> Option<Self> {
        NonZeroU64::new(bytes).filter(|bytes| (Self::MIN..=Self::MAX).contains(&bytes.get())).map(DiskBps)
    }

    /// In bytes.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for DiskBps {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        bytes(text).and_then(Self::new).ok_or_else(|| DeviceError::Bps(text.into()))
    }
}

/// In the largest unit of which it is a whole number.
impl fmt::Display for DiskBps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut unit) = (self.get(), None);
        for letter in UNITS {
            if !number.is_multiple_of(1024) {
                break;
            }
            (number, unit) = (number / 1024, Some(letter.to_ascii_uppercase()));
        }
        write!(f, "{number}")?;
        unit.map_or(Ok(()), |unit| write!(f, "{unit}"))
    }
}

impl Serialize for DiskBps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text, or a plain number of bytes.
impl<'de> Deserialize<'de> for DiskBps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = DiskBps;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"10M\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DiskBps, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<DiskBps, E> {
                self.visit_str(&bytes.to_string())
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<DiskBps, E> {
                self.visit_str(&bytes.to_string())
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// The limits of these two.
pub(crate) fn limits(iops: Option<DiskIops>, bps: Option<DiskBps>) -> DiskLimits {
    DiskLimits { iops: iops.map(|DiskIops(count)| count), bps: bps.map(|DiskBps(bytes)| bytes) }
}

/// New limits of a disk whose machine runs: `None` leaves a limit as it is, `Some(None)` lifts it.
///
/// As text it is `iops=N,bps=SIZE`, or one of these; `off` lifts a limit.
///
/// ```
/// use minivmm::spec::{DiskIops, DiskLimitsChange};
///
/// let change: DiskLimitsChange = "iops=500,bps=off".parse()?;
/// assert_eq!((change.iops, change.bps), (Some(DiskIops::new(500)), Some(None)));
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimitsChange {
    /// Operations.
    pub iops: Option<Option<DiskIops>>,
    /// Bytes.
    pub bps: Option<Option<DiskBps>>,
}

impl DiskLimitsChange {
    /// What `now` becomes.
    pub(crate) fn of(self, now: DiskLimits) -> DiskLimits {
        let new = limits(self.iops.flatten(), self.bps.flatten());
        DiskLimits {
            iops: if self.iops.is_some() { new.iops } else { now.iops },
            bps: if self.bps.is_some() { new.bps } else { now.bps },
        }
    }
}

impl FromStr for DiskLimitsChange {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        fn value<T: FromStr<Err = DeviceError>>(text: &str) -> Result<Option<T>, DeviceError> {
            if matches!(text, "0" | "off") { Ok(None) } else { text.parse().map(Some) }
        }
        const DISK: &str = "disk";
        let mut change = DiskLimitsChange::default();
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("iops", text)) => once(&mut change.iops, value(text)?, DISK, "iops")?,
                Some(("bps", text)) => once(&mut change.bps, value(text)?, DISK, "bps")?,
                _ => return Err(DeviceError::DiskLimit(word.into())),
            }
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_units_that_sizes_have() {
        let said = ["512", "64K", "64k", "10M", "10MiB", "10mb", "1536", "3G", "1T", "1P"];
        let read = said.map(|text| text.parse::<DiskBps>().unwrap().to_string());
        assert_eq!(read, ["512", "64K", "64K", "10M", "10M", "10M", "1536", "3G", "1T", "1P"]);
        for wrong in
            ["", "0", "511", "M", "1.5M", "10MM", "10bit", "-1", "2P", "99999999999999999999", "16777216P"]
        {
            let said = wrong.parse::<DiskBps>().unwrap_err().to_string();
            assert!(said.contains(&format!("`{wrong}`")) && said.contains("`10M`"), "{said}");
        }
        for wrong in ["", "0", "x", "-1", "1000000001", "1K"] {
            let said = wrong.parse::<DiskIops>().unwrap_err().to_string();
            assert!(said.contains("from 1 to 1000000000"), "{said}");
        }
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_lifts_what_is_off() {
        let change = |text: &str| text.parse::<DiskLimitsChange>().unwrap();
        let both = change("iops=500,bps=10M").of(DiskLimits::default());
        assert_eq!((both.iops.unwrap().get(), both.bps.unwrap().get()), (500, 10 << 20));
        assert_eq!(change("iops=off").of(both), DiskLimits { iops: None, ..both });
        assert_eq!(change("bps=0").of(both), DiskLimits { bps: None, ..both });
        assert_eq!(change("iops=7").of(both).iops.unwrap().get(), 7);
        for wrong in ["", "iops", "iops=", "speed=5", "iops=1,iops=2", "iops=1,", "bps=1"] {
            assert!(wrong.parse::<DiskLimitsChange>().is_err(), "{wrong}");
        }
        let said = "speed=5".parse::<DiskLimitsChange>().unwrap_err().to_string();
        assert!(said.contains("`speed=5`") && said.contains("iops=500,bps=10M"), "{said}");
    }
}
