//! The wire between the guest's network device and a user-mode network.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use usernet::{Accepts, Checksum, Config, Forward, Gso, GsoKind, LONGEST_FRAME, Network, Offload};
use virtio::memory::{Memory, Segment, total};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::Bytes;
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

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// The network of one boot.
///
/// What the network device's thread watches is the epoll of all sockets. Two more descriptors are in it: a timer for the
/// network's timeouts, and an eventfd for frames that are there at once, such as answers to what the guest sent.
#[derive(Debug)]
pub(crate) struct UserBackend {
    network: Network<Sockets>,
    epoll: Arc<Epoll>,
    wake: EventFd,
    timer: TimerFd,
    /// When the timer goes off.
    armed: Option<Instant>,
    /// The last call of `receive` said that there is nothing: the thread waits for the epoll.
    waiting: bool,
    accepts: Accepts,
    frame: Vec<u8>,
    events: Vec<EpollEvent>,
    mtu: u16,
}

impl UserBackend {
    /// A network that `config` describes, with ports that are open already.
    pub(super) fn new(config: Config, bound: Vec<BoundSocket>) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let wake = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let timer = TimerFd::new()?;
        // At an edge: neither is ever read.
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, WAKE);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), event)?;
        let mtu = config.mtu;
        Ok(UserBackend {
            network: Network::new(config, Sockets::new(epoll.clone(), bound)),
            epoll,
            wake,
            timer,
            armed: None,
            waiting: false,
            accepts: Accepts::default(),
            frame: vec![0; LONGEST_FRAME],
            events: vec![EpollEvent::default(); EVENTS],
            mtu,
        })
    }

    /// Opens a port of the host that leads to the guest.
    pub(super) fn forward(&mut self, forward: Forward) -> io::Result<SocketAddr> {
        self.network.forward(forward)
    }

    /// The next frame in `self.frame`.
    fn next_frame(&mut self) -> io::Result<(std::ops::Range<usize>, Offload)> {
        for _ in 0..LOOKS {
            let now = Instant::now();
            if self.network.next_timeout().is_some_and(|at| at <= now) {
                self.network.timeout(now);
            }
            if let Some(frame) = self.network.output(&mut self.frame, self.accepts, now) {
                return Ok(frame);
            }
            let count = self.epoll.wait(0, &mut self.events)?;
            if count == 0 {
                self.arm(now)?;
                self.waiting = true;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            for event in self.events.iter().take(count).filter(|event| event.data() != WAKE) {
                self.network.ready(event.data(), ready(event.event_set()), now);
            }
        }
        // Go on after the other work of this thread.
        self.wake.write(1)?;
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn arm(&mut self, now: Instant) -> io::Result<()> {
        let next = self.network.next_timeout();
        if next == self.armed {
            return Ok(());
        }
        match next {
            // 0 would switch the timer off.
            Some(at) => self.timer.reset(at.saturating_duration_since(now).max(NEXT_TICK), None)?,
            None => self.timer.clear()?,
        }
        self.armed = next;
        Ok(())
    }
}

const NEXT_TICK: std::time::Duration = std::time::Duration::from_nanos(1);

impl NetBackend for UserBackend {
    fn pairs(&self) -> u16 {
        1
    }

    fn offloads(&self) -> Offloads {
        Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.accepts = Accepts {
            checksum: offloads.contains(Offloads::CSUM),
            tso4: offloads.contains(Offloads::TSO4),
            tso6: offloads.contains(Offloads::TSO6),
        };
        Ok(())
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        if pairs == 1 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        (pair == 0).then(|| self.epoll.as_raw_fd())
    }

    fn link_fd(&self) -> Option<RawFd> {
        None
    }

    fn link_is_up(&mut self) -> bool {
        true
    }

    fn receive(
        &mut self,
        _pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let (range, offload) = self.next_frame()?;
        *header = header_of(offload);
        let frame = self.frame.get(range).unwrap_or_default();
        let mut rest = frame;
        for segment in room {
            let len = rest.len().min(usize::try_from(segment.len).unwrap_or(usize::MAX));
            let Some((now, later)) = rest.split_at_checked(len).filter(|(now, _)| !now.is_empty()) else {
                break;
            };
            memory.write_slice(now, segment.address).map_err(io::Error::other)?;
            rest = later;
        }
        let spilled = rest.len().min(spill.len());
        if let (Some(to), Some(from)) = (spill.get_mut(..spilled), rest.get(..spilled)) {
            to.copy_from_slice(from);
        }
        Ok(frame.len())
    }

    fn send(
        &mut self,
        _pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        let len = usize::try_from(total(frame)).map_err(io::Error::other)?;
        let mut room = self.frame.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        for segment in frame {
            let len = usize::try_from(segment.len).map_err(io::Error::other)?;
            let (part, rest) = room.split_at_mut_checked(len).ok_or(io::ErrorKind::InvalidInput)?;
            memory.read_slice(part, segment.address).map_err(io::Error::other)?;
            room = rest;
        }
        let bytes = self.frame.get(..len).unwrap_or_default();
        self.network.input(bytes, offload_of(header), Instant::now());
        if std::mem::take(&mut self.waiting) {
            // There may be an answer.
            self.wake.write(1)?;
        }
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
