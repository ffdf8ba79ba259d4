//! ARP and neighbour discovery.

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Packet, NdiscRepr,
};

use super::*;
use crate::link::NDP_HOPS;

fn arp_request(target: &str) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GUEST_MAC),
        source_protocol_addr: GUEST.parse().unwrap(),
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target.parse().unwrap(),
    };
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut packet));
    let mut wire = wire_of(GUEST_MAC);
    wire.answer_raw(EthernetProtocol::Arp, EthernetAddress([0xff; 6]), &packet);
    let mut room = vec![0; 64];
    let (len, _) = wire.take(&mut room).unwrap();
    room[..len].to_vec()
}

#[test]
fn gateway_and_name_server_are_at_the_gateways_address_and_nobody_else_is_there() {
    let mut guest = Guest::new(Config::default());
    for target in ["10.0.2.2", "10.0.2.3"] {
        let request = arp_request(target);
        guest.send_frame(&request);
        let [frame] = guest.frames().try_into().unwrap();
        assert_eq!(frame[..6], GUEST_MAC);
        let reply = ArpRepr::parse(&ArpPacket::new_checked(&frame[ETHERNET..]).unwrap()).unwrap();
        let expected = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(Config::default().gateway_mac),
            source_protocol_addr: target.parse().unwrap(),
            target_hardware_addr: EthernetAddress(GUEST_MAC),
            target_protocol_addr: GUEST.parse().unwrap(),
        };
        assert_eq!(reply, expected);
    }
    for target in ["10.0.2.15", "10.0.2.4", "9.9.9.9"] {
        let request = arp_request(target);
        guest.send_frame(&request);
    }
    assert!(guest.frames().is_empty());
}

fn solicit(guest: &mut Guest, from: &str, to: &str, hops: u8, kind: u8, rest: &[u8]) {
    guest.hears_router = true;
    let ends: (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(rest);
    icmp::fill_checksum(ends, &mut message);
    guest.send_ip(from, to, (ICMPV6, hops), &message);
}

fn ndisc(seen: &Seen) -> (NdiscRepr<'_>, &[u8]) {
    let packet = Icmpv6Packet::new_checked(seen.payload.as_slice()).unwrap();
    (NdiscRepr::parse(&packet).unwrap(), &seen.payload)
}

#[test]
fn router_is_advertised_with_prefix_mtu_and_name_server() {
    let config = Config { mtu: 1400, ..Config::default() };
    let subnet = config.ipv6.unwrap();
    let mut guest = Guest::new(config);
    solicit(&mut guest, "fe80::15", "ff02::2", NDP_HOPS, 133, &[]);
    let advert = guest.one();
    assert_eq!(advert.destination.to_string(), "ff02::1");
    let (repr, bytes) = ndisc(&advert);
    let NdiscRepr::RouterAdvert { router_lifetime, mtu, prefix_info, lladdr, .. } = repr else {
        panic!("{repr:?}")
    };
    assert!(router_lifetime.total_millis() > 0);
    assert_eq!(
        (mtu, lladdr.map(|mac| mac.as_bytes().to_vec())),
        (Some(1400), Some(Config::default().gateway_mac.to_vec()))
    );
    let prefix = prefix_info.unwrap();
    assert_eq!((prefix.prefix, prefix.prefix_len), (subnet.prefix, 64));
    let rdnss = bytes.windows(16).any(|window| window == subnet.dns.octets());
    assert!(rdnss, "{bytes:02x?}");
}

#[test]
fn router_is_advertised_again_before_it_expires() {
    let mut guest = Guest::new(Config::default());
    guest.wait(20 * 3600);
    assert!(guest.frames().is_empty(), "the guest has not asked");
    solicit(&mut guest, "fe80::15", "ff02::2", NDP_HOPS, 133, &[]);
    guest.one();
    guest.wait(65535 / 2);
    assert!(matches!(ndisc(&guest.seen()[0]).0, NdiscRepr::RouterAdvert { .. }));
}

#[test]
fn gateway_is_found_under_each_of_its_addresses_and_a_taken_address_is_defended() {
    let subnet = Config::default().ipv6.unwrap();
    let link_local = link::link_local(Config::default().gateway_mac);
    for (from, target, to) in [
        ("fe80::15", subnet.gateway, "fe80::15"),
        ("fe80::15", subnet.dns, "fe80::15"),
        ("fe80::15", link_local, "fe80::15"),
        // The guest wants to have the address itself.
        ("::", subnet.gateway, "ff02::1"),
    ] {
        let mut guest = Guest::new(Config::default());
        solicit(&mut guest, from, "ff02::1:ff00:2", NDP_HOPS, 135, &target.octets());
        let advert = guest.one();
        assert_eq!((advert.source, advert.destination.to_string().as_str()), (target.into(), to));
        let NdiscRepr::NeighborAdvert { target_addr, lladdr, .. } = ndisc(&advert).0 else { panic!() };
        assert_eq!((target_addr, lladdr.unwrap().as_bytes()), (target, &Config::default().gateway_mac[..]));
    }
}

#[test]
fn solicitation_for_another_or_from_beyond_the_wire_is_not_answered() {
    let mut guest = Guest::new(Config::default());
    let gateway = Config::default().ipv6.unwrap().gateway;
    solicit(
        &mut guest,
        "fe80::15",
        "ff02::1:ff00:15",
        NDP_HOPS,
        135,
        &GUEST6.parse::<std::net::Ipv6Addr>().unwrap().octets(),
    );
    solicit(&mut guest, "fe80::15", "ff02::1:ff00:2", 64, 135, &gateway.octets());
    solicit(&mut guest, "fe80::15", "ff02::2", 64, 133, &[]);
    assert!(guest.frames().is_empty());
    assert_eq!(guest.network.counters().malformed, 2);
}

#[test]
fn network_too_narrow_for_ipv6_has_none() {
    let mut guest = Guest::new(Config { mtu: 1279, ..Config::default() });
    solicit(&mut guest, "fe80::15", "ff02::2", NDP_HOPS, 133, &[]);
    assert_eq!((guest.frames().len(), guest.network.counters().unknown), (0, 1));
}

#[test]
fn guest_that_was_restored_and_never_asks_is_given_the_router_again() {
    let subnet = Config::default().ipv6.unwrap();
    let is_advert = |seen: &Seen| matches!(ndisc(seen).0, NdiscRepr::RouterAdvert { .. });
    let mut guest = Guest::new(Config::default());
    guest.hears_router = true;
    // Not one of this subnet.
    guest.send_udp("[2001:db8::1]:4000", "[2001:db8::9]:7", b"x");
    guest.ping("fe80::15", &link::link_local(Config::default().gateway_mac).to_string(), 1);
    assert_eq!(guest.one().payload[0], 129);
    guest.send_udp(&format!("[{GUEST6}]:4000"), "[2001:db8::9]:7", b"x");
    assert!(is_advert(&guest.one()));
    guest.send_udp(&format!("[{GUEST6}]:4000"), "[2001:db8::9]:7", b"x");
    assert!(guest.frames().is_empty());
    guest.wait(65535 / 2);
    assert!(is_advert(&guest.seen()[0]));
    // One that only looks for its neighbour.
    let mut guest = Guest::new(Config::default());
    solicit(&mut guest, GUEST6, "ff02::1:ff00:2", NDP_HOPS, 135, &subnet.gateway.octets());
    let seen = guest.seen();
    assert!(seen.len() == 2 && is_advert(&seen[1]), "{seen:?}");
}
