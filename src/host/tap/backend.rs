//! One boot's use of a TAP. Each frame passes between the TAP and guest memory in one system call, without a
//! copy.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::GuestMemoryBackend;

use super::interface::{DEFAULT_MTU, IFF_UP};
use super::names::Credentials;
use super::{Tap, TapError, TapWarning, sys};

/// Maximum segments of a frame: UIO_MAXIOV, less the header and the spill.
const MAX_SEGMENTS: usize = 1022;

/// The TAP for the network device of one boot. The machine keeps the [`Tap`]; one backend is used at a time.
#[derive(Debug)]
pub(crate) struct TapBackend {
    tap: Arc<Tap>,
    mtu: u16,
    warning: Option<TapWarning>,
    iovecs: IoVecs,
}

impl TapBackend {
    /// Sets the TAP up for a boot: settings and frames of the boot before are removed.
    ///
    /// # Errors
    /// The interface was removed, or the host refuses an operation.
    pub(crate) fn new(tap: Arc<Tap>) -> Result<Self, TapError> {
        tap.reset().map_err(|source| match source.raw_os_error() {
            // The interface of its files was removed.
            Some(libc::EBADFD) => {
                TapError::Removed { name: tap.name.clone(), to: Credentials::current().ip_owner_argument() }
            }
            _ => TapError::Host { name: tap.name.clone(), doing: "set it up", source },
        })?;
        // An interface that was moved to another network namespace is not visible, and still works.
        let link = tap.link.read();
        let down = link.as_ref().is_some_and(|link| link.flags & IFF_UP == 0);
        let warning = down.then(|| TapWarning::Down { name: tap.name.clone() });
        let mtu = link.and_then(|link| link.mtu).and_then(|mtu| u16::try_from(mtu).ok());
        Ok(TapBackend { mtu: mtu.unwrap_or(DEFAULT_MTU), warning, iovecs: IoVecs::default(), tap })
    }

    /// The same, and the guest is told of packets of this size at most.
    pub(crate) fn with_mtu(self, mtu: Option<u16>) -> Self {
        TapBackend { mtu: mtu.unwrap_or(self.mtu), ..self }
    }

    /// A warning for the user.
    pub(crate) fn warning(&self) -> Option<&TapWarning> {
        self.warning.as_ref()
    }
}

/// The iovecs of the call that is being prepared.
///
/// Empty between calls, so that no pointer outlives the memory that it points to; the allocation is kept.
#[derive(Debug, Default)]
struct IoVecs {
    pieces: Vec<IoVec>,
}

/// `struct iovec`; only the kernel dereferences it.
#[repr(transparent)]
struct IoVec(libc::iovec);

impl std::fmt::Debug for IoVec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.iov_len)
    }
}

// SAFETY: an entry is only used between filling and clearing the list, within one call on one thread.
unsafe impl Send for IoVec {}

impl IoVecs {
    /// Fills the list with `header`, `segments` and `rest`, and passes it to `call`.
    ///
    /// `call` may read the memory that the entries point to, and write it if `header` and `rest` were made
    /// from exclusive borrows.
    fn with(
        &mut self,
        header: (*mut u8, usize),
        memory: &Memory,
        segments: &[Segment],
        rest: (*mut u8, usize),
        call: impl FnOnce(*const libc::iovec, libc::c_int) -> isize,
    ) -> io::Result<usize> {
        self.pieces.clear();
        if segments.len() > MAX_SEGMENTS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let piece =
            |(base, len): (*mut u8, usize)| IoVec(libc::iovec { iov_base: base.cast(), iov_len: len });
        self.pieces.push(piece(header));
        for segment in segments {
            let len = usize::try_from(segment.len).map_err(io::Error::other)?;
            let slice = memory.get_slice(segment.address, len).map_err(io::Error::other)?;
            // The guard has no effect on memory that stays mapped, as `memory` does.
            self.pieces.push(piece((slice.ptr_guard_mut().as_ptr(), len)));
        }
        if rest.1 > 0 {
            self.pieces.push(piece(rest));
        }
        let count = libc::c_int::try_from(self.pieces.len()).map_err(io::Error::other)?;
        let done = call(self.pieces.as_ptr().cast(), count);
        let result = if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            usize::try_from(done).map_err(io::Error::other)
        };
        self.pieces.clear();
        result
    }
}

impl NetBackend for TapBackend {
    fn pairs(&self) -> u16 {
        u16::try_from(self.tap.queues.len()).unwrap_or(u16::MAX)
    }

    fn offloads(&self) -> Offloads {
        self.tap.offloads
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        sys::set_offloads(self.tap.queue(0)?, offloads)
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        self.tap.enable(pairs.into())
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.tap.raw(pair.into()).ok()
    }

    fn link_fd(&self) -> Option<RawFd> {
        Some(self.tap.link.fd())
    }

    fn link_is_up(&mut self) -> bool {
        let link = self.tap.link.read();
        link.is_some_and(|link| link.carrier && link.flags & IFF_UP != 0)
    }

    fn receive(
        &mut self,
        pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let fd = self.tap.raw(pair.into())?;
        let (header, spill) = ((header.as_mut_ptr(), header.len()), (spill.as_mut_ptr(), spill.len()));
        let got = self.iovecs.with(header, memory, room, spill, |pieces, count| {
            // SAFETY: `count` pieces, each memory that may be written for the length of the call: two exclusive
            // borrows of our own, and guest memory, which `memory` keeps mapped and only raw pointers reach.
            unsafe { libc::readv(fd, pieces, count) }
        })?;
        got.checked_sub(HEADER_LEN).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn send(
        &mut self,
        pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        let fd = self.tap.raw(pair.into())?;
        let header = (header.as_ptr().cast_mut(), header.len());
        self.iovecs.with(header, memory, frame, (std::ptr::null_mut(), 0), |pieces, count| {
            // SAFETY: `count` pieces that are read and not written: our header, borrowed across the call, and guest
            // memory, which `memory` keeps mapped.
            unsafe { libc::writev(fd, pieces, count) }
        })?;
        Ok(())
    }
}
