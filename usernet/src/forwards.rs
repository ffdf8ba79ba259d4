//! Ports of the host that lead to the guest.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::config::{Config, Destination, Forward, Protocol};
use crate::host::Host;
use crate::link::Link;
use crate::nat;
use crate::slab::{Place, Slab};
use crate::token::{Kind, Token};

/// The socket of a forward.
#[derive(Debug)]
pub(crate) enum Socket<H: Host> {
    /// Of TCP.
    Tcp(H::Listener),
    /// Of UDP.
    Udp(H::Datagram),
}

/// A forward that is in use.
#[derive(Debug)]
pub(crate) struct Entry<H: Host> {
    /// Its address is the one that the host gave.
    pub(crate) forward: Forward,
    /// Where it leads.
    pub(crate) to: Destination,
    /// Its socket.
    pub(crate) socket: Socket<H>,
}

/// All forwards.
#[derive(Debug)]
pub(crate) struct Forwards<H: Host> {
    entries: Slab<Entry<H>>,
}

impl<H: Host> Forwards<H> {
    /// None.
    pub(crate) fn new() -> Self {
        Forwards { entries: Slab::new() }
    }

    /// Opens a port. Returns its address.
    pub(crate) fn add(&mut self, forward: Forward, to: Destination, host: &mut H) -> io::Result<SocketAddr> {
        let Place { slot, generation } = self.entries.next();
        let token = Token { kind: Kind::Forward, generation, slot }.to_bits();
        let (socket, bind) = match forward.protocol {
            Protocol::Tcp => {
                let (listener, bind) = host.listen(forward.bind, token)?;
                (Socket::Tcp(listener), bind)
            }
            Protocol::Udp => {
                let (datagram, bind) = host.bind(forward.bind, token)?;
                (Socket::Udp(datagram), bind)
            }
        };
        self.entries.insert(Entry { forward: Forward { bind, ..forward }, to, socket });
        Ok(bind)
    }

    /// Closes a port. False: there is no such forward.
    pub(crate) fn remove(&mut self, protocol: Protocol, bind: SocketAddr) -> bool {
        let found = self
            .entries
            .iter()
            .find(|(_, entry)| (entry.forward.protocol, entry.forward.bind) == (protocol, bind));
        let place = found.map(|(place, _)| place);
        place.and_then(|place| self.entries.remove(place)).is_some()
    }

    /// The forward at `place`.
    pub(crate) fn get(&self, place: Place) -> Option<&Entry<H>> {
        self.entries.get(place)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Forward> {
        self.entries.iter().map(|(_, entry)| &entry.forward)
    }
}

/// Where forwards lead.
pub(crate) struct Whereabouts<'a> {
    /// The only guest, as far as it is known; of several the first.
    pub(crate) first: Option<IpAddr>,
    pub(crate) link: &'a Link,
}

impl Whereabouts<'_> {
    /// The address of the guest that a forward leads to. `None`: it is not known.
    pub(crate) fn of(&self, to: &Destination) -> Option<IpAddr> {
        match to {
            Destination::First => self.first,
            Destination::Address(address) => Some(*address),
            Destination::Name(name) => self.link.named(name),
        }
    }
}

/// How the guest sees a peer from outside that talks to `guest`: under its own address if the guest can answer to it, else as
/// the gateway.
pub(crate) fn peer_as_seen(peer: SocketAddr, guest: IpAddr, config: &Config) -> SocketAddr {
    let address = peer.ip().to_canonical();
    if address.is_ipv4() == guest.is_ipv4() && nat::place(address, config) == nat::Place::World {
        return SocketAddr::new(address, peer.port());
    }
    let gateway = match guest {
        IpAddr::V4(_) => config.ipv4.map(|subnet| IpAddr::V4(subnet.gateway)),
        IpAddr::V6(_) => config.ipv6.map(|subnet| IpAddr::V6(subnet.gateway)),
    };
    SocketAddr::new(gateway.unwrap_or(address), peer.port())
}

/// The first address like `seen` that is not `taken`: another peer may have the same port. `None` if a few are taken.
pub(crate) fn free_port(seen: SocketAddr, taken: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
    const TRIES: u16 = 64;
    let port = |step: u16| match seen.port().wrapping_add(step) {
        0 => u16::MAX,
        port => port,
    };
    (0..TRIES).map(|step| SocketAddr::new(seen.ip(), port(step))).find(|seen| !taken(*seen))
}
