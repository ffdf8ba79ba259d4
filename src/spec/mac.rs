//! MAC addresses: which ones are valid, and the defaults.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::identity::{Identity, hashed, host_id};
use super::net::{InterfaceName, NetId, NetLink, NetSpec};
use super::text::by_text;
use super::words::DeviceError;

/// MAC address of a network interface: not a group address, not zero.
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

/// The last three bytes of the address on tap0; N is added for tapN.
const TAP_0: u32 = 0xca_fe00;

impl MacAddress {
    /// Makes an address of its bytes.
    ///
    /// # Errors
    /// [`DeviceError::MacKind`] for a group address and for zero.
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

    /// The bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The default address on a TAP, as far as it does not depend on the machine. On tapN it is ba:ad:00:ca:fe:00 plus N, so
    /// that it is known before the guest boots. On another TAP it is computed from this host and the TAP's name; a machine's
    /// default address there is another one, which [`Spec::settled`](super::Spec::settled) computes.
    pub fn default_for(name: &InterfaceName) -> Self {
        Self::numbered(name).unwrap_or_else(|| Self::derived(&host_id(), b"", name.as_str()))
    }

    /// The default address of an interface of this machine: a guest keeps its address from start to start, and two guests that
    /// use one TAP in turn have different addresses.
    pub(super) fn default_in(identity: &Identity, id: &NetId, net: &NetSpec) -> Self {
        let interface = match &net.link {
            NetLink::Tap(name) => {
                if let Some(mac) = Self::numbered(name) {
                    return mac;
                }
                name.to_string()
            }
            // No TAP has a name with a space in it.
            _ => format!("id {id}"),
        };
        Self::derived(identity.host(), identity.machine(), &interface)
    }

    /// 46 bits, which must not change between versions.
    fn derived(host: &str, machine: &[u8], interface: &str) -> Self {
        let parts = [host.as_bytes(), machine, interface.as_bytes()];
        let [_, _, first, b, c, d, e, f] = hashed(*b"MAC addr", &parts).to_be_bytes();
        // IEEE 802-2014 §8.2.2: locally administered, no group's.
        MacAddress([first & 0xfc | 2, b, c, d, e, f])
    }

    /// The address on tapN: ba:ad:00:ca:fe:02 for tap2, ba:ad:00:ca:ff:00 for tap256. `None` if N does not fit in three
    /// bytes, and for other spellings of N, which are other interfaces.
    pub(super) fn numbered(name: &InterfaceName) -> Option<Self> {
        let digits = name.as_str().strip_prefix("tap")?;
        let number: u32 = digits.parse().ok().filter(|number: &u32| number.to_string() == digits)?;
        let [0, a, b, c] = TAP_0.checked_add(number)?.to_be_bytes() else { return None };
        Some(MacAddress([0xba, 0xad, 0x00, a, b, c]))
    }

    /// The IPv6 link-local address that belongs to it (RFC 4291, appendix A; RFC 4862 §5.3). Debian's `ifupdown` and
    /// systemd-networkd use it; NetworkManager uses another one.
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
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::spec::Spec;

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
    fn other_interfaces_have_an_address_for_local_use_that_stays() {
        let mut all = Vec::new();
        for name in ["tap", "tap02", "tap+2", "tap99999999", "tap4294967295", "vnet2", "mytap2"] {
            let mac: MacAddress = default_of(name).parse().unwrap();
            assert_eq!(mac.to_string(), default_of(name), "{name}");
            assert_eq!(mac.bytes()[0] & 3, 2, "{mac}");
            assert!(!all.contains(&mac), "{name} has another's");
            all.push(mac);
        }
    }

    #[test]
    fn address_is_made_of_host_machine_and_interface() {
        let derived =
            |host: &str, machine: &str, tap: &str| MacAddress::derived(host, machine.as_bytes(), tap);
        // Another value than this one would change the address of every guest.
        assert_eq!(
            derived("0123456789abcdef0123456789abcdef", "name web", "vnet0").to_string(),
            "7e:f2:5c:e4:df:a9"
        );
        let one = derived("a", "b", "c");
        for other in
            [derived("x", "b", "c"), derived("a", "x", "c"), derived("a", "b", "x"), derived("ab", "", "c")]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_machines_name_or_else_its_first_disk_is_part_of_the_address() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("a.raw");
        fs::write(&disk, "").unwrap();
        let tap = || NetSpec::tap("vnet0".parse().unwrap());
        let mac = |spec: Spec| spec.with_net(tap()).settled().unwrap().net[0].mac.unwrap();
        let on = |path: &Path| Spec::new("k").with_disk(crate::spec::DiskSpec::new(path));
        let named = |name: &str| Spec::new("k").with_name(name.parse().unwrap());
        assert_eq!(mac(on(&disk)), mac(on(&folder.path().join("./a.raw"))));
        assert_eq!(mac(named("a")), mac(on(&disk).with_name("a".parse().unwrap())));
        let overlaid = |name: &str| {
            let disk = crate::spec::DiskSpec::new(&disk).with_overlay(folder.path().join(name));
            Spec::new("k").with_disk(disk)
        };
        let first = mac(overlaid("./1.qcow2"));
        fs::write(folder.path().join("1.qcow2"), "").unwrap();
        assert_eq!(mac(overlaid("1.qcow2")), first, "also once it is there");
        let all = [
            mac(named("a")),
            mac(named("b")),
            mac(on(&disk)),
            mac(on(&folder.path().join("b.raw"))),
            mac(overlaid("1.qcow2")),
            mac(overlaid("2.qcow2")),
            mac(Spec::new("k")),
            mac(Spec::new("l")),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
    }

    #[test]
    fn an_interface_without_a_tap_has_the_address_of_its_id() {
        let macs = |texts: &[&str]| {
            let net = texts.iter().map(|text| text.parse().unwrap()).collect();
            let spec = Spec { net, ..Spec::new("k") }.with_name("vm0".parse().unwrap()).settled().unwrap();
            spec.net.iter().map(|net| net.mac.unwrap()).collect::<Vec<_>>()
        };
        let two = macs(&["user", "socket=a"]);
        assert_eq!(macs(&["socket=b", "user,id=net1"]), two);
        assert_eq!(macs(&["user,id=x"]), macs(&["socket=a,id=x"]));
        let all = [two.clone(), macs(&["tap=net0"]), macs(&["user,id=x"])].concat();
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.bytes()[0] & 3, 2, "{one}");
            assert!(!all[..at].contains(one), "{at}");
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
