//! Scatter/gather calls between a descriptor and guest memory: a frame passes in one system call, without a copy.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use virtio::memory::{Memory, Segment};
use vm_memory::{Bytes, GuestMemoryBackend};

use super::socket_address::SocketAddress;

/// Maximum segments of a frame: UIO_MAXIOV, less the header and the spill.
const MAX_SEGMENTS: usize = 1022;

/// A part of the list that is not there.
const NOTHING: (*mut u8, usize) = (ptr::null_mut(), 0);

/// The iovecs of the call that is being prepared.
///
/// Empty between calls, so that no pointer outlives the memory that it points to; the allocation is kept.
#[derive(Debug, Default)]
pub(super) struct IoVecs {
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
    /// Reads into `header`, then `room`, then `spill` (readv(2)). Returns the number of bytes in all of them.
    pub(super) fn read(
        &mut self,
        fd: impl AsFd,
        header: &mut [u8],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        let (header, spill) = ((header.as_mut_ptr(), header.len()), (spill.as_mut_ptr(), spill.len()));
        self.with(header, memory, room, spill, |pieces, count| {
            // SAFETY: `count` pieces, each memory that may be written for the length of the call: two exclusive
            // borrows of our own, and guest memory, which `memory` keeps mapped and only raw pointers reach.
            unsafe { libc::readv(fd, pieces, count) }
        })
    }

    /// Writes `header` and `segments` (writev(2)).
    pub(super) fn write(
        &mut self,
        fd: impl AsFd,
        header: &[u8],
        memory: &Memory,
        segments: &[Segment],
    ) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        let header = (header.as_ptr().cast_mut(), header.len());
        self.with(header, memory, segments, (ptr::null_mut(), 0), |pieces, count| {
            // SAFETY: `count` pieces that are read and not written: our header, borrowed across the call, and guest
            // memory, which `memory` keeps mapped.
            unsafe { libc::writev(fd, pieces, count) }
        })
    }

    /// Reads a file at `offset` into `room` (preadv(2)). Returns the number of bytes.
    pub(super) fn read_at(
        &mut self,
        fd: impl AsFd,
        memory: &Memory,
        room: &[Segment],
        offset: u64,
    ) -> io::Result<usize> {
        let (fd, offset) = (fd.as_fd().as_raw_fd(), libc::off_t::try_from(offset).map_err(io::Error::other)?);
        self.with(NOTHING, memory, room, NOTHING, |pieces, count| {
            // SAFETY: `count` pieces of guest memory, which `memory` keeps mapped and only raw pointers reach.
            unsafe { libc::preadv(fd, pieces, count, offset) }
        })
    }

    /// Writes `segments` into a file at `offset` (pwritev(2)). Returns the number of bytes.
    pub(super) fn write_at(
        &mut self,
        fd: impl AsFd,
        memory: &Memory,
        segments: &[Segment],
        offset: u64,
    ) -> io::Result<usize> {
        let (fd, offset) = (fd.as_fd().as_raw_fd(), libc::off_t::try_from(offset).map_err(io::Error::other)?);
        self.with(NOTHING, memory, segments, NOTHING, |pieces, count| {
            // SAFETY: `count` pieces of guest memory that are read and not written; `memory` keeps them mapped.
            unsafe { libc::pwritev(fd, pieces, count, offset) }
        })
    }

    /// Writes `segments` behind the last byte of a file, whoever else writes to it (RWF_APPEND of pwritev2(2)). Returns the number of bytes.
    pub(super) fn append(
        &mut self,
        fd: impl AsFd,
        memory: &Memory,
        segments: &[Segment],
    ) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        self.with(NOTHING, memory, segments, NOTHING, |pieces, count| {
            // SAFETY: `count` pieces of guest memory that are read and not written; `memory` keeps them mapped.
            unsafe { libc::pwritev2(fd, pieces, count, 0, libc::RWF_APPEND) }
        })
    }

    /// Sends `header` and `segments` through a socket, `to` an address if it is not connected. Never blocks and never
    /// raises SIGPIPE.
    pub(super) fn send(
        &mut self,
        fd: impl AsFd,
        to: Option<&SocketAddress>,
        header: &[u8],
        memory: &Memory,
        segments: &[Segment],
    ) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        let header = (header.as_ptr().cast_mut(), header.len());
        self.with(header, memory, segments, (ptr::null_mut(), 0), |pieces, count| {
            // SAFETY: an all-zero msghdr is a valid object.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = pieces.cast_mut();
            message.msg_iovlen = usize::try_from(count).unwrap_or(0);
            if let Some(to) = to {
                (message.msg_name, message.msg_namelen) = (to.as_ptr().cast_mut().cast(), to.len());
            }
            // SAFETY: the address and the `count` pieces are read and not written: both outlive the call, as does guest
            // memory, which `memory` keeps mapped.
            unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
        })
    }

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
        if header.1 > 0 {
            self.pieces.push(piece(header));
        }
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

/// Copies `frame`, which is in memory of our own, into `room` and what is left into `spill`. Returns how much found room.
pub(super) fn scatter(
    frame: &[u8],
    memory: &Memory,
    room: &[Segment],
    spill: &mut [u8],
) -> io::Result<usize> {
    let mut rest = frame;
    for segment in room {
        let (now, later) = rest.split_at(rest.len().min(usize::try_from(segment.len).unwrap_or(usize::MAX)));
        memory.write_slice(now, segment.address).map_err(io::Error::other)?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    let spilled = rest.len().min(spill.len());
    if let (Some(to), Some(from)) = (spill.get_mut(..spilled), rest.get(..spilled)) {
        to.copy_from_slice(from);
    }
    Ok(frame.len() - (rest.len() - spilled))
}
