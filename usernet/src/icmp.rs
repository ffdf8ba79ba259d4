//! ICMP and ICMPv6: echo messages, and the errors that tell the guest why a packet did not get there.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr};

use crate::config::Config;
use crate::flow::Unreachable;
use crate::link::Link;
use crate::packet::{ICMP, ICMPV6, Packet, put_u16, u16_at};
use crate::sum::Sum;

/// Bytes of an echo message's header, and of the part of a transport's header that an error quotes.
pub(crate) const HEADER: usize = 8;

/// Why a packet did not get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The peer cannot be reached.
    Unreachable(Unreachable),
    /// Its hops were used up at the gateway.
    TimeExceeded,
}

/// What an error quotes of the packet that it is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quote {
    /// The guest's address.
    pub(crate) source: IpAddr,
    /// The peer's.
    pub(crate) destination: IpAddr,
    /// The protocol.
    pub(crate) protocol: u8,
    /// The length of its payload.
    pub(crate) len: usize,
    /// The payload's beginning.
    pub(crate) head: [u8; HEADER],
}

impl Quote {
    /// Of a packet at hand.
    pub(crate) fn of(packet: &Packet<'_>) -> Self {
        let mut head = [0; HEADER];
        head.iter_mut().zip(packet.payload).for_each(|(to, from)| *to = *from);
        let Packet { source, destination, protocol, payload, .. } = *packet;
        Quote { source, destination, protocol, len: payload.len(), head }
    }

    /// The packet's IP header and the beginning of its payload.
    fn bytes(&self) -> Option<Vec<u8>> {
        let next_header = self.protocol.into();
        let mut bytes;
        match (self.source, self.destination) {
            (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
                bytes = vec![0; 20];
                Ipv4Repr { src_addr, dst_addr, next_header, payload_len: self.len, hop_limit: 1 }
                    .emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
            }
            (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
                bytes = vec![0; 40];
                Ipv6Repr { src_addr, dst_addr, next_header, payload_len: self.len, hop_limit: 1 }
                    .emit(&mut Ipv6Packet::new_unchecked(&mut bytes));
            }
            _ => return None,
        }
        bytes.extend(self.head);
        Some(bytes)
    }
}

/// Sends the guest an error about a packet of its own, which was neither an error itself nor for many (RFC 1122 §3.2.2).
pub(crate) fn send_error(quote: &Quote, reason: Reason, config: &Config, link: &mut Link) {
    let v4 = quote.source.is_ipv4();
    let (kind, code) = match (reason, v4) {
        (Reason::Unreachable(Unreachable::Network), true) => (3, 0),
        (Reason::Unreachable(Unreachable::Host), true) => (3, 1),
        (Reason::Unreachable(Unreachable::Port), true) => (3, 3),
        (Reason::Unreachable(Unreachable::Prohibited), true) => (3, 13),
        (Reason::TimeExceeded, true) => (11, 0),
        (Reason::Unreachable(Unreachable::Network), false) => (1, 0),
        (Reason::Unreachable(Unreachable::Host), false) => (1, 3),
        (Reason::Unreachable(Unreachable::Port), false) => (1, 4),
        (Reason::Unreachable(Unreachable::Prohibited), false) => (1, 1),
        (Reason::TimeExceeded, false) => (3, 0),
    };
    let router = match quote.source {
        IpAddr::V4(_) => config.ipv4.map(|subnet| IpAddr::V4(subnet.gateway)),
        IpAddr::V6(_) => config.ipv6.map(|subnet| IpAddr::V6(subnet.gateway)),
    };
    // That a port is closed is for the peer to say; all else comes from the router.
    let from = match reason {
        Reason::Unreachable(Unreachable::Port) => Some(quote.destination),
        _ => router,
    };
    let (Some(from), Some(quoted)) = (from, quote.bytes()) else { return };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let ends = (from, quote.source);
    fill_checksum(ends, &mut message);
    link.answer(ends, protocol(v4), &message);
}

fn protocol(v4: bool) -> u8 {
    if v4 { ICMP } else { ICMPV6 }
}

/// Puts the checksum into an ICMP message from and to `ends`.
pub(crate) fn fill_checksum(ends: (IpAddr, IpAddr), message: &mut [u8]) {
    put_u16(message, 2, 0);
    let start = match ends.0 {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => Sum::pseudo(ends.0, ends.1, ICMPV6, message.len()),
    };
    let checksum = start.add(message).checksum();
    put_u16(message, 2, checksum);
}

/// The identifier of an echo request.
pub(crate) fn echo_request(packet: &Packet<'_>) -> Option<u16> {
    let request = if packet.source.is_ipv4() { 8 } else { 128 };
    match *packet.payload {
        [kind, 0, ..] if kind == request && packet.payload.len() >= HEADER => u16_at(packet.payload, 4),
        _ => None,
    }
}

/// Makes `message`, which came from the host, an echo reply to the guest's request with `ident`. False: it is none.
pub(crate) fn make_reply(ends: (IpAddr, IpAddr), message: &mut [u8], ident: u16) -> bool {
    let reply = if ends.0.is_ipv4() { 0 } else { 129 };
    match message {
        [kind, 0, ..] if *kind == reply => {}
        _ => return false,
    }
    put_u16(message, 4, ident);
    fill_checksum(ends, message);
    true
}

/// Answers an echo request in the name of its destination.
pub(crate) fn answer_echo(packet: &Packet<'_>, link: &mut Link) {
    let mut message = packet.payload.to_vec();
    let v4 = packet.source.is_ipv4();
    if let Some(kind) = message.first_mut() {
        *kind = if v4 { 0 } else { 129 };
    }
    let ends = (packet.destination, packet.source);
    fill_checksum(ends, &mut message);
    link.answer(ends, protocol(v4), &message);
}
