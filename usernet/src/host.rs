//! What a network needs of the host: sockets that never block.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// What a socket is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// Bytes, the end of the stream, a connection or an error can be read.
    pub read: bool,
    /// Bytes can be written, or an attempt to connect is over.
    pub write: bool,
    /// The socket failed, or both directions have ended: `read` or `connected` says how.
    pub closed: bool,
}

/// The host's sockets. No call blocks: `WouldBlock` says that a call would have to.
///
/// Each type is an owned socket that closes when it is dropped. A token names a socket in [`crate::Network::ready`]; the network
/// chooses it, never 0.
pub trait Host: Debug + Send {
    /// A TCP connection.
    type Stream: Debug + Send;
    /// A TCP port that listens.
    type Listener: Debug + Send;
    /// A UDP or ICMP echo socket.
    type Datagram: Debug + Send;

    /// Starts to connect. The socket is watched for `write`, which says that the attempt is over.
    ///
    /// # Errors
    /// There is no route or no socket to be had, or the peer refused at once.
    fn connect(&mut self, to: SocketAddr, token: u64) -> io::Result<Self::Stream>;

    /// How an attempt to connect ended.
    ///
    /// # Errors
    /// It failed (`ConnectionRefused`, `HostUnreachable`, `TimedOut`, ..), or it has not ended (`WouldBlock`).
    fn connected(&mut self, stream: &Self::Stream) -> io::Result<()>;

    /// Reads what has come. 0: the peer sends no more.
    ///
    /// # Errors
    /// `WouldBlock`: nothing has come. Anything else: the connection is dead.
    fn read(&mut self, stream: &Self::Stream, into: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as the host takes.
    ///
    /// # Errors
    /// `WouldBlock`: nothing. Anything else: the connection is dead.
    fn write(&mut self, stream: &Self::Stream, from: &[u8]) -> io::Result<usize>;

    /// Sends no more.
    ///
    /// # Errors
    /// The connection is dead.
    fn shutdown_write(&mut self, stream: &Self::Stream) -> io::Result<()>;

    /// Closes so that the peer sees a reset.
    fn reset(&mut self, stream: Self::Stream);

    /// From now on `ready` is told, under `token`, while the stream is ready for what is asked for here; with neither, nothing
    /// is told at all. An accepted stream is not watched before this call.
    ///
    /// # Errors
    /// The host has no room for it.
    fn watch(&mut self, stream: &Self::Stream, token: u64, read: bool, write: bool) -> io::Result<()>;

    /// Listens at an address, watched for `read`. Returns the address, which says the port where 0 was asked for.
    ///
    /// # Errors
    /// The port is taken, privileged, or there is no such address.
    fn listen(&mut self, at: SocketAddr, token: u64) -> io::Result<(Self::Listener, SocketAddr)>;

    /// Takes the next connection.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Anything else: not now.
    fn accept(&mut self, listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)>;

    /// A UDP socket that talks to `to` only, watched for `read`.
    ///
    /// # Errors
    /// There is no route, or no socket to be had.
    fn datagram(&mut self, to: SocketAddr, token: u64) -> io::Result<Self::Datagram>;

    /// A UDP socket at `at` for anyone, watched for `read`. Returns the address as [`Host::listen`] does.
    ///
    /// # Errors
    /// As for [`Host::listen`].
    fn bind(&mut self, at: SocketAddr, token: u64) -> io::Result<(Self::Datagram, SocketAddr)>;

    /// An echo socket (ICMP or ICMPv6, by the address) that talks to `to` only, watched for `read`. It sends and receives
    /// ICMP messages without IP header; their identifier is the host's affair.
    ///
    /// # Errors
    /// The host does not allow it (`PermissionDenied`), or as for [`Host::datagram`].
    fn ping(&mut self, to: IpAddr, token: u64) -> io::Result<Self::Datagram>;

    /// Sends one datagram: to `to` from a bound socket, with `None` to the peer of any other.
    ///
    /// # Errors
    /// It was not sent; or an earlier one was answered with an error (`ConnectionRefused`).
    fn send(&mut self, socket: &Self::Datagram, to: Option<SocketAddr>, bytes: &[u8]) -> io::Result<()>;

    /// The next datagram, cut to `into`, and who sent it: its length is that of the whole.
    ///
    /// # Errors
    /// `WouldBlock`: none. `ConnectionRefused` and the like: what an earlier one was answered with.
    fn receive(&mut self, socket: &Self::Datagram, into: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// The host's name server as it is now; it may be on the host's loopback. `None`: there is none.
    fn resolver(&mut self) -> Option<SocketAddr>;
}
