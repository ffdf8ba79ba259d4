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
        let wrong = |why: String| DeviceError::Forward { text: text.into(), why };
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(wrong(format!("`/{other}` is neither `/tcp` nor `/udp`"))),
        };
        let (host, guest) = ports.rsplit_once(':').ok_or_else(|| wrong(one_word(ports)))?;
        let (address, host) = match host.rsplit_once(':') {
            None => (None, host),
            Some((address, host)) => (Some(parse_address(address).map_err(wrong)?), host),
        };
        let (host, guest) = (port(host).map_err(wrong)?, port(guest).map_err(wrong)?);
        if guest == 0 {
            return Err(wrong("the guest's port is one from 1 to 65535".into()));
        }
        if let Some(address) = address.filter(|at| at.is_multicast() || *at == Ipv4Addr::BROADCAST) {
            return Err(DeviceError::ForwardAddress(address));
        }
        Ok(PortForward { address, host, guest, protocol })
    }
}

/// What is wrong with a text without a colon.
fn one_word(text: &str) -> String {
    match port(text) {
        Ok(guest @ 1..) => {
            format!("it needs two ports; `0:{guest}` leads from any free port of the host to {guest}")
        }
        Ok(0) => "it needs two ports".into(),
        Err(why) => why,
    }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let range = text.split_once('-').filter(|(from, to)| digits(from) && digits(to));
    match (text.parse(), range) {
        (Ok(port), _) if digits(text) => Ok(port),
        (_, Some(_)) => Err(format!("`{text}` is a range of ports; give each of them a forward of its own")),
        _ if text.is_empty() => Err("a port is missing".into()),
        _ if digits(text) => Err(format!("there is no port {text}: ports go up to 65535")),
        _ => Err(format!("`{text}` is not the number of a port")),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let known = match inner {
        Some(address) => address.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    known.ok_or_else(|| {
        let cure = match inner.unwrap_or(text) {
            "localhost" => "; leave it out for 127.0.0.1".into(),
            "*" => "; all of IPv4 are `0.0.0.0`".into(),
            other if other.parse::<Ipv6Addr>().is_ok() => format!("; in brackets it is: `[{other}]`"),
            _ => String::new(),
        };
        format!("`{text}` is not an address of the host{cure}")
    })
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
    fn what_is_no_forward_is_refused_with_the_reason_and_an_example() {
        for (text, why) in [
            ("", "a port is missing"),
            ("22", "it needs two ports; `0:22` leads from any free port of the host to 22"),
            ("0", "it needs two ports"),
            ("ssh", "`ssh` is not the number of a port"),
            (":22", "a port is missing"),
            ("5555:", "a port is missing"),
            ("5555:0", "the guest's port is one from 1 to 65535"),
            ("70000:22", "there is no port 70000: ports go up to 65535"),
            ("99999999999999999999:22", "ports go up to 65535"),
            ("+1:22", "`+1` is not the number of a port"),
            ("-1:22", "`-1` is not the number of a port"),
            (
                "8000-8010:8000-8010",
                "`8000-8010` is a range of ports; give each of them a forward of its own",
            ),
            ("8000:8000-8010", "`8000-8010` is a range of ports"),
            ("1:2/sctp", "`/sctp` is neither `/tcp` nor `/udp`"),
            ("1:2/tcp/tcp", "`/tcp/tcp` is neither"),
            ("1:2/", "`/` is neither"),
            ("::1:5555:22", "`::1` is not an address of the host; in brackets it is: `[::1]`"),
            ("[127.0.0.1]:1:2", "`[127.0.0.1]` is not an address of the host"),
            ("[::1:1:2", "`[::1` is not an address of the host"),
            ("host:1:2", "`host` is not an address of the host"),
            ("localhost:1:2", "`localhost` is not an address of the host; leave it out for 127.0.0.1"),
            ("*:1:2", "all of IPv4 are `0.0.0.0`"),
            ("5555:10.0.2.15:22", "`5555` is not an address of the host"),
            ("1:2:3:4", "`1:2` is not an address of the host"),
            ("1 :2", "`1 ` is not the number of a port"),
            ("tcp::5555-:22", "`tcp:` is not an address of the host"),
        ] {
            let error = text.parse::<PortForward>().expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("`5555:22`"), "{text}: {error}");
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
