//! Addresses of Unix sockets, and sockets that are bound or connected to them without a wait.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Connections that may wait for accept(2).
const BACKLOG: libc::c_int = 128;

/// Kinds of Unix sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketKind {
    /// A byte stream.
    Stream,
    /// Datagrams, in order and without loss.
    Datagram,
}

/// A `struct sockaddr_un` (unix(7)).
#[derive(Clone, Copy)]
pub(crate) struct SocketAddress {
    address: libc::sockaddr_un,
    len: libc::socklen_t,
}

impl std::fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketAddress").field("len", &self.len).finish_non_exhaustive()
    }
}

impl SocketAddress {
    /// The socket at `path`; [`ErrorKind::InvalidInput`] if the path is too long for a socket.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        // One byte stays zero as the terminator.
        Self::new(0, bytes, 1).filter(|_| !bytes.contains(&0)).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidInput, "the path of the socket is too long (107 bytes at most)")
        })
    }

    /// The socket of an abstract name.
    pub(crate) fn abstract_name(name: &[u8]) -> io::Result<Self> {
        // The first byte stays zero; there is no terminating one.
        Self::new(1, name, 0)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the name of the socket is too long"))
    }

    fn new(skip: usize, bytes: &[u8], behind: usize) -> Option<Self> {
        // SAFETY: an all-zero sockaddr_un is a valid object.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).ok()?;
        let used = skip + bytes.len() + behind;
        if used > address.sun_path.len() {
            return None;
        }
        for (into, byte) in address.sun_path.iter_mut().skip(skip).zip(bytes) {
            *into = libc::c_char::from_ne_bytes([*byte]);
        }
        let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + used;
        Some(SocketAddress { address, len: libc::socklen_t::try_from(len).ok()? })
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.address).cast()
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        self.len
    }
}

/// A new socket, whose calls do not block.
pub(super) fn socket(kind: SocketKind) -> io::Result<OwnedFd> {
    let kind = match kind {
        SocketKind::Stream => libc::SOCK_STREAM,
        SocketKind::Datagram => libc::SOCK_DGRAM,
    };
    // SAFETY: takes and gives numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Connects `socket`, if that takes no wait; [`ErrorKind::WouldBlock`] if the listener's backlog is full.
pub(super) fn connect_now(socket: &OwnedFd, to: &SocketAddress) -> io::Result<()> {
    // SAFETY: `to` is valid for reading its length.
    check(unsafe { libc::connect(socket.as_raw_fd(), to.as_ptr(), to.len()) })
}

/// Binds `socket` to `at`: a file that is its owner's alone from the beginning, as Linux gives it the mode of the socket.
/// A stream socket listens afterwards.
pub(super) fn bind(socket: &OwnedFd, kind: SocketKind, at: &SocketAddress) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })?;
    // SAFETY: `at` is valid for reading its length.
    check(unsafe { libc::bind(socket.as_raw_fd(), at.as_ptr(), at.len()) })?;
    match kind {
        // SAFETY: takes numbers.
        SocketKind::Stream => check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) }),
        SocketKind::Datagram => Ok(()),
    }
}

/// Whether the other end of a stream socket has closed its sending direction or all of it; data may be left to read.
pub(crate) fn has_hung_up(socket: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one pollfd, valid across the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1
}

/// Reads what has come, and leaves it there for the next read. Never blocks.
pub(super) fn peek(socket: &impl AsRawFd, into: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: `into` may be written for its length, across the call.
    let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
