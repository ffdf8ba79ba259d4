//! A guest whose TCP is smoltcp's, on an IP wire that can lose packets; and the clock of both.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as WireInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr};

use super::host::TestHost;
use crate::config::Limits;
use crate::flow::{Flow, Target};
use crate::shares::GuestId;
use crate::tcp::{Failed, Tcp};

pub(super) const MTU: u16 = 1500;
const IP_HEADER: usize = 20;

/// Both directions of the guest's network card.
#[derive(Debug, Default)]
pub(super) struct Card {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
    /// Large packets of the guest are left whole.
    offload: bool,
    /// The largest packet that the guest sent.
    pub(super) largest: usize,
}

pub(super) struct Received(Vec<u8>);

pub(super) struct Sent<'a>(&'a mut Card);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.largest = self.0.largest.max(len);
        self.0.from_guest.push_back(packet);
        result
    }

    fn set_meta(&mut self, _: PacketMeta) {}
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: WireInstant) -> Option<(Received, Sent<'_>)> {
        let packet = self.to_guest.pop_front()?;
        Some((Received(packet), Sent(self)))
    }

    fn transmit(&mut self, _: WireInstant) -> Option<Sent<'_>> {
        Some(Sent(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.tcp = Checksum::None;
        if self.offload {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(60_000);
        }
        capabilities
    }
}

/// The guest, the network and the host.
pub(super) struct World {
    pub(super) tcp: Tcp<TestHost>,
    pub(super) host: TestHost,
    pub(super) now: Instant,
    pub(super) card: Card,
    pub(super) sockets: SocketSet<'static>,
    interface: Interface,
    began: Instant,
    /// Where connections of the guest lead; `None`: where it says.
    pub(super) target: Option<Target>,
    /// Of each direction one packet out of so many is lost; 0: none.
    pub(super) loss: u64,
    chance: u64,
    pub(super) lost: usize,
    /// What the guest takes in one packet; 0: no large ones.
    pub(super) most: usize,
    /// Large packets to the guest, and the largest payload.
    pub(super) large: usize,
    pub(super) longest: usize,
    pub(super) failed: Vec<Failed>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Limits::default(), false)
    }

    pub(super) fn with(limits: Limits, offload: bool) -> Self {
        let now = Instant::now();
        let mut card = Card { offload, ..Card::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, WireInstant::from_micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(10, 0, 2, 15), 24)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 2, 2)).unwrap();
        World {
            tcp: Tcp::new(limits, MTU, 1),
            host: TestHost::default(),
            now,
            card,
            sockets: SocketSet::new(Vec::new()),
            interface,
            began: now,
            target: None,
            loss: 0,
            chance: 1,
            lost: 0,
            most: if offload { 65_000 } else { 0 },
            large: 0,
            longest: 0,
            failed: Vec::new(),
        }
    }

    /// A socket of the guest with so large buffers.
    pub(super) fn socket(&mut self, buffer: usize) -> SocketHandle {
        let buffers = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(buffers(), buffers());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    pub(super) fn get(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A socket that connects.
    pub(super) fn connect(&mut self, buffer: usize, port: u16) -> SocketHandle {
        let handle = self.socket(buffer);
        let remote = (IpAddress::v4(198, 51, 100, 7), 80);
        self.sockets.get_mut::<Socket<'_>>(handle).connect(self.interface.context(), remote, port).unwrap();
        handle
    }

    fn loses(&mut self) -> bool {
        // By chance, the same each time: what is lost in step with a repetition is lost for ever.
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let loses = self.loss > 0 && (self.chance >> 33).is_multiple_of(self.loss);
        self.lost += usize::from(loses);
        loses
    }

    /// One turn of everything. True: something happened.
    pub(super) fn turn(&mut self) -> bool {
        let mut busy = !self.card.to_guest.is_empty();
        let at = self.at();
        self.interface.poll(at, &mut self.card, &mut self.sockets);
        while let Some(packet) = self.card.from_guest.pop_front() {
            busy = true;
            if !self.loses() {
                self.take(&packet);
            }
        }
        for (token, ready) in self.host.events() {
            busy = true;
            self.tcp.ready(token, ready, &mut self.host, self.now);
        }
        self.tcp.timeout(&mut self.host, self.now);
        busy |= self.give();
        self.failed.extend(std::iter::from_fn(|| self.tcp.take_failed()));
        busy
    }

    fn take(&mut self, packet: &[u8]) {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        let segment = ip.payload();
        let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let flow = Flow {
            guest: SocketAddr::new(ip.src_addr().into(), port(0)),
            remote: SocketAddr::new(ip.dst_addr().into(), port(2)),
        };
        let target = self.target.unwrap_or(Target::Address(flow.remote));
        self.tcp.segment((flow, GuestId::FIRST), segment, target, &mut self.host, self.now);
    }

    fn give(&mut self) -> bool {
        let mut busy = false;
        let mut room = vec![0; 70_000];
        let most = self.most;
        while let Some(out) = self.tcp.output(&mut room[IP_HEADER..], |_| most, &mut self.host, self.now) {
            busy = true;
            self.large += usize::from(out.gso.is_some());
            self.longest = self.longest.max(out.len - out.header);
            if self.loses() {
                continue;
            }
            let (SocketAddr::V4(guest), SocketAddr::V4(remote)) = (out.flow.guest, out.flow.remote) else {
                unreachable!()
            };
            let header = Ipv4Repr {
                src_addr: *remote.ip(),
                dst_addr: *guest.ip(),
                next_header: IpProtocol::Tcp,
                payload_len: out.len,
                hop_limit: 64,
            };
            header.emit(&mut Ipv4Packet::new_unchecked(&mut room), &ChecksumCapabilities::ignored());
            self.card.to_guest.push_back(room[..IP_HEADER + out.len].to_vec());
        }
        busy
    }

    fn at(&self) -> WireInstant {
        let micros = self.now.duration_since(self.began).as_micros();
        WireInstant::from_micros(i64::try_from(micros).unwrap())
    }

    /// How long nothing happens by itself.
    fn idle(&mut self) -> Duration {
        let guest = self.interface.poll_delay(self.at(), &self.sockets).map(Duration::from);
        let ours = self.tcp.next_timeout().map(|at| at.saturating_duration_since(self.now));
        guest.into_iter().chain(ours).min().unwrap_or_default().max(Duration::from_millis(1))
    }

    /// Turns until `done`; when nothing happens, time passes.
    pub(super) fn run(&mut self, mut done: impl FnMut(&mut World) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            let busy = self.turn();
            let pause = if busy { Duration::from_micros(50) } else { self.idle() };
            self.now += pause;
        }
        let states: Vec<_> = self
            .sockets
            .iter()
            .map(|(_, socket)| {
                let smoltcp::socket::Socket::Tcp(socket) = socket else { unreachable!() };
                (socket.state(), socket.send_queue(), socket.recv_queue())
            })
            .collect();
        panic!("nothing more happens: {states:?} {:#?}", self.tcp);
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            if !self.turn() {
                self.now += Duration::from_millis(100);
            }
        }
    }
}
