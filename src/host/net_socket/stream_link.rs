//! The peer of a stream socket: how it comes, what it sent, what it has still to take, how it goes.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use devices::ration::Ration;
use vmm_sys_util::epoll::EventSet;

use super::super::socket_address::{SocketAddress, SocketKind, connect_now, has_hung_up, socket};
use super::inbox::{BadLength, Inbox};
use super::watch::{Group, Interest, LinkWatch};
use super::{MAX_DRAINED, NetSocketError, RETRY, dropped, would_block};

/// Most clients that are looked at in one go.
const MAX_ACCEPTED: usize = 64;
/// Most reads for one frame, after which others are served: a peer may send single bytes.
const MAX_READS: usize = 16;
/// Connections that end at once, after which it is said: a program that is started again ends one too.
const REFUSALS: u32 = 3;

/// How peers come.
#[derive(Debug)]
pub(super) enum Side {
    Connect { to: SocketAddress },
    Listen { listener: UnixListener },
}

impl Side {
    /// A side that connects to `path`, where there may be nothing yet.
    pub(super) fn connecting(path: &Path) -> Result<Self, NetSocketError> {
        let to = SocketAddress::at(path).map_err(|source| NetSocketError::host(path, source))?;
        match fs::metadata(path) {
            Ok(file) if !file.file_type().is_socket() => Err(NetSocketError::NoSocket(path.to_owned())),
            _ => Ok(Side::Connect { to }),
        }
    }
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    inbox: Inbox,
    /// The end of a frame of which the socket took only the beginning.
    unsent: Vec<u8>,
    interest: Interest,
    /// It has hung up, and what it sent before is still read for a while.
    leaving: bool,
    since: Instant,
    /// It has sent something.
    heard: bool,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        let (inbox, interest) = (Inbox::default(), Interest::new());
        Peer {
            stream,
            inbox,
            unsent: Vec::new(),
            interest,
            leaving: false,
            since: Instant::now(),
            heard: false,
        }
    }

    /// It looks as if it never wanted the connection that now ends.
    fn refuses(&self) -> bool {
        !self.heard && self.since.elapsed() < 3 * RETRY
    }
}

/// What a peer is watched for beside its frames.
const HANG_UP: EventSet = EventSet::READ_HANG_UP;

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    side: Side,
    peer: Option<Peer>,
    /// Has the peer.
    frames: Group,
    /// Has the listener, and the peer for its end and for room while a frame is partly sent.
    changes: LinkWatch,
    /// Connections in a row that the program that listens has ended at once.
    refusals: u32,
    rations: Rations,
}

/// Of messages that a peer, or a host that cannot take any, can cause without end.
#[derive(Debug, Default)]
struct Rations {
    /// A peer breaks the framing.
    broken: Ration,
    /// A second peer is refused, here or by the program that listens.
    refused: Ration,
    host: Ration,
    came: Ration,
    left: Ration,
}

impl Link {
    /// One without a peer.
    pub(super) fn new(path: &Path, side: Side) -> io::Result<Self> {
        let (frames, changes) = (Group::new()?, LinkWatch::new()?);
        if let Side::Listen { listener } = &side {
            changes.group().add(listener, EventSet::IN)?;
        }
        Ok(Link {
            path: path.to_owned(),
            side,
            peer: None,
            frames,
            changes,
            refusals: 0,
            rations: Rations::default(),
        })
    }

    /// Of a driver that begins, nobody knows yet whether it has buffers.
    pub(super) fn begin_reading(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.interest.reading();
        }
    }

    pub(super) fn frames_fd(&self) -> RawFd {
        self.frames.fd()
    }

    pub(super) fn link_fd(&self) -> RawFd {
        self.changes.group().fd()
    }

    pub(super) fn stream(&self) -> Option<&UnixStream> {
        self.peer.as_ref().map(|peer| &peer.stream)
    }

    /// Connects for the first time: what will not mend itself is an error.
    pub(super) fn first_look(&mut self) -> Result<(), NetSocketError> {
        let Side::Connect { to } = &self.side else { return Ok(()) };
        match connect(to) {
            Ok(stream) => self.admit(stream),
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                return Err(NetSocketError::OtherKind {
                    path: self.path.clone(),
                    is: "datagrams",
                    wanted: "a stream",
                    cure: "dgram=LOCAL:REMOTE",
                });
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(NetSocketError::host(&self.path, error));
            }
            Err(_) => {
                log::warn!(
                    "no program listens on {} yet: the network interface has no link until one does",
                    self.path.display()
                );
                self.changes.ring_after(RETRY);
            }
        }
        Ok(())
    }

    /// Deals with what has happened to the link. Whether there is a peer.
    pub(super) fn look(&mut self) -> bool {
        self.changes.hush();
        // The device sends the next frame only when it has one.
        let _ = self.flush();
        let is_due = self.changes.is_due();
        self.watch_leaving(is_due);
        match &self.side {
            Side::Listen { .. } => self.accept(),
            Side::Connect { to } if self.peer.is_none() && is_due => match connect(to) {
                Ok(stream) => self.admit(stream),
                Err(_) => self.changes.ring_after(RETRY),
            },
            Side::Connect { .. } => {}
        }
        self.peer.as_ref().is_some_and(|peer| !peer.leaving)
    }

    /// A peer that has hung up is let go when all that it sent was read, or after a pause: the guest may have no buffers.
    fn watch_leaving(&mut self, is_due: bool) {
        let Some(peer) = self.peer.as_mut().filter(|peer| has_hung_up(&peer.stream)) else { return };
        if !peer.leaving {
            peer.leaving = true;
            self.changes.ring_after(RETRY);
        } else if is_due {
            self.disconnect();
        }
    }

    fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTED {
            let Side::Listen { listener } = &self.side else { return };
            match listener.accept() {
                Ok((stream, _)) => self.accepted(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    if let Some(left_out) = self.rations.host.take() {
                        log::error!(
                            "a peer of {} waits until the host can take it: {error}; if descriptors have run out, raise \
                             `ulimit -n`{left_out}",
                            self.path.display()
                        );
                    }
                    self.changes.ring_after(RETRY);
                    return;
                }
            }
        }
        self.changes.ring();
    }

    fn accepted(&mut self, stream: UnixStream) {
        // The event of a peer that has gone may come after that of the next one.
        if self.peer.as_ref().is_some_and(|peer| has_hung_up(&peer.stream)) {
            self.disconnect();
        }
        if self.peer.is_none() {
            self.admit(stream);
        } else if let Some(left_out) = self.rations.refused.take() {
            // Dropping it closes the connection.
            log::warn!("a second peer of {} is refused: it has one already{left_out}", self.path.display());
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| self.frames.add(&stream, Interest::FIRST))
            .and_then(|()| self.changes.group().add(&stream, HANG_UP));
        match watched {
            Ok(()) => {
                if let Some(left_out) = self.rations.came.take() {
                    log::info!("{} has a peer{left_out}", self.path.display());
                }
                self.peer = Some(Peer::new(stream));
            }
            Err(error) => {
                if let Some(left_out) = self.rations.host.take() {
                    log::error!("a peer of {} cannot be watched: {error}{left_out}", self.path.display());
                }
                self.changes.ring_after(RETRY);
            }
        }
    }

    /// The connection has ended. The next one comes after a pause, or with the next peer.
    fn disconnect(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        if let Some(left_out) = self.rations.left.take() {
            log::info!("{} has no peer any more{left_out}", self.path.display());
        }
        self.changes.ring();
        if matches!(self.side, Side::Connect { .. }) {
            self.changes.ring_after(RETRY);
            self.refusals = if peer.refuses() { self.refusals.saturating_add(1) } else { 0 };
            // Once, however long it goes on.
            if self.refusals == REFUSALS
                && let Some(left_out) = self.rations.refused.take()
            {
                log::warn!(
                    "the program that listens on {} ends each connection at once: perhaps it has another peer, and takes one \
                     at a time; give each pair of machines a socket of its own{left_out}",
                    self.path.display()
                );
            }
        }
    }

    /// Gives the next frame to `take`.
    pub(super) fn receive<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let Some(peer) = &mut self.peer else { return would_block() };
        peer.interest.reading();
        for _ in 0..MAX_READS {
            match peer.inbox.next() {
                Ok(Some(frame)) => return Ok(take(frame)),
                Ok(None) => {}
                Err(BadLength(len)) => {
                    if let Some(left_out) = self.rations.broken.take() {
                        log::warn!(
                            "the peer of {} is disconnected: it sent a frame of {len} bytes, which is none of \
                             Ethernet{left_out}",
                            self.path.display()
                        );
                    }
                    self.disconnect();
                    return would_block();
                }
            }
            match peer.inbox.fill(|room| (&peer.stream).read(room)) {
                Ok(1..) => peer.heard = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    peer.interest.drained(&self.frames, &peer.stream);
                    return Err(error);
                }
                Ok(0) | Err(_) => {
                    self.disconnect();
                    return would_block();
                }
            }
        }
        dropped()
    }

    /// Drops the frames that have come.
    pub(super) fn discard(&mut self) {
        for _ in 0..MAX_DRAINED {
            match self.receive(|_| ()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Sends the end of a frame that was begun; `WouldBlock` if the socket does not take all of it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        while !peer.unsent.is_empty() {
            match (&peer.stream).write(&peer.unsent) {
                Ok(count) => drop(peer.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    peer.interest.blocked(true, &self.frames, &peer.stream);
                    return Err(error);
                }
                Err(error) => {
                    self.disconnect();
                    return Err(error);
                }
            }
            if peer.unsent.is_empty() {
                // Such frames are rare: large ones on a socket that is nearly full.
                peer.unsent = Vec::new();
                peer.interest.blocked(false, &self.frames, &peer.stream);
                let _ = self.changes.group().change(&peer.stream, HANG_UP);
            }
        }
        Ok(())
    }

    /// Deals with the result of sending a frame of `len` bytes behind `prefix`; `gather` copies the frame from a byte on.
    pub(super) fn sent(
        &mut self,
        result: io::Result<usize>,
        prefix: &[u8],
        len: usize,
        gather: impl FnOnce(usize, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        match result {
            Ok(count) => {
                peer.interest.blocked(false, &self.frames, &peer.stream);
                if count >= prefix.len() + len {
                    return Ok(());
                }
                peer.unsent.extend(prefix.iter().skip(count));
                let rest = gather(count.saturating_sub(prefix.len()), &mut peer.unsent);
                let watched = self.changes.group().change(&peer.stream, HANG_UP | EventSet::OUT);
                if let Err(error) = rest.and(watched) {
                    // The peer would take the next frame for the end of this one.
                    self.disconnect();
                    return Err(error);
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                peer.interest.blocked(true, &self.frames, &peer.stream);
                Err(error)
            }
            Err(error) => {
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
                    self.disconnect();
                }
                Err(error)
            }
        }
    }
}

fn connect(to: &SocketAddress) -> io::Result<UnixStream> {
    let socket = socket(SocketKind::Stream)?;
    connect_now(&socket, to)?;
    Ok(UnixStream::from(socket))
}
