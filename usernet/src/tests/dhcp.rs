//! DHCP, as clients do it.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use super::*;

pub(super) fn request(kind: DhcpMessageType) -> DhcpRepr<'static> {
    DhcpRepr {
        message_type: kind,
        transaction_id: 0x1234_5678,
        secs: 0,
        client_hardware_address: EthernetAddress(GUEST_MAC),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}

fn ask(guest: &mut Guest, repr: &DhcpRepr<'_>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
    let from =
        if repr.client_ip.is_unspecified() { "0.0.0.0:68".into() } else { format!("{}:68", repr.client_ip) };
    guest.send_udp(&from, "255.255.255.255:67", &bytes);
    let seen = guest.seen();
    let reply = seen.first()?;
    let (source, destination, payload) = reply.datagram();
    let to =
        if repr.client_ip.is_unspecified() { "255.255.255.255".into() } else { repr.client_ip.to_string() };
    assert_eq!((source.as_str(), destination), ("10.0.2.2:67", format!("{to}:68")));
    Some(payload.to_vec())
}

pub(super) fn option(reply: &[u8], kind: u8) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(reply).unwrap();
    packet.options().find(|option| option.kind == kind).map(|option| option.data.to_vec())
}

fn parsed(reply: &[u8]) -> (DhcpMessageType, Ipv4Addr) {
    let packet = DhcpPacket::new_checked(reply).unwrap();
    let repr = DhcpRepr::parse(&packet).unwrap();
    assert_eq!((repr.transaction_id, repr.client_hardware_address.0), (0x1234_5678, GUEST_MAC));
    (repr.message_type, repr.your_ip)
}

#[test]
fn guest_gets_its_address_with_router_name_server_mtu_and_host_name() {
    let config = Config { hostname: Some("vm_0.lan".into()), mtu: 1400, ..Config::default() };
    let mut guest = Guest::new(config);
    let address: Ipv4Addr = GUEST.parse().unwrap();
    let offer = ask(&mut guest, &request(DhcpMessageType::Discover)).unwrap();
    assert_eq!(parsed(&offer), (DhcpMessageType::Offer, address));
    assert!(offer.len() >= 300, "BOOTP's least length");

    let server = Some(Ipv4Addr::new(10, 0, 2, 2));
    let wanted = DhcpRepr {
        requested_ip: Some(address),
        server_identifier: server,
        ..request(DhcpMessageType::Request)
    };
    let ack = ask(&mut guest, &wanted).unwrap();
    assert_eq!(parsed(&ack), (DhcpMessageType::Ack, address));
    let expected: [(u8, &[u8]); 8] = [
        (1, &[255, 255, 255, 0]),
        (3, &[10, 0, 2, 2]),
        (6, &[10, 0, 2, 3]),
        (12, b"vm-0-lan"),
        (26, &1400u16.to_be_bytes()),
        (28, &[10, 0, 2, 255]),
        (51, &86400u32.to_be_bytes()),
        (54, &[10, 0, 2, 2]),
    ];
    for (kind, data) in expected {
        assert_eq!(option(&ack, kind).as_deref(), Some(data), "option {kind}");
    }
}

#[test]
fn lease_is_renewed_and_another_address_is_refused() {
    let mut guest = Guest::new(Config::default());
    let address: Ipv4Addr = GUEST.parse().unwrap();
    let renewal = DhcpRepr { client_ip: address, ..request(DhcpMessageType::Request) };
    assert_eq!(parsed(&ask(&mut guest, &renewal).unwrap()), (DhcpMessageType::Ack, address));
    // A guest that was on another network before.
    let elsewhere =
        DhcpRepr { requested_ip: Some(Ipv4Addr::new(192, 168, 1, 7)), ..request(DhcpMessageType::Request) };
    let refusal = ask(&mut guest, &elsewhere).unwrap();
    assert_eq!(parsed(&refusal), (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED));
    assert_eq!(option(&refusal, 3), None);
}

#[test]
fn inform_is_answered_without_a_lease_and_other_servers_clients_are_left_alone() {
    let mut guest = Guest::new(Config::default());
    let inform = DhcpRepr { client_ip: Ipv4Addr::new(10, 0, 2, 20), ..request(DhcpMessageType::Inform) };
    let ack = ask(&mut guest, &inform).unwrap();
    assert_eq!(parsed(&ack), (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED));
    assert_eq!((option(&ack, 51), option(&ack, 3).is_some()), (None, true));
    let other =
        DhcpRepr { server_identifier: Some(Ipv4Addr::new(10, 0, 2, 9)), ..request(DhcpMessageType::Request) };
    assert_eq!(ask(&mut guest, &other), None);
    for kind in [DhcpMessageType::Release, DhcpMessageType::Decline] {
        assert_eq!(ask(&mut guest, &request(kind)), None);
    }
}
