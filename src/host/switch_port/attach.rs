//! An attempt to attach to a switch: it connects, asks for a port, and waits for the answer and for the switch's first message.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use virtio::net::Offloads;

use super::super::frame_link::{Cutter, Framing, Item, taken};
use super::super::lock::user;
use super::super::peer::Peer;
use super::super::ready::is_readable;
use super::super::socket_address::{SocketAddress, SocketKind, connect_now, peek, socket};
use super::answer::{self, Answer};
use super::{PortRequest, SwitchPortError};
use crate::spec::SwitchName;

/// The protocol of a port.
pub(crate) const FRAMES: &str = "minivmm-frames";
/// Pauses between attempts: the first, and the longest, each twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 100 });
const LONGEST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 2000 });
/// Pause while the switch's backlog is full: no event reports a free place.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// A connection that carries frames.
#[derive(Debug)]
pub(in crate::host) struct Attached {
    pub(in crate::host) stream: UnixStream,
    /// What the switch takes, by its first message.
    pub(in crate::host) takes: Offloads,
}

/// See the module.
#[derive(Debug)]
pub(in crate::host) struct Attacher {
    name: SwitchName,
    /// Where the switch may be.
    sockets: Vec<PathBuf>,
    /// The request as it is sent.
    request: Vec<u8>,
    attempt: Option<Attempt>,
    pause: Duration,
    /// The port's name, of the last connection.
    port: Option<String>,
}

#[derive(Debug)]
struct Attempt {
    stream: UnixStream,
    socket: PathBuf,
    received: Vec<u8>,
}

impl Attacher {
    /// How long one attempt may take.
    pub(in crate::host) const LIMIT: Duration = Duration::from_secs(10);

    /// One for a switch that has one of these `sockets`.
    pub(super) fn new(
        name: SwitchName,
        sockets: Vec<PathBuf>,
        request: &PortRequest,
    ) -> Result<Self, SwitchPortError> {
        let body = serde_json::to_string(request);
        let body = body.map_err(|error| SwitchPortError::host(&name, error.into()))?;
        let request = format!(
            "POST /v1/ports HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {FRAMES}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let request = request.into_bytes();
        Ok(Attacher { name, sockets, request, attempt: None, pause: FIRST_PAUSE, port: None })
    }

    /// Attaches, and waits for it.
    pub(super) fn attach(&mut self) -> Result<Attached, SwitchPortError> {
        let until = Instant::now() + Self::LIMIT;
        loop {
            match self.advance() {
                Ok(Some(attached)) => return Ok(attached),
                Ok(None) => {}
                Err(SwitchPortError::Host { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(BACKLOG_PAUSE);
                }
                Err(error) => return Err(error),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SwitchPortError::Silent(self.name.clone()));
            }
            if let Some(stream) = self.stream() {
                is_readable(stream, left);
            }
        }
    }

    /// Begins an attempt, or goes on with the one that is under way. `None`: the switch has not answered yet.
    pub(in crate::host) fn advance(&mut self) -> Result<Option<Attached>, SwitchPortError> {
        let mut attempt = match self.attempt.take() {
            Some(attempt) => attempt,
            None => self.begin()?,
        };
        let Some(begin) = attempt.go_on(&self.name)? else {
            self.attempt = Some(attempt);
            return Ok(None);
        };
        self.port = begin.port;
        Ok(Some(Attached { stream: attempt.stream, takes: begin.takes }))
    }

    pub(in crate::host) fn is_attempting(&self) -> bool {
        self.attempt.is_some()
    }

    /// The connection of the attempt.
    pub(in crate::host) fn stream(&self) -> Option<&UnixStream> {
        self.attempt.as_ref().map(|attempt| &attempt.stream)
    }

    pub(in crate::host) fn give_up(&mut self) {
        self.attempt = None;
    }

    pub(in crate::host) fn host(&self, source: std::io::Error) -> SwitchPortError {
        SwitchPortError::host(&self.name, source)
    }

    /// The pause before the next attempt, which is longer each time.
    pub(in crate::host) fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    pub(in crate::host) fn reset_pause(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    pub(in crate::host) fn port(&self) -> Option<&str> {
        self.port.as_deref()
    }

    /// Connects to the first of the sockets that a program listens on.
    fn begin(&self) -> Result<Attempt, SwitchPortError> {
        let mut first = None;
        for path in &self.sockets {
            match self.begin_at(path) {
                Ok(attempt) => return Ok(attempt),
                // The folder of this user's own comes first; others may be closed to it.
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| SwitchPortError::NoSwitch(self.name.clone())))
    }

    fn begin_at(&self, path: &Path) -> Result<Attempt, SwitchPortError> {
        let unreachable = |source| SwitchPortError::unreachable(&self.name, path, source);
        let address = SocketAddress::at(path).map_err(unreachable)?;
        let socket = socket(SocketKind::Stream).map_err(|source| self.host(source))?;
        connect_now(&socket, &address).map_err(unreachable)?;
        let mut stream = UnixStream::from(socket);
        let peer = Peer::of(&stream).map_err(unreachable)?;
        if ![0, user()].contains(&peer.user) {
            return Err(SwitchPortError::OtherUser {
                name: self.name.clone(),
                path: path.to_owned(),
                user: peer.user,
            });
        }
        // A new socket has room for it.
        stream.write_all(&self.request).map_err(|source| self.host(source))?;
        Ok(Attempt { stream, socket: path.to_owned(), received: Vec::new() })
    }
}

/// What stands before the first frame.
#[derive(Debug)]
struct Begin {
    /// Its bytes.
    len: usize,
    port: Option<String>,
    takes: Offloads,
}

impl Attempt {
    /// Reads what has come, up to the first frame.
    fn go_on(&mut self, name: &SwitchName) -> Result<Option<Begin>, SwitchPortError> {
        let host = |source| SwitchPortError::host(name, source);
        loop {
            let (before, mut bytes) = (self.received.len(), [0; 4096]);
            let count = match peek(&self.stream, &mut bytes) {
                Ok(count) => count,
                // Bytes of the request were left unread: the answer is complete.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(host(error)),
            };
            self.received.extend(bytes.iter().take(count));
            let begin = self.begin(name, count == 0)?;
            // Frames stay in the socket, whose readiness tells the device of them.
            let taken = begin.as_ref().map_or(count, |begin| begin.len.saturating_sub(before).min(count));
            let taken = bytes.get_mut(..taken).unwrap_or_default();
            self.stream.read_exact(taken).map_err(host)?;
            if begin.is_some() {
                return Ok(begin);
            }
        }
    }

    /// What `received` is, to which nothing more comes if it `is_all`; `None` if more has to come.
    fn begin(&self, name: &SwitchName, is_all: bool) -> Result<Option<Begin>, SwitchPortError> {
        let foreign = |reason| Err(SwitchPortError::NotASwitch { path: self.socket.clone(), reason });
        let (head, port) = match answer::read(&self.received, is_all) {
            Answer::Incomplete => return Ok(None),
            Answer::Port { head, name } => (head, name),
            Answer::Refused(reason) => return Err(SwitchPortError::Refused { name: name.clone(), reason }),
            // It ends just now, perhaps.
            Answer::Foreign(_) if is_all && self.received.is_empty() => {
                return Err(SwitchPortError::NoSwitch(name.clone()));
            }
            Answer::Foreign(reason) => return foreign(reason),
        };
        let begun = self.received.get(head..).unwrap_or_default();
        let (len, takes) = match Cutter::new(Framing::Header).next(begun) {
            Ok(Some(Item::Control(at))) => match begun.get(at.clone()).and_then(taken) {
                Some(takes) => (head + at.end, takes),
                None => (head, Offloads::empty()),
            },
            Ok(Some(Item::Frame { .. })) => (head, Offloads::empty()),
            Ok(None) if is_all => return foreign("it sends no first message"),
            Ok(None) => return Ok(None),
            Err(_) => return foreign("what it sends are no frames"),
        };
        Ok(Some(Begin { len, port, takes }))
    }
}
