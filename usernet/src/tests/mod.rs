//! A guest made of hand-made frames, and what it sees.

mod datagrams;
mod dhcp;
mod errors;
mod forwards;
mod neighbours;
mod random;
mod shared;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

use crate::link::{self, ETHERNET, Link};
use crate::packet::{ICMP, ICMPV6, Packet, UDP};
use crate::testing::MockHost;
use crate::{Accepts, Config, LONGEST_FRAME, Network, Offload, icmp, udp};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
const GUEST: &str = "10.0.2.15";
const GUEST6: &str = "fd62:6164:2::15";

/// A guest on a network of its own.
struct Guest {
    network: Network<MockHost>,
    /// Its end of the wire: the guest's address stands where the gateway's is in the network.
    wire: Link,
    now: Instant,
    accepts: Accepts,
    /// It takes advertisements of the router, which come of themselves once it has an address.
    hears_router: bool,
}

/// An IP packet that the guest was given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: Vec<u8>,
}

/// A guest's end of the wire.
fn wire_of(mac: [u8; 6]) -> Link {
    Link::new(&Config { gateway_mac: mac, ..Config::default() })
}

impl Guest {
    fn new(config: Config) -> Self {
        let mut wire = wire_of(GUEST_MAC);
        wire.learn(EthernetAddress(config.gateway_mac));
        let mut host = MockHost::default();
        host.resolver = Some("127.0.0.53:53".parse().unwrap());
        let (now, accepts) = (Instant::now(), Accepts::default());
        Guest { network: Network::new(config, host), wire, now, accepts, hears_router: false }
    }

    /// Sends a frame, with or without an IP packet in it.
    fn send_frame(&mut self, frame: &[u8]) {
        self.network.input(frame, Offload::default(), self.now);
    }

    fn send_ip(&mut self, from: &str, to: &str, (protocol, hops): (u8, u8), payload: &[u8]) {
        let ends: (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let frame = self.frame(ends, (protocol, hops), payload);
        self.send_frame(&frame);
    }

    fn frame(&self, ends: (IpAddr, IpAddr), kind: (u8, u8), payload: &[u8]) -> Vec<u8> {
        let headers = link::headers(ends.1);
        let mut frame = vec![0; headers];
        frame.extend(payload);
        self.wire.head(&mut frame, ends, kind, payload.len()).unwrap();
        frame
    }

    fn send_udp(&mut self, from: &str, to: &str, payload: &[u8]) {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let ends = (from.ip(), to.ip());
        let datagram = udp::datagram(ends, (from.port(), to.port()), payload);
        let frame = self.frame(ends, (UDP, 64), &datagram);
        self.send_frame(&frame);
    }

    /// Sends an echo request with identifier 7 and sequence number 9.
    fn ping(&mut self, from: &str, to: &str, hops: u8) {
        let ends: (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let (protocol, kind) = if ends.0.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        let mut message = vec![kind, 0, 0, 0, 0, 7, 0, 9, b'h', b'e', b'l', b'l', b'o'];
        icmp::fill_checksum(ends, &mut message);
        self.send_ip(from, to, (protocol, hops), &message);
    }

    /// All frames that wait.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut room = vec![0; LONGEST_FRAME];
        let mut frames = Vec::new();
        while let Some((range, _)) = self.network.output(&mut room, self.accepts, self.now) {
            let frame = &room[range];
            if self.hears_router || !is_router(frame) {
                frames.push(frame.to_vec());
            }
        }
        frames
    }

    /// All IP packets that wait; other frames are an error.
    fn seen(&mut self) -> Vec<Seen> {
        self.frames().iter().map(|frame| seen(frame)).collect()
    }

    /// The only IP packet that waits.
    fn one(&mut self) -> Seen {
        let [seen] = self.seen().try_into().expect("one packet");
        seen
    }

    /// Time passes, with what falls due in it.
    fn wait(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.network.next_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.network.timeout(self.now);
        }
        self.now = until;
    }

    /// Has socket `id` of the host receive `bytes`.
    fn host_gives(&mut self, id: u64, from: &str, bytes: &[u8]) {
        let token = self.network.host().give(id, from.parse().unwrap(), bytes);
        self.host_ready(token);
    }

    fn host_ready(&mut self, token: u64) {
        let ready = crate::Ready { read: true, ..crate::Ready::default() };
        self.network.ready(token, ready, self.now);
    }
}

/// Whether the frame is an advertisement of the router.
fn is_router(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd] && frame[20] == ICMPV6 && frame.get(54) == Some(&134)
}

/// The IP packet in `frame`, whose checksums are checked.
fn seen(frame: &[u8]) -> Seen {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(ethernet.src_addr().0, Config::default().gateway_mac);
    let packet = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => Packet::ipv4(&frame[ETHERNET..]).unwrap(),
        EthernetProtocol::Ipv6 => Packet::ipv6(&frame[ETHERNET..]).unwrap(),
        other => panic!("{other}"),
    };
    if packet.protocol != ICMP {
        packet.verify(Offload::default()).unwrap();
    }
    let Packet { source, destination, protocol, payload, .. } = packet;
    Seen { source, destination, protocol, payload: payload.to_vec() }
}

impl Seen {
    /// The ends and the payload of a datagram.
    fn datagram(&self) -> (String, String, &[u8]) {
        assert_eq!(self.protocol, UDP);
        let port = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        let end = |address, at| SocketAddr::new(address, port(at)).to_string();
        (end(self.source, 0), end(self.destination, 2), &self.payload[8..])
    }
}
