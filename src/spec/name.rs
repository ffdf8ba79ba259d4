//! Names of machines.

use std::fmt;
use std::str::FromStr;

use super::net::SwitchName;
use super::text::by_text;
use super::words::DeviceError;

/// Name of a machine, also used as a file name: 1 to 63 of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineName(String);

impl MachineName {
    /// Maximum length.
    pub const MAX: usize = 63;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MachineName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if fits { Ok(MachineName(text.into())) } else { Err(DeviceError::Machine(text.into())) }
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(MachineName);

/// A switch's name as that of a file: every such name could be a machine's.
impl From<&SwitchName> for MachineName {
    fn from(name: &SwitchName) -> Self {
        MachineName(name.as_str().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_a_file_name_that_no_command_takes_for_a_flag() {
        for name in ["vm0", "a", "web-1.example_com", &"x".repeat(63)] {
            assert_eq!(name.parse::<MachineName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", ".hidden", "-d", "a/b", "a b", "ö", "a\0", &"x".repeat(64)] {
            let error = name.parse::<MachineName>().unwrap_err().to_string();
            assert!(error.contains("1 to 63"), "{error}");
        }
    }
}
