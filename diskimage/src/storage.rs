//! An open file as the storage beneath imago. imago moves what belongs to the format by it; the data of a running machine goes
//! past it, straight between the file and the guest's memory.

// Methods of imago's trait are `unsafe fn`.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{FormatAccess, Storage};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::retry_on_intr;

use crate::held::HeldWrites;
use crate::order::Order;

/// Zeroes are written in pieces of this size where the file system can do no better.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The open file of a layer. Clones are the same file.
#[derive(Clone)]
pub struct ImageFile(Arc<Inner>);

struct Inner {
    file: File,
    path: PathBuf,
    height: usize,
    helper: CommonStorageHelper,
    /// Of a qcow2 file that is written.
    order: OnceLock<Mutex<Order>>,
    /// What is read may be held by the order. Else nobody waits for its syncs to read.
    holds: AtomicBool,
    /// Of a qcow2 file that a machine writes: it takes the place of the order.
    writes: OnceLock<HeldWrites>,
}

impl ImageFile {
    /// The file of the layer that has `height` layers below it.
    pub(crate) fn new(file: File, path: &Path, height: usize) -> Self {
        ImageFile(Arc::new(Inner {
            file,
            path: path.into(),
            height,
            helper: CommonStorageHelper::default(),
            order: OnceLock::new(),
            holds: AtomicBool::new(false),
            writes: OnceLock::new(),
        }))
    }

    /// From here on, writes come to the medium in an order that a power cut may interrupt.
    pub(crate) fn keep_order(&self, order: Order) {
        // There is one image to a file, so this is the first order.
        let _ = self.0.order.set(Mutex::new(order));
    }

    /// The order of a file that has one.
    pub(crate) fn order(&self) -> Option<MutexGuard<'_, Order>> {
        if self.held_writes().is_some() {
            return None;
        }
        Some(self.0.order.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a change of the L1 table, which ends with the next flush: see [`Order::begin`].
    pub(crate) fn begin(&self, size: u64) {
        if let Some(mut order) = self.order() {
            self.0.holds.store(true, Ordering::Release);
            order.begin(size);
        }
    }

    /// Writes the disk's new size to the header.
    pub(crate) fn show_size(&self, size: u64) -> io::Result<()> {
        self.order().map_or(Ok(()), |mut order| order.show_size(self.file(), size))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// Holds imago's writes back from now on, for commits in an order that survives a power cut. The file is a qcow2 image that
    /// imago has open, with nothing changed in its caches.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hold_writes(&self) -> io::Result<()> {
        // A second call finds the first one's.
        self.0.writes.set(HeldWrites::new(self.file())?).or(Ok(()))
    }

    /// The writes that are held back, after [`ImageFile::hold_writes`].
    pub fn held_writes(&self) -> Option<&HeldWrites> {
        self.0.writes.get()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The number of layers below: 0 for the lowest, and one less than the number of layers for the top.
    pub fn height(&self) -> usize {
        self.0.height
    }
}

/// The length of a file or of a block device.
pub(crate) fn length(mut file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        // The position is of no use to anyone: all calls here say where.
        return io::Seek::seek(&mut file, io::SeekFrom::End(0));
    }
    Ok(metadata.len())
}

/// Bytes that a file takes on its disk; all of a block device.
pub(crate) fn used(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return length(file);
    }
    Ok(metadata.blocks().saturating_mul(512))
}

/// Has imago read an image's header and tables anew. Everything was flushed before.
pub(crate) fn reload(access: &mut FormatAccess<ImageFile>) -> io::Result<()> {
    access.flush()?;
    // SAFETY: nothing is in memory that is not in the file, and nobody else uses the image.
    unsafe { access.invalidate_cache() }
}

/// `fallocate` on a range.
pub(crate) fn allocate(file: &File, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
    Ok(retry_on_intr(|| fallocate(file, flags, offset, length))?)
}

/// Makes a range a hole that reads as zeroes.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
}

fn write_zeroes(file: &File, mut offset: u64, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let part = length.min(ZEROES.len() as u64);
        let zeroes = usize::try_from(part).ok().and_then(|part| ZEROES.get(..part)).unwrap_or_default();
        file.write_all_at(zeroes, offset)?;
        (offset, length) = (offset + part, length - part);
    }
    Ok(())
}

/// Reads up to the end of the file; what lies behind is zero.
pub(crate) fn read_padded(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(count) => {
                buffer = buffer.get_mut(count..).unwrap_or_default();
                offset = offset.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.fill(0);
    Ok(())
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        length(self.file())
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path().into())
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        let order = if self.0.holds.load(Ordering::Acquire) { self.order() } else { None };
        for mut buffer in buffers.into_inner() {
            let held =
                order.as_ref().and_then(|order| order.held(offset)).filter(|held| held.len() == buffer.len());
            match (self.held_writes(), held) {
                (Some(writes), _) => writes.read(&mut buffer, offset)?,
                (None, Some(held)) => buffer.copy_from_slice(held),
                (None, None) => read_padded(self.file(), &mut buffer, offset)?,
            }
            offset = offset.checked_add(buffer.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        for buffer in buffers.into_inner() {
            match (self.held_writes(), self.order()) {
                (Some(writes), _) => writes.write(&buffer, offset)?,
                (None, Some(mut order)) => order.write(self.file(), &buffer, offset)?,
                (None, None) => self.file().write_all_at(&buffer, offset)?,
            }
            offset = offset.checked_add(buffer.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(mut order) = self.order() {
            order.settle(self.file())?;
            order.data_written();
        }
        crate::order::zeroed(offset, length);
        match punch(self.file(), offset, length) {
            // A hole does not make the file longer. Others may write behind its end, which a new length would cut off.
            Ok(()) if self.held_writes().is_some() && self.size()? < end => {
                self.file().write_all_at(&[0], end - 1)
            }
            Ok(()) if self.size()? < end => self.file().set_len(end),
            Ok(()) => Ok(()),
            Err(_) => write_zeroes(self.file(), offset, length),
        }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        match allocate(self.file(), FallocateFlags::ZERO_RANGE, offset, length) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(error),
            Err(_) => write_zeroes(self.file(), offset, length),
            Ok(()) => Ok(()),
        }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match punch(self.file(), offset, length) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            done => done,
        }
    }

    fn flush(&self) -> io::Result<()> {
        // imago calls this when all it had in memory is written.
        let Some(mut order) = self.order() else { return Ok(()) };
        order.release(self.file())?;
        self.0.holds.store(false, Ordering::Release);
        Ok(())
    }

    /// imago asks before it frees clusters, and lets them be after an error.
    fn settle_writes(&self) -> io::Result<()> {
        match self.held_writes() {
            Some(writes) if !writes.may_free() => Err(io::ErrorKind::Other.into()),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.order().map_or_else(|| self.file().sync_data(), |mut order| order.sync(self.file()))
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.0.helper
    }

    fn resize(&self, size: u64, mode: PreallocateMode) -> io::Result<()> {
        let now = self.size()?;
        if size <= now || matches!(mode, PreallocateMode::None | PreallocateMode::Zero) {
            return self.file().set_len(size);
        }
        if matches!(mode, PreallocateMode::WriteData) {
            return write_zeroes(self.file(), now, size - now);
        }
        allocate(self.file(), FallocateFlags::empty(), now, size - now)
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageFile")
            .field("path", &self.path())
            .field("height", &self.height())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::words::name(self.path()))
    }
}
