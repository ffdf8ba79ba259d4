//! Frames over a stream socket: each behind its length, 4 bytes with the most significant first.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use virtio::memory::{Memory, Segment, total};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::Bytes;

use super::super::frame_link::Before;
use super::super::iovecs::{IoVecs, scatter};
use super::super::socket_address::SocketKind;
use super::super::socket_file::SocketFile;
use super::stream_link::{Link, Side, lock};
use super::{LONGEST_FRAME, NetSocketError, PeerRole, no_peer};
use crate::shown::path as shown;

/// The cure where another program listens.
const CONNECT: &str = ", or leave out `listen` to connect to that program";

/// The socket of a network interface, for all boots of its machine.
#[derive(Debug)]
pub(crate) struct StreamSocket {
    link: Arc<Mutex<Link>>,
    mtu: u16,
    /// Of a socket that listens.
    _file: Option<SocketFile>,
}

impl StreamSocket {
    /// Connects to the socket at `path`, now or when a program listens there; or listens there.
    pub(crate) fn open(path: &Path, role: PeerRole, mtu: u16) -> Result<Self, NetSocketError> {
        let (side, file) = match role {
            PeerRole::Connect => (Side::connecting(path)?, None),
            PeerRole::Listen => {
                let (socket, file) = SocketFile::bind(path, SocketKind::Stream)
                    .map_err(|fault| NetSocketError::fault(path, fault, CONNECT))?;
                (Side::Listen { listener: UnixListener::from(socket) }, Some(file))
            }
        };
        let peer = format!("the peer of {}", shown(path));
        let link = Link::new(peer, side).map_err(|source| NetSocketError::host(path, source))?;
        let socket = StreamSocket { link: Arc::new(Mutex::new(link)), mtu, _file: file };
        let mut link = lock(&socket.link);
        link.first_look(path)?;
        drop(link);
        Ok(socket)
    }

    /// A backend for the device of one boot. The connection stays; frames from before are dropped.
    pub(crate) fn backend(&self) -> Box<dyn NetBackend> {
        Box::new(StreamBackend::new(self.link.clone(), Offloads::empty(), self.mtu))
    }
}

/// A stream for the network device of one boot; one is used at a time.
#[derive(Debug)]
pub(in crate::host) struct StreamBackend {
    /// Shared with the machine, which does not use it while a device does.
    link: Arc<Mutex<Link>>,
    offloads: Offloads,
    mtu: u16,
    iovecs: IoVecs,
}

impl StreamBackend {
    /// One on `link`. Frames from before are dropped.
    pub(in crate::host) fn new(link: Arc<Mutex<Link>>, offloads: Offloads, mtu: u16) -> Self {
        let mut held = lock(&link);
        held.set_takes(Offloads::empty());
        held.discard();
        drop(held);
        StreamBackend { link, offloads, mtu, iovecs: IoVecs::default() }
    }
}

impl NetBackend for StreamBackend {
    fn pairs(&self) -> u16 {
        1
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        lock(&self.link).set_takes(offloads & self.offloads);
        Ok(())
    }

    fn enable(&mut self, _pairs: u16) -> io::Result<()> {
        lock(&self.link).begin_reading();
        Ok(())
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        (pair == 0).then(|| lock(&self.link).frames_fd())
    }

    fn link_fd(&self) -> Option<RawFd> {
        Some(lock(&self.link).link_fd())
    }

    fn link_is_up(&mut self) -> bool {
        lock(&self.link).look()
    }

    fn receive(
        &mut self,
        _pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        lock(&self.link).receive(|received, frame| {
            *header = *received;
            scatter(frame, memory, room, spill)
        })?
    }

    fn send(
        &mut self,
        _pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        let mut link = lock(&self.link);
        let len = usize::try_from(total(frame)).unwrap_or(usize::MAX);
        let before = Before::new(link.framing(), header, len).filter(|_| len <= LONGEST_FRAME);
        let before = before.ok_or(io::ErrorKind::InvalidInput)?;
        link.flush()?;
        let Some(stream) = link.stream() else { return no_peer() };
        if !link.peer_takes(header) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let sent = self.iovecs.send(stream, None, before.bytes(), memory, frame);
        link.sent(sent, before.bytes(), len, |at, into| gather(memory, frame, at, into))
    }
}

/// Appends the bytes of `frame` from `at` on.
fn gather(memory: &Memory, frame: &[Segment], at: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let mut pieces = Vec::new();
    virtio::memory::cut(frame, u64::try_from(at).map_err(io::Error::other)?, u64::MAX, &mut pieces);
    for piece in pieces {
        let start = into.len();
        into.resize(start + usize::try_from(piece.len).map_err(io::Error::other)?, 0);
        let slice = into.get_mut(start..).unwrap_or_default();
        memory.read_slice(slice, piece.address).map_err(io::Error::other)?;
    }
    Ok(())
}
