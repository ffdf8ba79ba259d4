//! A wire that several guests share: their addresses, their leases, and the questions that are open.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv6Packet, Ipv6Packet, Ipv6Repr, NdiscRepr,
};

use crate::config::{Config, Guests};
use crate::icmp;
use crate::leases::Leases;
use crate::link::{self, ETHERNET, NDP_HOPS};
use crate::neighbours::{Claim, Neighbours};
use crate::offload::Offload;
use crate::packet::{Drop, ICMPV6};
use crate::questions::{Held, Questions};
use crate::shares::GuestId;

const BROADCAST: EthernetAddress = EthernetAddress([0xff; 6]);
/// Names that were given to guests from outside.
const NAMES: usize = 1024;

/// Frames that waited for an address, with what is left to their receiver.
type Waiting = Vec<(Vec<u8>, Offload)>;

/// What is known of the guests.
#[derive(Debug)]
pub(crate) struct Shared {
    gateway: EthernetAddress,
    gateway4: Option<Ipv4Addr>,
    pub(crate) neighbours: Neighbours,
    pub(crate) leases: Leases,
    pub(crate) questions: Questions,
    /// Answers that wait, by Ethernet address.
    answers: HashMap<EthernetAddress, usize>,
    /// Names of guests that their owner knows.
    names: HashMap<EthernetAddress, String>,
}

impl Shared {
    /// Nobody yet. `None`: there is one guest only.
    pub(crate) fn new(config: &Config) -> Option<Self> {
        let Guests::Many { leases } = config.guests else { return None };
        Some(Shared {
            gateway: EthernetAddress(config.gateway_mac),
            gateway4: config.ipv4.map(|subnet| subnet.gateway),
            neighbours: Neighbours::new(),
            leases: Leases::new(&config.ipv4.unwrap_or_default(), leases),
            questions: Questions::default(),
            answers: HashMap::new(),
            names: HashMap::new(),
        })
    }

    /// Where packets to `address` go.
    pub(crate) fn find(&self, address: IpAddr) -> Option<EthernetAddress> {
        self.neighbours.find(address)
    }

    /// A packet from `address` came from `source`. Frames are to be sent: those that waited for the address, or a question.
    pub(crate) fn admit(
        &mut self,
        source: EthernetAddress,
        address: IpAddr,
        now: Instant,
    ) -> (Result<(GuestId, bool), Drop>, Waiting) {
        match self.neighbours.claim(source, address, &self.leases, now) {
            Claim::Holds { guest, new: false } => (Ok((guest, false)), Vec::new()),
            Claim::Holds { guest, new: true } => (Ok((guest, true)), self.questions.answered(address)),
            Claim::Challenges(owner) => {
                let question = self.question(address, Some(owner)).map(|frame| (frame, Offload::default()));
                (Err(Drop::Spoofed), question.into_iter().collect())
            }
            Claim::Refused(drop) => (Err(drop), Vec::new()),
        }
    }

    /// Keeps a frame for an address that nobody is known to have. Returns the question that has to be asked.
    pub(crate) fn hold(&mut self, frame: &[u8], offload: Offload, now: Instant) -> Option<Vec<u8>> {
        let address = destination(frame)?;
        match self.questions.hold(address, frame, offload, now) {
            Held::Asks => self.question(address, None),
            Held::Waits | Held::Lost => None,
        }
    }

    /// Questions that have to be asked again.
    pub(crate) fn timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let again = self.questions.timeout(now);
        again.into_iter().filter_map(|address| self.question(address, None)).collect()
    }

    /// Whether `frame` may wait to be taken, where `free` more may. It is counted then.
    pub(crate) fn queues(&mut self, frame: &[u8], free: usize) -> bool {
        let receiver = receiver(frame);
        let has_room = self.answers.get(&receiver).copied().unwrap_or(0) < free;
        if has_room {
            *self.answers.entry(receiver).or_default() += 1;
        }
        has_room
    }

    /// `frame` was taken.
    pub(crate) fn queued(&mut self, frame: &[u8]) {
        let receiver = receiver(frame);
        if let Some(own) = self.answers.get_mut(&receiver) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                self.answers.remove(&receiver);
            }
        }
    }

    /// The name that a guest is to have.
    pub(crate) fn given_name(&self, guest: EthernetAddress) -> Option<&str> {
        self.names.get(&guest).map(String::as_str)
    }

    /// The name that a guest calls itself, if it may have it: it was given none, and nobody else was given this one.
    pub(crate) fn own_name<'a>(&self, guest: EthernetAddress, name: &'a str) -> Option<&'a str> {
        let is_given = self.names.values().any(|given| given.eq_ignore_ascii_case(name));
        (!is_given && !self.names.contains_key(&guest)).then_some(name)
    }

    /// Names a guest, or forgets its name.
    pub(crate) fn give_name(&mut self, guest: EthernetAddress, name: Option<String>) {
        match name {
            Some(name) if self.names.len() < NAMES => drop(self.names.insert(guest, name)),
            _ => drop(self.names.remove(&guest)),
        }
    }

    /// The address of the guest with a name: one that it was given rather than one that it took itself.
    pub(crate) fn named(&self, name: &str) -> Option<IpAddr> {
        let given =
            |(guest, given): (&EthernetAddress, &String)| given.eq_ignore_ascii_case(name).then_some(*guest);
        let mut given = self.names.iter().filter_map(given).peekable();
        match given.peek() {
            // A machine with several interfaces.
            Some(_) => given.find_map(|guest| self.address_of(guest)),
            None => self.leases.named(name).map(IpAddr::V4),
        }
    }

    fn address_of(&self, guest: EthernetAddress) -> Option<IpAddr> {
        self.leases.of(guest).map(IpAddr::V4).or_else(|| self.neighbours.address4(guest))
    }

    /// Asks all guests, or one of them, for an address.
    fn question(&self, address: IpAddr, owner: Option<EthernetAddress>) -> Option<Vec<u8>> {
        match address {
            IpAddr::V4(address) => self.arp_request(address, owner.unwrap_or(BROADCAST)),
            IpAddr::V6(address) => self.neighbour_solicitation(address, owner),
        }
    }

    fn arp_request(&self, address: Ipv4Addr, to: EthernetAddress) -> Option<Vec<u8>> {
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.gateway,
            source_protocol_addr: self.gateway4?,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        let mut frame = vec![0; ETHERNET + request.buffer_len()];
        self.head(&mut frame, to, EthernetProtocol::Arp);
        request.emit(&mut ArpPacket::new_unchecked(frame.get_mut(ETHERNET..)?));
        Some(frame)
    }

    /// RFC 4861 §7.2.2: to the group of the address, or to the owner that is known.
    fn neighbour_solicitation(&self, address: Ipv6Addr, owner: Option<EthernetAddress>) -> Option<Vec<u8>> {
        let [.., a, b, c] = address.octets();
        let group = Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let (to, mac) = match owner {
            Some(owner) => (address, owner),
            None => (group, EthernetAddress([0x33, 0x33, 0xff, a, b, c])),
        };
        let from = link::link_local(self.gateway.0);
        let solicitation =
            NdiscRepr::NeighborSolicit { target_addr: address, lladdr: Some(self.gateway.into()) };
        let mut message = vec![0; solicitation.buffer_len()];
        solicitation.emit(&mut Icmpv6Packet::new_unchecked(message.as_mut_slice()));
        icmp::fill_checksum((from.into(), to.into()), &mut message);
        let head = Ipv6Repr {
            src_addr: from,
            dst_addr: to,
            next_header: ICMPV6.into(),
            payload_len: message.len(),
            hop_limit: NDP_HOPS,
        };
        let mut frame = vec![0; ETHERNET + head.buffer_len()];
        self.head(&mut frame, mac, EthernetProtocol::Ipv6);
        head.emit(&mut Ipv6Packet::new_unchecked(frame.get_mut(ETHERNET..)?));
        frame.extend(message);
        Some(frame)
    }

    fn head(&self, frame: &mut [u8], to: EthernetAddress, ethertype: EthernetProtocol) {
        EthernetRepr { src_addr: self.gateway, dst_addr: to, ethertype }
            .emit(&mut EthernetFrame::new_unchecked(frame));
    }
}

fn receiver(frame: &[u8]) -> EthernetAddress {
    EthernetAddress(frame.first_chunk().copied().unwrap_or_default())
}

/// The address that an IP packet goes to.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => frame.get(30..)?.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        [0x86, 0xdd] => frame.get(38..)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}
