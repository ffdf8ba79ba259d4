//! Tells a network where a guest is that has come from elsewhere: switches and bridges on the way have learned another place for its
//! address, and would learn the new one from its next frame only.
//!
//! What is sent is a RARP request of its address for its address (RFC 903), to all, as QEMU sends it: nobody answers, and whoever forwards
//! frames learns. It is sent several times with growing waits, as one may be lost while a port or spanning tree comes up.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use virtio::memory::{Memory, MemoryOwner, Regions, Segment};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// Waits between the frames.
const WAITS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(350),
];
/// The shortest Ethernet frame, without its checksum.
const LEN: usize = 60;

/// What the descriptors of a backend are.
const BELL: u64 = 0;
const TIMER: u64 = 1;
const LINK: u64 = 2;

/// Has an interface announce its guest.
#[derive(Debug, Clone)]
pub(crate) struct Announcer(Arc<EventFd>);

impl Announcer {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Announcer(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
    }

    /// The guest runs here from now on. Its frames are sent by the thread of its interface.
    pub(crate) fn announce(&self) {
        let _ = self.0.write(1);
    }

    /// `wire`, on which the guest with the address `mac` is announced: the backend of one boot.
    pub(crate) fn around(&self, wire: Box<dyn NetBackend>, mac: [u8; 6]) -> io::Result<Box<dyn NetBackend>> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        let add = |fd, what| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, what));
        add(self.0.as_raw_fd(), BELL)?;
        add(timer.as_raw_fd(), TIMER)?;
        wire.link_fd().map_or(Ok(()), |fd| add(fd, LINK))?;
        let memory = Memory::new(
            Regions::from_ranges(&[(GuestAddress(0), 4096)]).map_err(io::Error::other)?,
            Arc::new(Own),
        );
        memory.write_slice(&frame(mac), GuestAddress(0)).map_err(io::Error::other)?;
        Ok(Box::new(Announced { wire, bell: self.0.clone(), timer, epoll, memory, next: WAITS.len() + 1 }))
    }
}

/// A page of this process.
#[derive(Debug)]
struct Own;

impl MemoryOwner for Own {
    fn discard(&self, _: GuestAddress, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The frame for the address `mac`.
fn frame(mac: [u8; 6]) -> [u8; LEN] {
    const HEAD: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    let mut frame = [0; LEN];
    let bytes = [0xff; 6].into_iter().chain(mac).chain(HEAD).chain(mac).chain([0; 4]).chain(mac);
    frame.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    frame
}

/// See [`Announcer::around`].
struct Announced {
    wire: Box<dyn NetBackend>,
    bell: Arc<EventFd>,
    timer: TimerFd,
    /// All that [`NetBackend::link_fd`] tells of.
    epoll: Epoll,
    /// Has the frame.
    memory: Memory,
    /// How many frames were sent; all of them at first.
    next: usize,
}

impl fmt::Debug for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announced").field("wire", &self.wire).finish_non_exhaustive()
    }
}

impl Announced {
    /// Looks what has happened, and sends what is due.
    fn look(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 3];
        let count = self.epoll.wait(0, &mut events)?;
        let mut due = false;
        for event in events.iter().take(count) {
            match event.data() {
                BELL => {
                    self.bell.read()?;
                    (self.next, due) = (0, true);
                }
                TIMER => {
                    self.timer.wait()?;
                    due = true;
                }
                _ => {}
            }
        }
        if due && self.next <= WAITS.len() {
            let segment = Segment { address: GuestAddress(0), len: u32::try_from(LEN).unwrap_or_default() };
            // One that the wire does not take is lost.
            let _ = self.wire.send(0, &[0; HEADER_LEN], &self.memory, &[segment]);
            if let Some(wait) = WAITS.get(self.next) {
                self.timer.reset(*wait, None)?;
            }
            self.next += 1;
        }
        Ok(())
    }
}

impl NetBackend for Announced {
    fn pairs(&self) -> u16 {
        self.wire.pairs()
    }

    fn offloads(&self) -> Offloads {
        self.wire.offloads()
    }

    fn mtu(&self) -> u16 {
        self.wire.mtu()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.wire.set_offloads(offloads)
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        self.wire.enable(pairs)
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.wire.fd(pair)
    }

    fn link_fd(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn link_is_up(&mut self) -> bool {
        if let Err(error) = self.look() {
            log::warn!("the network is not told where the guest is now: {error}");
        }
        self.wire.link_is_up()
    }

    fn has_answer(&self, pair: u16) -> bool {
        self.wire.has_answer(pair)
    }

    fn receive(
        &mut self,
        pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        self.wire.receive(pair, header, memory, room, spill)
    }

    fn send(
        &mut self,
        pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        self.wire.send(pair, header, memory, frame)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::host::net_socket::DgramSocket;
    use crate::host::ready::is_readable;

    #[test]
    fn guest_is_announced_five_times_and_its_frames_pass() {
        let folder = tempfile::tempdir().unwrap();
        let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
        let peer = UnixDatagram::bind(&there).unwrap();
        let socket = DgramSocket::open(&here, &there, 1500).unwrap();
        let announcer = Announcer::new().unwrap();
        let mac = [2, 0, 0, 1, 2, 3];
        let mut wire = announcer.around(socket.backend(), mac).unwrap();
        assert!(wire.link_is_up());
        let link = Epoll::new().unwrap();
        link.ctl(ControlOperation::Add, wire.link_fd().unwrap(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        for _ in 0..2 {
            announcer.announce();
            let mut sent = 0;
            while sent < 5 {
                match link.wait(60_000, &mut [EpollEvent::default()]) {
                    // Other tests send signals to this process.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    ready => assert_eq!(ready.unwrap(), 1),
                }
                assert!(wire.link_is_up());
                while is_readable(&peer, Duration::ZERO) {
                    let mut read = [0; 100];
                    assert_eq!(peer.recv(&mut read).unwrap(), LEN);
                    assert_eq!(read[..LEN], frame(mac));
                    sent += 1;
                }
            }
            // No timer runs any more.
            assert_eq!(link.wait(0, &mut [EpollEvent::default()]).unwrap(), 0);
        }
        let expected = "ffffffffffff02000001020380350001080006040003020000010203000000000200000102030000";
        let text: String = frame(mac).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(text.starts_with(expected), "{text}");
    }
}
