//! A guest with a TCP of another author, on the host's real loopback sockets.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::EthernetAddress;
use usernet::{Config, Forward, Protocol};
use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, NetBackend};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::testing::{FrameWire, TcpGuest};
use super::{UserBackend, UserNetwork};

const LIMIT: Duration = Duration::from_secs(60);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Takes a port that was closed: a program that another test starts has our descriptors, too, until it runs.
fn once_free<T>(take: impl Fn() -> io::Result<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        match take() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                thread::yield_now()
            }
            result => return result.unwrap(),
        }
    }
}

/// The network device's side: frames through guest memory, and an epoll that waits at edges as the device's thread does.
#[derive(Debug)]
struct Wire {
    backend: UserBackend,
    memory: Memory,
    epoll: Epoll,
}

/// Two pieces, so that frames are put together and taken apart.
fn pieces(at: u64, len: usize) -> [Segment; 2] {
    let first = len / 3;
    [(0, first), (first, len - first)].map(|(from, len)| Segment {
        address: GuestAddress(at + from as u64),
        len: u32::try_from(len).unwrap(),
    })
}

impl Wire {
    fn new(backend: UserBackend) -> Self {
        let (memory, _) = virtio::testing::memory(1 << 20);
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, backend.fd(0).unwrap(), event).unwrap();
        Wire { backend, memory, epoll }
    }

    fn send(&mut self, frame: &[u8]) {
        self.memory.write_slice(frame, GuestAddress(0x1000)).unwrap();
        self.backend.send(0, &[0; HEADER_LEN], &self.memory, &pieces(0x1000, frame.len())).unwrap();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let (mut header, mut spill) = ([0; HEADER_LEN], vec![0; 2000]);
        match self.backend.receive(0, &mut header, &self.memory, &pieces(0x4_0000, 600), &mut spill) {
            Ok(len) => {
                let mut frame = vec![0; len];
                let placed = len.min(600);
                self.memory.read_slice(&mut frame[..placed], GuestAddress(0x4_0000)).unwrap();
                frame[placed..].copy_from_slice(&spill[..len - placed]);
                Some(frame)
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }
}

impl FrameWire for Wire {
    fn put(&mut self, frame: &[u8]) {
        self.send(frame);
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        self.receive()
    }

    fn wait(&mut self, most: Duration) {
        // As the device's thread, which looks after it has sent.
        if self.backend.has_answer(0) {
            return;
        }
        let milliseconds = i32::try_from(most.as_millis() + 1).unwrap();
        match self.epoll.wait(milliseconds, &mut [EpollEvent::default(); 4]) {
            Err(error) if error.kind() != ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
    }
}

type Guest = TcpGuest<Wire>;

impl Guest {
    fn new(network: &UserNetwork) -> Self {
        let wire = Wire::new(network.backend().unwrap());
        Self::on(wire, EthernetAddress([2, 0, 0, 0, 0, 0x15]), GUEST, GATEWAY)
    }

    fn connect(&mut self, handle: SocketHandle, port: u16) {
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(context, (GATEWAY, port), 40_000 + port % 10_000).unwrap();
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets the guest work while `host` waits for something of it.
    fn serve<T: Send>(&mut self, host: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let host = scope.spawn(host);
            while !host.is_finished() {
                self.work();
                self.wait(Duration::from_millis(1));
            }
            host.join().unwrap()
        })
    }

    /// Sends `bytes` and the end, and returns all that comes up to the end.
    fn exchange(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut rest, mut got) = (bytes, Vec::new());
        self.run(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.can_send() && !rest.is_empty() {
                let sent = socket.send_slice(rest).unwrap();
                rest = &rest[sent..];
                if rest.is_empty() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
            }
            let connected =
                !matches!(socket.state(), tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived);
            (connected && !socket.may_recv()).then_some(())
        });
        got
    }
}

fn open(forwards: &[Forward]) -> UserNetwork {
    let config = Config { host_loopback: true, ..Config::default() };
    UserNetwork::open(config, forwards, 1).unwrap()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// A server that sends back what it got after the end.
fn echo_once(listener: TcpListener) -> thread::JoinHandle<io::Result<()>> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        stream.write_all(&got)
    })
}

#[test]
fn guest_sends_and_receives_through_a_connection_that_is_half_closed_on_the_way() {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = echo_once(listener);
    let mut guest = Guest::new(&open(&[]));
    let handle = guest.tcp();
    guest.connect(handle, port);
    let sent = bytes(700_000);
    assert!(guest.exchange(handle, &sent) == sent);
    server.join().unwrap().unwrap();
}

#[test]
fn connection_that_nobody_takes_is_refused() {
    let unused = TcpListener::bind(loopback(0)).unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new(&open(&[]));
    let handle = guest.tcp();
    guest.connect(handle, unused);
    guest.run(|sockets| (!sockets.get::<tcp::Socket<'_>>(handle).is_open()).then_some(()));
}

#[test]
fn peer_that_dies_in_the_middle_resets_the_guests_connection() {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(&open(&[]));
    let handle = guest.tcp();
    guest.connect(handle, port);
    guest.run(|sockets| sockets.get::<tcp::Socket<'_>>(handle).may_send().then_some(()));
    let (stream, _) = listener.accept().unwrap();
    guest.socket(handle).send_slice(b"never read").unwrap();
    // With bytes that were not read, its end is a reset.
    guest.run(|_| (stream.peek(&mut [0; 1]).is_ok()).then_some(()));
    drop(stream);
    guest.run(|sockets| (!sockets.get::<tcp::Socket<'_>>(handle).is_open()).then_some(()));
}

#[test]
fn datagrams_pass_both_ways() {
    let server = UdpSocket::bind(loopback(0)).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(&open(&[]));
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
    socket.bind(4000).unwrap();
    socket.send_slice(b"question", (GATEWAY, port)).unwrap();
    let peer = thread::spawn(move || {
        let mut got = [0; 100];
        let (len, from) = server.recv_from(&mut got).unwrap();
        server.send_to(b"answer", from).unwrap();
        got[..len].to_vec()
    });
    let answer = guest.run(|sockets| {
        let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(bytes, from)| (bytes.to_vec(), from.endpoint.port))
    });
    assert_eq!(answer, (b"answer".to_vec(), port));
    assert_eq!(peer.join().unwrap(), b"question");
}

/// A connection from outside through `port`, to a guest that listens at 22. Returns what the guest got, and from where.
fn visit(network: &UserNetwork, port: u16) -> (Vec<u8>, SocketAddr, SocketAddr) {
    visit_guest(&mut Guest::new(network), port)
}

fn visit_guest(guest: &mut Guest, port: u16) -> (Vec<u8>, SocketAddr, SocketAddr) {
    let handle = guest.tcp();
    guest.socket(handle).listen(22).unwrap();
    let visitor = thread::spawn(move || {
        let mut stream = TcpStream::connect(loopback(port)).unwrap();
        let local = stream.local_addr().unwrap();
        stream.write_all(b"SSH-2.0-test").unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"welcome");
        local
    });
    let (greeting, remote) = guest.run(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        let remote = socket.remote_endpoint()?;
        let greeting =
            socket.recv(|bytes| (bytes.len(), bytes.to_vec())).ok().filter(|bytes| !bytes.is_empty())?;
        Some((greeting, SocketAddr::new(remote.addr.into(), remote.port)))
    });
    guest.exchange(handle, b"welcome");
    // Until the visitor has read it all.
    guest.run(|_| {
        visitor.is_finished().then_some(()).or_else(|| (thread::sleep(Duration::from_millis(1)), None).1)
    });
    (greeting, remote, visitor.join().unwrap())
}

#[test]
fn forwarded_port_stays_open_over_reboots_and_visitors_come_from_the_gateway() {
    let forward = Forward { protocol: Protocol::Tcp, bind: loopback(0), guest_port: 22 };
    let network = open(&[forward]);
    let [(asked, address)] = network.forwards()[..] else { panic!() };
    assert!(asked == forward && address.port() != 0);
    for _boot in 0..2 {
        let (greeting, remote, local) = visit(&network, address.port());
        assert_eq!(greeting, b"SSH-2.0-test");
        assert_eq!(remote, SocketAddr::from((GATEWAY, local.port())));
    }
    let taken = UserNetwork::open(Config::default(), &[Forward { bind: address, ..forward }], 1).unwrap_err();
    assert!(taken.to_string().contains(&format!("port {} of 127.0.0.1", address.port())), "{taken}");
    drop(network);
    once_free(|| TcpListener::bind(address));
}

#[test]
fn port_that_is_removed_while_the_machine_still_holds_it_wakes_nobody() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let network = open(&[Forward { protocol, bind: loopback(0), guest_port: 22 }]);
        let [(_, address)] = network.forwards()[..] else { panic!() };
        let mut wire = super::Wire::new(network.config.clone()).unwrap();
        let _changes = network.ports.attach(&mut wire).unwrap();
        assert!(wire.remove_forward(protocol, address) && !wire.remove_forward(protocol, address));
        // The machine's own descriptor keeps the port open: a knock would be an event that is never taken.
        let _stream = match protocol {
            Protocol::Tcp => TcpStream::connect(address).map(drop),
            Protocol::Udp => UdpSocket::bind(loopback(0)).unwrap().send_to(b"knock", address).map(drop),
        };
        assert_eq!(wire.next_frame().unwrap_err().kind(), ErrorKind::WouldBlock);
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, wire.fd(), event).unwrap();
        assert_eq!(epoll.wait(0, &mut [EpollEvent::default(); 4]).unwrap(), 0, "{protocol:?}");
    }
}

#[test]
fn network_that_nobody_uses_wakes_nobody() {
    let backend = open(&[]).backend().unwrap();
    let mut wire = Wire::new(backend);
    assert!(Wire::receive(&mut wire).is_none());
    assert!(Wire::receive(&mut wire).is_none());
    // An edge of the start may be left.
    let mut events = [EpollEvent::default(); 4];
    wire.epoll.wait(0, &mut events).unwrap();
    assert_eq!(wire.epoll.wait(0, &mut events).unwrap(), 0);
    assert!(wire.backend.fd(0).is_some());
}

fn to_guest(protocol: Protocol) -> Forward {
    Forward { protocol, bind: loopback(0), guest_port: 22 }
}

#[test]
fn port_that_is_opened_while_the_guest_runs_leads_to_it_and_stays_for_the_next_boot() {
    let network = open(&[]);
    let mut guest = Guest::new(&network);
    // It waits for frames, as a guest does that has nothing to do.
    guest.serve(|| ());
    let address = network.ports().open(to_guest(Protocol::Tcp)).unwrap();
    assert_eq!(visit_guest(&mut guest, address.port()).0, b"SSH-2.0-test");
    drop(guest);
    assert_eq!(visit(&network, address.port()).0, b"SSH-2.0-test");
}

#[test]
fn port_that_is_closed_is_free_at_once_and_its_connections_go_on() {
    let network = open(&[]);
    let mut guest = Guest::new(&network);
    let handle = guest.tcp();
    guest.socket(handle).listen(22).unwrap();
    let ports =
        [Protocol::Tcp, Protocol::Udp].map(|protocol| network.ports().open(to_guest(protocol)).unwrap());
    let mut visitor = guest.serve(|| TcpStream::connect(ports[0]).unwrap());
    guest.run(|sockets| sockets.get::<tcp::Socket<'_>>(handle).may_send().then_some(()));
    guest.serve(|| {
        assert!(network.ports().close(Protocol::Tcp, ports[0]));
        assert!(!network.ports().close(Protocol::Tcp, ports[0]));
        assert!(network.ports().close(Protocol::Udp, ports[1]));
        TcpStream::connect(ports[0]).unwrap_err();
        once_free(|| TcpListener::bind(ports[0]));
        once_free(|| UdpSocket::bind(ports[1]));
    });
    assert_eq!(network.forwards(), []);
    visitor.write_all(b"still here").unwrap();
    visitor.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.exchange(handle, b"so am I"), b"still here");
    let mut said = String::new();
    guest.serve(|| visitor.read_to_string(&mut said)).unwrap();
    assert_eq!(said, "so am I");
}

#[test]
fn ports_of_a_guest_that_rests_take_connections_when_opened_and_none_when_closed() {
    let network = open(&[]);
    // Nobody asks it for frames.
    let resting = network.backend().unwrap();
    let [first, second] = [(); 2].map(|()| network.ports().open(to_guest(Protocol::Tcp)).unwrap());
    let waiting = TcpStream::connect(first).unwrap();
    assert!(network.ports().close(Protocol::Tcp, second));
    TcpStream::connect(second).unwrap_err();
    let again = Forward { bind: second, ..to_guest(Protocol::Tcp) };
    assert_eq!(once_free(|| network.ports().open(again)), second);
    drop((resting, waiting));
}

#[test]
fn port_of_udp_that_a_resting_guest_still_holds_can_be_opened_again() {
    let network = open(&[to_guest(Protocol::Udp)]);
    let [(_, address)] = network.forwards()[..] else { panic!() };
    let resting = network.backend().unwrap();
    let again = Forward { bind: address, ..to_guest(Protocol::Udp) };
    for _ in 0..2 {
        assert!(network.ports().close(Protocol::Udp, address));
        assert_eq!(network.ports().open(again).unwrap(), address);
    }
    assert!(network.ports().close(Protocol::Udp, address));
    drop(resting);
    once_free(|| UdpSocket::bind(address));
}
