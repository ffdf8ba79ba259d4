//! The peer of a stream socket, another machine's or a switch's: how it comes, what it sent, what it has still to take, how it
//! goes.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::ration::Ration;
use virtio::net::{HEADER_LEN, Offloads, required};
use vmm_sys_util::epoll::EventSet;

use super::super::frame_link::{Framing, taken, takes_message};
use super::super::socket_address::{SocketAddress, SocketKind, connect_now, has_hung_up, socket};
use super::super::switch_port::{Attached, Attacher};
use super::inbox::{Inbox, Received};
use super::watch::{Group, Interest, LinkWatch};
use super::{MAX_DRAINED, NetSocketError, RETRY, dropped, would_block};
use crate::shown::path as shown;

/// Most clients that are looked at in one go.
const MAX_ACCEPTED: usize = 64;
/// Most reads for one frame, after which others are served: a peer may send single bytes.
const MAX_READS: usize = 16;
/// Connections that end at once, after which it is said: a program that is started again ends one too.
const REFUSALS: u32 = 3;

/// How peers come.
#[derive(Debug)]
pub(in crate::host) enum Side {
    Connect { to: SocketAddress },
    Listen { listener: UnixListener },
    Switch(Attacher),
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
    /// The end of a frame or of a control message of which the socket took only the beginning.
    unsent: Vec<u8>,
    /// What it takes.
    takes: Offloads,
    /// What it was told that the guest takes.
    told: Offloads,
    interest: Interest,
    /// It has hung up, and what it sent before is still read for a while.
    leaving: bool,
    since: Instant,
    /// It has sent something.
    heard: bool,
}

impl Peer {
    /// One that has just come.
    fn new(stream: UnixStream, framing: Framing, takes: Offloads) -> Self {
        Peer {
            stream,
            inbox: Inbox::new(framing),
            unsent: Vec::new(),
            takes,
            told: Offloads::empty(),
            interest: Interest::new(),
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
pub(in crate::host) struct Link {
    /// What the peer is called in messages.
    peer_name: String,
    side: Side,
    framing: Framing,
    peer: Option<Peer>,
    /// What the guest takes.
    takes: Offloads,
    /// Has the peer.
    frames: Group,
    /// Has the listener, or the connection that is being made; and the peer for its end and for room while a frame is partly sent.
    changes: LinkWatch,
    /// Connections in a row that the program that listens has ended at once.
    refusals: u32,
    rations: Rations,
}

/// Of messages that a peer, a switch, or a host that cannot take any, can cause without end.
#[derive(Debug, Default)]
struct Rations {
    /// A peer breaks the framing.
    broken: Ration,
    /// A second peer is refused, here or by the program that listens.
    refused: Ration,
    host: Ration,
    came: Ration,
    /// The switch says which port it is.
    named: Ration,
    left: Ration,
}

/// The link of one interface is used by one boot at a time, and by nobody beside it.
pub(super) fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// One without a peer, which messages call `peer_name`.
    pub(in crate::host) fn new(peer_name: String, side: Side) -> io::Result<Self> {
        let (frames, changes) = (Group::new()?, LinkWatch::new()?);
        if let Side::Listen { listener } = &side {
            changes.group().add(listener, EventSet::IN)?;
        }
        let framing = if matches!(side, Side::Switch(_)) { Framing::Header } else { Framing::Bare };
        Ok(Link {
            peer_name,
            side,
            framing,
            peer: None,
            takes: Offloads::empty(),
            frames,
            changes,
            refusals: 0,
            rations: Rations::default(),
        })
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// What the guest takes from now on; the peer is told.
    pub(super) fn set_takes(&mut self, takes: Offloads) {
        self.takes = takes;
        // It waits behind a frame that is partly sent; a peer that has gone is told when it comes back.
        let _ = self.flush();
    }

    /// Whether the peer takes a frame behind this header.
    pub(super) fn peer_takes(&self, header: &[u8; HEADER_LEN]) -> bool {
        let takes = self.peer.as_ref().map_or(Offloads::empty(), |peer| peer.takes);
        required(header).is_some_and(|needed| takes.contains(needed))
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
    pub(super) fn first_look(&mut self, path: &Path) -> Result<(), NetSocketError> {
        let Side::Connect { to } = &self.side else { return Ok(()) };
        match connect(to) {
            Ok(stream) => self.admit(stream, Offloads::empty()),
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                return Err(NetSocketError::OtherKind {
                    path: path.to_owned(),
                    is: "datagrams",
                    wanted: "a stream",
                    cure: "dgram=LOCAL:REMOTE",
                });
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(NetSocketError::host(path, error));
            }
            Err(_) => {
                log::warn!(
                    "no program listens on {} yet: the network interface has no link until one does",
                    shown(path)
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
                Ok(stream) => self.admit(stream, Offloads::empty()),
                Err(_) => self.changes.ring_after(RETRY),
            },
            Side::Switch(_) if self.peer.is_none() => self.attach(is_due),
            Side::Connect { .. } | Side::Switch(_) => {}
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

    /// Goes on with an attempt to attach to the switch; with `is_due` its time is over, or that of the pause before the next one.
    fn attach(&mut self, is_due: bool) {
        let Side::Switch(attacher) = &mut self.side else { return };
        if attacher.is_attempting() && is_due {
            attacher.give_up();
        }
        if !attacher.is_attempting() && !is_due {
            return;
        }
        let begins = !attacher.is_attempting();
        let error = match attacher.advance() {
            Ok(Some(attached)) => return self.attached(attached),
            Ok(None) => match attacher.stream().filter(|_| begins) {
                None => return,
                Some(stream) => match self.changes.group().add(stream, EventSet::IN) {
                    Ok(()) => return self.changes.ring_after(Attacher::LIMIT),
                    Err(error) => attacher.host(error),
                },
            },
            Err(error) => error,
        };
        if error.is_worth_a_warning()
            && let Some(left_out) = self.rations.refused.take()
        {
            log::warn!("{} cannot be attached to: {error}{left_out}", self.peer_name);
        }
        let pause = attacher.next_pause();
        attacher.give_up();
        self.changes.ring_after(pause);
    }

    /// The switch has given a port.
    pub(in crate::host) fn attached(&mut self, Attached { stream, takes }: Attached) {
        self.admit(stream, takes);
        if let Side::Switch(attacher) = &self.side
            && let Some(left_out) = self.rations.named.take()
        {
            let port = attacher.port().unwrap_or("without a name");
            log::info!("the port on {} is {port}{left_out}", self.peer_name);
        }
    }

    /// The pause before the next attempt to reach a peer.
    fn pause(&mut self) -> Option<Duration> {
        match &mut self.side {
            Side::Connect { .. } => Some(RETRY),
            Side::Switch(attacher) => Some(attacher.next_pause()),
            Side::Listen { .. } => None,
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
                            "{} waits until the host can take it: {error}; if descriptors have run out, raise `ulimit -n`{left_out}",
                            self.peer_name
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
            self.admit(stream, Offloads::empty());
        } else if let Some(left_out) = self.rations.refused.take() {
            // Dropping it closes the connection.
            log::warn!("{} is there, and a second one is refused{left_out}", self.peer_name);
        }
    }

    fn admit(&mut self, stream: UnixStream, takes: Offloads) {
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| self.frames.add(&stream, Interest::FIRST))
            .and_then(|()| self.changes.group().watch(&stream, HANG_UP));
        match watched {
            Ok(()) => {
                if let Some(left_out) = self.rations.came.take() {
                    log::info!("{} is connected{left_out}", self.peer_name);
                }
                self.peer = Some(Peer::new(stream, self.framing, takes));
                let _ = self.flush();
            }
            Err(error) => {
                if let Some(left_out) = self.rations.host.take() {
                    log::error!("{} cannot be watched: {error}{left_out}", self.peer_name);
                }
                self.changes.ring_after(RETRY);
            }
        }
    }

    /// The connection has ended. The next one comes after a pause, or with the next peer.
    fn disconnect(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        if let Some(left_out) = self.rations.left.take() {
            // Machines on one wire come and go; a switch stays.
            let level =
                if matches!(self.side, Side::Switch(_)) { log::Level::Warn } else { log::Level::Info };
            log::log!(
                level,
                "{} has gone: the network interface has no link until it comes back{left_out}",
                self.peer_name
            );
        }
        if let Side::Switch(attacher) = &mut self.side
            && !peer.refuses()
        {
            // A switch that ends each connection at once is tried more and more seldom.
            attacher.reset_pause();
        }
        self.changes.ring();
        if let Some(pause) = self.pause() {
            self.changes.ring_after(pause);
        }
        if matches!(self.side, Side::Connect { .. }) {
            self.refusals = if peer.refuses() { self.refusals.saturating_add(1) } else { 0 };
            // Once, however long it goes on.
            if self.refusals == REFUSALS
                && let Some(left_out) = self.rations.refused.take()
            {
                log::warn!(
                    "{} ends each connection at once: perhaps it has another peer, and takes one at a time; give each pair \
                     of machines a socket of its own{left_out}",
                    self.peer_name
                );
            }
        }
    }

    /// Gives the next frame and its virtio header to `take`.
    pub(super) fn receive<T>(&mut self, take: impl FnOnce(&[u8; HEADER_LEN], &[u8]) -> T) -> io::Result<T> {
        let Some(peer) = &mut self.peer else { return would_block() };
        peer.interest.reading();
        for _ in 0..MAX_READS {
            match peer.inbox.next() {
                Ok(Some(Received::Frame(header, frame))) => {
                    // Frames from before the guest changed its mind may be under way.
                    let taken = required(&header).is_some_and(|needed| self.takes.contains(needed));
                    return if taken { Ok(take(&header, frame)) } else { dropped() };
                }
                Ok(Some(Received::Control(message))) => {
                    if let Some(takes) = taken(message) {
                        peer.takes = takes;
                    }
                    continue;
                }
                Ok(None) => {}
                Err(bad) => {
                    if let Some(left_out) = self.rations.broken.take() {
                        log::warn!("{} is disconnected: {bad}{left_out}", self.peer_name);
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
            match self.receive(|_, _| ()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Sends the end of a frame that was begun, and what the peer has to be told; `WouldBlock` if the socket does not take all of
    /// it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        loop {
            if peer.unsent.is_empty() {
                if peer.told == self.takes {
                    return Ok(());
                }
                peer.told = self.takes;
                peer.unsent.extend(takes_message(self.takes));
            }
            match (&peer.stream).write(&peer.unsent) {
                Ok(count) => drop(peer.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    peer.interest.blocked(true, &self.frames, &peer.stream);
                    let _ = self.changes.group().change(&peer.stream, HANG_UP | EventSet::OUT);
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
