//! A host in memory: each stream has a remote peer that a test plays.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::host::{Host, Ready};
use crate::token::Token;

/// One stream, as the remote peer sees it.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) to: Option<SocketAddr>,
    token: u64,
    watch: (bool, bool),
    /// How connecting ended; `None`: it has not.
    pub(super) connected: Option<Result<(), io::ErrorKind>>,
    /// Bytes that the guest is to get, and whether they are the last.
    pub(super) to_guest: VecDeque<u8>,
    pub(super) finished: bool,
    /// Reads and writes fail with it.
    pub(super) error: Option<io::ErrorKind>,
    /// Bytes that came from the guest.
    pub(super) from_guest: Vec<u8>,
    /// Bytes that the socket still takes.
    pub(super) room: usize,
    pub(super) shut: bool,
    pub(super) reset: bool,
    pub(super) closed: bool,
    pub(super) reads: usize,
}

impl Remote {
    fn ready(&self) -> Ready {
        let connecting = self.connected.is_none();
        Ready {
            read: self.watch.0 && (!self.to_guest.is_empty() || self.finished || self.error.is_some()),
            write: self.watch.1 && !connecting && (self.room > 0 || self.error.is_some()),
            closed: self.watch != (false, false) && self.error.is_some(),
        }
    }
}

/// A stream, which closes when it is dropped.
pub(super) struct Stream(Arc<Mutex<Remote>>);

impl Debug for Stream {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let remote = self.0.lock().unwrap();
        let lens = (remote.to_guest.len(), remote.from_guest.len());
        write!(f, "Stream(to guest, from guest: {lens:?}, watched {:?}, shut {})", remote.watch, remote.shut)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.lock().unwrap().closed = true;
    }
}

/// The host.
#[derive(Debug, Default)]
pub(super) struct TestHost {
    pub(super) remotes: Vec<Arc<Mutex<Remote>>>,
    /// What `connect` fails with at once.
    pub(super) refuses: Option<io::ErrorKind>,
    /// Connecting takes until a test says how it ended.
    pub(super) slow: bool,
}

impl TestHost {
    pub(super) fn remote(&self, index: usize) -> MutexGuard<'_, Remote> {
        self.remotes[index].lock().unwrap()
    }

    fn add(&mut self, remote: Remote) -> Stream {
        let remote = Arc::new(Mutex::new(remote));
        self.remotes.push(Arc::clone(&remote));
        Stream(remote)
    }

    /// A stream as if accepted.
    pub(super) fn incoming(&mut self) -> Stream {
        self.add(Remote { connected: Some(Ok(())), room: usize::MAX, ..Remote::default() })
    }

    /// Sockets that are ready now.
    pub(super) fn events(&self) -> Vec<(Token, Ready)> {
        let ready = |remote: &Arc<Mutex<Remote>>| {
            let remote = remote.lock().unwrap();
            let ready = remote.ready();
            let token = Token::from_bits(remote.token)?;
            (!remote.closed && ready != Ready::default()).then_some((token, ready))
        };
        self.remotes.iter().filter_map(ready).collect()
    }
}

fn unused<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Host for TestHost {
    type Stream = Stream;
    type Listener = ();
    type Datagram = ();

    fn connect(&mut self, to: SocketAddr, token: u64) -> io::Result<Stream> {
        if let Some(kind) = self.refuses {
            return Err(kind.into());
        }
        let connected = if self.slow { None } else { Some(Ok(())) };
        let watch = (false, true);
        Ok(self.add(Remote { to: Some(to), token, watch, connected, room: usize::MAX, ..Remote::default() }))
    }

    fn connected(&mut self, stream: &Stream) -> io::Result<()> {
        let remote = stream.0.lock().unwrap();
        match (remote.connected, remote.error) {
            (None, _) => Err(io::ErrorKind::WouldBlock.into()),
            (Some(Err(kind)), _) | (_, Some(kind)) => Err(kind.into()),
            (Some(Ok(())), None) => Ok(()),
        }
    }

    fn read(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        let mut remote = stream.0.lock().unwrap();
        remote.reads += 1;
        assert!(!into.is_empty(), "a read of nothing looks like the end");
        let count = into.len().min(remote.to_guest.len());
        if count == 0 {
            // As a kernel does: what came before a failure can still be read.
            if let Some(kind) = remote.error.take() {
                remote.finished = true;
                return Err(kind.into());
            }
            return if remote.finished { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        for (to, byte) in into.iter_mut().zip(remote.to_guest.drain(..count)) {
            *to = byte;
        }
        Ok(count)
    }

    fn write(&mut self, stream: &Stream, from: &[u8]) -> io::Result<usize> {
        let mut remote = stream.0.lock().unwrap();
        if let Some(kind) = remote.error.take() {
            remote.finished = true;
            return Err(kind.into());
        }
        assert!(!remote.shut, "bytes behind the end");
        let count = from.len().min(remote.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        remote.room -= count;
        remote.from_guest.extend(&from[..count]);
        Ok(count)
    }

    fn shutdown_write(&mut self, stream: &Stream) -> io::Result<()> {
        stream.0.lock().unwrap().shut = true;
        Ok(())
    }

    fn reset(&mut self, stream: Stream) {
        stream.0.lock().unwrap().reset = true;
    }

    fn watch(&mut self, stream: &Stream, token: u64, read: bool, write: bool) -> io::Result<()> {
        let mut remote = stream.0.lock().unwrap();
        remote.token = token;
        remote.watch = (read, write);
        Ok(())
    }

    fn listen(&mut self, _: SocketAddr, _: u64) -> io::Result<((), SocketAddr)> {
        unused()
    }

    fn accept(&mut self, (): &()) -> io::Result<(Stream, SocketAddr)> {
        unused()
    }

    fn datagram(&mut self, _: SocketAddr, _: u64) -> io::Result<()> {
        unused()
    }

    fn bind(&mut self, _: SocketAddr, _: u64) -> io::Result<((), SocketAddr)> {
        unused()
    }

    fn ping(&mut self, _: IpAddr, _: u64) -> io::Result<()> {
        unused()
    }

    fn send(&mut self, (): &(), _: Option<SocketAddr>, _: &[u8]) -> io::Result<()> {
        unused()
    }

    fn receive(&mut self, (): &(), _: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        unused()
    }

    fn resolver(&mut self) -> Option<SocketAddr> {
        None
    }
}
