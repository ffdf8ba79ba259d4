//! The network behind the host's sockets that all machines of a switch share.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::spec::net::{HostName, PortForward, Protocol, Subnet, UserNet};
use crate::spec::words::{DeviceError, Word};

/// Numbers in the subnet, as the network has them.
const GATEWAY: u8 = 2;
const NAME_SERVER: u8 = 3;
const FIRST: u8 = 15;

/// What a shared network is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NatNetwork {
    /// The options that it has as a network of one guest has them; forwards are not among them.
    pub(crate) net: UserNet,
    /// Ports of the host that lead to machines.
    pub(crate) forwards: Vec<GuestForward>,
}

impl NatNetwork {
    /// Sets an option of the command line. False: there is none of this name.
    pub(super) fn set(&mut self, word: &Word) -> Result<bool, DeviceError> {
        match (word.name.as_str(), &word.value) {
            ("forward", Some(_)) => self.forwards.push(word.text().parse()?),
            ("forward", None) => {
                return Err(DeviceError::NeedsValue {
                    word: word.written(),
                    example: "forward=20022:vm0:22",
                });
            }
            // Each machine has its own.
            ("hostname", _) => return Ok(false),
            _ => return self.net.set(word),
        }
        Ok(true)
    }

    /// Its subnet.
    pub(crate) fn subnet(&self) -> Subnet {
        self.net.subnet.unwrap_or_default()
    }

    /// Checks options that depend on each other.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        let subnet = self.subnet();
        let hosts = u32::MAX >> subnet.prefix();
        for forward in &self.forwards {
            let Some(ForwardedTo::Address(address)) = forward.machine else { continue };
            let host = address.to_bits() & hosts;
            let why = if address.to_bits() & !hosts != subnet.network().to_bits() {
                format!("{address} is not in the subnet {subnet}")
            } else if address == subnet.address(GATEWAY) {
                format!("{address} is the gateway")
            } else if address == subnet.address(NAME_SERVER) {
                format!("{address} is the name server")
            } else if host == 0 || host == hosts {
                format!("{address} is for all of the subnet {subnet}")
            } else {
                continue;
            };
            let example = subnet.address(FIRST);
            return Err(DeviceError::GuestAddress { forward: forward.to_string(), why, example });
        }
        Ok(())
    }
}

/// A port of the host that leads to a port of one of several machines. As text it is `[ADDRESS:]HOST:MACHINE:PORT[/udp]`, where the
/// machine is an IPv4 address or a name; without it, it is the first machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestForward {
    /// The two ports.
    pub(crate) ports: PortForward,
    /// Where it leads.
    pub(crate) machine: Option<ForwardedTo>,
}

/// The machine that a forward leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardedTo {
    /// The one with this address.
    Address(Ipv4Addr),
    /// The one with this name.
    Name(HostName),
}

impl FromStr for GuestForward {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        if let Ok(ports) = text.parse() {
            return Ok(GuestForward { ports, machine: None });
        }
        let wrong = || DeviceError::GuestForward(text.into());
        let (before, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (before, machine) = before.rsplit_once(':').ok_or_else(wrong)?;
        let ports = match format!("{before}:{port}").parse() {
            Ok(ports) => ports,
            Err(error @ DeviceError::ForwardAddress(_)) => return Err(error),
            Err(_) => return Err(wrong()),
        };
        let name = || machine.parse().ok().filter(|_| machine.bytes().any(|byte| byte.is_ascii_alphabetic()));
        let machine = match machine.parse() {
            Ok(address) => ForwardedTo::Address(address),
            Err(_) => ForwardedTo::Name(name().ok_or_else(wrong)?),
        };
        Ok(GuestForward { ports, machine: Some(machine) })
    }
}

impl fmt::Display for GuestForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(machine) = &self.machine else { return self.ports.fmt(f) };
        let bind = self.ports.bind();
        match self.ports.address {
            None => write!(f, "{}", bind.port())?,
            Some(_) => write!(f, "{bind}")?,
        }
        write!(f, ":{machine}:{}", self.ports.guest)?;
        if self.ports.protocol == Protocol::Udp { f.write_str("/udp") } else { Ok(()) }
    }
}

impl fmt::Display for ForwardedTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardedTo::Address(address) => address.fmt(f),
            ForwardedTo::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_names_a_machine_by_address_or_name_or_is_for_the_first() {
        for (text, bind, machine) in [
            ("20022:22", "127.0.0.1:20022", None),
            ("127.0.0.1:20022:22", "127.0.0.1:20022", None),
            ("20022:10.0.2.16:22", "127.0.0.1:20022", Some("10.0.2.16")),
            ("20022:vm0:22", "127.0.0.1:20022", Some("vm0")),
            ("0.0.0.0:20022:vm0.lab:22", "0.0.0.0:20022", Some("vm0.lab")),
            ("[::1]:5353:vm0:53/udp", "[::1]:5353", Some("vm0")),
        ] {
            let forward: GuestForward = text.parse().unwrap();
            assert_eq!(
                (forward.to_string().as_str(), forward.ports.bind().to_string().as_str()),
                (text, bind)
            );
            let named = forward.machine.map(|machine| match machine {
                ForwardedTo::Address(address) => address.to_string(),
                ForwardedTo::Name(name) => name.to_string(),
            });
            assert_eq!(named.as_deref(), machine);
        }
        for text in ["", "22", "1:2:3", "1:vm0:0", "1:-:2", "vm0:1:2", "1:vm0:2/sctp", "1:2:vm0:22", "1::22"]
        {
            let error = text.parse::<GuestForward>().expect_err(text).to_string();
            assert!(error.contains("`20022:vm0:22`"), "{error}");
        }
        let error = "224.0.0.1:1:vm0:2".parse::<GuestForward>().unwrap_err().to_string();
        assert!(error.contains("multicast"), "{error}");
    }
}
