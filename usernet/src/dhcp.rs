//! The DHCP server (RFC 2131, 2132). To one guest it gives one address, always the same; to several what [`Leases`] says.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use smoltcp::wire::{DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress};

use crate::config::{Config, Ipv4Subnet};
use crate::leases::LEASE;
#[cfg(doc)]
use crate::leases::Leases;
use crate::link::Link;
use crate::packet::{self, Drop};
use crate::shared::Shared;
use crate::udp;

pub(crate) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// BOOTP clients expect no less (RFC 1542 §2.1).
const LEAST: usize = 300;
/// Fixed part with the magic number; options follow.
const FIXED: usize = 240;
const MAGIC: u32 = 0x6382_5363;

mod option {
    pub(super) const NETMASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOSTNAME: u8 = 12;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const MESSAGE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const RENEW: u8 = 58;
    pub(super) const REBIND: u8 = 59;
}

/// What a client asks.
#[derive(Debug, Clone)]
struct Request {
    message: DhcpMessageType,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// The address that it has.
    client: Ipv4Addr,
    /// Its name.
    name: String,
}

/// What it is answered: with this address, unless it is refused or has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    kind: DhcpMessageType,
    address: Ipv4Addr,
}

/// Answers a datagram of `source` that came to the server's port.
pub(crate) fn input(
    bytes: &[u8],
    source: EthernetAddress,
    (config, subnet): (&Config, &Ipv4Subnet),
    link: &mut Link,
    now: Instant,
) -> Result<(), Drop> {
    let packet = DhcpPacket::new_checked(bytes).map_err(|_| Drop::Malformed)?;
    if packet.opcode() != DhcpOpCode::Request || packet.magic_number() != MAGIC || packet.hardware_len() != 6
    {
        return Err(Drop::Malformed);
    }
    let request = read(&packet).ok_or(Drop::Malformed)?;
    let mut name = config.hostname.clone();
    let answer = match link.shared() {
        None => decide(&request, subnet),
        // Nobody relays on this wire: a guest speaks for itself only.
        Some(_) if packet.client_hardware_address() != source => return Err(Drop::Spoofed),
        Some(shared) => {
            name = shared.given_name(source).map(str::to_owned);
            decide_shared(&request, source, subnet, shared, now)?
        }
    };
    let Some(answer) = answer else { return Ok(()) };
    let reply = write(&packet, answer, request.message, (config, name), subnet).ok_or(Drop::Malformed)?;
    // A client without an address takes broadcasts only; a refusal is for everybody (RFC 2131 §4.1).
    let to = match request.client {
        known if !known.is_unspecified() && answer.kind != DhcpMessageType::Nak && subnet.contains(known) => {
            known
        }
        _ => Ipv4Addr::BROADCAST,
    };
    let ends = (IpAddr::V4(subnet.gateway), IpAddr::V4(to));
    let datagram = udp::datagram(ends, (SERVER_PORT, CLIENT_PORT), &reply);
    link.answer_at(source, ends, packet::UDP, &datagram);
    Ok(())
}

fn read(packet: &DhcpPacket<&[u8]>) -> Option<Request> {
    let mut message = None;
    let (mut wanted, mut server, mut name) = (None, None, String::new());
    for DhcpOption { kind, data } in packet.options() {
        let address = data.first_chunk().map(|octets| Ipv4Addr::from_octets(*octets));
        match (kind, data) {
            (option::MESSAGE, &[value]) => message = Some(DhcpMessageType::from(value)),
            (option::REQUESTED, _) => wanted = address,
            (option::SERVER, _) => server = address,
            (option::HOSTNAME, _) => name = host_name(&String::from_utf8_lossy(data)).to_ascii_lowercase(),
            _ => {}
        }
    }
    Some(Request { message: message?, wanted, server, client: packet.client_ip(), name })
}

/// The answer to the only guest, if there is one.
fn decide(request: &Request, subnet: &Ipv4Subnet) -> Option<Answer> {
    let ours = request.server.is_none_or(|server| server == subnet.gateway);
    let address = subnet.guest;
    let kind = match request.message {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if ours && request.wanted.unwrap_or(request.client) == address => {
            DhcpMessageType::Ack
        }
        DhcpMessageType::Request if ours => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        // Another server's offer was taken; or the client releases or declines the only address that there is.
        _ => return None,
    };
    Some(Answer { kind, address })
}

/// The answer to one of several guests, if there is one.
fn decide_shared(
    request: &Request,
    guest: EthernetAddress,
    subnet: &Ipv4Subnet,
    shared: &mut Shared,
    now: Instant,
) -> Result<Option<Answer>, Drop> {
    let ours = request.server.is_none_or(|server| server == subnet.gateway);
    // A guest that was named by those who know goes by that name only, and none goes by another's.
    let own_name = shared.own_name(guest, &request.name);
    let Shared { leases, neighbours, .. } = shared;
    let used = |address| neighbours.is_used(address, guest, now);
    let wanted = request.wanted.unwrap_or(request.client);
    let (kind, address) = match request.message {
        DhcpMessageType::Discover => {
            let address = leases.offer(guest, request.wanted, used, now).ok_or(Drop::Full)?;
            (DhcpMessageType::Offer, address)
        }
        DhcpMessageType::Request if ours && leases.take(guest, wanted, used, now) => {
            if let Some(name) = own_name {
                leases.name(guest, name.to_owned());
            }
            (DhcpMessageType::Ack, wanted)
        }
        DhcpMessageType::Request if ours => (DhcpMessageType::Nak, wanted),
        // It took another server's offer.
        DhcpMessageType::Request => return Ok(None),
        DhcpMessageType::Inform => (DhcpMessageType::Ack, wanted),
        DhcpMessageType::Release => {
            leases.release(guest, request.client, now);
            return Ok(None);
        }
        DhcpMessageType::Decline if ours => {
            leases.decline(guest, wanted, now);
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(Answer { kind, address }))
}

fn write(
    from: &DhcpPacket<&[u8]>,
    Answer { kind, address }: Answer,
    asked: DhcpMessageType,
    (config, name): (&Config, Option<String>),
    subnet: &Ipv4Subnet,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; LEAST + 256];
    let mut packet = DhcpPacket::new_unchecked(bytes.as_mut_slice());
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(from.hardware_type());
    packet.set_hardware_len(6);
    packet.set_transaction_id(from.transaction_id());
    packet.set_client_hardware_address(from.client_hardware_address());
    packet.set_flags(from.flags() & DhcpFlags::BROADCAST);
    packet.set_magic_number(MAGIC);
    let lease = kind != DhcpMessageType::Nak && asked != DhcpMessageType::Inform;
    if kind == DhcpMessageType::Ack {
        packet.set_client_ip(from.client_ip());
    }
    if lease {
        packet.set_your_ip(address);
        packet.set_server_ip(subnet.gateway);
    }
    let mut options = Vec::new();
    let mut put = |kind: u8, data: &[u8]| {
        options.push(kind);
        options.push(u8::try_from(data.len()).unwrap_or(0));
        options.extend(data.iter().take(255));
    };
    put(option::MESSAGE, &[kind.into()]);
    put(option::SERVER, &subnet.gateway.octets());
    if lease {
        put(option::LEASE, &LEASE.to_be_bytes());
        put(option::RENEW, &(LEASE / 2).to_be_bytes());
        put(option::REBIND, &(LEASE / 8 * 7).to_be_bytes());
    }
    if kind != DhcpMessageType::Nak {
        put(option::NETMASK, &subnet.mask().octets());
        put(option::ROUTER, &subnet.gateway.octets());
        put(option::DNS, &subnet.dns.octets());
        put(option::BROADCAST, &subnet.broadcast().octets());
        put(option::MTU, &config.mtu.to_be_bytes());
        if let Some(name) = name.as_deref().map(host_name).filter(|name| !name.is_empty()) {
            put(option::HOSTNAME, name.as_bytes());
        }
    }
    options.push(255);
    bytes.get_mut(FIXED..FIXED + options.len())?.copy_from_slice(&options);
    bytes.truncate(LEAST.max(FIXED + options.len()));
    Some(bytes)
}

/// `name` as a host name (RFC 1123 §2.1): a label of letters, digits and dashes.
fn host_name(name: &str) -> String {
    let usable = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    usable.take(63).collect::<String>().trim_matches('-').to_owned()
}
