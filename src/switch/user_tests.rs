//! Machines with a TCP of another author on a switch whose uplink is a network behind the host's loopback.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::{Deref, DerefMut};
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpAddress, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::Keeper;
use super::tests::{Client, LIMIT, Running, framed};
use crate::host::capture::StreamState;
use crate::host::frame_link::{Cutter, Framing, Item};
use crate::host::user_network::testing::{FrameWire, TcpGuest};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A machine's end of its port.
struct Wire {
    client: Client,
    bytes: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
    /// The machine's interface is one of this VLAN.
    vlan: Option<u16>,
    /// It leaves the checksums of its datagrams to the switch.
    partial: bool,
}

impl Wire {
    fn new(running: &Running, number: u8, options: &str) -> Self {
        let client = running.attach(number, options);
        client.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        Wire { client, bytes: Vec::new(), frames: VecDeque::new(), vlan: None, partial: false }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut frame = frame.to_vec();
        let is_datagram = frame[12..14] == [8, 0] && frame[23] == 17;
        let tag = self.vlan.map(|vlan| {
            let [high, low] = vlan.to_be_bytes();
            frame.splice(12..12, [0x81, 0, high, low]);
        });
        let start = if tag.is_some() { 38 } else { 34 };
        if self.partial && is_datagram {
            // What the sum does not say, the header does.
            frame[start + 6..start + 8].copy_from_slice(&[0xde, 0xad]);
        }
        let mut bytes = framed(&frame);
        if self.partial && is_datagram {
            bytes[4..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, start as u8, 0, 6, 0, 0, 0]);
        }
        self.client.stream.write_all(&bytes).unwrap();
    }

    /// Waits a moment for frames.
    fn read(&mut self) {
        let mut more = [0; 64 << 10];
        match self.client.stream.read(&mut more) {
            Ok(0) => panic!("the switch has ended"),
            Ok(count) => self.bytes.extend(&more[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
        let mut cutter = Cutter::new(Framing::Header);
        while let Some(item) = cutter.next(&self.bytes).unwrap() {
            if let Item::Frame { at, .. } = item {
                let mut frame = self.bytes[at].to_vec();
                if let Some(vlan) = self.vlan {
                    let [high, low] = vlan.to_be_bytes();
                    assert_eq!(frame[12..16], [0x81, 0, high, low]);
                    frame.drain(12..16);
                }
                self.frames.push_back(frame);
            }
        }
        self.bytes.drain(..cutter.taken());
    }
}

impl FrameWire for Wire {
    fn put(&mut self, frame: &[u8]) {
        self.send(frame);
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    fn wait(&mut self, _: Duration) {
        self.read();
    }
}

/// A machine with a lease.
struct Machine {
    guest: TcpGuest<Wire>,
    mac: EthernetAddress,
    address: Ipv4Addr,
}

impl Deref for Machine {
    type Target = TcpGuest<Wire>;

    fn deref(&self) -> &TcpGuest<Wire> {
        &self.guest
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut TcpGuest<Wire> {
        &mut self.guest
    }
}

impl Machine {
    fn new(running: &Running, number: u8) -> Self {
        Self::on(Wire::new(running, number, ""), number)
    }

    /// A machine that gets its lease over `wire`.
    fn on(mut wire: Wire, number: u8) -> Self {
        let mac = EthernetAddress([2, 0, 0, 0, 0, number]);
        let offered = dhcp(&mut wire, mac, DhcpMessageType::Discover, None);
        let address = dhcp(&mut wire, mac, DhcpMessageType::Request, Some(offered));
        assert_eq!(address, offered);
        Machine { guest: TcpGuest::on(wire, mac, address, GATEWAY), mac, address }
    }

    /// Sends `bytes` through a connection to the host's `port`, and returns as many that come back.
    fn echoes(&mut self, port: u16, bytes: &[u8]) -> Vec<u8> {
        let handle = self.tcp();
        let TcpGuest { interface, sockets, .. } = &mut self.guest;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(interface.context(), (GATEWAY, port), 40_000).unwrap();
        let (mut rest, mut got) = (bytes, Vec::new());
        self.run(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.can_send() && !rest.is_empty() {
                rest = &rest[socket.send_slice(rest).unwrap()..];
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            (got.len() >= bytes.len()).then_some(())
        });
        self.sockets.remove(handle);
        got
    }
}

/// Sends a DHCP message, and returns the address of the answer.
fn dhcp(wire: &mut Wire, mac: EthernetAddress, kind: DhcpMessageType, wanted: Option<Ipv4Addr>) -> Ipv4Addr {
    let none = Ipv4Addr::UNSPECIFIED;
    let repr = DhcpRepr {
        message_type: kind,
        transaction_id: 7,
        secs: 0,
        client_hardware_address: mac,
        client_ip: none,
        your_ip: none,
        server_ip: none,
        router: None,
        subnet_mask: None,
        relay_agent_ip: none,
        broadcast: false,
        requested_ip: wanted,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let udp = UdpRepr { src_port: 68, dst_port: 67 };
    let payload_len = udp.header_len() + repr.buffer_len();
    let (src_addr, dst_addr) = (none, Ipv4Addr::BROADCAST);
    let ip = Ipv4Repr { src_addr, dst_addr, next_header: 17.into(), payload_len, hop_limit: 64 };
    let mut frame = vec![0; 34 + payload_len];
    let checksums = ChecksumCapabilities::default();
    EthernetRepr { src_addr: mac, dst_addr: EthernetAddress::BROADCAST, ethertype: EthernetProtocol::Ipv4 }
        .emit(&mut EthernetFrame::new_unchecked(&mut frame));
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checksums);
    let ends: (IpAddress, IpAddress) = (src_addr.into(), dst_addr.into());
    let fill = |bytes: &mut [u8]| repr.emit(&mut DhcpPacket::new_unchecked(bytes)).unwrap();
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut frame[34..]),
        &ends.0,
        &ends.1,
        repr.buffer_len(),
        fill,
        &checksums,
    );
    wire.send(&frame);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LIMIT, "no answer to {kind:?}");
        wire.read();
        for frame in wire.frames.drain(..) {
            if frame[..6] == mac.0 && frame[12..14] == [8, 0] && frame[23] == 17 {
                return DhcpPacket::new_checked(&frame[42..]).unwrap().your_ip();
            }
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A server that sends back what it gets, on `connections` of them.
fn echo(connections: usize) -> u16 {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for _ in 0..connections {
            let Ok((mut stream, _)) = listener.accept() else { return };
            thread::spawn(move || {
                let mut bytes = [0; 32 << 10];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

#[test]
fn machines_have_addresses_of_their_own_and_each_reaches_the_world() {
    let running = Running::new(Keeper::Kept, &["user,host-loopback=on"]);
    let port = echo(2);
    let (mut one, mut two) = (Machine::new(&running, 1), Machine::new(&running, 2));
    assert_eq!(one.address.to_string(), "10.0.2.15");
    assert_ne!(one.address, two.address);
    let bytes: Vec<u8> = (0..300_000_u32).map(|index| (index * 7 + index / 251) as u8).collect();
    assert!(one.echoes(port, &bytes) == bytes);
    assert!(two.echoes(port, &bytes) == bytes);
    let info = running.info();
    assert_eq!((info.ports[0].name.as_str(), info.ports[0].kind.word()), ("user", "user"));
    let known = |machine: &Machine| {
        let mac = machine.mac.to_string().replace('-', ":");
        info.table.iter().find(|station| station.mac == mac).and_then(|station| station.ip)
    };
    assert_eq!((known(&one), known(&two)), (Some(one.address), Some(two.address)));
}

#[test]
fn machine_on_a_trunk_reaches_the_world_by_its_interface_of_the_uplinks_vlan() {
    let running = Running::new(Keeper::Kept, &["user,vlan=4,host-loopback=on"]);
    let port = echo(2);
    let bytes: Vec<u8> = (0..100_000_u32).map(|index| (index * 7 + index / 251) as u8).collect();
    for (number, options, partial) in [(1, "trunk=all", false), (2, "trunk=2+4", true)] {
        let wire = Wire { vlan: Some(4), partial, ..Wire::new(&running, number, options) };
        let mut machine = Machine::on(wire, number);
        assert!(machine.echoes(port, &bytes) == bytes);
    }
}

#[test]
fn frames_of_the_network_are_captured_both_ways() {
    let running = Running::new(Keeper::Kept, &["user"]);
    let mut frames = running.capture("user").unwrap();
    let machine = Machine::new(&running, 1);
    // The question goes to all, and the gateway answers the machine alone.
    let (mac, gateway) = (machine.mac.0, usernet::Config::default().gateway_mac);
    let wanted = [[[255; 6], mac].concat(), [mac, gateway].concat()];
    let (mut all, mut buffer) = (Vec::<u8>::new(), Vec::new());
    while !wanted.iter().all(|wanted| all.windows(wanted.len()).any(|window| window == wanted.as_slice())) {
        match frames.next(&mut buffer, LIMIT) {
            StreamState::Bytes => all.extend(&buffer),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn network_has_no_frames_with_tags_at_the_start_or_later() {
    let open = |text: &str| {
        let uplink = crate::spec::Uplink::parse(text.as_ref()).unwrap();
        super::uplink::open(&uplink, &super::ports::Ports::default(), 1).map(drop)
    };
    let refused = open("user,trunk=2").unwrap_err().to_string();
    assert!(refused.contains("takes no frames with tags"), "{refused}");
    let running = Running::new(Keeper::Kept, &["user"]);
    let refused = running.set("user", "trunk=2").unwrap_err().sentence;
    assert!(refused.contains("takes no frames with tags"), "{refused}");
    assert!(running.set("user", "vlan=2").is_ok());
}

#[test]
fn forwards_lead_to_the_machine_that_they_name() {
    let uplink = "user,forward=0:22,forward=0:vm2:22";
    let running = Running::new(Keeper::Kept, &[uplink]);
    let mut machines = [Machine::new(&running, 1), Machine::new(&running, 2)];
    let forwards = running.info().ports[0].forwards.clone();
    assert_eq!(
        forwards.iter().map(|forward| forward.to.as_str()).collect::<Vec<_>>(),
        ["10.0.2.15:22", "vm2:22"]
    );
    for (machine, forward) in machines.iter_mut().zip(&forwards) {
        let handle = machine.tcp();
        machine.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(22).unwrap();
        let listen = forward.listen;
        let visitor = thread::spawn(move || {
            let mut stream = TcpStream::connect(listen).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.write_all(b"hello").unwrap();
            let mut got = [0; 7];
            stream.read_exact(&mut got).unwrap();
            got
        });
        machine.run(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            socket.can_recv().then(|| socket.send_slice(b"welcome").unwrap())
        });
        machine.run(|_| visitor.is_finished().then_some(()));
        assert_eq!(&visitor.join().unwrap(), b"welcome");
    }
}

#[test]
fn machine_that_floods_keeps_nobody_else_from_the_world() {
    let running = Running::new(Keeper::Kept, &["user,host-loopback=on"]);
    let server = UdpSocket::bind(loopback(0)).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let port = server.local_addr().unwrap().port();
    let (mut flood, mut other) = (Machine::new(&running, 1), Machine::new(&running, 2));
    let socket = |machine: &mut Machine| {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        machine.sockets.add(udp::Socket::new(buffer(), buffer()))
    };
    // It reads all the while, so that nothing is lost for want of room.
    let answers = thread::spawn(move || {
        let mut got = [0; 100];
        loop {
            let (len, from) = server.recv_from(&mut got).unwrap();
            if &got[..len] == b"question" {
                return server.send_to(b"answer", from).unwrap();
            }
        }
    });
    let handle = socket(&mut flood);
    for from in 2000..7000 {
        let socket = flood.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.close();
        socket.bind(from).unwrap();
        socket.send_slice(b"flood", (GATEWAY, port)).unwrap();
        flood.run(|sockets| (sockets.get::<udp::Socket<'_>>(handle).send_queue() == 0).then_some(()));
    }
    let handle = socket(&mut other);
    other.sockets.get_mut::<udp::Socket<'_>>(handle).bind(2000).unwrap();
    let mut asked = None;
    let answer = other.run(|sockets| {
        let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
        if asked.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(1)) {
            asked = Some(Instant::now());
            socket.send_slice(b"question", (GATEWAY, port)).unwrap();
        }
        socket.recv().ok().map(|(bytes, _)| bytes.to_vec())
    });
    assert_eq!(answer, b"answer");
    answers.join().unwrap();
}
