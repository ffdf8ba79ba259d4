//! A datagram of the host that is longer than the guest's MTU, on its way in fragments.

use std::net::IpAddr;
use std::ops::Range;

use smoltcp::wire::{Ipv4Packet, Ipv6FragmentHeader, Ipv6FragmentRepr};

use crate::link::{self, ETHERNET, Link};

/// IPv6's extension header of a fragment: next header, a reserved byte, and what smoltcp writes.
const FRAGMENT_HEADER: usize = 8;
const IPV6_FRAGMENT: u8 = 44;

/// What is left of a datagram.
#[derive(Debug)]
pub(crate) struct Fragments {
    ends: (IpAddr, IpAddr),
    protocol: u8,
    ident: u32,
    payload: Vec<u8>,
    done: usize,
    mtu: usize,
}

impl Fragments {
    /// Cuts the IP payload `payload`.
    pub(crate) fn new(ends: (IpAddr, IpAddr), protocol: u8, ident: u32, payload: Vec<u8>, mtu: u16) -> Self {
        Fragments { ends, protocol, ident, payload, done: 0, mtu: mtu.into() }
    }

    /// Writes the next fragment; `None` after the last.
    pub(crate) fn next(&mut self, room: &mut [u8], link: &Link) -> Option<Range<usize>> {
        let rest = self.payload.get(self.done..).filter(|rest| !rest.is_empty())?;
        let headers = link::headers(self.ends.1);
        let extra = if self.ends.1.is_ipv4() { 0 } else { FRAGMENT_HEADER };
        let most = (self.mtu + ETHERNET).checked_sub(headers + extra).filter(|most| *most >= 8)? / 8 * 8;
        let len = rest.len().min(most);
        let last = len == rest.len();
        let offset = u16::try_from(self.done / 8).ok()?;
        let protocol = if extra == 0 { self.protocol } else { IPV6_FRAGMENT };
        link.head(room, self.ends, (protocol, Link::hops()), len + extra)?;
        if extra == 0 {
            let mut packet = Ipv4Packet::new_unchecked(room.get_mut(ETHERNET..headers)?);
            packet.set_ident(u16::try_from(self.ident & 0xffff).ok()?);
            packet.set_dont_frag(false);
            packet.set_more_frags(!last);
            packet.set_frag_offset(offset * 8);
            packet.fill_checksum();
        } else {
            let [next, reserved, rest @ ..] = room.get_mut(headers..headers + extra)? else { return None };
            (*next, *reserved) = (self.protocol, 0);
            Ipv6FragmentRepr { frag_offset: offset, more_frags: !last, ident: self.ident }
                .emit(&mut Ipv6FragmentHeader::new_unchecked(rest));
        }
        let start = headers + extra;
        room.get_mut(start..start + len)?.copy_from_slice(rest.get(..len)?);
        self.done += len;
        Some(0..start + len)
    }
}
