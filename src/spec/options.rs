//! Options with a fixed set of values, and the initrd.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The initial RAM disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
#[non_exhaustive]
pub enum Initrd {
    /// The word `none`: boot without one. (A file of that name is `./none`.)
    None,
    /// A file.
    File(PathBuf),
}

/// The guest's clock chip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rtc {
    /// No chip. Linux has the time from kvm-clock.
    #[default]
    None,
    /// A chip with UTC, as Linux expects.
    Utc,
    /// A chip with the host's local time.
    Localtime,
}

/// What backs the guest's memory on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MemBacking {
    /// Private memory of the process.
    #[default]
    Anonymous,
    /// A memfd (memfd_create(2)), which other processes can map.
    Memfd,
}

/// What happens when the guest reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnReboot {
    /// The machine boots again.
    #[default]
    Reboot,
    /// The machine ends.
    Exit,
}

/// The guest's console that the terminal has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum ConsoleChoice {
    /// The first serial port: works from the guest's first instruction on.
    #[default]
    #[serde(rename = "ttyS0")]
    #[cfg_attr(feature = "cli", value(name = "ttyS0"))]
    Ttys0,
    /// The virtio console: faster, works once the guest has loaded its driver.
    #[serde(rename = "hvc0")]
    #[cfg_attr(feature = "cli", value(name = "hvc0"))]
    Hvc0,
}

impl From<PathBuf> for Initrd {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "none" { Initrd::None } else { Initrd::File(path) }
    }
}

/// From the command line: the path need not be UTF-8.
impl From<OsString> for Initrd {
    fn from(path: OsString) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<&str> for Initrd {
    fn from(path: &str) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<Initrd> for PathBuf {
    fn from(initrd: Initrd) -> Self {
        match initrd {
            Initrd::None => "none".into(),
            Initrd::File(path) => path,
        }
    }
}
