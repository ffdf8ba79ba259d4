//! A network that several guests share.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, Icmpv6Packet,
    NdiscNeighborFlags, NdiscRepr,
};

use super::dhcp::{option, request};
use super::*;
use crate::link::NDP_HOPS;
use crate::packet::TCP;
use crate::{Destination, Forward, Guests, Limits, Protocol};

fn mac(number: u8) -> EthernetAddress {
    EthernetAddress([2, 0, 0, 0, 0, number])
}

fn lan(config: Config) -> Guest {
    Guest::new(Config { guests: Guests::Many { leases: 1000 }, ..config })
}

impl Guest {
    /// What is sent from now on comes from guest `number`.
    fn is(&mut self, number: u8) -> &mut Self {
        self.wire = wire_of(mac(number).0);
        self.wire.learn(EthernetAddress(Config::default().gateway_mac));
        self
    }

    /// All frames that wait, and the guest that each goes to.
    fn sent(&mut self) -> Vec<(EthernetAddress, Vec<u8>)> {
        let address = |frame: &[u8]| EthernetAddress(*frame.first_chunk().unwrap());
        self.frames().into_iter().map(|frame| (address(&frame), frame)).collect()
    }

    /// The only IP packet that waits, and the guest that it goes to.
    fn only(&mut self) -> (EthernetAddress, Seen) {
        let [(to, frame)] = self.sent().try_into().unwrap();
        (to, seen(&frame))
    }

    fn dhcp(&mut self, number: u8, repr: &DhcpRepr<'_>) -> Option<Vec<u8>> {
        let repr = DhcpRepr { client_hardware_address: mac(number), ..repr.clone() };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
        self.is(number).send_udp("0.0.0.0:68", "255.255.255.255:67", &bytes);
        let sent = self.sent();
        let (to, frame) = sent.first()?;
        assert_eq!((*to, sent.len()), (mac(number), 1));
        Some(seen(frame).datagram().2.to_vec())
    }

    /// Guest `number` asks for a lease, and is named `name`.
    fn lease(&mut self, number: u8, name: &str) -> Option<Ipv4Addr> {
        let offer = self.dhcp(number, &request(DhcpMessageType::Discover))?;
        let address = DhcpPacket::new_checked(offer.as_slice()).unwrap().your_ip();
        let option = smoltcp::wire::DhcpOption { kind: 12, data: name.as_bytes() };
        let wanted = DhcpRepr {
            requested_ip: Some(address),
            server_identifier: Some(Ipv4Addr::new(10, 0, 2, 2)),
            additional_options: if name.is_empty() { &[] } else { &[option] },
            ..request(DhcpMessageType::Request)
        };
        let reply = self.dhcp(number, &wanted)?;
        let reply = DhcpPacket::new_checked(reply.as_slice()).unwrap();
        let reply = DhcpRepr::parse(&reply).unwrap();
        assert_eq!((reply.message_type, reply.your_ip), (DhcpMessageType::Ack, address));
        Some(address)
    }

    fn arp(&mut self, number: u8, operation: ArpOperation, from: Ipv4Addr, to: &str) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac(number),
            source_protocol_addr: from,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: to.parse().unwrap(),
        };
        let mut packet = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut packet));
        self.is(number).wire.answer_raw(EthernetProtocol::Arp, EthernetAddress([0xff; 6]), &packet);
        let mut room = vec![0; 64];
        let (len, _) = self.wire.take(&mut room).unwrap();
        self.send_frame(&room[..len]);
    }
}

fn udp_forward(port: u16) -> Forward {
    Forward { protocol: Protocol::Udp, bind: SocketAddr::from(([127, 0, 0, 1], port)), guest_port: 53 }
}

#[test]
fn each_guest_gets_an_address_of_its_own_and_its_own_answers() {
    let mut lan = lan(Config::default());
    let addresses: Vec<_> = (1..6).map(|number| lan.lease(number, "").unwrap().to_string()).collect();
    assert_eq!(addresses[0], "10.0.2.15");
    assert_eq!(addresses.iter().collect::<std::collections::HashSet<_>>().len(), 5);
    assert_eq!(lan.lease(3, "").unwrap().to_string(), addresses[2]);
    for (number, address) in (1..).zip(&addresses) {
        lan.is(number).send_udp(&format!("{address}:4000"), "9.9.9.9:7", b"question");
    }
    for (number, address) in (1..).zip(&addresses) {
        lan.host_gives(number.into(), "9.9.9.9:7", b"answer");
        let (to, seen) = lan.only();
        assert_eq!((to, seen.datagram().1), (mac(number), format!("{address}:4000")));
    }
    // Errors go to the guest whose packet they are about.
    lan.is(2).send_udp(&format!("{}:4000", addresses[1]), "127.0.0.1:7", b"question");
    let (to, error) = lan.only();
    assert_eq!((to, error.destination.to_string(), error.payload[0]), (mac(2), addresses[1].clone(), 3));
    assert_eq!(lan.network.leases(lan.now).len(), 5);
}

#[test]
fn guest_cannot_use_the_address_or_lease_of_another() {
    let mut lan = lan(Config::default());
    let first = lan.lease(1, "").unwrap();
    lan.is(2).ping(&first.to_string(), "10.0.2.2", 64);
    lan.arp(2, ArpOperation::Reply, first, "10.0.2.2");
    lan.arp(2, ArpOperation::Request, Ipv4Addr::new(10, 0, 2, 2), "10.0.2.15");
    assert!(lan.sent().is_empty());
    assert_eq!(lan.network.counters().spoofed, 3);
    // In another's name.
    let mut bytes = vec![0; 400];
    let release =
        DhcpRepr { client_ip: first, client_hardware_address: mac(1), ..request(DhcpMessageType::Release) };
    release.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
    lan.is(2).send_udp("0.0.0.0:68", "255.255.255.255:67", &bytes);
    assert_eq!((lan.network.counters().spoofed, lan.network.leases(lan.now).len()), (4, 1));
    lan.is(1).ping(&first.to_string(), "10.0.2.2", 64);
    assert_eq!(lan.only().0, mac(1));
}

#[test]
fn owner_of_a_fixed_address_is_asked_before_another_gets_it() {
    let mut lan = lan(Config::default());
    let address = Ipv4Addr::new(10, 0, 2, 7);
    lan.is(1).ping("10.0.2.7", "10.0.2.2", 64);
    assert_eq!(lan.only().0, mac(1));
    lan.is(2).ping("10.0.2.7", "10.0.2.2", 64);
    let [(to, question)] = lan.sent().try_into().unwrap();
    let question = ArpRepr::parse(&ArpPacket::new_checked(&question[ETHERNET..]).unwrap()).unwrap();
    let ArpRepr::EthernetIpv4 { operation, target_protocol_addr, .. } = question else { panic!() };
    assert_eq!((to, operation, target_protocol_addr), (mac(1), ArpOperation::Request, address));
    lan.arp(1, ArpOperation::Reply, address, "10.0.2.2");
    lan.wait(2);
    // The owner is there: it is asked again, and has the address all the same.
    lan.is(2).ping("10.0.2.7", "10.0.2.2", 64);
    assert_eq!(lan.sent().len(), 1);
    lan.is(1).ping("10.0.2.7", "10.0.2.2", 64);
    assert_eq!(lan.only().0, mac(1));
    // It is gone.
    lan.is(2).ping("10.0.2.7", "10.0.2.2", 64);
    lan.sent();
    lan.wait(2);
    lan.is(2).ping("10.0.2.7", "10.0.2.2", 64);
    assert_eq!(lan.only().0, mac(2));
}

#[test]
fn used_up_pool_gives_no_answer_and_counts_it() {
    let mut lan = Guest::new(Config { guests: Guests::Many { leases: 2 }, ..Config::default() });
    assert!(lan.lease(1, "").is_some() && lan.lease(2, "").is_some());
    assert_eq!(lan.lease(3, ""), None);
    assert_eq!(lan.network.counters().full, 1);
}

#[test]
fn forwards_lead_to_guests_by_address_and_by_name() {
    let mut lan = lan(Config::default());
    lan.network.set_name(mac(3).0, Some("vm3".into()));
    for (port, to) in [
        (1, Destination::First),
        (2, Destination::Address([10, 0, 2, 77].into())),
        (3, Destination::Name("vm2".into())),
        (4, Destination::Name("vm3".into())),
        (5, Destination::Name("vm9".into())),
    ] {
        lan.network.forward_to(udp_forward(port), to).unwrap();
    }
    lan.lease(1, "").unwrap();
    // It calls itself as another is called by those who know.
    lan.lease(2, "VM2").unwrap();
    let third = lan.lease(3, "vm2").unwrap();
    lan.lease(4, "vm3").unwrap();
    lan.is(7).ping("10.0.2.77", "10.0.2.2", 64);
    lan.sent();
    for (socket, number) in [(1, 1), (2, 7), (3, 2), (4, 3)] {
        // The first packet to a guest that has not spoken since it got its lease waits for its answer.
        lan.host_gives(socket, "127.0.0.1:9000", b"knock");
        let (mut to, mut frame) = lan.sent().remove(0);
        if to == EthernetAddress([0xff; 6]) {
            let arp = ArpRepr::parse(&ArpPacket::new_checked(&frame[ETHERNET..]).unwrap()).unwrap();
            let ArpRepr::EthernetIpv4 { target_protocol_addr, .. } = arp else { panic!() };
            lan.arp(number, ArpOperation::Reply, target_protocol_addr, "10.0.2.2");
            (to, frame) = lan.sent().remove(0);
        }
        assert_eq!((to, seen(&frame).datagram().2), (mac(number), &b"knock"[..]));
    }
    lan.host_gives(5, "127.0.0.1:9000", b"knock");
    assert!(lan.sent().is_empty());
    let reply = lan.dhcp(3, &DhcpRepr { client_ip: third, ..request(DhcpMessageType::Inform) });
    assert_eq!(option(&reply.unwrap(), 12).as_deref(), Some(&b"vm3"[..]));
}

#[test]
fn guest_that_was_named_draws_no_forward_to_itself_by_another_name() {
    let mut lan = lan(Config::default());
    lan.network.set_name(mac(1).0, Some("vm1".into()));
    lan.network.forward_to(udp_forward(1), Destination::Name("vm2".into())).unwrap();
    // The machine of this name has not come yet.
    lan.lease(1, "vm2").unwrap();
    lan.host_gives(1, "127.0.0.1:9000", b"knock");
    assert!(lan.sent().is_empty());
    // It is here, without an address; one that nobody has named goes by its name.
    lan.network.set_name(mac(2).0, Some("VM2".into()));
    lan.lease(3, "vm2").unwrap();
    lan.network.set_name(mac(2).0, None);
    lan.host_gives(1, "127.0.0.1:9000", b"knock");
    assert!(lan.sent().is_empty());
}

#[test]
fn guest_that_nobody_knows_is_asked_for_three_times_and_few_packets_wait() {
    let mut lan = lan(Config::default());
    let to = Destination::Address([10, 0, 2, 77].into());
    lan.network.forward_to(udp_forward(1), to).unwrap();
    for peer in 9000..9100 {
        lan.host_gives(1, &format!("127.0.0.1:{peer}"), b"knock");
    }
    let asks = |sent: &[(EthernetAddress, Vec<u8>)]| {
        sent.iter().filter(|(to, frame)| *to == EthernetAddress([0xff; 6]) && frame[12..14] == [8, 6]).count()
    };
    let sent = lan.sent();
    assert_eq!((asks(&sent), sent.len()), (1, 1));
    for again in [1, 1, 0, 0] {
        lan.wait(1);
        let sent = lan.sent();
        assert_eq!((asks(&sent), sent.len()), (again, again));
    }
    lan.host_gives(1, "127.0.0.1:9000", b"again");
    assert_eq!(lan.sent().len(), 1);
    lan.arp(7, ArpOperation::Reply, Ipv4Addr::new(10, 0, 2, 77), "10.0.2.2");
    let (to, seen) = lan.only();
    assert_eq!((to, seen.datagram().2), (mac(7), &b"again"[..]));
}

#[test]
fn guests_have_ipv6_and_each_is_told_of_the_router() {
    let mut lan = lan(Config::default());
    lan.hears_router = true;
    let subnet = Config::default().ipv6.unwrap();
    for number in [1, 2] {
        let from = format!("fd62:6164:2::1{number}");
        let to = Destination::Address(from.parse().unwrap());
        lan.network.forward_to(udp_forward(number.into()), to).unwrap();
        lan.is(number).send_udp(&format!("[{from}]:4000"), "[2001:db8::1]:7", b"question");
        let (to, advert) = lan.only();
        assert_eq!((to, advert.destination.to_string(), advert.payload[0]), (mac(number), from, 134));
    }
    // One that says nothing is asked for in the group of its address, and answers.
    let silent: Ipv6Addr = "fd62:6164:2::13".parse().unwrap();
    lan.network.forward_to(udp_forward(3), Destination::Address(silent.into())).unwrap();
    // After two forwards and two flows.
    lan.host_gives(5, "127.0.0.1:9000", b"knock");
    let (to, question) = lan.only();
    assert_eq!((to.0, question.payload[0]), ([0x33, 0x33, 0xff, 0, 0, 0x13], 135));
    let advert =
        NdiscRepr::NeighborAdvert { flags: NdiscNeighborFlags::SOLICITED, target_addr: silent, lladdr: None };
    let mut message = vec![0; advert.buffer_len()];
    advert.emit(&mut Icmpv6Packet::new_unchecked(message.as_mut_slice()));
    icmp::fill_checksum((silent.into(), subnet.gateway.into()), &mut message);
    lan.is(3).send_ip(&silent.to_string(), &subnet.gateway.to_string(), (ICMPV6, NDP_HOPS), &message);
    let knocks: Vec<_> = lan.sent().into_iter().filter(|(_, frame)| frame.ends_with(b"knock")).collect();
    assert_eq!((knocks.len(), knocks[0].0), (1, mac(3)));
    // A solicitation is answered to the guest alone.
    let mut solicitation = vec![133, 0, 0, 0, 0, 0, 0, 0];
    let ends = ("fe80::1".parse().unwrap(), "ff02::2".parse().unwrap());
    icmp::fill_checksum(ends, &mut solicitation);
    lan.is(1).send_ip("fe80::1", "ff02::2", (ICMPV6, NDP_HOPS), &solicitation);
    assert_eq!(lan.only().0, mac(1));
}

fn syn(lan: &mut Guest, number: u8, from: &str, port: u16, to: &str) {
    let ends: (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&port.to_be_bytes());
    bytes[3] = 80;
    (bytes[12], bytes[13], bytes[14]) = (0x50, 2, 0x10);
    let sum = crate::sum::Sum::pseudo(ends.0, ends.1, TCP, 20).add(&bytes).checksum();
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    lan.is(number).send_ip(from, to, (TCP, 64), &bytes);
}

#[test]
fn guest_that_floods_leaves_connections_flows_and_echo_sockets_to_the_others() {
    let limits = Limits { connections: 80, udp_flows: 40, pings: 8, ..Limits::default() };
    let mut lan = lan(Config { limits, ..Config::default() });
    for port in 1000..1200 {
        syn(&mut lan, 1, "10.0.2.101", port, "9.9.9.9");
        lan.is(1).send_udp(&format!("10.0.2.101:{port}"), "9.9.9.9:7", b"flood");
        lan.is(1).ping("10.0.2.101", &format!("9.9.9.{}", port % 200), 64);
        lan.sent();
    }
    // Half of each: of 10 that may be half-open, of 40 flows, of 8 echo sockets.
    let counters = lan.network.counters();
    assert_eq!((counters.connections, counters.flows), (5, 20 + 4));
    for number in 2..5 {
        let from = format!("10.0.2.10{number}");
        syn(&mut lan, number, &from, 1000, "9.9.9.9");
        lan.is(number).send_udp(&format!("{from}:1000"), "9.9.9.9:7", b"one");
        if number < 4 {
            lan.is(number).ping(&from, "9.9.8.8", 64);
        }
    }
    let counters = lan.network.counters();
    assert_eq!((counters.connections, counters.flows), (5 + 3, 20 + 3 + 4 + 2));
}

#[test]
fn guest_that_floods_the_gateway_leaves_answers_to_the_others() {
    let limits = Limits { queued: 16, ..Limits::default() };
    let mut lan = lan(Config { limits, ..Config::default() });
    for _ in 0..100 {
        lan.is(1).ping("10.0.2.101", "10.0.2.2", 64);
    }
    lan.is(2).ping("10.0.2.102", "10.0.2.2", 64);
    let to: Vec<_> = lan.sent().into_iter().map(|(to, _)| to).collect();
    assert_eq!((to.len(), to.last()), (9, Some(&mac(2))));
    // The count starts anew when they were taken.
    lan.is(1).ping("10.0.2.101", "10.0.2.2", 64);
    assert_eq!(lan.only().0, mac(1));
}
