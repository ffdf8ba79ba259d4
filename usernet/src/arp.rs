//! ARP: the gateway and the name server are at the gateway's Ethernet address; nobody else is on the wire.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetProtocol};

use crate::config::Ipv4Subnet;
use crate::link::Link;
use crate::packet::Drop;

/// Answers a request for one of our addresses.
pub(crate) fn input(bytes: &[u8], subnet: &Ipv4Subnet, link: &mut Link) -> Result<(), Drop> {
    let packet = ArpPacket::new_checked(bytes).map_err(|_| Drop::Malformed)?;
    let request = ArpRepr::parse(&packet).map_err(|_| Drop::Malformed)?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = request
    else {
        return Ok(());
    };
    if target_protocol_addr != subnet.gateway && target_protocol_addr != subnet.dns {
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
    link.answer_raw(EthernetProtocol::Arp, &bytes);
    Ok(())
}
