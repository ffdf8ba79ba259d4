//! How data is encrypted and compressed.

use std::fmt;

use serde::Serialize;

/// How the data of an image is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Encryption {
    /// The old method.
    Aes,
    /// LUKS.
    Luks,
    /// Another number.
    Unknown(u32),
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compression {
    /// Deflate, the default.
    Zlib,
    /// Zstandard.
    Zstd,
    /// Another number.
    Unknown(u8),
}

impl Encryption {
    pub(crate) fn of(number: u32) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Encryption::Aes),
            2 => Some(Encryption::Luks),
            other => Some(Encryption::Unknown(other)),
        }
    }
}

impl Compression {
    pub(super) fn of(number: u8) -> Self {
        match number {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            other => Compression::Unknown(other),
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encryption::Aes => f.write_str("AES"),
            Encryption::Luks => f.write_str("LUKS"),
            Encryption::Unknown(number) => write!(f, "method {number}"),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Zlib => f.write_str("zlib"),
            Compression::Zstd => f.write_str("zstd"),
            Compression::Unknown(number) => write!(f, "{number}"),
        }
    }
}
