//! Forwards: ports of the host that lead to ports of the guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::spec::text::by_text;
use crate::spec::words::DeviceError;

/// A port of the host that leads to one of the guest. As text it is `[ADDRESS:]HOST:GUEST[/udp]`, an IPv6 address in brackets.
///
/// ```
/// use minivmm::spec::PortForward;
///
/// let ssh: PortForward = "5555:22".parse()?;
/// assert_eq!(ssh.bind().to_string(), "127.0.0.1:5555");
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PortForward {
    /// Address of the host; by default its loopback, 127.0.0.1.
    pub address: Option<IpAddr>,
    /// Port of the host; 0: any that is free.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// What a forward carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

impl PortForward {
    /// Where the host listens.
    pub fn bind(&self) -> SocketAddr {
        SocketAddr::new(self.address.unwrap_or(Ipv4Addr::LOCALHOST.into()), self.host)
    }

    /// Whether both cannot be had.
    pub(crate) fn clashes(&self, other: &Self) -> bool {
        let (one, two) = (self.bind(), other.bind());
        self.protocol == other.protocol
            && one.port() == two.port()
            && one.port() != 0
            && one.is_ipv4() == two.is_ipv4()
            && (one.ip() == two.ip() || one.ip().is_unspecified() || two.ip().is_unspecified())
    }
}

impl FromStr for PortForward {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError::Forward(text.into());
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let port = |text: &str| -> Option<u16> {
            text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let (host, guest) = ports.rsplit_once(':').ok_or_else(wrong)?;
        let guest = port(guest).filter(|port| *port != 0).ok_or_else(wrong)?;
        let (address, host) = match host.rsplit_once(':') {
            None => (None, host),
            Some((address, host)) => (Some(parse_address(address).ok_or_else(wrong)?), host),
        };
        if let Some(address) = address.filter(|at| at.is_multicast() || *at == Ipv4Addr::BROADCAST) {
            return Err(DeviceError::ForwardAddress(address));
        }
        Ok(PortForward { address, host: port(host).ok_or_else(wrong)?, guest, protocol })
    }
}

fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "{}", self.host)?,
            Some(address) => write!(f, "{}", SocketAddr::new(address, self.host))?,
        }
        write!(f, ":{}", self.guest)?;
        if self.protocol == Protocol::Udp { f.write_str("/udp") } else { Ok(()) }
    }
}

by_text!(PortForward);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_they_are_written() {
        for (text, bind, guest, protocol) in [
            ("5555:22", "127.0.0.1:5555", 22, Protocol::Tcp),
            ("0:22", "127.0.0.1:0", 22, Protocol::Tcp),
            ("0.0.0.0:20022:22", "0.0.0.0:20022", 22, Protocol::Tcp),
            ("[::1]:5353:53/udp", "[::1]:5353", 53, Protocol::Udp),
            ("65535:65535/udp", "127.0.0.1:65535", 65535, Protocol::Udp),
        ] {
            let forward: PortForward = text.parse().unwrap();
            assert_eq!((forward.bind().to_string().as_str(), forward.guest), (bind, guest));
            assert_eq!((forward.protocol, forward.to_string().as_str()), (protocol, text));
        }
        assert_eq!("1:2/tcp".parse(), "1:2".parse::<PortForward>());
    }

    #[test]
    fn what_is_no_forward_is_refused_with_an_example() {
        for text in [
            "",
            "22",
            ":22",
            "5555:",
            "5555:0",
            "70000:22",
            "+1:22",
            "1:2/sctp",
            "1:2/tcp/tcp",
            "1:2/",
            "::1:5555:22",
            "[127.0.0.1]:1:2",
            "[::1:1:2",
            "host:1:2",
            "1:2:3:4",
            "1 :2",
        ] {
            let error = text.parse::<PortForward>().expect_err(text).to_string();
            assert!(error.contains("`5555:22`"), "{error}");
        }
    }

    #[test]
    fn address_where_nothing_can_listen_is_refused() {
        for text in ["224.0.0.1:1:2", "255.255.255.255:1:2/udp", "[ff02::1]:1:2"] {
            let error = text.parse::<PortForward>().expect_err(text).to_string();
            assert!(error.contains("multicast or broadcast"), "{error}");
        }
    }

    #[test]
    fn two_forwards_of_one_port_clash() {
        let clash = |one: &str, two: &str| {
            one.parse::<PortForward>().unwrap().clashes(&two.parse::<PortForward>().unwrap())
        };
        assert!(clash("1:2", "127.0.0.1:1:3") && clash("1:2", "0.0.0.0:1:3"));
        assert!(!clash("1:2", "1:2/udp") && !clash("0:2", "0:2") && !clash("1:2", "127.0.0.2:1:2"));
        assert!(!clash("1:2", "[::]:1:2"));
    }
}
