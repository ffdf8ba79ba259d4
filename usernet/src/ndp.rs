//! Neighbour discovery (RFC 4861): where the gateway is, and which prefix, MTU and name server (RFC 8106) the guest uses.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::time::Duration;
use smoltcp::wire::{
    Icmpv6Message, Icmpv6Packet, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags,
};

use crate::config::{Config, Ipv6Subnet};
use crate::icmp;
use crate::link::{Link, NDP_HOPS};
use crate::packet::{Drop, ICMPV6, Packet};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The longest that RFC 8319 allows: advertisements are rare, as the only router never goes away.
const ROUTER_LIFETIME: Duration = Duration::from_secs(65535);
/// For ever (RFC 4861 §4.6.2).
const FOR_EVER: u32 = u32::MAX;

const RDNSS: u8 = 25;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ndp {
    /// It is none of neighbour discovery.
    Other,
    /// It was dealt with.
    Done,
    /// The guest was given an advertisement of the router.
    Advertised,
    /// One of several guests says that it has this address.
    Claimed(Ipv6Addr),
}

/// Takes a message that may be one of neighbour discovery; its checksum is right.
pub(crate) fn input(
    packet: &Packet<'_>,
    config: &Config,
    subnet: &Ipv6Subnet,
    link: &mut Link,
) -> Result<Ndp, Drop> {
    let message = Icmpv6Packet::new_checked(packet.payload).map_err(|_| Drop::Malformed)?;
    let kind = message.msg_type();
    let asked = link.is_shared() && kind == Icmpv6Message::NeighborAdvert;
    if !asked && !matches!(kind, Icmpv6Message::RouterSolicit | Icmpv6Message::NeighborSolicit) {
        let known = matches!(
            kind,
            Icmpv6Message::RouterAdvert | Icmpv6Message::NeighborAdvert | Icmpv6Message::Redirect
        );
        return Ok(if known { Ndp::Done } else { Ndp::Other });
    }
    // RFC 4861 §6.1.1, §7.1.1: it comes from this wire.
    if packet.hops != NDP_HOPS || message.msg_code() != 0 {
        return Err(Drop::Malformed);
    }
    match NdiscRepr::parse(&message).map_err(|_| Drop::Malformed)? {
        NdiscRepr::RouterSolicit { .. } => {
            let alone = link.is_shared() && !packet.source.is_unspecified();
            advertise_router(config, subnet, alone.then_some(packet.source), link);
            Ok(Ndp::Advertised)
        }
        NdiscRepr::NeighborAdvert { target_addr, .. } => Ok(Ndp::Claimed(target_addr)),
        NdiscRepr::NeighborSolicit { target_addr, .. } => {
            if target_addr == subnet.gateway || target_addr == subnet.dns || target_addr == link.link_local()
            {
                advertise_neighbour(target_addr, packet.source, link);
            }
            Ok(Ndp::Done)
        }
        _ => Ok(Ndp::Done),
    }
}

fn advertise_neighbour(target: Ipv6Addr, asker: IpAddr, link: &mut Link) {
    // A guest that checks whether an address is free has none yet.
    let free_check = asker.is_unspecified();
    let solicited = if free_check { NdiscNeighborFlags::empty() } else { NdiscNeighborFlags::SOLICITED };
    let repr = NdiscRepr::NeighborAdvert {
        flags: solicited | NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::ROUTER,
        target_addr: target,
        lladdr: Some(link.gateway().into()),
    };
    let to = if free_check { IpAddr::V6(ALL_NODES) } else { asker };
    send(&repr, &[], (target.into(), to), link);
}

/// Advertises the router to one guest, or to all nodes of the wire.
pub(crate) fn advertise_router(config: &Config, subnet: &Ipv6Subnet, to: Option<IpAddr>, link: &mut Link) {
    let for_ever = Duration::from_secs(FOR_EVER.into());
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: ROUTER_LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(link.gateway().into()),
        mtu: Some(config.mtu.into()),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: for_ever,
            preferred_lifetime: for_ever,
            prefix: subnet.prefix,
        }),
    };
    // RFC 8106 §5.1: length in units of 8 bytes, two reserved ones, lifetime, address.
    let mut dns = vec![RDNSS, 3, 0, 0];
    dns.extend(FOR_EVER.to_be_bytes());
    dns.extend(subnet.dns.octets());
    send(&repr, &dns, (link.link_local().into(), to.unwrap_or(ALL_NODES.into())), link);
}

fn send(repr: &NdiscRepr<'_>, options: &[u8], ends: (IpAddr, IpAddr), link: &mut Link) {
    let mut message = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv6Packet::new_unchecked(message.as_mut_slice()));
    message.extend(options);
    icmp::fill_checksum(ends, &mut message);
    link.answer_with_hops(ends, (ICMPV6, NDP_HOPS), &message);
}
