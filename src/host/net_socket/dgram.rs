//! Frames over datagram sockets: one each.
//!
//! The socket is not connected, as QEMU's is not: so a peer that was started again is heard at once. Therefore poll(2) knows
//! nothing of a peer whose queue is full, and a timer brings the next attempt.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vmm_sys_util::timerfd::TimerFd;

use super::super::iovecs::IoVecs;
use super::super::socket_address::{SocketAddress, SocketKind, connect_now, socket};
use super::super::socket_file::SocketFile;
use super::watch::{Group, Interest, LinkWatch};
use super::{ETHERNET, MAX_DRAINED, NetSocketError, RETRY, dropped};
use crate::shown::path as shown;

/// First pause before a full socket is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The socket of a network interface, for all boots of its machine.
#[derive(Debug)]
pub(crate) struct DgramSocket {
    ends: Arc<Mutex<Ends>>,
    mtu: u16,
    _file: SocketFile,
}

impl DgramSocket {
    /// Makes the socket `local`, and sends to the socket `remote`, which may come later.
    pub(crate) fn open(local: &Path, remote: &Path, mtu: u16) -> Result<Self, NetSocketError> {
        if local == remote {
            return Err(NetSocketError::SamePath(local.to_owned()));
        }
        let to = SocketAddress::at(remote).map_err(|source| NetSocketError::host(remote, source))?;
        if fs::metadata(remote).is_ok_and(|file| !file.file_type().is_socket()) {
            return Err(NetSocketError::NoSocket(remote.to_owned()));
        }
        let up = is_there(remote, &to)?;
        let (socket, file) = SocketFile::bind(local, SocketKind::Datagram)
            .map_err(|fault| NetSocketError::fault(local, fault, ""))?;
        // A path has many names: `q` and `./q`.
        if is_one_file(local, remote) {
            return Err(NetSocketError::SamePath(remote.to_owned()));
        }
        let ends = Ends::new(UnixDatagram::from(socket), remote, to, up);
        let ends = ends.map_err(|source| NetSocketError::host(local, source))?;
        if !up {
            log::warn!(
                "no program has the socket {} yet: the network interface has no link until one does",
                shown(remote)
            );
        }
        Ok(DgramSocket { ends: Arc::new(Mutex::new(ends)), mtu, _file: file })
    }

    /// A backend for the device of one boot. Frames from before are dropped.
    pub(crate) fn backend(&self) -> Box<dyn NetBackend> {
        lock(&self.ends).discard();
        Box::new(DgramBackend { ends: self.ends.clone(), mtu: self.mtu, iovecs: IoVecs::default() })
    }
}

fn is_one_file(one: &Path, other: &Path) -> bool {
    let file = |path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    file(one).is_some_and(|one| file(other) == Some(one))
}

/// Whether a program has the socket at `path`. An error is one that does not mend itself.
fn is_there(path: &Path, address: &SocketAddress) -> Result<bool, NetSocketError> {
    let Err(error) = reach(address) else { return Ok(true) };
    match error.raw_os_error() {
        Some(libc::EPROTOTYPE) => Err(NetSocketError::OtherKind {
            path: path.to_owned(),
            is: "a stream",
            wanted: "datagrams",
            cure: "socket=PATH",
        }),
        Some(libc::EACCES) => Err(NetSocketError::host(path, error)),
        _ => Ok(false),
    }
}

/// Whether a program has the socket.
fn reach(address: &SocketAddress) -> io::Result<()> {
    match socket(SocketKind::Datagram).and_then(|socket| connect_now(&socket, address)) {
        // It is connected, to our socket perhaps.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        reached => reached,
    }
}

fn lock(ends: &Mutex<Ends>) -> MutexGuard<'_, Ends> {
    ends.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both ends of the wire.
#[derive(Debug)]
struct Ends {
    socket: UnixDatagram,
    interest: Interest,
    remote: PathBuf,
    to: SocketAddress,
    /// Nothing shows that the peer has gone.
    up: bool,
    /// Has the socket, and the timer of the next attempt to send.
    frames: Group,
    again: TimerFd,
    pause: Duration,
    changes: LinkWatch,
}

impl Ends {
    fn new(socket: UnixDatagram, remote: &Path, to: SocketAddress, up: bool) -> io::Result<Self> {
        let (frames, again, changes) = (Group::new()?, TimerFd::new()?, LinkWatch::new()?);
        frames.add(&socket, Interest::FIRST)?;
        frames.add(&again, vmm_sys_util::epoll::EventSet::IN)?;
        let (interest, pause, remote) = (Interest::new(), FIRST_PAUSE, remote.to_owned());
        let mut ends = Ends { socket, interest, remote, to, up, frames, again, pause, changes };
        if !up {
            ends.changes.ring_after(RETRY);
        }
        Ok(ends)
    }

    fn set_link(&mut self, up: bool) {
        if self.up != up {
            let state = if up { "is there" } else { "is not there any more" };
            log::info!("the peer at {} {state}", shown(&self.remote));
            self.up = up;
            self.changes.ring();
            if !up {
                self.changes.ring_after(RETRY);
            }
        }
    }

    fn look(&mut self) -> bool {
        self.changes.hush();
        if self.changes.is_due() && !self.up {
            if reach(&self.to).is_ok() {
                self.set_link(true);
            } else {
                self.changes.ring_after(RETRY);
            }
        }
        self.up
    }

    fn discard(&mut self) {
        for _ in 0..MAX_DRAINED {
            match self.socket.recv(&mut [0; 1]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }

    /// Deals with the result of reading a datagram.
    fn received(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        match result {
            Ok(len) => {
                // It does not bring a link up: anyone may have sent it, while nobody hears the guest. The next look finds out.
                if len < ETHERNET { dropped() } else { Ok(len) }
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => {
                    self.interest.drained(&self.frames, &self.socket);
                    Err(error)
                }
                // What befell a peer that was connected to this socket; what it sent is behind.
                ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused => dropped(),
                _ => Err(error),
            },
        }
    }

    /// Deals with the result of sending a frame.
    fn sent(&mut self, result: io::Result<usize>) -> io::Result<()> {
        let Err(error) = result else {
            self.pause = FIRST_PAUSE;
            self.set_link(true);
            return Ok(());
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => {
                self.interest.trim(&self.frames, &self.socket);
                self.again.reset(self.pause, None)?;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            Some(
                libc::ENOENT
                | libc::ENOTDIR
                | libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EPROTOTYPE
                | libc::EACCES,
            ) => {
                self.set_link(false);
            }
            _ => {}
        }
        Err(error)
    }
}

/// The socket for the network device of one boot; one is used at a time.
#[derive(Debug)]
struct DgramBackend {
    /// Shared with the machine, which does not use it while a device does.
    ends: Arc<Mutex<Ends>>,
    mtu: u16,
    iovecs: IoVecs,
}

impl NetBackend for DgramBackend {
    fn pairs(&self) -> u16 {
        1
    }

    fn offloads(&self) -> Offloads {
        Offloads::empty()
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn enable(&mut self, _pairs: u16) -> io::Result<()> {
        // Of a driver that begins, nobody knows yet whether it has buffers.
        lock(&self.ends).interest.reading();
        Ok(())
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        (pair == 0).then(|| lock(&self.ends).frames.fd())
    }

    fn link_fd(&self) -> Option<RawFd> {
        Some(lock(&self.ends).changes.group().fd())
    }

    fn link_is_up(&mut self) -> bool {
        lock(&self.ends).look()
    }

    fn receive(
        &mut self,
        _pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        *header = [0; HEADER_LEN];
        let mut ends = lock(&self.ends);
        ends.interest.reading();
        let result = self.iovecs.read(&ends.socket, &mut [], memory, room, spill);
        ends.received(result)
    }

    fn send(
        &mut self,
        _pair: u16,
        _header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        let mut ends = lock(&self.ends);
        let result = self.iovecs.send(&ends.socket, Some(&ends.to), &[], memory, frame);
        ends.sent(result)
    }
}
