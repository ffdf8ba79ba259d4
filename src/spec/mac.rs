//! MAC addresses: what an interface may have, and what it has when nobody says.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::net::InterfaceName;
use super::text::by_text;
use super::words::DeviceError;

/// The address of a network interface: never a group's, never zero.
///
/// ```
/// use minivmm::spec::MacAddress;
///
/// let mac: MacAddress = "ba:ad:00:ca:fe:02".parse()?;
/// assert_eq!(mac, MacAddress::default_for(&"tap2".parse()?));
/// assert_eq!(mac.link_local().to_string(), "fe80::b8ad:ff:feca:fe02");
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

/// The last three bytes of tap0's address; tapN's are N more.
const TAP_0: u32 = 0xca_fe00;

impl MacAddress {
    /// This address.
    ///
    /// # Errors
    /// [`DeviceError::MacKind`] for a group's address and for zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, DeviceError> {
        let mac = MacAddress(bytes);
        let [first, ..] = bytes;
        // IEEE 802-2014 §8.2.2: the lowest bit of the first byte is that of group addresses.
        if first & 1 != 0 {
            Err(DeviceError::MacKind(mac.to_string(), "is a group's (multicast)"))
        } else if bytes == [0; 6] {
            Err(DeviceError::MacKind(mac.to_string(), "is zero"))
        } else {
            Ok(mac)
        }
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address of an interface that does not say: of tapN, ba:ad:00:ca:fe:00 and N more, so that it is known before
    /// the guest boots; else a random one.
    pub fn default_for(name: &InterfaceName) -> Self {
        Self::numbered(name).unwrap_or_else(Self::random)
    }

    /// The address of tapN: of tap2 ba:ad:00:ca:fe:02, of tap256 ba:ad:00:ca:ff:00. `None` where the three bytes are
    /// not enough, and for other spellings of N, which are other interfaces.
    pub(super) fn numbered(name: &InterfaceName) -> Option<Self> {
        let digits = name.as_str().strip_prefix("tap")?;
        let number: u32 = digits.parse().ok().filter(|number: &u32| number.to_string() == digits)?;
        let [0, a, b, c] = TAP_0.checked_add(number)?.to_be_bytes() else { return None };
        Some(MacAddress([0xba, 0xad, 0x00, a, b, c]))
    }

    /// A random address of those for local use, another one each time.
    pub fn random() -> Self {
        // Its keys are the host's random numbers, another pair each time; a secret is not needed, only 46 bits that
        // no other interface has.
        let [_, _, first, rest @ ..] = RandomState::new().hash_one(0).to_be_bytes();
        let [b, c, d, e, f] = rest;
        // IEEE 802-2014 §8.2.2: locally administered, no group's.
        MacAddress([first & 0xfc | 2, b, c, d, e, f])
    }

    /// The IPv6 link-local address that a guest makes of it (RFC 4291, appendix A; RFC 4862 §5.3). Debian's
    /// `ifupdown` and systemd-networkd do; NetworkManager makes another one.
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
    }
}

impl FromStr for MacAddress {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError::Mac(text.into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            // from_str_radix would take a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Self::new(bytes) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

by_text!(MacAddress);

#[cfg(test)]
mod tests {
    use super::*;

    fn default_of(name: &str) -> String {
        MacAddress::default_for(&name.parse().unwrap()).to_string()
    }

    #[test]
    fn numbered_taps_have_known_addresses_and_never_the_same_one() {
        assert_eq!(default_of("tap0"), "ba:ad:00:ca:fe:00");
        assert_eq!(default_of("tap2"), "ba:ad:00:ca:fe:02");
        assert_eq!(default_of("tap255"), "ba:ad:00:ca:fe:ff");
        assert_eq!(default_of("tap256"), "ba:ad:00:ca:ff:00");
        assert_eq!(default_of("tap512"), "ba:ad:00:cb:00:00");
    }

    #[test]
    fn other_interfaces_have_random_addresses_for_local_use() {
        for name in ["tap", "tap02", "tap+2", "tap99999999", "tap4294967295", "vnet2", "mytap2"] {
            let (one, other) = (default_of(name), default_of(name));
            assert_ne!(one, other, "{name}");
            let mac: MacAddress = one.parse().unwrap();
            assert_eq!(mac.bytes()[0] & 3, 2, "{mac}");
        }
    }

    #[test]
    fn link_local_address_is_that_of_the_course() {
        let mac: MacAddress = "ba:ad:00:ca:fe:02".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::b8ad:ff:feca:fe02");
    }

    #[test]
    fn address_of_a_group_or_zero_is_refused() {
        for (text, said) in [
            ("01:00:5e:00:00:01", "multicast"),
            ("ff:ff:ff:ff:ff:ff", "multicast"),
            ("00:00:00:00:00:00", "zero"),
        ] {
            let error = text.parse::<MacAddress>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in [
            "",
            "ba:ad:00:ca:fe",
            "ba:ad:00:ca:fe:02:03",
            "ba-ad-00-ca-fe-02",
            "ba:ad:0:ca:fe:02",
            "+a:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(DeviceError::Mac(text.into())));
        }
        assert_eq!("BA:AD:00:CA:FE:02".parse::<MacAddress>().unwrap().to_string(), "ba:ad:00:ca:fe:02");
    }
}
