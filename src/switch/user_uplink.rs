//! The uplink `user`: a network behind the host's sockets with DHCP, which all machines of the switch share.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::RawFd;

use usernet::{Config, Destination, Forward, Guests, Ipv4Subnet, Ipv6Subnet};
use vswitch::HEADER_LEN;

use super::error::SwitchError;
use super::info::ForwardInfo;
use crate::host::forward::{ForwardError, words};
use crate::host::switch_port::OFFLOADS;
use crate::host::user_network::{self, UserNetworkError, Wire};
use crate::spec::{ForwardedTo, GuestForward, NatNetwork, PortForward, Protocol};

/// Most addresses that DHCP gives.
const LEASES: u16 = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct UserUplink {
    wire: Wire,
    forwards: Vec<ForwardInfo>,
}

impl UserUplink {
    /// Opens the network and its ports. `networks`: those of the switch, which share the descriptors of the process.
    pub(super) fn open(nat: &NatNetwork, networks: usize) -> Result<Self, SwitchError> {
        let forwards: Vec<_> =
            nat.forwards.iter().map(|asked| (forward(asked.ports), destination(asked))).collect();
        let config = config(nat);
        let first = config.ipv4.map(|subnet| subnet.guest);
        let (mut wire, addresses) =
            user_network::open_shared(config, &forwards, networks).map_err(|error| match error {
                UserNetworkError::Host(source) => SwitchError::Network(source),
                UserNetworkError::Bind { forward: refused, source, .. } => {
                    let asked = nat.forwards.iter().find(|asked| forward(asked.ports) == refused);
                    match asked {
                        Some(asked) => refused_port(asked, source),
                        None => SwitchError::Network(source),
                    }
                }
            })?;
        wire.set_offloads(OFFLOADS);
        // The loop looks for frames once, and is told of answers from then on.
        wire.go_on().map_err(SwitchError::Network)?;
        let info = |(asked, listen): (&GuestForward, SocketAddr)| ForwardInfo {
            listen,
            to: match (&asked.machine, first) {
                (Some(machine), _) => format!("{machine}:{}", asked.ports.guest),
                (None, Some(first)) => format!("{first}:{}", asked.ports.guest),
                (None, None) => asked.ports.guest.to_string(),
            },
            protocol: asked.ports.protocol.to_string(),
        };
        let forwards = nat.forwards.iter().zip(addresses).map(info).collect();
        Ok(UserUplink { wire, forwards })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.wire.fd()
    }

    /// The ports of the host that lead to machines.
    pub(super) fn forwards(&self) -> &[ForwardInfo] {
        &self.forwards
    }

    /// Takes a frame. False if the host refuses.
    pub(super) fn send(&mut self, header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> bool {
        match parts {
            [whole] => self.wire.input(header, whole).is_ok(),
            _ => self.wire.input_parts(header, parts).is_ok(),
        }
    }

    /// The next frame somewhere in `room`, or `None`; then the descriptor becomes readable when there is another.
    pub(super) fn next_frame(
        &mut self,
        room: &mut [u8],
    ) -> io::Result<Option<([u8; HEADER_LEN], Range<usize>)>> {
        match self.wire.next_frame_in(room) {
            Ok(frame) => Ok(Some(frame)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// There may be more frames, which have to wait for the other ports' turns.
    pub(super) fn go_on(&mut self) -> io::Result<()> {
        self.wire.go_on()
    }

    /// A machine with this address and name is on the switch, or has left it.
    pub(super) fn name(&mut self, machine: [u8; 6], name: Option<String>) {
        self.wire.set_name(machine, name);
    }

    /// The IPv4 addresses of machines.
    pub(super) fn leases(&self) -> Vec<([u8; 6], Ipv4Addr)> {
        self.wire.leases()
    }
}

/// The network. Two of one switch differ in all their addresses if their subnets do.
fn config(nat: &NatNetwork) -> Config {
    let mut config = Config {
        guests: Guests::Many { leases: LEASES },
        host_loopback: nat.net.host_loopback,
        restrict: nat.net.restrict,
        ..Config::default()
    };
    let subnet = nat.net.subnet.and_then(|subnet| Ipv4Subnet::new(subnet.network(), subnet.prefix()));
    if let Some(subnet) = subnet.filter(|subnet| *subnet != Ipv4Subnet::default()) {
        let [a, b, c, d] = subnet.gateway.octets();
        config.gateway_mac = [0x52, 0x55, a, b, c, d];
        let [high, low] = [[a, b], [c, d]].map(u16::from_be_bytes);
        // A unique local prefix (RFC 4193), as the default is.
        config.ipv6 = Some(Ipv6Subnet::new(Ipv6Addr::new(0xfd62, 0x6164, high, low, 0, 0, 0, 0)));
        config.ipv4 = Some(subnet);
    }
    config
}

/// Why the host does not open the port of a forward.
fn refused_port(asked: &GuestForward, source: io::Error) -> SwitchError {
    match ForwardError::new(asked.ports, source) {
        ForwardError::InUse { owner, .. } => in_use(asked, words(owner.as_ref())),
        other => other.into(),
    }
}

/// The port of a forward is in use `by` somebody.
pub(super) fn in_use(asked: &GuestForward, by: String) -> SwitchError {
    let mut cure = asked.clone();
    cure.ports.host = 0;
    SwitchError::PortInUse { asked: asked.clone(), by, cure }
}

fn forward(ports: PortForward) -> Forward {
    let protocol = match ports.protocol {
        Protocol::Tcp => usernet::Protocol::Tcp,
        Protocol::Udp => usernet::Protocol::Udp,
    };
    Forward { protocol, bind: ports.bind(), guest_port: ports.guest }
}

fn destination(asked: &GuestForward) -> Destination {
    match &asked.machine {
        None => Destination::First,
        Some(ForwardedTo::Address(address)) => Destination::Address((*address).into()),
        Some(ForwardedTo::Name(name)) => Destination::Name(name.as_str().to_ascii_lowercase()),
    }
}
