//! How fast bytes pass, and how fast they would with smoltcp's TCP in place of ours:
//! `cargo test --release -p usernet --lib speed -- --ignored --nocapture`.
//!
//! The host copies bytes as a kernel does on read and write, the guest as its driver does; neither makes a system call.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as WireInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr};

use super::guest::MTU;
use super::peer::flow;
use crate::config::Limits;
use crate::flow::{Flow, Target};
use crate::host::{Host, Ready};
use crate::shares::GuestId;
use crate::tcp::Tcp;
use crate::tcp::segment::{Header, Segment, SynOptions};
use crate::tcp::seq::Seq;
use crate::token::{Kind, Token};

const BYTES: usize = 1 << 30;
const CHUNK: usize = 64 << 10;
const MSS: u16 = MTU - 40;
const LARGE: usize = 44 * MSS as usize;
const BUFFER: usize = 4 << 20;
const IP_HEADER: usize = 20;
const HEADERS: usize = IP_HEADER + 20;
const AT_ONCE: usize = 16;

/// Memory that bytes are copied from and to.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl Memory {
    fn new() -> Self {
        Memory(vec![5; CHUNK])
    }

    fn read(&self, into: &mut [u8]) {
        into.chunks_mut(CHUNK).for_each(|part| part.copy_from_slice(&self.0[..part.len()]));
    }

    fn write(&mut self, from: &[u8]) {
        from.chunks(CHUNK).for_each(|part| self.0[..part.len()].copy_from_slice(part));
    }
}

/// A host with one stream that never waits.
#[derive(Debug)]
struct QuickHost {
    memory: Memory,
    written: usize,
    reads: bool,
}

impl Host for QuickHost {
    type Stream = ();
    type Listener = ();
    type Datagram = ();

    fn connect(&mut self, _: SocketAddr, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn connected(&mut self, (): &()) -> io::Result<()> {
        Ok(())
    }
    fn read(&mut self, (): &(), into: &mut [u8]) -> io::Result<usize> {
        self.memory.read(into);
        Ok(into.len())
    }
    fn write(&mut self, (): &(), from: &[u8]) -> io::Result<usize> {
        self.memory.write(from);
        self.written += from.len();
        Ok(from.len())
    }
    fn shutdown_write(&mut self, (): &()) -> io::Result<()> {
        Ok(())
    }
    fn reset(&mut self, (): ()) {}
    fn watch(&mut self, (): &(), _: u64, read: bool, _: bool) -> io::Result<()> {
        self.reads = read;
        Ok(())
    }
    fn listen(&mut self, at: SocketAddr, _: u64) -> io::Result<((), SocketAddr)> {
        Ok(((), at))
    }
    fn accept(&mut self, (): &()) -> io::Result<((), SocketAddr)> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn datagram(&mut self, _: SocketAddr, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn bind(&mut self, at: SocketAddr, _: u64) -> io::Result<((), SocketAddr)> {
        Ok(((), at))
    }
    fn ping(&mut self, _: IpAddr, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn send(&mut self, (): &(), _: Option<SocketAddr>, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn receive(&mut self, (): &(), _: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn resolver(&mut self) -> Option<SocketAddr> {
        None
    }
}

/// A guest that acknowledges each packet. Its packets begin with room for an IP header.
struct Guest {
    memory: Memory,
    flow: Flow,
    seq: Seq,
    ack: Seq,
    received: usize,
}

impl Guest {
    fn new() -> Self {
        Guest { memory: Memory::new(), flow: flow(4000), seq: Seq(1), ack: Seq(0), received: 0 }
    }

    fn packet(&mut self, syn: bool, payload: usize, packet: &mut Vec<u8>) {
        let header = Header {
            window: u16::MAX,
            syn: syn.then_some(SynOptions { mss: MSS, shift: Some(7) }),
            ..Header::bare(
                Flow { guest: self.flow.remote, remote: self.flow.guest },
                self.seq,
                (!syn).then_some(self.ack),
            )
        };
        packet.resize(IP_HEADER + header.len() + payload, 0);
        header.write(&mut packet[IP_HEADER..]).unwrap();
        self.memory.read(&mut packet[IP_HEADER + header.len()..]);
        self.seq += payload + usize::from(syn);
        let ip = Ipv4Repr {
            src_addr: Ipv4Address::new(10, 0, 2, 15),
            dst_addr: Ipv4Address::new(198, 51, 100, 7),
            next_header: IpProtocol::Tcp,
            payload_len: header.len() + payload,
            hop_limit: 64,
        };
        ip.emit(&mut Ipv4Packet::new_unchecked(packet), &ChecksumCapabilities::ignored());
    }

    fn take(&mut self, segment: &[u8]) {
        let segment = Segment::parse(segment).unwrap();
        self.ack = segment.seq + segment.len();
        self.received += segment.payload.len();
        self.memory.write(segment.payload);
    }
}

/// The middle: ours, or smoltcp's.
trait Middle {
    fn input(&mut self, packet: &mut Vec<u8>);
    /// Everything for the guest, packet by packet; true: there was something.
    fn output(&mut self, each: impl FnMut(&[u8])) -> bool;
    fn written(&self) -> usize;
}

struct Ours {
    tcp: Tcp<QuickHost>,
    host: QuickHost,
    now: Instant,
    room: Vec<u8>,
    most: usize,
    down: bool,
}

impl Ours {
    fn new(most: usize, down: bool) -> Self {
        let host = QuickHost { memory: Memory::new(), written: 0, reads: false };
        let tcp = Tcp::new(Limits::default(), MTU, 1);
        Ours { tcp, host, now: Instant::now(), room: vec![0; 70_000], most, down }
    }

    fn ready(&mut self, read: bool) {
        let token = Token { kind: Kind::Tcp, generation: 0, slot: 0 };
        let ready = Ready { read, write: !read, closed: false };
        self.tcp.ready(token, ready, &mut self.host, self.now);
    }
}

impl Middle for Ours {
    fn input(&mut self, packet: &mut Vec<u8>) {
        let flow = flow(4000);
        let target = Target::Address(flow.remote);
        self.tcp.segment((flow, GuestId::FIRST), &packet[IP_HEADER..], target, &mut self.host, self.now);
    }

    fn output(&mut self, mut each: impl FnMut(&[u8])) -> bool {
        self.now = Instant::now();
        self.ready(self.down && self.host.reads);
        let mut any = false;
        for _ in 0..AT_ONCE {
            let most = self.most;
            let Some(out) = self.tcp.output(&mut self.room, |_| most, &mut self.host, self.now) else {
                break;
            };
            any = true;
            each(&self.room[..out.len]);
        }
        any
    }

    fn written(&self) -> usize {
        self.host.written
    }
}

/// A card whose packets are used again.
#[derive(Default)]
struct Card {
    input: VecDeque<Vec<u8>>,
    output: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    most: usize,
}

struct Given(Vec<u8>);
struct Taken<'a>(&'a mut Card);

impl RxToken for Given {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Taken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = self.0.spare.pop().unwrap_or_default();
        packet.resize(len, 0);
        let result = f(&mut packet);
        self.0.output.push_back(packet);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Given;
    type TxToken<'a> = Taken<'a>;

    fn receive(&mut self, _: WireInstant) -> Option<(Given, Taken<'_>)> {
        let packet = self.input.pop_front()?;
        Some((Given(packet), Taken(self)))
    }

    fn transmit(&mut self, _: WireInstant) -> Option<Taken<'_>> {
        (self.output.len() < AT_ONCE).then_some(Taken(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities.checksum = ChecksumCapabilities::ignored();
        if self.most > 0 {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(self.most + HEADERS);
        }
        capabilities
    }
}

struct Theirs {
    interface: Interface,
    card: Card,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    began: Instant,
    memory: Memory,
    written: usize,
    down: bool,
}

impl Theirs {
    fn new(most: usize, down: bool) -> Self {
        let mut card = Card { most, ..Card::default() };
        let now = WireInstant::from_micros(0);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut card, now);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(198, 51, 100, 7), 0)).unwrap();
        });
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.listen(80).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let memory = Memory::new();
        Theirs { interface, card, sockets, handle, began: Instant::now(), memory, written: 0, down }
    }
}

impl Middle for Theirs {
    fn input(&mut self, packet: &mut Vec<u8>) {
        let held = std::mem::replace(packet, self.card.spare.pop().unwrap_or_default());
        self.card.input.push_back(held);
    }

    fn output(&mut self, mut each: impl FnMut(&[u8])) -> bool {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        if self.down && socket.may_send() {
            while socket.send_queue() < BUFFER {
                socket.send(|room| (room.len(), self.memory.read(room))).unwrap();
            }
        }
        let at = WireInstant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap());
        self.interface.poll(at, &mut self.card, &mut self.sockets);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        while socket.can_recv() {
            let (memory, written) = (&mut self.memory, &mut self.written);
            socket
                .recv(|data| {
                    memory.write(data);
                    *written += data.len();
                    (data.len(), ())
                })
                .unwrap();
        }
        let mut any = false;
        while let Some(packet) = self.card.output.pop_front() {
            any = true;
            each(&packet[IP_HEADER..]);
            self.card.spare.push(packet);
        }
        any
    }

    fn written(&self) -> usize {
        self.written
    }
}

/// Processor time of this thread.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Thousand millions of bits per second of processor time.
fn measure(mut middle: impl Middle, payload: usize, down: bool) -> f64 {
    let mut guest = Guest::new();
    let mut packet = Vec::new();
    guest.packet(true, 0, &mut packet);
    middle.input(&mut packet);
    while !middle.output(|segment| guest.take(segment)) {}
    guest.packet(false, 0, &mut packet);
    middle.input(&mut packet);
    let began = busy();
    let mut acks = 0;
    while guest.received < BYTES && middle.written() < BYTES {
        if !down {
            for _ in 0..AT_ONCE.min(BUFFER / 2 / payload) {
                guest.packet(false, payload, &mut packet);
                middle.input(&mut packet);
            }
        }
        middle.output(|segment| {
            guest.take(segment);
            acks += 1;
        });
        for _ in 0..if down { std::mem::take(&mut acks) } else { 0 } {
            guest.packet(false, 0, &mut packet);
            middle.input(&mut packet);
        }
    }
    (BYTES * 8) as f64 / (busy() - began) / 1e9
}

#[test]
#[ignore = "it prints figures"]
fn speed_of_ours_and_of_smoltcps() {
    for (name, payload) in [("64 KiB packets", LARGE), ("1,500-byte packets", usize::from(MSS))] {
        let most = if payload == LARGE { LARGE } else { 0 };
        for down in [true, false] {
            let way = if down { "to the guest" } else { "from the guest" };
            let ours = measure(Ours::new(most, down), payload, down);
            let theirs = measure(Theirs::new(most, down), payload, down);
            println!("{name}, {way}: ours {ours:.1} Gbit/s, smoltcp's {theirs:.1} Gbit/s");
        }
    }
}
