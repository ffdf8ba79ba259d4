//! Which address of the host's network stands behind an address that the guest uses, and which the guest may not reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::flow::Unreachable;

/// The port of name servers.
const DNS: u16 = 53;

/// What an address of the guest's packets stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The gateway: the host itself.
    Gateway,
    /// The name server.
    Dns,
    /// Somewhere in the world that the guest may reach.
    World,
    /// An address of the subnet that nobody has.
    Nobody,
    /// An address that means something on this host or this wire only.
    Private,
}

/// What `address` stands for.
pub(crate) fn place(address: IpAddr, config: &Config) -> Place {
    match address {
        IpAddr::V4(address) => match &config.ipv4 {
            Some(subnet) if address == subnet.gateway => Place::Gateway,
            Some(subnet) if address == subnet.dns => Place::Dns,
            Some(subnet) if subnet.contains(address) => Place::Nobody,
            _ if is_private_v4(address) => Place::Private,
            _ => Place::World,
        },
        IpAddr::V6(address) => match &config.ipv6 {
            Some(subnet) if address == subnet.gateway => Place::Gateway,
            Some(subnet) if address == subnet.dns => Place::Dns,
            Some(subnet) if subnet.contains(address) => Place::Nobody,
            _ if address == crate::link::link_local(config.gateway_mac) => Place::Gateway,
            _ if is_private_v6(address) => Place::Private,
            _ => Place::World,
        },
    }
}

/// This host, this network, link-local, multicast, reserved and broadcast: RFC 6890.
fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first == 0 || first >= 240 || address.is_loopback() || address.is_link_local() || address.is_multicast()
}

/// As for IPv4; and IPv4 in the clothes of IPv6, with which the host's kernel would reach IPv4 loopback.
fn is_private_v6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    // ::/96 has the unspecified and the loopback address.
    bits >> 32 == 0
        || address.to_ipv4_mapped().is_some()
        || address.is_unicast_link_local()
        || address.is_multicast()
        // Site-local addresses (RFC 3879) are as private as link-local ones.
        || bits >> 118 == 0xfec0 >> 6
}

/// Where a packet to `remote` leads; `resolver` is the host's name server.
pub(crate) fn target(
    remote: SocketAddr,
    config: &Config,
    resolver: impl FnOnce() -> Option<SocketAddr>,
) -> Result<SocketAddr, Unreachable> {
    let place = place(remote.ip(), config);
    if remote.port() == 0 {
        return Err(Unreachable::Port);
    }
    if config.restrict {
        return Err(Unreachable::Prohibited);
    }
    match place {
        Place::Gateway if config.host_loopback => {
            let loopback = match remote.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            Ok(SocketAddr::new(loopback, remote.port()))
        }
        Place::Dns if remote.port() == DNS => resolver().ok_or(Unreachable::Port),
        Place::Gateway | Place::Dns => Err(Unreachable::Port),
        Place::World => Ok(remote),
        Place::Nobody => Err(Unreachable::Host),
        Place::Private => Err(Unreachable::Prohibited),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(address: &str, port: u16, config: &Config) -> Result<String, Unreachable> {
        let resolver = || Some(SocketAddr::from(([127, 0, 0, 53], 53)));
        target(SocketAddr::new(address.parse().unwrap(), port), config, resolver).map(|to| to.to_string())
    }

    #[test]
    fn nothing_that_is_private_to_the_host_is_reachable() {
        let config = Config::default();
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.251",
            "255.255.255.255",
            "250.0.0.1",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.2.2",
            "fe80::1",
            "fec0::1",
            "febf::1",
            "ff02::1",
        ] {
            assert_eq!(to(address, 80, &config), Err(Unreachable::Prohibited), "{address}");
        }
        assert_eq!(to("10.0.2.77", 80, &config), Err(Unreachable::Host));
        assert_eq!(to("10.0.2.15", 80, &config), Err(Unreachable::Host));
    }

    #[test]
    fn the_world_is_reached_under_its_own_addresses() {
        let config = Config::default();
        for address in ["10.0.3.1", "192.168.1.1", "9.9.9.9", "2001:db8::1", "fd00::1"] {
            let named = SocketAddr::new(address.parse().unwrap(), 80).to_string();
            assert_eq!(to(address, 80, &config), Ok(named));
        }
        assert_eq!(to("9.9.9.9", 0, &config), Err(Unreachable::Port));
    }

    #[test]
    fn gateway_is_the_hosts_loopback_only_where_that_is_asked_for() {
        let closed = Config::default();
        let open = Config { host_loopback: true, ..Config::default() };
        let gateway6 = open.ipv6.unwrap().gateway.to_string();
        assert_eq!(to("10.0.2.2", 80, &closed), Err(Unreachable::Port));
        assert_eq!(to(&gateway6, 80, &closed), Err(Unreachable::Port));
        assert_eq!(to("10.0.2.2", 80, &open).unwrap(), "127.0.0.1:80");
        assert_eq!(to(&gateway6, 80, &open).unwrap(), "[::1]:80");
        assert_eq!(to("127.0.0.1", 80, &open), Err(Unreachable::Prohibited));
    }

    #[test]
    fn name_server_leads_to_the_hosts_for_its_port_alone() {
        let config = Config::default();
        assert_eq!(to("10.0.2.3", 53, &config).unwrap(), "127.0.0.53:53");
        assert_eq!(to("10.0.2.3", 80, &config), Err(Unreachable::Port));
        let none = target(SocketAddr::from(([10, 0, 2, 3], 53)), &config, || None);
        assert_eq!(none, Err(Unreachable::Port));
    }

    #[test]
    fn restricted_guest_reaches_nothing() {
        let config = Config { restrict: true, host_loopback: true, ..Config::default() };
        for address in ["10.0.2.2", "10.0.2.3", "9.9.9.9", "2001:db8::1"] {
            assert_eq!(to(address, 53, &config), Err(Unreachable::Prohibited));
        }
    }
}
