//! The options of a user network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::NET;
use super::forward::PortForward;
use crate::spec::text::by_text;
use crate::spec::words::{DeviceError, Word, once};

/// A network behind the host's sockets, with the guest alone in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table such as `{ forward = [\"5555:22\"] }`, or the empty one `{}`"
)]
#[non_exhaustive]
pub struct UserNet {
    /// The IPv4 addresses; by default 10.0.2.0/24.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// Whether the guest reaches the host's own services (127.0.0.1) at the gateway's address.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_loopback: bool,
    /// Whether the guest reaches nothing; forwards still reach it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restrict: bool,
    /// The name that the guest is given; by default the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<HostName>,
    /// Ports of the host that lead to the guest.
    #[serde(deserialize_with = "forwards", skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<PortForward>,
}

impl UserNet {
    /// Sets an option of the command line. False: there is none of this name.
    pub(super) fn set(&mut self, word: &Word) -> Result<bool, DeviceError> {
        if word.value.is_none() {
            let example = match word.name.as_str() {
                "subnet" => "subnet=10.0.5.0/24",
                "hostname" => "hostname=vm0",
                "host-loopback" => "host-loopback=on",
                "restrict" => "restrict=on",
                "forward" => "forward=5555:22",
                _ => return Ok(false),
            };
            return Err(DeviceError::NeedsValue { word: word.written(), example });
        }
        match word.name.as_str() {
            "subnet" => once(&mut self.subnet, word.text().parse()?, NET, "subnet")?,
            "hostname" => once(&mut self.hostname, word.text().parse()?, NET, "hostname")?,
            "host-loopback" => switch(&mut self.host_loopback, word, "host-loopback")?,
            "restrict" => switch(&mut self.restrict, word, "restrict")?,
            "forward" => self.forward.push(word.text().parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Reads one forward or a list.
fn forwards<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PortForward>, D::Error> {
    struct Forwards;

    impl<'de> Visitor<'de> for Forwards {
        type Value = Vec<PortForward>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text such as \"5555:22\", or a list of these")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(|forward| vec![forward]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut forwards = Vec::new();
            while let Some(forward) = list.next_element()? {
                forwards.push(forward);
            }
            Ok(forwards)
        }
    }

    deserializer.deserialize_any(Forwards)
}

/// Sets what is off by default.
fn switch(place: &mut bool, word: &Word, name: &'static str) -> Result<(), DeviceError> {
    let on = match word.text().as_str() {
        "on" => true,
        "off" => false,
        _ => return Err(DeviceError::Switch(word.written())),
    };
    if std::mem::replace(place, on) { Err(DeviceError::Twice { device: NET, word: name }) } else { Ok(()) }
}

/// The IPv4 addresses of a user network, such as `10.0.2.0/24`. The gateway is the second address, the name server
/// the third, the guest the fifteenth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// Bits of the network part: the guest is the fifteenth address, and must not be the broadcast address.
    const BITS: std::ops::RangeInclusive<u8> = 8..=27;

    /// The first address, which names the network.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The number of bits that all addresses of the network share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address is in both.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let bits = self.prefix.min(other.prefix);
        (self.network.to_bits() ^ other.network.to_bits()).leading_zeros() >= u32::from(bits)
    }

    /// Those that messages propose.
    pub(crate) fn examples() -> impl Iterator<Item = Self> {
        let networks = (0..=u8::MAX).map(|second| Ipv4Addr::new(10, second, 5, 0));
        networks.chain([Ipv4Addr::new(192, 168, 5, 0)]).map(|network| Subnet { network, prefix: 24 })
    }

    /// The address in this place of the network.
    pub(crate) fn address(self, place: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | u32::from(place))
    }
}

impl Default for Subnet {
    fn default() -> Self {
        Subnet { network: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 }
    }
}

impl FromStr for Subnet {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError::Subnet(text.into());
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let network: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let all_digits = bits.bytes().all(|digit| digit.is_ascii_digit());
        let prefix: u8 = bits.parse().ok().filter(|_| all_digits).ok_or_else(wrong)?;
        if !Self::BITS.contains(&prefix) {
            return Err(wrong());
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        let [first, ..] = network.octets();
        // 0: this host; 224 and above: groups and reserved (RFC 6890).
        let usable = first != 0 && first < 224 && !network.is_loopback() && !network.is_link_local();
        if usable && network.to_bits() & !mask == 0 { Ok(Subnet { network, prefix }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A host's name (RFC 1123 §2.1): 1 to 63 letters, digits, `-` and `.`, with a letter or digit at both ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = text.len() <= 63
            && text.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            });
        if fits { Ok(HostName(text.into())) } else { Err(DeviceError::HostName(text.into())) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(Subnet, HostName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnet_has_room_for_gateway_and_guest() {
        for text in ["10.0.2.0/24", "192.168.7.32/27", "172.16.0.0/12", "10.0.0.0/8"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        assert_eq!("192.168.7.32/27".parse::<Subnet>().unwrap().address(15).to_string(), "192.168.7.47");
        for text in [
            "",
            "10.0.2.0",
            "10.0.2.0/",
            "10.0.2.0/+24",
            "10.0.2.0/28",
            "10.0.0.0/7",
            "10.0.2.15/24",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "fd00::/64",
        ] {
            let error = text.parse::<Subnet>().expect_err(text).to_string();
            assert!(error.contains("`10.0.2.0/24`"), "{error}");
        }
    }

    #[test]
    fn host_names_are_those_of_the_internet() {
        for name in ["vm0", "a", "0", "vm0.lab.example", "a-b"] {
            assert!(name.parse::<HostName>().is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a..b", ".a", "a_b", "ö", "a b", &"a".repeat(64)] {
            assert!(name.parse::<HostName>().is_err(), "{name}");
        }
    }
}
