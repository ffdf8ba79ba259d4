//! An open disk: the choice of its file descriptor for each transfer, and the operations that are ioctls.

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio::block::{Disk, Extent, SECTOR, Topology};

use super::loop_device::FilesBehind;
use super::open::size;
use super::reserved::is_reserved;
use super::transfer::Transfer;
use crate::spec::DiskDiscard;

/// BLKDISCARD (linux/fs.h): `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// An open and locked disk. The lock is released with the last descriptor.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(super) buffered: File,
    pub(super) direct: Option<Direct>,
    /// Changes only by [`DiskFile::measure`].
    pub(super) sectors: AtomicU64,
    pub(super) read_only: bool,
    /// A block device, not an image.
    pub(super) device: bool,
    /// Discard granularity, if the host can discard.
    pub(super) discard: Option<u32>,
    pub(super) topology: Topology,
    /// For a read-only image that ends inside a sector: its length, and /dev/zero for the rest of the sector.
    pub(super) tail: Option<(u64, File)>,
    /// What is locked behind a loop device.
    #[expect(dead_code, reason = "only dropped")]
    pub(super) behind: FilesBehind,
    /// Behind its end there are zeros to be read: it is a layer of an image.
    pub(super) padded: bool,
    /// Another process may write to it.
    pub(super) released: AtomicBool,
    /// Counts what [`OpenDisk::sync`](super::OpenDisk::sync) did.
    #[cfg(test)]
    pub(super) syncs: AtomicU64,
    /// Counts flushes that were waited for.
    #[cfg(test)]
    pub(super) flushes: AtomicU64,
}

/// A descriptor for direct I/O, with its alignment rules.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) file: File,
    pub(super) memory_align: u64,
    pub(super) offset_align: u64,
}

impl DiskFile {
    /// A disk of no sectors, for an empty drive.
    pub(super) fn none() -> io::Result<Self> {
        Ok(DiskFile {
            buffered: File::open("/dev/null")?,
            direct: None,
            sectors: AtomicU64::new(0),
            read_only: true,
            device: false,
            discard: None,
            topology: Topology::default(),
            tail: None,
            padded: false,
            behind: FilesBehind::default(),
            released: AtomicBool::new(false),
            #[cfg(test)]
            syncs: AtomicU64::new(0),
            #[cfg(test)]
            flushes: AtomicU64::new(0),
        })
    }

    /// The length in bytes that the image or block device has now.
    pub(crate) fn present_length(&self) -> io::Result<u64> {
        size(&self.buffered, self.device)
    }

    /// Sets the length of an image. [`DiskFile::measure`] takes it over.
    pub(crate) fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.check_not_released()?;
        self.buffered.set_len(bytes)
    }

    /// Whether another process may write to it.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// An error if another process may write to it.
    pub(super) fn check_not_released(&self) -> io::Result<()> {
        if self.is_released() {
            return Err(io::Error::other("the machine may run elsewhere, and write to this disk"));
        }
        Ok(())
    }

    /// A second descriptor for positioned reads, the length, and the logical sector size, both in bytes.
    pub(crate) fn reader(&self) -> io::Result<(File, u64, u64)> {
        Ok((self.buffered.try_clone()?, self.length(), self.topology.logical_block.into()))
    }

    /// What its file system says of it.
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.buffered.metadata()
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.tail.as_ref().map_or(self.sectors().saturating_mul(SECTOR), |(end, _)| *end)
    }

    /// The bytes that an image occupies on the host.
    pub(crate) fn used(&self) -> Option<u64> {
        let meta = self.buffered.metadata().ok().filter(Metadata::is_file)?;
        // st_blocks counts units of 512 bytes, whatever the file system's block size.
        Some(meta.blocks().saturating_mul(512))
    }

    /// Its size in sectors, as last measured.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Updates the size after the file or device has grown, and returns it in sectors. A smaller size is ignored:
    /// the guest has data there.
    pub(crate) fn measure(&self) -> io::Result<u64> {
        // The zeros for the rest of the last sector are where the file would grow.
        if self.tail.is_none() {
            self.sectors.fetch_max(size(&self.buffered, self.device)? / SECTOR, Ordering::AcqRel);
        }
        Ok(self.sectors())
    }

    /// The disk for the device model.
    pub(crate) fn disk(&self, serial: impl Into<String>, queues: NonZeroU16) -> Disk {
        Disk {
            sectors: self.sectors(),
            read_only: self.read_only,
            serial: serial.into(),
            queues,
            topology: self.topology,
            discard: self.discard,
        }
    }

    /// The same disk, whose space the guest gives back as `wish` says.
    #[must_use]
    pub(crate) fn discarding(mut self, wish: DiskDiscard) -> Self {
        if wish == DiskDiscard::Off || wish == DiskDiscard::Auto && is_reserved(&self.buffered, self.length())
        {
            self.discard = None;
        }
        self
    }

    /// The descriptor for flush, discard and zeroing.
    pub(super) fn fd(&self) -> RawFd {
        self.buffered.as_raw_fd()
    }

    /// The descriptor for `transfer`: unaligned transfers use the page cache, which the kernel keeps coherent
    /// with direct I/O.
    pub(super) fn fd_for(&self, transfer: &Transfer) -> RawFd {
        if let Some((end, zeros)) = &self.tail
            && transfer.rest().offset >= *end
        {
            return zeros.as_raw_fd();
        }
        match &self.direct {
            Some(direct) if transfer.is_aligned(direct.memory_align, direct.offset_align) => {
                direct.file.as_raw_fd()
            }
            _ => self.fd(),
        }
    }

    /// Whether `error` may come from an alignment rule of direct I/O.
    pub(super) fn is_direct_error(&self, error: &io::Error) -> bool {
        self.direct.is_some() && error.raw_os_error() == Some(libc::EINVAL)
    }

    /// Whether it is a block device.
    pub(crate) fn is_device(&self) -> bool {
        self.device
    }

    /// Whether the guest may not write.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether to discard with BLKDISCARD instead of a hole.
    pub(super) fn discards_by_ioctl(&self) -> bool {
        self.device
    }

    /// Whether the host has no fast way to write zeros here. Block devices with larger sectors than the
    /// guest's also refuse unaligned ranges.
    pub(super) fn is_zeroing_unsupported(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::Unsupported
            || self.device && error.raw_os_error() == Some(libc::EINVAL)
    }

    /// Discards on a block device, where fallocate would also write zeros. The kernel refuses parts of the device's sectors; they
    /// keep their contents, as a discard may be ignored (virtio 1.3 §5.2.6.2).
    pub(super) fn discard_device(&self, extent: Extent) -> io::Result<()> {
        let Some(extent) = whole_blocks(extent, self.topology.logical_block.into()) else { return Ok(()) };
        let range = [extent.offset, extent.len];
        // SAFETY: BLKDISCARD reads two 64-bit numbers, start and length, which live through the call.
        let result = unsafe { libc::ioctl(self.fd(), BLKDISCARD, range.as_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The whole blocks in `extent`, if there are any.
fn whole_blocks(extent: Extent, block: u64) -> Option<Extent> {
    let start = extent.offset.checked_next_multiple_of(block)?;
    let end = extent.offset.checked_add(extent.len)?;
    let len = (end - end % block).checked_sub(start).filter(|len| *len > 0)?;
    Some(Extent { offset: start, len })
}

/// fallocate modes.
pub(super) mod mode {
    /// Releases the space; it reads as zeros.
    pub(in crate::host::disk) const HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    /// Writes zeros and keeps the space.
    pub(in crate::host::disk) const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discards_of_a_device_with_large_sectors_are_cut_to_whole_ones() {
        let cut = |offset, len| whole_blocks(Extent { offset, len }, 4096).map(|cut| (cut.offset, cut.len));
        assert_eq!(cut(0, 8192), Some((0, 8192)));
        assert_eq!(cut(512, 8192), Some((4096, 4096)));
        assert_eq!(cut(4096, 4608), Some((4096, 4096)));
        for (offset, len) in
            [(512, 4096), (512, 512), (0, 3584), (4096, 0), (u64::MAX - 511, 511), (u64::MAX, 512)]
        {
            assert_eq!(cut(offset, len), None, "{offset} {len}");
        }
        let any = Extent { offset: 512, len: 1536 };
        assert_eq!(whole_blocks(any, 512), Some(any));
    }
}
