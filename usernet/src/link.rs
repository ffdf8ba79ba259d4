//! The virtual wire to the guest, or to several: Ethernet and IP headers in front of what goes there, and the answers that wait
//! to be taken.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    Ipv6Repr,
};

use crate::config::Config;
use crate::offload::Offload;
use crate::packet::Drop;
use crate::shared::Shared;
use crate::shares::GuestId;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Hops that our packets have left, and those of neighbour discovery (RFC 4861 §7.1).
const HOPS: u8 = 64;
pub(crate) const NDP_HOPS: u8 = 255;

const BROADCAST: EthernetAddress = EthernetAddress([0xff; 6]);
/// The owner of a packet's address is not known.
const UNKNOWN: EthernetAddress = EthernetAddress([0; 6]);

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
    /// The only guest.
    guest: Option<EthernetAddress>,
    /// The guests of a wire that several share.
    shared: Option<Box<Shared>>,
    answers: VecDeque<(Vec<u8>, Offload)>,
    most_answers: usize,
}

impl Link {
    /// A wire with the gateway's address.
    pub(crate) fn new(config: &Config) -> Self {
        Link {
            gateway: EthernetAddress(config.gateway_mac),
            guest: None,
            shared: Shared::new(config).map(Box::new),
            answers: VecDeque::new(),
            most_answers: config.limits.queued,
        }
    }

    /// The gateway's address.
    pub(crate) fn gateway(&self) -> EthernetAddress {
        self.gateway
    }

    /// The gateway's link-local address.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        link_local(self.gateway.0)
    }

    /// What is known of several guests.
    pub(crate) fn shared(&mut self) -> Option<&mut Shared> {
        self.shared.as_deref_mut()
    }

    /// Whether several guests share the wire.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// A frame came from `source`, which is the only guest's address then.
    pub(crate) fn learn(&mut self, source: EthernetAddress) {
        if self.shared.is_none() {
            self.guest = Some(source);
        }
    }

    /// A packet from `address` came from `source`. Returns the guest, and whether it was not known; of several, each has its
    /// own addresses only.
    pub(crate) fn admit(
        &mut self,
        source: EthernetAddress,
        address: IpAddr,
        now: Instant,
    ) -> Result<(GuestId, bool), Drop> {
        let Some(shared) = &mut self.shared else { return Ok((GuestId::FIRST, false)) };
        let (admitted, frames) = shared.admit(source, address, now);
        for (mut frame, offload) in frames {
            if admitted.is_ok() {
                frame.iter_mut().zip(source.0).for_each(|(to, from)| *to = from);
            }
            self.queue(frame, offload);
        }
        admitted
    }

    /// Whose account conversations with `address` are on.
    pub(crate) fn account(&self, address: IpAddr) -> GuestId {
        self.shared.as_ref().map_or(GuestId::FIRST, |shared| shared.neighbours.guest(address))
    }

    /// The addresses that several guests have from DHCP.
    pub(crate) fn leases(&self, now: Instant) -> Vec<([u8; 6], Ipv4Addr)> {
        let leases = self.shared.as_ref().map(|shared| shared.leases.iter(now));
        leases.into_iter().flatten().map(|(guest, address)| (guest.0, address)).collect()
    }

    /// The address of the guest with a name.
    pub(crate) fn named(&self, name: &str) -> Option<IpAddr> {
        self.shared.as_ref()?.named(name)
    }

    fn destination(&self, address: IpAddr) -> EthernetAddress {
        match address {
            IpAddr::V4(address) if address.is_broadcast() || address.is_multicast() => BROADCAST,
            IpAddr::V6(address) if address.is_multicast() => {
                let [.., a, b, c, d] = address.octets();
                EthernetAddress([0x33, 0x33, a, b, c, d])
            }
            _ => match &self.shared {
                // Before the guest's first frame; a guest drops what is not for it.
                None => self.guest.unwrap_or(BROADCAST),
                Some(shared) => shared.find(address).unwrap_or(UNKNOWN),
            },
        }
    }

    /// Whether `frame` has to wait, because nobody knows whose its address is; it is kept then.
    pub(crate) fn holds(&mut self, frame: &[u8], offload: Offload, now: Instant) -> bool {
        let Some(shared) = &mut self.shared else { return false };
        if !frame.starts_with(&UNKNOWN.0) {
            return false;
        }
        if let Some(question) = shared.hold(frame, offload, now) {
            self.queue(question, Offload::default());
        }
        true
    }

    /// When [`Link::timeout`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.shared.as_ref()?.questions.next_timeout()
    }

    /// Asks again for those that have not answered.
    pub(crate) fn timeout(&mut self, now: Instant) {
        let Some(shared) = &mut self.shared else { return };
        for question in shared.timeout(now) {
            self.queue(question, Offload::default());
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
        if let Some(frame) = self.frame(ends, kind, payload) {
            self.queue(frame, Offload::default());
        }
    }

    /// [`Link::answer`] to the guest with this Ethernet address, to which several others do not listen.
    pub(crate) fn answer_at(
        &mut self,
        to: EthernetAddress,
        ends: (IpAddr, IpAddr),
        protocol: u8,
        payload: &[u8],
    ) {
        let Some(mut frame) = self.frame(ends, (protocol, HOPS), payload) else { return };
        if self.is_shared() {
            frame.iter_mut().zip(to.0).for_each(|(to, from)| *to = from);
        }
        self.queue(frame, Offload::default());
    }

    fn frame(&self, ends: (IpAddr, IpAddr), kind: (u8, u8), payload: &[u8]) -> Option<Vec<u8>> {
        let headers = headers(ends.1);
        let mut frame = vec![0; headers + payload.len()];
        frame.get_mut(headers..)?.copy_from_slice(payload);
        self.head(&mut frame, ends, kind, payload.len())?;
        Some(frame)
    }

    /// Queues a packet of another protocol than IP.
    pub(crate) fn answer_raw(&mut self, ethertype: EthernetProtocol, to: EthernetAddress, payload: &[u8]) {
        let mut frame = vec![0; ETHERNET];
        frame.extend(payload);
        if self.ethernet(&mut frame, to, ethertype).is_some() {
            self.queue(frame, Offload::default());
        }
    }

    fn queue(&mut self, frame: Vec<u8>, offload: Offload) {
        let free = self.most_answers.saturating_sub(self.answers.len());
        let has_room = match &mut self.shared {
            None => free > 0,
            Some(shared) => shared.queues(&frame, free),
        };
        if has_room {
            self.answers.push_back((frame, offload));
        }
    }

    /// Puts the next answer into `room`; one that is longer is lost.
    pub(crate) fn take(&mut self, room: &mut [u8]) -> Option<(usize, Offload)> {
        while let Some((frame, offload)) = self.answers.pop_front() {
            if let Some(shared) = &mut self.shared {
                shared.queued(&frame);
            }
            if let Some(place) = room.get_mut(..frame.len()) {
                place.copy_from_slice(&frame);
                return Some((frame.len(), offload));
            }
        }
        None
    }

    /// Default number of hops, for callers that write headers themselves.
    pub(crate) const fn hops() -> u8 {
        HOPS
    }
}
