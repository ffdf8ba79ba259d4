//! The virtual wire to the guest: Ethernet and IP headers in front of what goes there, and the answers that wait for the
//! guest to take them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    Ipv6Repr,
};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Hops that our packets have left, and those of neighbour discovery (RFC 4861 §7.1).
const HOPS: u8 = 64;
pub(crate) const NDP_HOPS: u8 = 255;

const BROADCAST: EthernetAddress = EthernetAddress([0xff; 6]);

/// Bytes of all headers in front of an IP packet's payload.
pub(crate) fn headers(destination: IpAddr) -> usize {
    ETHERNET + if destination.is_ipv4() { IPV4 } else { IPV6 }
}

/// The link-local address (RFC 4291, appendix A) of an Ethernet address.
pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The wire.
#[derive(Debug)]
pub(crate) struct Link {
    gateway: EthernetAddress,
    guest: Option<EthernetAddress>,
    answers: VecDeque<Vec<u8>>,
    most_answers: usize,
}

impl Link {
    /// A wire with the gateway's address.
    pub(crate) fn new(gateway: [u8; 6], most_answers: usize) -> Self {
        Link { gateway: EthernetAddress(gateway), guest: None, answers: VecDeque::new(), most_answers }
    }

    /// The gateway's address.
    pub(crate) fn gateway(&self) -> EthernetAddress {
        self.gateway
    }

    /// The gateway's link-local address.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        link_local(self.gateway.0)
    }

    /// A frame came from `source`, which is the guest's address then.
    pub(crate) fn learn(&mut self, source: EthernetAddress) {
        self.guest = Some(source);
    }

    fn destination(&self, address: IpAddr) -> EthernetAddress {
        match address {
            IpAddr::V4(address) if address.is_broadcast() || address.is_multicast() => BROADCAST,
            IpAddr::V6(address) if address.is_multicast() => {
                let [.., a, b, c, d] = address.octets();
                EthernetAddress([0x33, 0x33, a, b, c, d])
            }
            // Before the guest's first frame; a guest drops what is not for it.
            _ => self.guest.unwrap_or(BROADCAST),
        }
    }

    /// Writes the headers of an IP packet with `len` bytes of payload to the front of `room`. Returns their length; `None` if
    /// the room is too small.
    pub(crate) fn head(
        &self,
        room: &mut [u8],
        ends: (IpAddr, IpAddr),
        (protocol, hops): (u8, u8),
        len: usize,
    ) -> Option<usize> {
        let ip = room.get_mut(ETHERNET..)?;
        let next_header = protocol.into();
        let ethertype = match ends {
            (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
                let ip = ip.get_mut(..IPV4)?;
                u16::try_from(len + IPV4).ok()?;
                Ipv4Repr { src_addr, dst_addr, next_header, payload_len: len, hop_limit: hops }
                    .emit(&mut Ipv4Packet::new_unchecked(ip), &ChecksumCapabilities::default());
                EthernetProtocol::Ipv4
            }
            (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
                let ip = ip.get_mut(..IPV6)?;
                u16::try_from(len).ok()?;
                Ipv6Repr { src_addr, dst_addr, next_header, payload_len: len, hop_limit: hops }
                    .emit(&mut Ipv6Packet::new_unchecked(ip));
                EthernetProtocol::Ipv6
            }
            _ => return None,
        };
        self.ethernet(room, self.destination(ends.1), ethertype)?;
        Some(headers(ends.1))
    }

    fn ethernet(&self, room: &mut [u8], to: EthernetAddress, ethertype: EthernetProtocol) -> Option<()> {
        let head = room.get_mut(..ETHERNET)?;
        EthernetRepr { src_addr: self.gateway, dst_addr: to, ethertype }
            .emit(&mut EthernetFrame::new_unchecked(head));
        Some(())
    }

    /// Queues an IP packet for the guest. One too many is lost, as on any wire.
    pub(crate) fn answer(&mut self, ends: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) {
        self.answer_with_hops(ends, (protocol, HOPS), payload);
    }

    /// [`Link::answer`] with a number of hops.
    pub(crate) fn answer_with_hops(&mut self, ends: (IpAddr, IpAddr), kind: (u8, u8), payload: &[u8]) {
        let headers = headers(ends.1);
        let mut frame = vec![0; headers + payload.len()];
        if let Some(place) = frame.get_mut(headers..) {
            place.copy_from_slice(payload);
        }
        if self.head(&mut frame, ends, kind, payload.len()).is_some() {
            self.queue(frame);
        }
    }

    /// Queues a packet of another protocol than IP for the guest.
    pub(crate) fn answer_raw(&mut self, ethertype: EthernetProtocol, payload: &[u8]) {
        let mut frame = vec![0; ETHERNET];
        frame.extend(payload);
        let to = self.guest.unwrap_or(BROADCAST);
        if self.ethernet(&mut frame, to, ethertype).is_some() {
            self.queue(frame);
        }
    }

    fn queue(&mut self, frame: Vec<u8>) {
        if self.answers.len() < self.most_answers {
            self.answers.push_back(frame);
        }
    }

    /// Puts the next answer into `room`; one that is longer is lost.
    pub(crate) fn take(&mut self, room: &mut [u8]) -> Option<usize> {
        while let Some(frame) = self.answers.pop_front() {
            if let Some(place) = room.get_mut(..frame.len()) {
                place.copy_from_slice(&frame);
                return Some(frame.len());
            }
        }
        None
    }

    /// Default number of hops, for callers that write headers themselves.
    pub(crate) const fn hops() -> u8 {
        HOPS
    }
}
