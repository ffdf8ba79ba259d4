//! A user-mode network with its sockets: frames in and out, and one descriptor to watch. It knows no guest memory, so that a
//! machine's network device and a switch can both hold one.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use usernet::{
    Accepts, Checksum, Config, Destination, Forward, Gso, GsoKind, LONGEST_FRAME, Network, Offload, Protocol,
};
use virtio::net::{HEADER_LEN, Offloads};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::sockets::{BoundSocket, Sockets, ready};

/// The token of our own wake-ups: no socket has it.
const WAKE: u64 = 0;

/// Sockets that are looked at together.
const EVENTS: usize = 64;
/// Looks at the sockets without a frame for the guest, before the other work of the thread has its turn.
const LOOKS: usize = 32;
/// 0 would switch the timer off.
const NEXT_TICK: Duration = Duration::from_nanos(1);

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// What the network takes from the other end, and gives to one that takes it.
pub(crate) const OFFLOADS: Offloads = Offloads::CSUM.union(Offloads::TSO4).union(Offloads::TSO6);

/// The network and its sockets.
///
/// Its descriptor is the epoll of all sockets. Two more descriptors are in it: a timer for the network's timeouts, and an
/// eventfd for frames that are there at once, such as answers to what the guest sent. An owner that watches it at an edge takes
/// frames until there is none.
#[derive(Debug)]
pub(crate) struct Wire {
    network: Network<Sockets>,
    epoll: Arc<Epoll>,
    wake: EventFd,
    timer: TimerFd,
    /// When the timer goes off.
    armed: Option<Instant>,
    /// The last call of [`Wire::next_frame`] said that there is none: the owner waits for the epoll.
    waiting: bool,
    accepts: Accepts,
    frame: Vec<u8>,
    events: Vec<EpollEvent>,
}

impl Wire {
    /// A network that `config` describes.
    pub(super) fn new(config: Config) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let wake = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let timer = TimerFd::new()?;
        // At an edge: neither is ever read.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, WAKE);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), event)?;
        Ok(Wire {
            network: Network::new(config, Sockets::new(epoll.clone())),
            epoll,
            wake,
            timer,
            armed: None,
            waiting: false,
            accepts: Accepts::default(),
            frame: vec![0; LONGEST_FRAME],
            events: vec![EpollEvent::default(); EVENTS],
        })
    }

    /// The descriptor to watch.
    pub(crate) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The largest IP packet.
    pub(crate) fn mtu(&self) -> u16 {
        self.network.config().mtu
    }

    /// Has the owner woken when `fd`, which nobody reads, becomes readable again.
    pub(super) fn watch(&self, fd: RawFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, WAKE);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// Has `bound`, a port that is open already, lead to the guest as `forward` says.
    pub(super) fn forward(&mut self, bound: BoundSocket, forward: Forward) -> io::Result<()> {
        self.forward_to(bound, forward, Destination::First)
    }

    /// [`Wire::forward`] to one of several guests.
    pub(super) fn forward_to(
        &mut self,
        bound: BoundSocket,
        forward: Forward,
        to: Destination,
    ) -> io::Result<()> {
        let bind = bound.address();
        self.network.host().lend(bound);
        self.network.forward_to(Forward { bind, ..forward }, to).map(drop)
    }

    /// Names one of several guests, or forgets its name.
    #[cfg(feature = "cli")]
    pub(crate) fn set_name(&mut self, guest: [u8; 6], name: Option<String>) {
        self.network.set_name(guest, name);
    }

    /// The IPv4 addresses that several guests have from DHCP, by Ethernet address.
    #[cfg(feature = "cli")]
    pub(crate) fn leases(&self) -> Vec<([u8; 6], std::net::Ipv4Addr)> {
        self.network.leases(Instant::now())
    }

    /// Ends a forward; connections go on. False: there is none.
    pub(super) fn remove_forward(&mut self, protocol: Protocol, bind: SocketAddr) -> bool {
        self.network.remove_forward(protocol, bind)
    }

    /// What the other end takes.
    pub(crate) fn set_offloads(&mut self, offloads: Offloads) {
        self.accepts = Accepts {
            checksum: offloads.contains(Offloads::CSUM),
            tso4: offloads.contains(Offloads::TSO4),
            tso6: offloads.contains(Offloads::TSO6),
        };
    }

    /// Takes a frame of the guest with its virtio-net header.
    #[cfg(feature = "cli")]
    pub(crate) fn input(&mut self, header: &[u8; HEADER_LEN], frame: &[u8]) -> io::Result<()> {
        self.network.input(frame, offload_of(header), Instant::now());
        self.wake()
    }

    /// [`Wire::input`] of a frame in parts.
    #[cfg(feature = "cli")]
    pub(crate) fn input_parts(&mut self, header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len()).sum();
        self.put(header, len, |mut room| {
            for part in parts {
                let (place, rest) =
                    room.split_at_mut_checked(part.len()).ok_or(io::ErrorKind::InvalidInput)?;
                place.copy_from_slice(part);
                room = rest;
            }
            Ok(())
        })?;
        self.wake()
    }

    /// Takes a frame of `len` bytes that `fill` puts together. Nobody is woken: see [`Wire::has_answer`].
    pub(super) fn input_with(
        &mut self,
        header: &[u8; HEADER_LEN],
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.put(header, len, fill)?;
        self.waiting = false;
        Ok(())
    }

    fn put(
        &mut self,
        header: &[u8; HEADER_LEN],
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let room = self.frame.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        fill(room)?;
        self.network.input(room, offload_of(header), Instant::now());
        Ok(())
    }

    /// Whether a frame may be there already, in answer to one that came with [`Wire::input_with`]: its owner looks without being
    /// woken.
    pub(super) fn has_answer(&self) -> bool {
        !self.waiting
    }

    /// There may be an answer.
    #[cfg(feature = "cli")]
    fn wake(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.waiting) { self.wake.write(1) } else { Ok(()) }
    }

    /// The next frame for the guest, and its virtio-net header.
    ///
    /// # Errors
    /// `WouldBlock`: there is none now. Anything else: the host has no memory left.
    pub(crate) fn next_frame(&mut self) -> io::Result<([u8; HEADER_LEN], &[u8])> {
        let mut frame = std::mem::take(&mut self.frame);
        let next = self.next_frame_in(&mut frame);
        self.frame = frame;
        next.map(|(header, range)| (header, self.frame.get(range).unwrap_or_default()))
    }

    /// [`Wire::next_frame`] somewhere in `room`, which has [`LONGEST_FRAME`] bytes.
    pub(crate) fn next_frame_in(&mut self, room: &mut [u8]) -> io::Result<([u8; HEADER_LEN], Range<usize>)> {
        for _ in 0..LOOKS {
            let now = Instant::now();
            if self.network.next_timeout().is_some_and(|at| at <= now) {
                self.network.timeout(now);
            }
            if let Some((range, offload)) = self.network.output(room, self.accepts, now) {
                return Ok((header_of(offload), range));
            }
            let count = self.epoll.wait(0, &mut self.events)?;
            if count == 0 && !self.network.has_more() {
                self.arm(now)?;
                self.waiting = true;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            for event in self.events.iter().take(count).filter(|event| event.data() != WAKE) {
                self.network.ready(event.data(), ready(event.event_set()), now);
            }
        }
        self.go_on()?;
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// There is more, after the other work of this thread: the descriptor becomes readable.
    pub(crate) fn go_on(&mut self) -> io::Result<()> {
        self.wake.write(1)
    }

    fn arm(&mut self, now: Instant) -> io::Result<()> {
        let next = self.network.next_timeout();
        if next == self.armed {
            return Ok(());
        }
        match next {
            Some(at) => self.timer.reset(at.saturating_duration_since(now).max(NEXT_TICK), None)?,
            None => self.timer.clear()?,
        }
        self.armed = next;
        Ok(())
    }
}

/// The header in front of a frame for the guest.
fn header_of(offload: Offload) -> [u8; HEADER_LEN] {
    let (flags, [start0, start1], [offset0, offset1]) = match offload.checksum {
        Checksum::Complete => (0, [0; 2], [0; 2]),
        Checksum::Partial { start, offset } => (NEEDS_CSUM, start.to_le_bytes(), offset.to_le_bytes()),
    };
    let (kind, [len0, len1], [size0, size1]) = match offload.gso {
        None => (GSO_NONE, [0; 2], [0; 2]),
        Some(Gso { kind, size, headers }) => {
            let kind = if kind == GsoKind::Tcp4 { GSO_TCPV4 } else { GSO_TCPV6 };
            (kind, headers.to_le_bytes(), size.to_le_bytes())
        }
    };
    [flags, kind, len0, len1, size0, size1, start0, start1, offset0, offset1, 0, 0]
}

/// What the guest left to us, by the header in front of its frame.
fn offload_of(header: &[u8; HEADER_LEN]) -> Offload {
    let [flags, kind, len0, len1, size0, size1, start0, start1, offset0, offset1, ..] = *header;
    let checksum = match flags & NEEDS_CSUM {
        0 => Checksum::Complete,
        _ => Checksum::Partial {
            start: u16::from_le_bytes([start0, start1]),
            offset: u16::from_le_bytes([offset0, offset1]),
        },
    };
    let kind = match kind {
        GSO_TCPV4 => Some(GsoKind::Tcp4),
        GSO_TCPV6 => Some(GsoKind::Tcp6),
        _ => None,
    };
    let (size, headers) = (u16::from_le_bytes([size0, size1]), u16::from_le_bytes([len0, len1]));
    Offload { checksum, gso: kind.map(|kind| Gso { kind, size, headers }) }
}
