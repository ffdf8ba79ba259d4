//! The pages of the host that are guest memory, in one mapping.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::HUGE_PAGE;

/// Huge pages; and a crash of ours must not write the guest's secrets to a core file.
pub(super) const RAM_ADVICE: [libc::c_int; 2] = [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP];

/// What is mapped.
#[derive(Debug)]
pub(super) enum Backing<'a> {
    /// Zeros.
    Anonymous,
    /// A memfd, so that others who have it see the same.
    Memfd(File),
    /// The first bytes of a file, so many, again and again. Pages that are not written share its memory.
    CopiesOf(&'a File, usize),
    /// These parts of a file (offset, bytes; whole pages), each at its offset, and zeros between them. The file is only read: pages
    /// that are not written share its memory.
    PartsOf(&'a File, &'a [(u64, u64)]),
}

/// Pages of host memory, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
    /// Whether the host may keep equal pages once (KSM).
    pub(super) merged: bool,
}

// SAFETY: the mapping is plain memory of this process; it is only reached through vm-memory's volatile accessors.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent accesses are the guest's and are made volatile or by the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes at a multiple of 2 MiB; nothing is committed before it is touched.
    pub(super) fn new(len: usize, backing: &Backing<'_>) -> io::Result<Self> {
        let room = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), room, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = address as usize;
        let aligned = start.next_multiple_of(HUGE_PAGE);
        let (head, tail) = (aligned - start, HUGE_PAGE - (aligned - start));
        for (at, len) in [(start, head), (aligned + len, tail)] {
            if len > 0 {
                // SAFETY: both ranges are parts of the mapping made above that nothing refers to.
                unsafe { libc::munmap(at as *mut libc::c_void, len) };
            }
        }
        let start = NonNull::new(aligned as *mut u8).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping { start, len, merged: false };
        match backing {
            Backing::Anonymous => {}
            Backing::Memfd(file) => mapping.put((file, 0), 0, len, libc::MAP_SHARED)?,
            Backing::CopiesOf(file, unit) => {
                for offset in (0..len).step_by((*unit).max(1)) {
                    mapping.put((file, 0), offset, (*unit).min(len - offset), libc::MAP_PRIVATE)?;
                }
            }
            Backing::PartsOf(file, parts) => {
                for (offset, len) in *parts {
                    let [offset, len] = [offset, len].map(|bytes| usize::try_from(*bytes));
                    let (Ok(offset), Ok(len)) = (offset, len) else {
                        return Err(io::ErrorKind::OutOfMemory.into());
                    };
                    mapping.put((file, offset), offset, len, libc::MAP_PRIVATE)?;
                }
            }
        }
        Ok(mapping)
    }

    /// Takes the place of `len` bytes of whole pages with pages of zeros that take no memory yet.
    pub(super) fn put_zeros(&self, offset: usize, len: usize) -> io::Result<()> {
        let end =
            offset.checked_add(len).filter(|end| *end <= self.len).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies in this mapping, as checked above.
        let at = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: it takes the place of a part of this mapping, which the guest and everybody here reach by volatile accesses
        // only: they read the old bytes or zeros.
        let address = unsafe { libc::mmap(at.cast(), len, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // As the rest, with which it becomes one mapping then.
        self.advise(offset..end, &RAM_ADVICE);
        self.advise(offset..end, &[libc::MADV_DONTFORK]);
        if self.merged {
            self.advise(offset..end, &[libc::MADV_MERGEABLE]);
        }
        Ok(())
    }

    /// Has the host keep pages of it once that are equal to pages of others (KSM), as long as none of them is written.
    pub(super) fn merge(&mut self) -> io::Result<()> {
        // SAFETY: the range is this mapping; the advice changes no contents.
        let done = unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_MERGEABLE) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        self.merged = true;
        Ok(())
    }

    /// Puts `len` bytes of a file, from an offset in it on, at `offset` of a new mapping.
    fn put(
        &self,
        (file, from): (&File, usize),
        offset: usize,
        len: usize,
        sharing: libc::c_int,
    ) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let from = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = sharing | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies in this mapping, as checked above.
        let at = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: it takes the place of a part of this mapping, to which nothing refers yet.
        let address = unsafe { libc::mmap(at.cast(), len, protection, flags, file.as_raw_fd(), from) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Advice is only advice: a host without huge pages still runs the guest, more slowly.
    pub(super) fn advise(&self, range: Range<usize>, advice: &[libc::c_int]) {
        if range.start > range.end || range.end > self.len {
            return;
        }
        for advice in advice {
            // SAFETY: the range is in this mapping, as checked above.
            let start = unsafe { self.start.as_ptr().add(range.start) };
            // SAFETY: as above; the advice values used change no contents.
            unsafe { libc::madvise(start.cast(), range.len(), *advice) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and whoever could reach it borrows from its owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
