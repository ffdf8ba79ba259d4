//! A Unix socket at the host's end of a port: one client at a time.
//!
//! Lossless with back-pressure in both directions: a client that does not read blocks the guest's writes, a guest that does
//! not read blocks the client's. Bytes that a client sent before it closed still reach the guest; the next client is accepted
//! after that. A client that connects while another is there is closed at once.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll as SysEpoll, EpollEvent, EventSet};

use super::backend::Backend;
use crate::device::Context;
use crate::poll::{Epoll, Interest, Token};

/// Tokens, behind the port's first.
const LISTENER: Token = 0;
const CLIENT: Token = 1;

/// The time until a client is tried again that the host had no descriptor or memory for.
const RETRY: Duration = Duration::from_millis(250);

/// The socket. Clones are of the same one: a machine keeps one and gives a clone to the device of each boot.
#[derive(Debug, Clone)]
pub struct SocketBackend {
    shared: Arc<Mutex<Socket>>,
    /// The first token of the present run.
    first: Token,
}

/// Takes the next connection of a listener: accept(2), but in tests.
type Accept = fn(&UnixListener) -> io::Result<UnixStream>;

#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    accept: Accept,
    client: Option<Client>,
    /// A client may wait in the backlog.
    backlog: bool,
    /// A client that was accepted and could not be watched yet.
    accepted: Option<UnixStream>,
    /// When a client that the host had no room for is tried again.
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// It sends no more.
    ended: bool,
    /// It takes no more: writing failed.
    deaf: bool,
    /// It had an event since the last read.
    ready: bool,
    /// Bytes read from a client that had left, to find out whether there were any.
    ahead: Vec<u8>,
}

impl SocketBackend {
    /// Clients come through `listener`.
    ///
    /// # Errors
    /// The host refused to make it one that does not wait.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        Self::with_accept(listener, |listener| listener.accept().map(|(stream, _)| stream))
    }

    pub(super) fn with_accept(listener: UnixListener, accept: Accept) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let socket = Socket { listener, accept, client: None, backlog: true, accepted: None, retry_at: None };
        Ok(SocketBackend { shared: Arc::new(Mutex::new(socket)), first: 0 })
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for SocketBackend {
    fn start(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        self.first = first;
        let mut socket = self.socket();
        socket.backlog = true;
        cx.watch(socket.listener.as_raw_fd(), first + LISTENER, Interest::Read)?;
        if let Some(client) = &socket.client {
            cx.watch(client.stream.as_raw_fd(), first + CLIENT, Interest::Both)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: Token) {
        let listener = self.first + LISTENER;
        let mut socket = self.socket();
        if token == listener {
            socket.backlog = true;
        } else if let Some(client) = &mut socket.client {
            client.ready = true;
        }
    }

    fn attend(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> bool {
        self.socket().attend(first, cx)
    }

    fn is_open(&self) -> bool {
        self.socket().client.is_some()
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket().client {
            Some(client) => client.read(into),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match &mut self.socket().client {
            Some(client) => client.write(from),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Socket {
    fn attend(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> bool {
        let mut left = false;
        loop {
            if let Some(client) = &mut self.client
                && (client.ended || client.deaf || client.ready || self.backlog)
                && client.has_left()
            {
                if !client.is_drained() {
                    return left;
                }
                cx.unwatch(client.stream.as_raw_fd());
                self.client = None;
                left = true;
                self.backlog = true;
            }
            if !self.backlog {
                return left;
            }
            if let Some(time) = self.retry_at.filter(|time| *time > Instant::now()) {
                cx.wake_by(time);
                return left;
            }
            match self.admit(first, cx) {
                Ok(()) => self.retry_at = None,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.backlog = false;
                    self.retry_at = None;
                }
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    // The edge-triggered listener reports no client that is in the backlog already.
                    let time = Instant::now() + RETRY;
                    if self.retry_at.replace(time).is_none() {
                        log::error!(
                            "a client of a port waits until the host can take it: {error}; if descriptors have run out, \
                             raise `ulimit -n`"
                        );
                    }
                    cx.wake_by(time);
                    return left;
                }
            }
        }
    }

    /// Accepts the next client, or closes it if there is one already.
    fn admit(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        let stream = match self.accepted.take() {
            Some(stream) => stream,
            None => (self.accept)(&self.listener)?,
        };
        if self.client.is_some() {
            // Dropping it closes the connection.
            log::debug!("a port has a client already; another is turned away");
            return Ok(());
        }
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| cx.watch(stream.as_raw_fd(), first + CLIENT, Interest::Both));
        match watched {
            Ok(()) => self.client = Some(Client::new(stream)),
            Err(_) => self.accepted = Some(stream),
        }
        watched
    }
}

/// Whether an error of accept(2) is of one client, behind which others may wait: it has gone again, or a signal came.
fn is_of_one_client(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        Client { stream, ended: false, deaf: false, ready: false, ahead: Vec::new() }
    }

    /// Whether it closed both directions; one that closed only its sending direction still reads.
    fn has_left(&mut self) -> bool {
        self.ready = false;
        let hung_up = || {
            let epoll = SysEpoll::new()?;
            // A hang-up is reported without being asked for.
            epoll.ctl(
                ControlOperation::Add,
                self.stream.as_raw_fd(),
                EpollEvent::new(EventSet::empty(), 0),
            )?;
            let mut events = [EpollEvent::default()];
            epoll.wait(0, &mut events)
        };
        // Where the host has no file descriptor left, a client that sends no more counts as gone.
        hung_up().map_or(self.ended, |count: usize| count > 0)
    }

    /// Whether everything that it sent was read.
    fn is_drained(&mut self) -> bool {
        if self.ended || !self.ahead.is_empty() {
            return self.ended;
        }
        let mut ahead = vec![0; 4096];
        match self.read(&mut ahead) {
            Ok(count) => {
                ahead.truncate(count);
                self.ahead = ahead;
                false
            }
            Err(_) => self.ended,
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        // Whatever happened, this finds it out.
        self.ready = false;
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(into.len());
            for (to, from) in into.iter_mut().zip(self.ahead.drain(..count)) {
                *to = from;
            }
            return Ok(count);
        }
        match self.stream.read(into) {
            Ok(count) if count > 0 => Ok(count),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Err(error)
            }
            // The end, or a connection that was reset.
            _ => {
                self.ended = true;
                Err(ErrorKind::WouldBlock.into())
            }
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.deaf {
            return Err(ErrorKind::WouldBlock.into());
        }
        match self.stream.write(from) {
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Err(error)
            }
            // Bytes that it did not take wait for the next client.
            Err(_) => {
                self.deaf = true;
                Err(ErrorKind::WouldBlock.into())
            }
        }
    }
}
