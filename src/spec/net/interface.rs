//! Options that every network interface has: its largest packet, and its name among the machine's parts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::text::by_text;
use crate::spec::words::DeviceError;

/// Largest packet of a network interface, in bytes, without its Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u16);

impl Mtu {
    /// The least that a virtio device may offer (virtio 1.3 §5.1.4.1).
    pub const MIN: u16 = 68;

    /// Makes one of a number.
    ///
    /// # Errors
    /// [`DeviceError::Mtu`] if it is less than [`Mtu::MIN`].
    pub fn new(bytes: u16) -> Result<Self, DeviceError> {
        Self::try_from(u32::from(bytes))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for Mtu {
    type Error = DeviceError;

    fn try_from(bytes: u32) -> Result<Self, DeviceError> {
        let fits = u16::try_from(bytes).ok().filter(|bytes| *bytes >= Self::MIN);
        fits.map(Mtu).ok_or_else(|| DeviceError::Mtu(bytes.to_string()))
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> u32 {
        mtu.0.into()
    }
}

impl FromStr for Mtu {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError::Mtu(text.into());
        text.parse().ok().filter(|_| !text.starts_with('+')).map_or_else(|| Err(wrong()), Mtu::new)
    }
}

/// Name of a network interface among the machine's parts: 1 to 15 of `A-Z a-z 0-9 _ -`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetId(String);

impl NetId {
    /// Maximum length: it is a thread's name too.
    pub const MAX: usize = 15;

    /// The name that the interface in this place has by default, counted from 0.
    pub(crate) fn numbered(index: usize) -> Self {
        NetId(format!("net{index}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether another part of a machine has this name.
    fn is_taken(text: &str) -> bool {
        const PARTS: [&str; 7] = ["memory", "irqchip", "clock", "pci", "power", "pvpanic", "rtc"];
        const NUMBERED: [&str; 7] = ["vcpu", "serial", "rng", "balloon", "console", "virtio", "blk"];
        let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        PARTS.contains(&text)
            || NUMBERED.iter().any(|part| text.strip_prefix(part).is_some_and(number))
            // Disks: vda, vdb and so on.
            || text.strip_prefix("vd").is_some_and(|rest| rest.len() == 1)
    }
}

impl FromStr for NetId {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !fits || Self::is_taken(text) {
            Err(DeviceError::NetId(text.into()))
        } else {
            Ok(NetId(text.into()))
        }
    }
}

impl fmt::Display for NetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(NetId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_other_parts_name() {
        for id in ["lan", "net0", "vdisk", "rng", "wan-2", "V_1"] {
            assert_eq!(id.parse::<NetId>().unwrap().as_str(), id);
        }
        for id in ["", "0net", "-a", "a.b", "sixteen-is-a-lot", "memory", "vcpu0", "vda", "console0", "ö"] {
            let error = id.parse::<NetId>().expect_err(id).to_string();
            assert!(error.contains("1 to 15"), "{error}");
        }
    }
}
