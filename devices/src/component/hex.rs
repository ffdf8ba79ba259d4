//! Bytes as one text of hexadecimal digits: `#[serde(with = "devices::component::hex")]` for a `Vec<u8>`.

use std::fmt::Write;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes `bytes`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    serializer.serialize_str(&text)
}

/// Reads what [`serialize`] wrote.
///
/// # Errors
/// The text is no whole number of bytes in hexadecimal digits.
pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    bytes.ok_or_else(|| D::Error::custom("bytes are not two hexadecimal digits each"))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Bytes(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn bytes_come_back_and_other_texts_do_not() {
        let bytes = Bytes(vec![0, 0x0a, 0xff]);
        assert_eq!(to_value(&bytes).unwrap(), json!("000aff"));
        assert_eq!(from_value::<Bytes>(json!("000aff")).unwrap(), bytes);
        for wrong in [json!("0"), json!("0g"), json!("+1"), json!("é"), json!([0])] {
            assert!(from_value::<Bytes>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
