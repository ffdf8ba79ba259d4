//! Reads the IP header of a packet of the guest. What is malformed or cut into fragments ends here.

use std::net::IpAddr;

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::offload::{Checksum, Offload};
use crate::sum::Sum;

/// IP's numbers of protocols.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// Extension headers that a fragment has.
const IPV6_FRAGMENT: u8 = 44;

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drop {
    /// It breaks its protocol's rules, or its checksum is wrong.
    Malformed,
    /// A fragment: they are not put together here.
    Fragment,
    /// Its source is not an address that the guest can have.
    Spoofed,
    /// Nothing here takes it.
    Unknown,
    /// A limit was reached.
    Full,
    /// The guest may not go there.
    Forbidden,
}

/// A packet of the guest behind its IP header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// Where it comes from.
    pub(crate) source: IpAddr,
    /// Where it goes.
    pub(crate) destination: IpAddr,
    /// What it carries.
    pub(crate) protocol: u8,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// Without padding.
    pub(crate) payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads an IPv4 packet.
    pub(crate) fn ipv4(bytes: &'a [u8]) -> Result<Self, Drop> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Drop::Malformed)?;
        if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
            return Err(Drop::Malformed);
        }
        if packet.more_frags() || packet.frag_offset() != 0 {
            return Err(Drop::Fragment);
        }
        Ok(Packet {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol: packet.next_header().into(),
            hops: packet.hop_limit(),
            payload: packet.payload(),
        })
    }

    /// Reads an IPv6 packet.
    pub(crate) fn ipv6(bytes: &'a [u8]) -> Result<Self, Drop> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Drop::Malformed)?;
        if packet.version() != 6 {
            return Err(Drop::Malformed);
        }
        let protocol = packet.next_header().into();
        if protocol == IPV6_FRAGMENT {
            return Err(Drop::Fragment);
        }
        Ok(Packet {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol,
            hops: packet.hop_limit(),
            payload: packet.payload(),
        })
    }

    /// Checks the checksum of a transport with a pseudo header, unless the guest left it to us.
    pub(crate) fn verify(&self, offload: Offload) -> Result<(), Drop> {
        if offload.checksum != Checksum::Complete {
            return Ok(());
        }
        let sum = Sum::pseudo(self.source, self.destination, self.protocol, self.payload.len());
        if sum.add(self.payload).checksum() == 0 { Ok(()) } else { Err(Drop::Malformed) }
    }
}

/// The big-endian number at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Puts a big-endian number at `at`.
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value.to_be_bytes();
    }
}
