//! The buffers of an operation: an iovec list that is passed to the kernel.

use std::io;

use libc::iovec;
use virtio::block::{Extent, Operation};
use virtio::memory::{Memory, Segment};
use vm_memory::GuestMemoryBackend;

use super::file::DiskFile;

/// Zeros for hosts without a fast way to write them. A static that is never written, so it costs no memory.
const ZEROS: usize = 64 << 10;

#[repr(C, align(4096))]
struct Zeros([u8; ZEROS]);
static ZERO: Zeros = Zeros([0; ZEROS]);

/// The remaining work of an operation. The list keeps its allocation for the next operation.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    pieces: Vec<iovec>,
    /// The first piece with bytes left.
    first: usize,
    rest: Extent,
    /// Direct I/O refused it.
    buffered: bool,
}

// SAFETY: the pointers lead to guest memory or zeros, which belong to no thread; whoever passes them to the
// kernel keeps that memory mapped (the engines hold a `Memory`).
unsafe impl Send for Transfer {}

impl Transfer {
    /// Prepares a transfer of `extent` from or to `segments`.
    ///
    /// # Errors
    /// Segments outside guest memory, or a length that differs from the extent's.
    pub(super) fn load(&mut self, memory: &Memory, segments: &[Segment], extent: Extent) -> io::Result<()> {
        self.start(extent);
        let mut bytes = 0u64;
        for segment in segments {
            let len = usize::try_from(segment.len).map_err(io::Error::other)?;
            let slice = memory.get_slice(segment.address, len).map_err(io::Error::other)?;
            self.pieces.push(iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: len });
            bytes += u64::from(segment.len);
        }
        if bytes == extent.len { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Prepares writing zeros to `extent`.
    pub(super) fn zeros(&mut self, extent: Extent) {
        self.start(extent);
        let mut left = extent.len;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(ZEROS).min(ZEROS);
            // The kernel only reads it: it is used for writing to files.
            let start = ZERO.0.as_ptr().cast_mut().cast();
            self.pieces.push(iovec { iov_base: start, iov_len: len });
            left -= len as u64;
        }
    }

    fn start(&mut self, extent: Extent) {
        self.pieces.clear();
        self.first = 0;
        self.rest = extent;
        self.buffered = false;
    }

    /// The rest of the extent.
    pub(super) fn rest(&self) -> Extent {
        self.rest
    }

    /// The rest of the list, at most UIO_MAXIOV entries.
    pub(super) fn pieces(&self) -> &[iovec] {
        let pieces = self.pieces.get(self.first..).unwrap_or_default();
        pieces.get(..libc::UIO_MAXIOV as usize).unwrap_or(pieces)
    }

    /// The host moved `bytes`; the rest comes next.
    pub(super) fn advance(&mut self, bytes: u64) {
        let bytes = bytes.min(self.rest.len);
        self.rest = Extent { offset: self.rest.offset.saturating_add(bytes), len: self.rest.len - bytes };
        let mut bytes = bytes;
        while let Some(piece) = self.pieces.get_mut(self.first).filter(|_| bytes > 0) {
            let part = piece.iov_len.min(usize::try_from(bytes).unwrap_or(usize::MAX));
            piece.iov_base = piece.iov_base.wrapping_byte_add(part);
            piece.iov_len -= part;
            bytes -= part as u64;
            self.first += usize::from(piece.iov_len == 0);
        }
    }

    /// Moves everything by blocking calls, also after short transfers.
    pub(super) fn run(&mut self, file: &DiskFile, operation: Operation) -> io::Result<()> {
        while self.rest.len > 0 {
            let pieces = self.pieces();
            let count = i32::try_from(pieces.len()).map_err(io::Error::other)?;
            let offset = i64::try_from(self.rest.offset).map_err(io::Error::other)?;
            let fd = file.fd_for(self);
            // SAFETY: the pieces are guest memory, which the caller keeps mapped and nobody has references into, or for
            // writing zeros; their list lives through the call.
            let moved = unsafe {
                match operation {
                    Operation::Read => libc::preadv(fd, pieces.as_ptr(), count, offset),
                    _ => libc::pwritev(fd, pieces.as_ptr(), count, offset),
                }
            };
            match u64::try_from(moved) {
                Ok(0) if file.padded && operation == Operation::Read => self.fill_zeros(),
                // The file was truncated after it was opened.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => self.advance(moved),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if file.is_direct_error(&error) && self.fall_back_to_buffered() => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Takes the first `len` bytes of what is left, to be moved from or to `offset` of a file.
    pub(super) fn take(&mut self, len: u64, offset: u64) -> Transfer {
        let len = len.min(self.rest.len);
        let mut part = Transfer::default();
        part.start(Extent { offset, len });
        let mut left = len;
        for piece in self.pieces.get(self.first..).unwrap_or_default() {
            if left == 0 {
                break;
            }
            let bytes = piece.iov_len.min(usize::try_from(left).unwrap_or(usize::MAX));
            part.pieces.push(iovec { iov_base: piece.iov_base, iov_len: bytes });
            left -= bytes as u64;
        }
        self.advance(len);
        part
    }

    /// Reads zeros into all that is left.
    pub(super) fn fill_zeros(&mut self) {
        for piece in self.pieces.get(self.first..).unwrap_or_default() {
            // SAFETY: a piece to be read into is guest memory, which the caller keeps mapped and nobody has references into.
            unsafe { piece.iov_base.cast::<u8>().write_bytes(0, piece.iov_len) };
        }
        self.advance(self.rest.len);
    }

    /// Reads `bytes` into what is left, as far as they go.
    pub(super) fn fill(&mut self, bytes: &[u8]) {
        let mut from = bytes;
        while let Some(piece) = self.pieces.get(self.first).filter(|_| !from.is_empty()) {
            let count = piece.iov_len.min(from.len());
            let (part, rest) = from.split_at(count);
            // SAFETY: as above, and `part` is not guest memory.
            unsafe { piece.iov_base.cast::<u8>().copy_from_nonoverlapping(part.as_ptr(), count) };
            from = rest;
            self.advance(count as u64);
        }
    }

    /// Switches to the page cache after EINVAL; `false` if the transfer uses it already.
    pub(super) fn fall_back_to_buffered(&mut self) -> bool {
        !std::mem::replace(&mut self.buffered, true)
    }

    /// Whether the transfer is aligned for direct I/O: addresses to `memory`, offset and lengths to `offset`.
    pub(super) fn is_aligned(&self, memory: u64, offset: u64) -> bool {
        let fits = |piece: &iovec| {
            (piece.iov_base.addr() as u64).is_multiple_of(memory)
                && (piece.iov_len as u64).is_multiple_of(offset)
        };
        !self.buffered && self.rest.offset.is_multiple_of(offset) && self.pieces().iter().all(fits)
    }
}
