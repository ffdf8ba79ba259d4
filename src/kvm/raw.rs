//! KVM's structures in a saved state: each is a string of hexadecimal digits, and its length must be exact.

use devices::component::hex;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure of KVM's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Raw<T>(pub(super) T);

impl<T: IntoBytes + Immutable> Serialize for Raw<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hex::serialize(self.0.as_bytes(), serializer)
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = hex::deserialize(deserializer)?;
        let wrong = |_| D::Error::custom(format!("{} bytes instead of {}", bytes.len(), size_of::<T>()));
        T::read_from_bytes(&bytes).map(Raw).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_comes_back_and_no_other_length_does() {
        let text = serde_json::to_string(&Raw(0x0102_0304u32)).unwrap();
        assert_eq!(text, "\"04030201\"");
        assert_eq!(serde_json::from_str::<Raw<u32>>(&text).unwrap(), Raw(0x0102_0304));
        for bad in ["\"040302\"", "\"0403020100\"", "\"0403020\"", "\"0403020g\"", "\"\"", "7"] {
            assert!(serde_json::from_str::<Raw<u32>>(bad).is_err(), "{bad}");
        }
    }
}
