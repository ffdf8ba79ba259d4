//! The description of a network interface.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mac::MacAddress;
use super::text::{Device, by_text};
use super::words::{DeviceError, Word, once, split};

const TAP: &str = "network interface";

/// A network interface of the guest on a TAP of the host. As text it is `NAME[,mac=ADDRESS]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TapSpec {
    /// The TAP, which must exist.
    pub name: InterfaceName,
    /// The guest's address; by default computed by [`crate::spec::Spec::settled`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

impl TapSpec {
    /// An interface on this TAP.
    pub fn new(name: InterfaceName) -> Self {
        TapSpec { name, mac: None }
    }

    /// Sets the address.
    #[must_use]
    pub fn with_mac(self, mac: MacAddress) -> Self {
        TapSpec { mac: Some(mac), ..self }
    }

    /// The guest's address if it is given, or follows from the TAP's number.
    pub(crate) fn known_mac(&self) -> Option<MacAddress> {
        self.mac.or_else(|| MacAddress::numbered(&self.name))
    }
}

impl Device for TapSpec {
    const EXAMPLE: &'static str = "tap2";
}

impl FromStr for TapSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let mut words = split(text.as_ref()).into_iter();
        let name = words.next().unwrap_or_default();
        let mut tap = TapSpec::new(name.to_string_lossy().parse()?);
        for word in words {
            let word = Word::parse(&word);
            match (word.name.as_str(), &word.value) {
                ("mac", Some(_)) => once(&mut tap.mac, word.text().parse()?, TAP, "mac")?,
                ("", None) => return Err(DeviceError::Empty("behind a comma")),
                _ => {
                    let known = "`mac=ADDRESS`";
                    return Err(DeviceError::Unknown { device: TAP, word: word.written(), known });
                }
            }
        }
        Ok(tap)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_is_a_name_and_perhaps_an_address() {
        assert_eq!("tap2".parse(), Ok(TapSpec::new("tap2".parse().unwrap())));
        let tap: TapSpec = "br0-vm1,mac=02:00:00:00:00:01".parse().unwrap();
        assert_eq!(tap.name.as_str(), "br0-vm1");
        assert_eq!(tap.mac, Some("02:00:00:00:00:01".parse().unwrap()));
        assert_eq!(tap.known_mac(), tap.mac);
    }

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "sixteen-is-a-lot", "a/b", "a b", "a:b", "tap%d", ".", "..", "a\0b"] {
            assert_eq!(name.parse::<InterfaceName>(), Err(DeviceError::Interface(name.into())));
        }
        assert!("fifteen-is-fine".parse::<InterfaceName>().is_ok());
    }

    #[test]
    fn mistakes_are_told_with_what_could_be_said() {
        let mistake = |text: &str| text.parse::<TapSpec>().unwrap_err().to_string();
        assert!(mistake("tap2,").contains("behind a comma"));
        assert!(mistake("tap2,mc=1").contains("`mac=ADDRESS`"));
        assert!(mistake("tap2,mac").contains("`mac=ADDRESS`"));
        assert!(mistake("tap2,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02").contains("stands twice"));
        assert!(mistake("tap2,mac=5").contains("ba:ad:00:ca:fe:02"));
    }
}
