//! A host without sockets, for tests and fuzz targets: it says what was asked of it, and gives what it was told to give.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::host::Host;

/// A socket of the mock.
#[derive(Debug)]
pub struct MockSocket {
    /// Its number: 1, 2, ... in the order in which sockets were made.
    pub id: u64,
    _open: Arc<()>,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// A TCP connection.
    Stream(SocketAddr),
    /// A UDP socket.
    Datagram(SocketAddr),
    /// An echo socket.
    Ping(IpAddr),
    /// A port.
    Port(SocketAddr),
}

/// A datagram or a piece of a stream, and who sent it; or how receiving it fails.
pub type Incoming = Result<(Vec<u8>, SocketAddr), ErrorKind>;

/// The host.
#[derive(Debug, Default)]
pub struct MockHost {
    /// Sockets, by number less one: what was made, and with which token.
    pub opened: Vec<(Opened, u64)>,
    /// What was sent or written: the socket's number, where to, and what.
    pub sent: Vec<(u64, Option<SocketAddr>, Vec<u8>)>,
    /// What each socket receives, and who sends it.
    pub incoming: HashMap<u64, VecDeque<Incoming>>,
    /// Connections that wait at each port.
    pub waiting: HashMap<u64, VecDeque<SocketAddr>>,
    /// How making a socket fails.
    pub refuses: Option<ErrorKind>,
    /// How an attempt to connect ends.
    pub connect_fails: Option<ErrorKind>,
    /// How sending, writing, and changes of what a stream is watched for fail.
    pub write_fails: Option<ErrorKind>,
    /// Bytes that streams still take; all if it is not set.
    pub takes: Option<usize>,
    /// The name server.
    pub resolver: Option<SocketAddr>,
    /// Does not keep what is sent.
    pub forget: bool,
    open: Arc<()>,
}

impl MockHost {
    /// Sockets that are open.
    pub fn open_sockets(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// Has socket `id` receive `bytes` from `from`. Returns its token, for [`crate::Network::ready`].
    pub fn give(&mut self, id: u64, from: SocketAddr, bytes: &[u8]) -> u64 {
        self.incoming.entry(id).or_default().push_back(Ok((bytes.to_vec(), from)));
        self.token(id)
    }

    /// The token of socket `id`.
    pub fn token(&self, id: u64) -> u64 {
        let index = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        index.and_then(|index| self.opened.get(index)).map_or(0, |(_, token)| *token)
    }

    fn open(&mut self, what: Opened, token: u64) -> io::Result<MockSocket> {
        match self.refuses {
            Some(kind) => Err(kind.into()),
            None => {
                self.opened.push((what, token));
                Ok(MockSocket { id: self.opened.len() as u64, _open: self.open.clone() })
            }
        }
    }

    fn take(&mut self, id: u64, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let next =
            self.incoming.get_mut(&id).and_then(VecDeque::pop_front).unwrap_or(Err(ErrorKind::WouldBlock));
        let (bytes, from) = next.map_err(io::Error::from)?;
        into.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
        Ok((bytes.len().min(into.len()), from))
    }

    fn works(&self) -> io::Result<()> {
        self.write_fails.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn keep(&mut self, id: u64, to: Option<SocketAddr>, bytes: &[u8]) {
        if !self.forget {
            self.sent.push((id, to, bytes.to_vec()));
        }
    }
}

impl Host for MockHost {
    type Stream = MockSocket;
    type Listener = MockSocket;
    type Datagram = MockSocket;

    fn connect(&mut self, to: SocketAddr, token: u64) -> io::Result<MockSocket> {
        self.open(Opened::Stream(to), token)
    }

    fn connected(&mut self, _stream: &MockSocket) -> io::Result<()> {
        self.connect_fails.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn read(&mut self, stream: &MockSocket, into: &mut [u8]) -> io::Result<usize> {
        self.take(stream.id, into).map(|(len, _)| len)
    }

    fn write(&mut self, stream: &MockSocket, from: &[u8]) -> io::Result<usize> {
        self.works()?;
        let count = self.takes.map_or(from.len(), |room| room.min(from.len()));
        if count == 0 && !from.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.takes = self.takes.map(|room| room - count);
        self.keep(stream.id, None, from.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn shutdown_write(&mut self, _stream: &MockSocket) -> io::Result<()> {
        self.works()
    }

    fn reset(&mut self, _stream: MockSocket) {}

    fn watch(&mut self, stream: &MockSocket, token: u64, _read: bool, _write: bool) -> io::Result<()> {
        self.works()?;
        let index = usize::try_from(stream.id - 1).unwrap_or(usize::MAX);
        if let Some((_, known)) = self.opened.get_mut(index) {
            *known = token;
        }
        Ok(())
    }

    fn listen(&mut self, at: SocketAddr, token: u64) -> io::Result<(MockSocket, SocketAddr)> {
        Ok((self.open(Opened::Port(at), token)?, at))
    }

    fn accept(&mut self, listener: &MockSocket) -> io::Result<(MockSocket, SocketAddr)> {
        let peer =
            self.waiting.get_mut(&listener.id).and_then(VecDeque::pop_front).ok_or(ErrorKind::WouldBlock)?;
        Ok((self.open(Opened::Stream(peer), 0)?, peer))
    }

    fn datagram(&mut self, to: SocketAddr, token: u64) -> io::Result<MockSocket> {
        self.open(Opened::Datagram(to), token)
    }

    fn bind(&mut self, at: SocketAddr, token: u64) -> io::Result<(MockSocket, SocketAddr)> {
        Ok((self.open(Opened::Port(at), token)?, at))
    }

    fn ping(&mut self, to: IpAddr, token: u64) -> io::Result<MockSocket> {
        self.open(Opened::Ping(to), token)
    }

    fn send(&mut self, socket: &MockSocket, to: Option<SocketAddr>, bytes: &[u8]) -> io::Result<()> {
        self.works()?;
        self.keep(socket.id, to, bytes);
        Ok(())
    }

    fn receive(&mut self, socket: &MockSocket, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.take(socket.id, into)
    }

    fn resolver(&mut self) -> Option<SocketAddr> {
        self.resolver
    }
}
