//! ARP: the gateway and the name server are at the gateway's Ethernet address. Other guests of the wire speak for themselves.

use std::time::Instant;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol};

use crate::config::Ipv4Subnet;
use crate::link::Link;
use crate::packet::Drop;

/// Answers a request of `source` for one of our addresses.
pub(crate) fn input(
    bytes: &[u8],
    subnet: &Ipv4Subnet,
    source: EthernetAddress,
    link: &mut Link,
    now: Instant,
) -> Result<(), Drop> {
    let packet = ArpPacket::new_checked(bytes).map_err(|_| Drop::Malformed)?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).map_err(|_| Drop::Malformed)?
    else {
        return Ok(());
    };
    if link.is_shared() {
        if source_hardware_addr != source {
            return Err(Drop::Spoofed);
        }
        // A guest that checks whether an address is free has none yet (RFC 5227).
        if !source_protocol_addr.is_unspecified() {
            if !subnet.has_guest(source_protocol_addr) {
                return Err(Drop::Spoofed);
            }
            link.admit(source, source_protocol_addr.into(), now)?;
        }
    }
    let ours = target_protocol_addr == subnet.gateway || target_protocol_addr == subnet.dns;
    if operation != ArpOperation::Request || !ours {
        return Ok(());
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: link.gateway(),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = vec![0; answer.buffer_len()];
    answer.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    link.answer_raw(EthernetProtocol::Arp, source, &bytes);
    Ok(())
}
