//! The host's sockets: non-blocking, closed in programs that are started, and watched by one epoll.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use usernet::{Host, Protocol, Ready};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::resolver::Resolver;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A port of the host that is open.
#[derive(Debug)]
pub(super) struct BoundSocket {
    protocol: Protocol,
    address: SocketAddr,
    socket: Socket,
}

impl BoundSocket {
    /// Opens a port; 0 lets the host pick.
    pub(super) fn open(protocol: Protocol, at: SocketAddr) -> io::Result<Self> {
        let kind = if protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
        let socket = Socket::new(Domain::for_address(at), kind.nonblocking().cloexec(), None)?;
        if at.is_ipv6() {
            // Another forward may have the same port in IPv4.
            socket.set_only_v6(true)?;
        }
        if protocol == Protocol::Tcp {
            // A machine that is started again does not wait for the connections of the last one to be forgotten.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&at.into())?;
        if protocol == Protocol::Tcp {
            socket.listen(BACKLOG)?;
        }
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(BoundSocket { protocol, address, socket })
    }

    /// Its address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no connection any more, also where another descriptor of it is open. Datagrams still come.
    pub(super) fn refuse(&self) {
        // Of UDP, which is not connected, the host refuses this.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// The same port, for one boot.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(BoundSocket { socket: self.socket.try_clone()?, ..*self })
    }
}

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    /// What the epoll watches for it.
    watched: Cell<Option<(u64, EventSet)>>,
}

impl Stream {
    fn new(socket: Socket) -> Self {
        Stream { socket, watched: Cell::new(None) }
    }
}

/// A socket that the epoll watches as long as it is here.
///
/// A port that stays open over reboots has a second descriptor in [`super::UserNetwork`]: closing this one does not take it out
/// of the epoll, which would name a token that nobody knows for as long as somebody knocks.
#[derive(Debug)]
pub(crate) struct Watched<S: AsRawFd> {
    socket: S,
    /// Of a socket that has another descriptor.
    epoll: Option<Arc<Epoll>>,
}

impl<S: AsRawFd> Drop for Watched<S> {
    fn drop(&mut self) {
        if let Some(epoll) = &self.epoll {
            // It is in there.
            let _ = epoll.ctl(ControlOperation::Delete, self.socket.as_raw_fd(), EpollEvent::default());
        }
    }
}

/// The sockets of one boot.
#[derive(Debug)]
pub(crate) struct Sockets {
    epoll: Arc<Epoll>,
    /// A port that is open already and will be asked for.
    lent: Option<BoundSocket>,
    resolver: Resolver,
    /// With it, connections can be turned down when there are no descriptors left.
    spare: Option<File>,
}

impl Sockets {
    /// None yet, watched by `epoll`.
    pub(super) fn new(epoll: Arc<Epoll>) -> Self {
        Sockets { epoll, lent: None, resolver: Resolver::default(), spare: spare() }
    }

    /// The next port that is asked for is this one, which is open already.
    pub(super) fn lend(&mut self, bound: BoundSocket) {
        self.lent = Some(bound);
    }

    /// Watches a socket that no other descriptor has.
    fn watch_always<S: AsRawFd>(&self, socket: S, token: u64) -> io::Result<Watched<S>> {
        self.epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(EventSet::IN, token))?;
        Ok(Watched { socket, epoll: None })
    }

    /// Watches a socket of a port.
    fn watch_port<S: AsRawFd>(&self, socket: S, token: u64) -> io::Result<Watched<S>> {
        let mut watched = self.watch_always(socket, token)?;
        watched.epoll = Some(self.epoll.clone());
        Ok(watched)
    }

    fn bound(&mut self, protocol: Protocol, at: SocketAddr) -> io::Result<BoundSocket> {
        match self.lent.take().filter(|lent| (lent.protocol, lent.address) == (protocol, at)) {
            Some(lent) => Ok(lent),
            None => BoundSocket::open(protocol, at),
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What every connection is set to.
fn prepare(socket: &Socket) -> io::Result<()> {
    // The guest has put its bytes together already.
    socket.set_tcp_nodelay(true)?;
    // The guest's own keep-alive ends here: this is how a peer that vanished is noticed.
    socket.set_keepalive(true)?;
    // An urgent byte has its place in the stream, as most programs want it.
    socket.set_out_of_band_inline(true)
}

impl Host for Sockets {
    type Stream = Stream;
    type Listener = Watched<Socket>;
    type Datagram = Watched<UdpSocket>;

    fn connect(&mut self, to: SocketAddr, token: u64) -> io::Result<Stream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
        prepare(&socket)?;
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = Stream::new(socket);
        self.watch(&stream, token, false, true)?;
        Ok(stream)
    }

    fn connected(&mut self, stream: &Stream) -> io::Result<()> {
        if let Some(error) = stream.socket.take_error()? {
            return Err(error);
        }
        match stream.socket.peer_addr() {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        (&stream.socket).read(into)
    }

    fn write(&mut self, stream: &Stream, from: &[u8]) -> io::Result<usize> {
        // No SIGPIPE: Rust programs ignore it, and other programs that embed the library get an error instead.
        stream.socket.send_with_flags(from, libc::MSG_NOSIGNAL)
    }

    fn shutdown_write(&mut self, stream: &Stream) -> io::Result<()> {
        stream.socket.shutdown(Shutdown::Write)
    }

    fn reset(&mut self, stream: Stream) {
        // If the host refuses, the peer sees an ordinary end.
        let _ = stream.socket.set_linger(Some(Duration::ZERO));
    }

    fn watch(&mut self, stream: &Stream, token: u64, read: bool, write: bool) -> io::Result<()> {
        let mut events = EventSet::empty();
        events.set(EventSet::IN, read);
        events.set(EventSet::OUT, write);
        let wanted = (read || write).then_some((token, events));
        if wanted == stream.watched.get() {
            return Ok(());
        }
        let operation = match (stream.watched.get(), wanted) {
            (None, _) => ControlOperation::Add,
            (_, Some(_)) => ControlOperation::Modify,
            (_, None) => ControlOperation::Delete,
        };
        self.epoll.ctl(operation, stream.socket.as_raw_fd(), EpollEvent::new(events, token))?;
        stream.watched.set(wanted);
        Ok(())
    }

    fn listen(&mut self, at: SocketAddr, token: u64) -> io::Result<(Watched<Socket>, SocketAddr)> {
        let BoundSocket { socket, address, .. } = self.bound(Protocol::Tcp, at)?;
        Ok((self.watch_port(socket, token)?, address))
    }

    fn accept(&mut self, listener: &Watched<Socket>) -> io::Result<(Stream, SocketAddr)> {
        let listener = &listener.socket;
        let (socket, peer) = match listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
            Ok(accepted) => accepted,
            Err(error) if is_out_of_descriptors(&error) => {
                // The peer is turned down now; else the port would stay ready for ever.
                drop(self.spare.take());
                drop(listener.accept());
                self.spare = spare();
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        prepare(&socket)?;
        let peer = peer.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok((Stream::new(socket), peer))
    }

    fn datagram(&mut self, to: SocketAddr, token: u64) -> io::Result<Watched<UdpSocket>> {
        let any = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking().cloexec(), None)?;
        socket.bind(&SocketAddr::new(any, 0).into())?;
        socket.connect(&to.into())?;
        self.watch_always(socket.into(), token)
    }

    fn bind(&mut self, at: SocketAddr, token: u64) -> io::Result<(Watched<UdpSocket>, SocketAddr)> {
        let BoundSocket { socket, address, .. } = self.bound(Protocol::Udp, at)?;
        Ok((self.watch_port(socket.into(), token)?, address))
    }

    fn ping(&mut self, to: IpAddr, token: u64) -> io::Result<Watched<UdpSocket>> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, socket2::Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, socket2::Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
        socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
        self.watch_always(socket.into(), token)
    }

    fn send(&mut self, socket: &Watched<UdpSocket>, to: Option<SocketAddr>, bytes: &[u8]) -> io::Result<()> {
        match to {
            Some(to) => socket.socket.send_to(bytes, to)?,
            None => socket.socket.send(bytes)?,
        };
        Ok(())
    }

    fn receive(&mut self, socket: &Watched<UdpSocket>, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        socket.socket.recv_from(into)
    }

    fn resolver(&mut self) -> Option<SocketAddr> {
        self.resolver.server()
    }
}

/// What an event of the epoll says.
pub(super) fn ready(events: EventSet) -> Ready {
    let closed = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
    Ready {
        read: closed || events.contains(EventSet::IN),
        write: closed || events.contains(EventSet::OUT),
        closed,
    }
}
