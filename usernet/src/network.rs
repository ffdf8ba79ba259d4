//! The network: where frames of the guest go, and which frame it gets next.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

use crate::config::{Config, Destination, Forward, Guests, Ipv4Subnet, Ipv6Subnet, Protocol};
use crate::counters::Counters;
use crate::datagrams::{Around, Datagrams, Key, Received, Refusal};
use crate::flow::{Flow, Target, Unreachable};
use crate::forwards::{self, Forwards, Socket, Whereabouts};
use crate::fragments::Fragments;
use crate::host::{Host, Ready};
use crate::icmp::{self, Quote, Reason};
use crate::link::{self, ETHERNET, Link};
use crate::nat::{self, Place};
use crate::ndp::{self, Ndp};
use crate::offload::{Accepts, Checksum, Gso, GsoKind, Offload};
use crate::packet::{Drop, ICMP, ICMPV6, Packet, TCP, UDP, put_u16, u16_at};
use crate::shares::GuestId;
use crate::sum::Sum;
use crate::tcp::Tcp;
use crate::token::{Kind, Token};
use crate::{arp, dhcp, slab, udp};

/// Bytes of the longest frame: an IP packet of 64 KiB. [`Network::output`] needs as much room.
pub const LONGEST_FRAME: usize = 65535 + ETHERNET;

/// RFC 8200 §5: IPv6 does not run over less.
const IPV6_LEAST_MTU: u16 = 1280;
/// Before a router's advertisement ends, the next is due.
const ADVERTISE_AGAIN: Duration = Duration::from_secs(4 * 3600);
/// Datagrams of the host that become no frame, before others have their turn.
const LOST_AT_ONCE: usize = 64;
/// Nobody is so late: the guest was paused, or the whole process was. No time has passed for what goes on between the guest and
/// its peers: flows are as idle as before, and what is half-open has as much time left.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// Frames for guests that are not known, before others have their turn.
const HELD_AT_ONCE: usize = 1024;
/// Connections that one listening port gives at a time.
const ACCEPTED_AT_ONCE: usize = 64;
const TCP_CHECKSUM_AT: u16 = 16;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// The network of one guest, or of several, on the sockets of `H`.
#[derive(Debug)]
pub struct Network<H: Host> {
    config: Config,
    host: H,
    link: Link,
    tcp: Tcp<H>,
    datagrams: Datagrams<H>,
    forwards: Forwards<H>,
    fragments: Option<Fragments>,
    next_ident: u32,
    /// Addresses that the only guest has used: the one of its lease rather than others.
    guest4: Option<IpAddr>,
    guest6: Option<IpAddr>,
    advertise_at: Option<Instant>,
    /// The last call.
    called: Option<Instant>,
    /// TCP is asked first for the next frame.
    tcp_first: bool,
    /// The last call of [`Network::output`] stopped early.
    more: bool,
    counters: Counters,
}

impl<H: Host> Network<H> {
    /// A network that nobody has used yet.
    pub fn new(config: Config, host: H) -> Self {
        let config = Config { ipv6: config.ipv6.filter(|_| config.mtu >= IPV6_LEAST_MTU), ..config };
        let guests = config.guests.most();
        Network {
            link: Link::new(&config),
            tcp: Tcp::new(config.limits, config.mtu, guests),
            datagrams: Datagrams::new(config.limits, guests),
            forwards: Forwards::new(),
            fragments: None,
            next_ident: 1,
            guest4: None,
            guest6: None,
            advertise_at: None,
            called: None,
            tcp_first: true,
            more: false,
            counters: Counters::default(),
            config,
            host,
        }
    }

    /// The host.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// What was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        Counters {
            full: self.counters.full + self.tcp.refused(),
            connections: self.tcp.len(),
            flows: self.datagrams.len(),
            buffered: self.tcp.buffered(),
            ..self.counters
        }
    }

    /// Opens a port of the host that leads to the guest. Returns its address, with the port that the host picked for 0.
    ///
    /// # Errors
    /// The port is taken, privileged, or there is no such address.
    pub fn forward(&mut self, forward: Forward) -> io::Result<SocketAddr> {
        self.forward_to(forward, Destination::First)
    }

    /// [`Network::forward`] to one of several guests.
    ///
    /// # Errors
    /// As for [`Network::forward`].
    pub fn forward_to(&mut self, forward: Forward, to: Destination) -> io::Result<SocketAddr> {
        self.forwards.add(forward, to, &mut self.host)
    }

    /// Names one of several guests, by its Ethernet address, or forgets its name. DHCP gives the name to the guest, and forwards
    /// lead there.
    pub fn set_name(&mut self, guest: [u8; 6], name: Option<String>) {
        if let Some(shared) = self.link.shared() {
            shared.give_name(EthernetAddress(guest), name);
        }
    }

    /// The addresses that several guests have from DHCP, by Ethernet address.
    pub fn leases(&self, now: Instant) -> Vec<([u8; 6], Ipv4Addr)> {
        self.link.leases(now)
    }

    /// Closes a port that [`Network::forward`] opened; connections go on. False: there is none.
    pub fn remove_forward(&mut self, protocol: Protocol, bind: SocketAddr) -> bool {
        self.forwards.remove(protocol, bind)
    }

    /// All forwards.
    pub fn forwards(&self) -> impl Iterator<Item = &Forward> {
        self.forwards.iter()
    }

    /// Takes a frame of the guest.
    pub fn input(&mut self, frame: &[u8], offload: Offload, now: Instant) {
        self.skip_pause(now);
        self.counters.frames += 1;
        if let Err(drop) = self.frame(frame, offload, now) {
            self.counters.count(drop);
        }
    }

    fn frame(&mut self, frame: &[u8], offload: Offload, now: Instant) -> Result<(), Drop> {
        let frame = EthernetFrame::new_checked(frame).map_err(|_| Drop::Malformed)?;
        let (source, destination) = (frame.src_addr(), frame.dst_addr());
        if !source.is_unicast() || source == self.link.gateway() {
            return Err(Drop::Spoofed);
        }
        if destination.is_unicast() && destination != self.link.gateway() {
            return Err(Drop::Unknown);
        }
        self.link.learn(source);
        match (frame.ethertype(), self.config.ipv4, self.config.ipv6) {
            (EthernetProtocol::Arp, Some(subnet), _) => {
                arp::input(frame.payload(), &subnet, source, &mut self.link, now)
            }
            (EthernetProtocol::Ipv4, Some(subnet), _) => {
                self.ipv4(source, &Packet::ipv4(frame.payload())?, &subnet, offload, now)
            }
            (EthernetProtocol::Ipv6, _, Some(subnet)) => {
                self.ipv6(source, &Packet::ipv6(frame.payload())?, &subnet, offload, now)
            }
            _ => Err(Drop::Unknown),
        }
    }

    fn ipv4(
        &mut self,
        mac: EthernetAddress,
        packet: &Packet<'_>,
        subnet: &Ipv4Subnet,
        offload: Offload,
        now: Instant,
    ) -> Result<(), Drop> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (packet.source, packet.destination) else {
            return Err(Drop::Malformed);
        };
        let usable = subnet.has_guest(source);
        let for_server =
            destination.is_broadcast() || destination == subnet.gateway || destination == subnet.broadcast();
        if packet.protocol == UDP && for_server && u16_at(packet.payload, 2) == Some(dhcp::SERVER_PORT) {
            if !usable && !source.is_unspecified() {
                return Err(Drop::Spoofed);
            }
            let payload = udp::parse(packet, offload)?;
            return dhcp::input(payload, mac, (&self.config, subnet), &mut self.link, now);
        }
        if !usable {
            return Err(Drop::Spoofed);
        }
        // Nobody else is on the wire.
        if destination.is_broadcast() || destination.is_multicast() || destination == subnet.broadcast() {
            return Err(Drop::Unknown);
        }
        let (guest, _) = self.link.admit(mac, packet.source, now)?;
        if self.config.guests == Guests::One && self.guest4 != Some(subnet.guest.into()) {
            self.guest4 = Some(packet.source);
        }
        self.transport(packet, guest, offload, now)
    }

    fn ipv6(
        &mut self,
        mac: EthernetAddress,
        packet: &Packet<'_>,
        subnet: &Ipv6Subnet,
        offload: Offload,
        now: Instant,
    ) -> Result<(), Drop> {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
            return Err(Drop::Malformed);
        };
        let own = source == subnet.gateway || source == subnet.dns || source == self.link.link_local();
        let on_wire = !own && (source.is_unicast_link_local() || subnet.contains(source));
        let mut guest = GuestId::FIRST;
        if self.link.is_shared() && !source.is_unspecified() {
            if !on_wire {
                return Err(Drop::Spoofed);
            }
            guest = self.admit6(mac, source, subnet, now)?;
        }
        if packet.protocol == ICMPV6 {
            packet.verify(offload)?;
            match ndp::input(packet, &self.config, subnet, &mut self.link)? {
                Ndp::Other => {}
                Ndp::Done => {
                    self.keep_advertised(source, subnet, now);
                    return Ok(());
                }
                Ndp::Advertised => {
                    self.advertise_at = Some(now + ADVERTISE_AGAIN);
                    return Ok(());
                }
                Ndp::Claimed(address) => {
                    let can_have = address.is_unicast_link_local() || subnet.contains(address);
                    let ours = [subnet.gateway, subnet.dns, self.link.link_local()].contains(&address);
                    if !can_have || ours {
                        return Err(Drop::Spoofed);
                    }
                    return self.admit6(mac, address, subnet, now).map(drop);
                }
            }
        }
        if destination.is_multicast() {
            return Err(Drop::Unknown);
        }
        let inside = if destination.is_unicast_link_local() {
            source.is_unicast_link_local()
        } else {
            subnet.contains(source)
        };
        if own || !inside {
            return Err(Drop::Spoofed);
        }
        if subnet.contains(source) {
            if self.config.guests == Guests::One {
                self.learn_guest6(source);
            }
            self.keep_advertised(source, subnet, now);
        }
        self.transport(packet, guest, offload, now)
    }

    /// One of several guests uses `address`. It is told of the router, of which it may know from another network only: a guest
    /// that was restored does not ask.
    fn admit6(
        &mut self,
        mac: EthernetAddress,
        address: Ipv6Addr,
        subnet: &Ipv6Subnet,
        now: Instant,
    ) -> Result<GuestId, Drop> {
        let (guest, new) = self.link.admit(mac, address.into(), now)?;
        if new && subnet.contains(address) {
            ndp::advertise_router(&self.config, subnet, Some(address.into()), &mut self.link);
            self.advertise_at.get_or_insert(now + ADVERTISE_AGAIN);
        }
        Ok(guest)
    }

    /// A guest that was restored has its address and does not ask for a router, but the one that it knows expires.
    fn keep_advertised(&mut self, source: Ipv6Addr, subnet: &Ipv6Subnet, now: Instant) {
        if self.advertise_at.is_none() && subnet.contains(source) {
            self.advertise_at = Some(now + ADVERTISE_AGAIN);
            ndp::advertise_router(&self.config, subnet, None, &mut self.link);
        }
    }

    /// Where forwards lead: before the only guest has sent anything, to the address that it will get.
    fn guest4(&self) -> Option<IpAddr> {
        self.guest4.or(self.config.ipv4.map(|subnet| subnet.guest.into()))
    }

    /// Forwards lead to the address that lasts: one made from the guest's Ethernet address rather than a temporary one.
    fn learn_guest6(&mut self, source: Ipv6Addr) {
        let lasting = |address: &Ipv6Addr| matches!(address.octets(), [.., 0xff, 0xfe, _, _, _]);
        match self.guest6 {
            Some(IpAddr::V6(known)) if lasting(&known) && !lasting(&source) => {}
            _ => self.guest6 = Some(source.into()),
        }
    }

    fn transport(
        &mut self,
        packet: &Packet<'_>,
        guest: GuestId,
        offload: Offload,
        now: Instant,
    ) -> Result<(), Drop> {
        if packet.hops == 0 {
            return Err(Drop::Malformed);
        }
        let place = nat::place(packet.destination, &self.config);
        if packet.hops == 1 && !matches!(place, Place::Gateway | Place::Dns) {
            if is_answered_with_errors(packet) {
                self.refuse(packet, Reason::TimeExceeded);
            }
            return Ok(());
        }
        match (packet.protocol, packet.source) {
            (TCP, _) => self.tcp(packet, guest, offload, now),
            (UDP, _) => self.udp(packet, guest, offload, now),
            (ICMP, IpAddr::V4(_)) => {
                if Sum::default().add(packet.payload).checksum() != 0 {
                    return Err(Drop::Malformed);
                }
                self.echo(packet, guest, place, now)
            }
            (ICMPV6, IpAddr::V6(_)) => self.echo(packet, guest, place, now),
            _ => Err(Drop::Unknown),
        }
    }

    fn refuse(&mut self, packet: &Packet<'_>, reason: Reason) {
        icmp::send_error(&Quote::of(packet), reason, &self.config, &mut self.link);
    }

    fn tcp(
        &mut self,
        packet: &Packet<'_>,
        guest: GuestId,
        offload: Offload,
        now: Instant,
    ) -> Result<(), Drop> {
        packet.verify(offload)?;
        let flow = flow(packet)?;
        let flags = *packet.payload.get(13).ok_or(Drop::Malformed)?;
        let mut target = Target::Refused;
        if flags & (SYN | ACK) == SYN {
            let host = &mut self.host;
            target = match nat::target(flow.remote, &self.config, || host.resolver()) {
                Ok(address) => Target::Address(address),
                Err(Unreachable::Port) => Target::Refused,
                Err(why) => {
                    self.counters.count(Drop::Forbidden);
                    self.refuse(packet, Reason::Unreachable(why));
                    return Ok(());
                }
            };
        }
        self.tcp.segment((flow, guest), packet.payload, target, &mut self.host, now);
        Ok(())
    }

    fn udp(
        &mut self,
        packet: &Packet<'_>,
        guest: GuestId,
        offload: Offload,
        now: Instant,
    ) -> Result<(), Drop> {
        let payload = udp::parse(packet, offload)?;
        let flow = flow(packet)?;
        let config = &self.config;
        let to = |host: &mut H| nat::target(flow.remote, config, || host.resolver());
        let whereabouts = Whereabouts { first: None, link: &self.link };
        let mut around =
            Around { host: &mut self.host, forwards: &self.forwards, config: &self.config, whereabouts, now };
        let sent = self.datagrams.send((Key::Udp(flow), guest), to, payload, &mut around);
        self.sent(packet, sent)
    }

    fn echo(
        &mut self,
        packet: &Packet<'_>,
        account: GuestId,
        place: Place,
        now: Instant,
    ) -> Result<(), Drop> {
        let ident = icmp::echo_request(packet).ok_or(Drop::Unknown)?;
        if matches!(place, Place::Gateway | Place::Dns) {
            icmp::answer_echo(packet, &mut self.link);
            return Ok(());
        }
        let (guest, remote) = (packet.source, packet.destination);
        let config = &self.config;
        // Echo requests have no port: any will do.
        let to = |_: &mut H| nat::target(SocketAddr::new(remote, 1), config, || None);
        let whereabouts = Whereabouts { first: None, link: &self.link };
        let mut around =
            Around { host: &mut self.host, forwards: &self.forwards, config: &self.config, whereabouts, now };
        let key = (Key::Echo { guest, remote, ident }, account);
        let sent = self.datagrams.send(key, to, packet.payload, &mut around);
        self.sent(packet, sent)
    }

    fn sent(&mut self, packet: &Packet<'_>, sent: Result<(), Refusal>) -> Result<(), Drop> {
        match sent {
            Ok(()) => Ok(()),
            Err(Refusal::Drop(drop)) => Err(drop),
            Err(Refusal::Unreachable(why)) => {
                self.refuse(packet, Reason::Unreachable(why));
                if why == Unreachable::Prohibited { Err(Drop::Forbidden) } else { Ok(()) }
            }
        }
    }

    /// The socket that `token` names is ready.
    pub fn ready(&mut self, token: u64, ready: Ready, now: Instant) {
        let Some(token) = Token::from_bits(token) else { return };
        self.skip_pause(now);
        let place = slab::Place { slot: token.slot, generation: token.generation };
        match token.kind {
            Kind::Tcp => self.tcp.ready(token, ready, &mut self.host, now),
            Kind::Udp | Kind::Ping => self.datagrams.ready(place),
            Kind::Forward => self.forward_ready(place, now),
        }
    }

    fn forward_ready(&mut self, place: slab::Place, now: Instant) {
        let Some(entry) = self.forwards.get(place) else { return };
        let listener = match &entry.socket {
            Socket::Tcp(listener) => listener,
            Socket::Udp(_) => return self.datagrams.forward_ready(place),
        };
        for _ in 0..ACCEPTED_AT_ONCE {
            let Ok((stream, peer)) = self.host.accept(listener) else { return };
            let first = guest_for(entry.forward.bind, self.guest4(), self.guest6);
            let guest = Whereabouts { first, link: &self.link }.of(&entry.to);
            let Some(guest) = guest else {
                self.host.reset(stream);
                continue;
            };
            let guest = SocketAddr::new(guest, entry.forward.guest_port);
            let seen = forwards::peer_as_seen(peer, guest.ip(), &self.config);
            let taken = |remote| self.tcp.contains(&Flow { guest, remote });
            match forwards::free_port(seen, taken) {
                Some(remote) => {
                    let guest = (guest, self.link.account(guest.ip()));
                    if !self.tcp.accepted(stream, remote, guest, &mut self.host, now) {
                        self.counters.count(Drop::Full);
                    }
                }
                None => {
                    self.counters.count(Drop::Full);
                    self.host.reset(stream);
                }
            }
        }
    }

    /// Writes the next frame for the guest somewhere into `room`, which has [`LONGEST_FRAME`] bytes, and says where. `None`: there
    /// is none now, or what [`Network::has_more`] says.
    pub fn output(
        &mut self,
        room: &mut [u8],
        accepts: Accepts,
        now: Instant,
    ) -> Option<(Range<usize>, Offload)> {
        self.skip_pause(now);
        self.more = false;
        for _ in 0..HELD_AT_ONCE {
            let (range, offload) = self.next_frame(room, accepts, now)?;
            let frame = room.get(range.clone()).unwrap_or_default();
            if !self.link.holds(frame, offload, now) {
                self.counters.frames_out += 1;
                return Some((range, offload));
            }
        }
        self.more = true;
        None
    }

    /// Whether [`Network::output`] gave no frame only so that others have their turn: it is to be called again, without waiting
    /// for a socket or a timeout.
    pub fn has_more(&self) -> bool {
        self.more
    }

    fn next_frame(
        &mut self,
        room: &mut [u8],
        accepts: Accepts,
        now: Instant,
    ) -> Option<(Range<usize>, Offload)> {
        if let Some(fragments) = &mut self.fragments {
            match fragments.next(room, &self.link) {
                Some(range) => return Some((range, Offload::default())),
                None => self.fragments = None,
            }
        }
        while let Some(failed) = self.tcp.take_failed() {
            let quote = quote_tcp(failed.flow, failed.sequence);
            icmp::send_error(&quote, Reason::Unreachable(failed.why), &self.config, &mut self.link);
        }
        if let Some((len, offload)) = self.link.take(room) {
            return Some((0..len, offload));
        }
        // TCP and the others take turns: neither can keep the other from the guest.
        self.tcp_first = !self.tcp_first;
        if self.tcp_first {
            self.tcp_frame(room, accepts, now).or_else(|| self.datagram_frame(room, accepts, now))
        } else {
            self.datagram_frame(room, accepts, now).or_else(|| self.tcp_frame(room, accepts, now))
        }
    }

    fn tcp_frame(
        &mut self,
        room: &mut [u8],
        accepts: Accepts,
        now: Instant,
    ) -> Option<(Range<usize>, Offload)> {
        // The headers of IPv6 are the longest; those of IPv4 end where they do.
        let at = link::headers(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let segment = room.get_mut(at..room.len().min(LONGEST_FRAME))?;
        let most = |flow: &Flow| {
            let large = if flow.guest.is_ipv4() { accepts.tso4 } else { accepts.tso6 };
            if large && accepts.checksum { LONGEST_FRAME - at } else { 0 }
        };
        let out = self.tcp.output(segment, most, &mut self.host, now)?;
        let ends = (out.flow.remote.ip(), out.flow.guest.ip());
        let segment = segment.get_mut(..out.len)?;
        put_u16(segment, TCP_CHECKSUM_AT.into(), 0);
        let sum = Sum::pseudo(ends.0, ends.1, TCP, out.len);
        let checksum = if accepts.checksum { sum.folded() } else { sum.add(segment).checksum() };
        put_u16(segment, TCP_CHECKSUM_AT.into(), checksum);
        let headers = link::headers(ends.1);
        let start = at - headers;
        self.link.head(room.get_mut(start..)?, ends, (TCP, Link::hops()), out.len)?;
        let gso = out.gso.filter(|_| accepts.checksum).map(|size| Gso {
            kind: if ends.1.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 },
            size,
            headers: u16::try_from(headers + out.header).unwrap_or(u16::MAX),
        });
        let checksum = partial(accepts, headers, TCP_CHECKSUM_AT);
        Some((start..at + out.len, Offload { checksum, gso }))
    }

    fn datagram_frame(
        &mut self,
        room: &mut [u8],
        accepts: Accepts,
        now: Instant,
    ) -> Option<(Range<usize>, Offload)> {
        let first = self.guest4().or(self.guest6);
        for _ in 0..LOST_AT_ONCE {
            let whereabouts = Whereabouts { first, link: &self.link };
            let mut around = Around {
                host: &mut self.host,
                forwards: &self.forwards,
                config: &self.config,
                whereabouts,
                now,
            };
            match self.datagrams.receive(room, &mut around)? {
                Received::Datagram { key, at, len } => {
                    let frame = self.frame_of(key, room, at, len, accepts);
                    if frame.is_some() {
                        return frame;
                    }
                }
                Received::Error { key, why } => {
                    let quote = quote_datagram(&key);
                    icmp::send_error(&quote, Reason::Unreachable(why), &self.config, &mut self.link);
                    if let Some((len, offload)) = self.link.take(room) {
                        return Some((0..len, offload));
                    }
                }
            }
        }
        self.more = true;
        None
    }

    /// Puts headers in front of the `len` bytes at `at`.
    fn frame_of(
        &mut self,
        key: Key,
        room: &mut [u8],
        at: usize,
        len: usize,
        accepts: Accepts,
    ) -> Option<(Range<usize>, Offload)> {
        let ends = key.ends();
        let headers = link::headers(ends.1);
        let payload = room.get_mut(headers..at + len)?;
        let small = headers + payload.len() <= usize::from(self.config.mtu) + ETHERNET;
        let left = small && accepts.checksum && matches!(key, Key::Udp(_));
        let protocol = match key {
            Key::Udp(flow) => {
                let ports = (flow.remote.port(), flow.guest.port());
                udp::write_header(ends, ports, payload, left);
                UDP
            }
            Key::Echo { ident, .. } => {
                if !icmp::make_reply(ends, payload, ident) {
                    return None;
                }
                if ends.1.is_ipv4() { ICMP } else { ICMPV6 }
            }
        };
        if !small {
            self.next_ident = self.next_ident.wrapping_add(1);
            let rest = payload.to_vec();
            let fragments =
                self.fragments.insert(Fragments::new(ends, protocol, self.next_ident, rest, self.config.mtu));
            return Some((fragments.next(room, &self.link)?, Offload::default()));
        }
        let payload_len = payload.len();
        self.link.head(room, ends, (protocol, Link::hops()), payload_len)?;
        let checksum = if left { partial(accepts, headers, udp::CHECKSUM_AT) } else { Checksum::Complete };
        Some((0..at + len, Offload { checksum, gso: None }))
    }

    /// When [`Network::timeout`] has to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.tcp.next_timeout(), self.datagrams.next_timeout(), self.link.next_timeout(), self.advertise_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Nobody called for what was due: all that has passed since the last call does not count.
    fn skip_pause(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.called.replace(now).unwrap_or(now));
        if pause < STOOD_STILL {
            return;
        }
        if self.next_timeout().is_some_and(|due| now.saturating_duration_since(due) >= STOOD_STILL) {
            self.tcp.stood_still(pause, now);
            self.datagrams.stood_still(pause, now);
        }
    }

    /// Does what is due.
    pub fn timeout(&mut self, now: Instant) {
        self.skip_pause(now);
        self.tcp.timeout(&mut self.host, now);
        self.datagrams.timeout(now);
        self.link.timeout(now);
        if let (Some(at), Some(subnet)) = (self.advertise_at, self.config.ipv6)
            && at <= now
        {
            self.advertise_at = Some(now + ADVERTISE_AGAIN);
            ndp::advertise_router(&self.config, &subnet, None, &mut self.link);
        }
    }
}

fn partial(accepts: Accepts, headers: usize, offset: u16) -> Checksum {
    match u16::try_from(headers) {
        Ok(start) if accepts.checksum => Checksum::Partial { start, offset },
        _ => Checksum::Complete,
    }
}

/// The guest's address of the family that the host's port is of, or else the one that it has.
fn guest_for(bind: SocketAddr, guest4: Option<IpAddr>, guest6: Option<IpAddr>) -> Option<IpAddr> {
    if bind.is_ipv4() { guest4.or(guest6) } else { guest6.or(guest4) }
}

/// The ends that a transport's header names.
fn flow(packet: &Packet<'_>) -> Result<Flow, Drop> {
    let port = |at| u16_at(packet.payload, at).ok_or(Drop::Malformed);
    Ok(Flow {
        guest: SocketAddr::new(packet.source, port(0)?),
        remote: SocketAddr::new(packet.destination, port(2)?),
    })
}

/// RFC 1122 §3.2.2: no error is answered with an error.
fn is_answered_with_errors(packet: &Packet<'_>) -> bool {
    match packet.protocol {
        ICMP | ICMPV6 => icmp::echo_request(packet).is_some(),
        _ => true,
    }
}

fn quote_tcp(flow: Flow, sequence: u32) -> Quote {
    let [a, b] = flow.guest.port().to_be_bytes();
    let [c, d] = flow.remote.port().to_be_bytes();
    let [e, f, g, h] = sequence.to_be_bytes();
    let (source, destination) = (flow.guest.ip(), flow.remote.ip());
    Quote { source, destination, protocol: TCP, len: 20, head: [a, b, c, d, e, f, g, h] }
}

/// A datagram of the guest, of which only the flow is known any more.
fn quote_datagram(key: &Key) -> Quote {
    let (destination, source) = key.ends();
    let (protocol, head) = match key {
        Key::Udp(flow) => {
            let [a, b] = flow.guest.port().to_be_bytes();
            let [c, d] = flow.remote.port().to_be_bytes();
            (UDP, [a, b, c, d, 0, 8, 0, 0])
        }
        Key::Echo { ident, .. } => {
            let [a, b] = ident.to_be_bytes();
            if source.is_ipv4() {
                (ICMP, [8, 0, 0, 0, a, b, 0, 0])
            } else {
                (ICMPV6, [128, 0, 0, 0, a, b, 0, 0])
            }
        }
    };
    Quote { source, destination, protocol, len: 8, head }
}
