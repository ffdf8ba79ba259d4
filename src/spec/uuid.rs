//! The UUID of a machine.

use std::fmt;
use std::str::FromStr;

use super::identity::{Identity, hashed};
use super::text::by_text;
use super::words::DeviceError;

/// UUID of a machine (RFC 9562), not zero and not all ones, which SMBIOS has for "none".
///
/// ```
/// use minivmm::spec::MachineUuid;
///
/// let uuid: MachineUuid = "5B2C8E9A-31F0-4a77-9d0e-6a1c2b3d4e5f".parse()?;
/// assert_eq!(uuid.to_string(), "5b2c8e9a-31f0-4a77-9d0e-6a1c2b3d4e5f");
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MachineUuid([u8; 16]);

/// Where hyphens are, in bytes of the UUID before them.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

impl MachineUuid {
    /// The bytes, in the order in which they are written.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// That of a machine of which none is said: version 8, made of host and machine (RFC 9562 §5.8). It must not change between
    /// versions of the program.
    pub(super) fn default_in(identity: &Identity<'_>) -> Self {
        Self::derived(identity.host(), identity.machine())
    }

    fn derived(host: &str, machine: &[u8]) -> Self {
        let half = |purpose| u128::from(hashed(purpose, &[host.as_bytes(), machine]));
        let bits = half(*b"UUID 1/2") << 64 | half(*b"UUID 2/2");
        // RFC 9562 §4.2, §4.1: version and variant.
        let (version, variant) = (0xf << 76, 3 << 62);
        let bits = bits & !version & !variant | 8 << 76 | 2 << 62;
        MachineUuid(bits.to_be_bytes())
    }
}

impl FromStr for MachineUuid {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError::Uuid(text.into());
        let mut rest = text;
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            if HYPHENS.contains(&at) {
                rest = rest.strip_prefix('-').ok_or_else(wrong)?;
            }
            let (digits, behind) = rest.split_at_checked(2).ok_or_else(wrong)?;
            // from_str_radix would take a sign.
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
            rest = behind;
        }
        let is_none = bytes == [0; 16] || bytes == [0xff; 16];
        if !rest.is_empty() || is_none { Err(wrong()) } else { Ok(MachineUuid(bytes)) }
    }
}

impl fmt::Display for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if HYPHENS.contains(&at) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

by_text!(MachineUuid);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    #[test]
    fn a_machine_keeps_its_uuid_and_no_other_has_it() {
        // Another value than this one would change the UUID of every guest.
        let one = MachineUuid::derived("0123456789abcdef0123456789abcdef", b"name web");
        assert_eq!(one.to_string(), "e2ed6f31-e6bc-8293-81e9-8ec0a83727a2");
        for other in [
            MachineUuid::derived("x", b"name web"),
            MachineUuid::derived("0123456789abcdef0123456789abcdef", b"name db"),
        ] {
            assert_ne!(one, other);
            assert_eq!((other.bytes()[6] >> 4, other.bytes()[8] >> 6), (8, 2), "{other}");
        }
        let named = |name: &str| Spec::new("k").with_name(name.parse().unwrap());
        let uuid = |spec: Spec| spec.settled().unwrap().uuid.unwrap();
        assert_eq!(uuid(named("a")), uuid(named("a").with_mem("2G".parse().unwrap())));
        assert_ne!(uuid(named("a")), uuid(named("b")));
        let given = "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap();
        assert_eq!(uuid(named("a").with_uuid(given)), given);
    }

    #[test]
    fn what_is_no_uuid_is_refused_with_an_example() {
        for text in [
            "",
            "0123456789abcdef0123456789abcdef",
            "01234567-89ab-cdef-0123-456789abcde",
            "01234567-89ab-cdef-0123-456789abcdef0",
            "01234567-89ab-cdef-0123+456789abcdef",
            "+1234567-89ab-cdef-0123-456789abcdef",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "0123456\u{e4}-89ab-cdef-0123-456789abcdef",
        ] {
            assert_eq!(text.parse::<MachineUuid>(), Err(DeviceError::Uuid(text.into())), "{text}");
        }
    }
}
