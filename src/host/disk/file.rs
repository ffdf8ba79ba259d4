//! An open disk: which file descriptor serves what, and the calls that have no positioned form.

use std::fs::File;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;

use virtio::block::{Disk, Extent, SECTOR, Topology};

use super::transfer::Transfer;

/// BLKDISCARD (linux/fs.h): `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// A disk, open and locked. The lock goes with the last descriptor.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(super) buffered: File,
    pub(super) direct: Option<Direct>,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// A block device, not an image.
    pub(super) device: bool,
    /// Granularity of giving space back, if the host can.
    pub(super) discard: Option<u32>,
    pub(super) topology: Topology,
    /// Of an image that may only be read and ends inside a sector: where it ends, and zeros for the rest.
    pub(super) tail: Option<(u64, File)>,
}

/// A descriptor past the page cache, and what it asks of buffers and offsets.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) file: File,
    pub(super) memory_align: u64,
    pub(super) offset_align: u64,
}

impl DiskFile {
    /// Another descriptor of it, to read by position, its length and the length of its sectors, both in bytes.
    pub(crate) fn reader(&self) -> io::Result<(File, u64, u64)> {
        let len = self.tail.as_ref().map_or(self.sectors.saturating_mul(SECTOR), |(end, _)| *end);
        Ok((self.buffered.try_clone()?, len, self.topology.logical_block.into()))
    }

    /// Its length, and how much of that the host has given to an image, both in bytes.
    pub(crate) fn size(&self) -> (u64, Option<u64>) {
        let meta = self.buffered.metadata().ok().filter(|meta| meta.is_file());
        // st_blocks counts 512 bytes whatever the file system's blocks are.
        let used = meta.map(|meta| meta.blocks().saturating_mul(512));
        (self.tail.as_ref().map_or(self.sectors.saturating_mul(SECTOR), |(end, _)| *end), used)
    }

    /// The disk as a device shows it.
    pub(crate) fn disk(&self, serial: impl Into<String>, queues: NonZeroU16) -> Disk {
        Disk {
            sectors: self.sectors,
            read_only: self.read_only,
            serial: serial.into(),
            queues,
            topology: self.topology,
            discard: self.discard,
        }
    }

    /// The descriptor for flushing and for space.
    pub(super) fn fd(&self) -> RawFd {
        self.buffered.as_raw_fd()
    }

    /// The descriptor for moving `transfer`: what direct I/O does not take goes through the page cache, which the kernel
    /// keeps in step with it.
    pub(super) fn fd_for(&self, transfer: &Transfer) -> RawFd {
        if let Some((end, zeros)) = &self.tail {
            if transfer.rest().offset >= *end {
                return zeros.as_raw_fd();
            }
        }
        match &self.direct {
            Some(direct) if transfer.is_aligned(direct.memory_align, direct.offset_align) => {
                direct.file.as_raw_fd()
            }
            _ => self.fd(),
        }
    }

    /// Whether `error` may be of a rule of direct I/O.
    pub(super) fn was_direct(&self, error: &io::Error) -> bool {
        self.direct.is_some() && error.raw_os_error() == Some(libc::EINVAL)
    }

    /// The way to discard: `None` for a hole.
    pub(super) fn discards_by_ioctl(&self) -> bool {
        self.device
    }

    /// Whether `error` says that the host has no faster way to write zeros here. Block devices with sectors larger than
    /// the guest's also refuse what is not aligned to theirs.
    pub(super) fn cannot_zero(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Unsupported
            || self.device && error.raw_os_error() == Some(libc::EINVAL)
    }

    /// Discards on a block device, whose fallocate would zero as well.
    pub(super) fn discard_device(&self, extent: Extent) -> io::Result<()> {
        let range = [extent.offset, extent.len];
        // SAFETY: BLKDISCARD reads two 64-bit numbers, start and length, which live through the call.
        let result = unsafe { libc::ioctl(self.fd(), BLKDISCARD, range.as_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// fallocate modes of operations on space.
pub(super) mod mode {
    /// The space is given back and reads as zeros.
    pub(in crate::host::disk) const HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    /// It reads as zeros and stays.
    pub(in crate::host::disk) const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
}
