//! What a network looks like to its guest, and how much of the host it may use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The IPv4 side of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Subnet {
    /// Its address.
    pub network: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// The router, which also stands for the host.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// The address that DHCP gives to the guest; to the first of several.
    pub guest: Ipv4Addr,
}

impl Ipv4Subnet {
    /// The subnet `network/prefix`: gateway .2, name server .3, guest .15. `None` if it has no room for them, or is none
    /// that a guest can have.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Option<Self> {
        if !(8..=27).contains(&prefix) {
            return None;
        }
        let base = network.to_bits() & (u32::MAX << (32 - prefix));
        let network = Ipv4Addr::from_bits(base);
        if network.is_loopback()
            || network.is_multicast()
            || network.octets()[0] == 0
            || network.octets()[0] >= 240
        {
            return None;
        }
        let address = |host: u32| Ipv4Addr::from_bits(base | host);
        Some(Ipv4Subnet { network, prefix, gateway: address(2), dns: address(3), guest: address(15) })
    }

    /// Whether `address` is one of the subnet.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.network.to_bits()) & self.mask().to_bits() == 0
    }

    /// Whether a guest can have `address`.
    pub(crate) fn has_guest(&self, address: Ipv4Addr) -> bool {
        let ours = [self.network, self.broadcast(), self.gateway, self.dns];
        self.contains(address) && !ours.contains(&address)
    }

    /// The netmask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !self.mask().to_bits())
    }
}

impl Default for Ipv4Subnet {
    /// 10.0.2.0/24.
    fn default() -> Self {
        let address = |host| Ipv4Addr::new(10, 0, 2, host);
        Ipv4Subnet {
            network: address(0),
            prefix: 24,
            gateway: address(2),
            dns: address(3),
            guest: address(15),
        }
    }
}

/// The IPv6 side of a network: a prefix of 64 bits; the guest makes its own address in it (SLAAC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Subnet {
    /// Its prefix.
    pub prefix: Ipv6Addr,
    /// The host's address in it.
    pub gateway: Ipv6Addr,
    /// The name server.
    pub dns: Ipv6Addr,
}

impl Ipv6Subnet {
    /// The subnet `prefix/64`: gateway ::2, name server ::3.
    pub fn new(prefix: Ipv6Addr) -> Self {
        let base = prefix.to_bits() & !u128::from(u64::MAX);
        let address = |host: u128| Ipv6Addr::from_bits(base | host);
        Ipv6Subnet { prefix: address(0), gateway: address(2), dns: address(3) }
    }

    /// Whether `address` is one of the subnet.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        (address.to_bits() ^ self.prefix.to_bits()) >> 64 == 0
    }
}

impl Default for Ipv6Subnet {
    /// A unique local prefix (RFC 4193) for networks of this kind.
    fn default() -> Self {
        Ipv6Subnet::new(Ipv6Addr::new(0xfd62, 0x6164, 0x0002, 0, 0, 0, 0, 0))
    }
}

/// How much of the host the guest may use, or all guests together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections. The guest may have three quarters of them, and so may peers that come in by forwards. An eighth of each
    /// kind may be half-open.
    pub connections: usize,
    /// UDP flows; name queries are among them. They are shared as connections are.
    pub udp_flows: usize,
    /// Addresses that are pinged at once.
    pub pings: usize,
    /// Bytes in the buffers of all connections together.
    pub buffered: usize,
    /// Answers (ARP, DHCP, ICMP, datagrams) that wait for the guest to take them.
    pub queued: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 4096, udp_flows: 4096, pings: 64, buffered: 64 << 20, queued: 256 }
    }
}

/// Who is on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guests {
    /// One guest, whatever addresses it uses.
    #[default]
    One,
    /// Several. Each has its own addresses, and a share of all limits.
    Many {
        /// The most addresses that DHCP gives.
        leases: u16,
    },
}

impl Guests {
    /// Guests that limits are shared between.
    pub(crate) fn most(self) -> u16 {
        match self {
            Guests::One => 1,
            Guests::Many { .. } => crate::neighbours::GUESTS,
        }
    }
}

/// What a network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Who is on it.
    pub guests: Guests,
    /// IPv4, if the guest gets it.
    pub ipv4: Option<Ipv4Subnet>,
    /// IPv6, if the guest gets it.
    pub ipv6: Option<Ipv6Subnet>,
    /// Largest IP packet. Below 1280 there is no IPv6.
    pub mtu: u16,
    /// The name that DHCP gives to the guest. Several guests have names by [`crate::Network::set_name`].
    pub hostname: Option<String>,
    /// Lets the guest reach the host's loopback under the gateway's address.
    pub host_loopback: bool,
    /// Cuts the guest off from everything but forwards.
    pub restrict: bool,
    /// Limits.
    pub limits: Limits,
    /// The gateway's Ethernet address.
    pub gateway_mac: [u8; 6],
}

impl Default for Config {
    fn default() -> Self {
        Config {
            guests: Guests::One,
            ipv4: Some(Ipv4Subnet::default()),
            ipv6: Some(Ipv6Subnet::default()),
            mtu: 1500,
            hostname: None,
            host_loopback: false,
            restrict: false,
            limits: Limits::default(),
            gateway_mac: [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02],
        }
    }
}

/// A transport protocol that can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's side. Port 0: the host picks one.
    pub bind: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// The guest that a forward leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The only guest; of several the one that has the address [`Ipv4Subnet::guest`].
    #[default]
    First,
    /// The guest with an address.
    Address(IpAddr),
    /// The guest with a name: one that it was given, or else one that it gave itself when it asked for a lease.
    Name(String),
}
