//! Names of the host's interfaces; and the key `tap`, which files had before there was `net`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::NetSpec;
use crate::spec::mac::MacAddress;
use crate::spec::text::{Device, by_text, devices};
use crate::spec::words::DeviceError;

/// Name of a network interface of the host, as the kernel accepts it (`dev_valid_name` in net/core/dev.c).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// `IFNAMSIZ` without the terminating zero.
    pub const MAX: usize = 15;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && !matches!(text, "." | "..")
            // A percent sign would make the kernel choose a name.
            && !text.chars().any(|c| c.is_whitespace() || c.is_control() || "/:%".contains(c));
        if fits { Ok(InterfaceName(text.into())) } else { Err(DeviceError::Interface(text.into())) }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(InterfaceName);

/// An entry of the key `tap`: the text of `--tap`, or a table.
#[derive(Deserialize)]
#[serde(from = "TapTable")]
struct Tap(NetSpec);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TapTable {
    name: InterfaceName,
    mac: Option<MacAddress>,
}

impl From<TapTable> for Tap {
    fn from(TapTable { name, mac }: TapTable) -> Self {
        Tap(NetSpec { mac, ..NetSpec::tap(name) })
    }
}

impl FromStr for Tap {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        NetSpec::parse_tap(text.as_ref()).map(Tap)
    }
}

impl Device for Tap {
    const EXAMPLE: &'static str = "tap2";
}

/// Reads the key `tap`.
pub(in crate::spec) fn taps<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NetSpec>, D::Error> {
    let taps: Vec<Tap> = devices(deserializer)?;
    Ok(taps.into_iter().map(|Tap(net)| net).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "sixteen-is-a-lot", "a/b", "a b", "a:b", "tap%d", ".", "..", "a\0b"] {
            assert_eq!(name.parse::<InterfaceName>(), Err(DeviceError::Interface(name.into())));
        }
        assert!("fifteen-is-fine".parse::<InterfaceName>().is_ok());
    }
}
