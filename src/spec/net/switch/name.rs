//! Names of switches.

use std::fmt;
use std::str::FromStr;

use crate::spec::text::by_text;
use crate::spec::words::DeviceError;

/// Name of a virtual switch, also used as a file name: 1 to 63 of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`, and none
/// of the words of `minivmm switch`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SwitchName(String);

impl SwitchName {
    /// Maximum length.
    pub const MAX: usize = 63;
    /// The words that `minivmm switch` has in the place of a name.
    pub const RESERVED: [&str; 6] = ["capture", "help", "ls", "set", "show", "stop"];

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SwitchName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !fits {
            Err(DeviceError::SwitchName(text.into()))
        } else if Self::RESERVED.contains(&text) {
            Err(DeviceError::SwitchReserved(text.into()))
        } else {
            Ok(SwitchName(text.into()))
        }
    }
}

impl fmt::Display for SwitchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(SwitchName);
