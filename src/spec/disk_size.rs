//! Sizes of disks as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::words::DeviceError;

/// Units, each 1024 times the one before.
pub(super) const UNITS: [char; 6] = ['k', 'm', 'g', 't', 'p', 'e'];
/// Bytes of a sector.
const SECTOR: u64 = 512;

/// The bytes of a text such as `512`, `64K`, `10M`, `1GiB`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let mut letters = unit.chars();
    let power = match (letters.next(), letters.next()) {
        (None, _) => 0,
        (Some(letter), None) => 1 + UNITS.iter().position(|unit| *unit == letter)?,
        _ => return None,
    };
    let unit = 1024u64.checked_pow(u32::try_from(power).ok()?)?;
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// The new size of a disk that grows, in bytes.
///
/// ```
/// use minivmm::spec::DiskGrowth;
///
/// assert_eq!("60G".parse(), Ok(DiskGrowth::To(60 << 30)));
/// assert_eq!("+20G".parse(), Ok(DiskGrowth::By(20 << 30)));
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskGrowth {
    /// To this size.
    To(u64),
    /// By so much. With 0 a disk takes over the size that its file has on the host.
    By(u64),
}

impl DiskGrowth {
    /// What the size `has` becomes, in whole sectors; `None` if no file can be so large.
    pub(crate) fn of(self, has: u64) -> Option<u64> {
        let wanted = match self {
            DiskGrowth::To(bytes) => Some(bytes),
            DiskGrowth::By(bytes) => has.checked_add(bytes),
        };
        wanted?.checked_next_multiple_of(SECTOR).filter(|bytes| i64::try_from(*bytes).is_ok())
    }
}

impl FromStr for DiskGrowth {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let growth = match text.strip_prefix('+') {
            Some(more) => bytes(more).map(DiskGrowth::By),
            None => bytes(text).map(DiskGrowth::To),
        };
        growth.ok_or_else(|| DeviceError::Growth(text.into()))
    }
}

/// A number of bytes, or a text such as `+4096`.
impl Serialize for DiskGrowth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            DiskGrowth::To(bytes) => serializer.serialize_u64(*bytes),
            DiskGrowth::By(bytes) => serializer.collect_str(&format_args!("+{bytes}")),
        }
    }
}

impl<'de> Deserialize<'de> for DiskGrowth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = DiskGrowth;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"60G\" or \"+20G\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DiskGrowth, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<DiskGrowth, E> {
                Ok(DiskGrowth::To(bytes))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        let sizes = ["0", "512", "64k", "10M", "10MiB", "10mb", "60G", "1T", "2P", "7E"].map(bytes);
        let mib = 1 << 20;
        let expected = [0, 512, 65536, 10 * mib, 10 * mib, 10 * mib, 60 << 30, 1 << 40, 2 << 50, 7 << 60];
        assert_eq!(sizes, expected.map(Some));
        for wrong in
            ["", "G", "-1", "1.5G", "10MM", "10bit", "1 G", "16E", "99999999999999999999", "+", "++1"]
        {
            assert_eq!(bytes(wrong), None, "{wrong}");
            let said = wrong.parse::<DiskGrowth>().unwrap_err().to_string();
            assert!(said.contains(&format!("`{wrong}`")) && said.contains("`+20G`"), "{said}");
        }
    }

    #[test]
    fn growth_is_to_a_size_or_by_one_in_whole_sectors() {
        let of = |text: &str, has| text.parse::<DiskGrowth>().unwrap().of(has);
        assert_eq!((of("1M", 512), of("+1M", 512)), (Some(1 << 20), Some((1 << 20) + 512)));
        assert_eq!((of("1000", 0), of("+1", 1024), of("+0", 512)), (Some(1024), Some(1536), Some(512)));
        assert_eq!((of("7E", 0), of("+7E", 1 << 60), of("+15E", 1 << 62)), (Some(7 << 60), None, None));
    }

    #[test]
    fn growth_in_json_is_a_number_or_a_text() {
        let read = |text: &str| serde_json::from_str::<DiskGrowth>(text);
        for growth in [DiskGrowth::To(4096), DiskGrowth::By(20 << 30)] {
            assert_eq!(read(&serde_json::to_string(&growth).unwrap()).unwrap(), growth);
        }
        assert_eq!(read("\"60G\"").unwrap(), DiskGrowth::To(60 << 30));
        for wrong in ["-1", "1.5", "null", "\"x\"", "[]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
