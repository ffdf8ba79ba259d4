//! Options of a disk that are one of a few words.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::words::DeviceError;

/// What happens when the host has no room for what a guest writes to a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnFull {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The machine is paused, and writes again when it is resumed.
    Pause,
}

/// Whether a guest can give space of a disk back to the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DiskDiscard {
    /// Wherever the host can take it, except from an image whose space was all there when it was opened: it stays allocated.
    #[default]
    Auto,
    /// Wherever the host can take it.
    On,
    /// Never.
    Off,
}

impl FromStr for OnFull {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "report" => Ok(OnFull::Report),
            "pause" => Ok(OnFull::Pause),
            _ => Err(DeviceError::OnFull(text.into())),
        }
    }
}

impl FromStr for DiskDiscard {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(DiskDiscard::Auto),
            "on" => Ok(DiskDiscard::On),
            "off" => Ok(DiskDiscard::Off),
            _ => Err(DeviceError::Discard(text.into())),
        }
    }
}
