//! An open image, and where its bytes are.

use std::io;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use diskimage::imago::{Mapping, ShallowMapping};
use diskimage::{Format, HeldWrites, Image, ImageFile, Layer};
use virtio::block::{Disk, SECTOR, Topology};

use super::super::file::DiskFile;
use super::super::open::Access;
use super::super::reserved::is_reserved;
use crate::host::disk_image::ImageOpener;
use crate::spec::DiskDiscard;

/// An open image with its backing files.
#[derive(Debug)]
pub(crate) struct ImageDisk {
    pub(super) image: Image,
    /// The files of the layers, the top one first.
    files: Vec<Arc<DiskFile>>,
    sectors: AtomicU64,
    read_only: bool,
    /// The guest may give space back.
    discards: bool,
    /// The top file is gone with this.
    temporary: bool,
    /// Held while mappings change.
    changes: Mutex<()>,
    /// Writes to clusters that have their place already, which are under way.
    in_place: Arc<AtomicU64>,
    /// Written while nothing is read through imago, which may take long.
    reads: RwLock<()>,
    /// Written while imago forgets what it has cached, which takes no time. The disk's own thread takes no other lock here.
    caches: RwLock<()>,
    /// Counts changes of mappings; and the count at the last flush.
    changed: AtomicU64,
    flushed: AtomicU64,
    /// Discards that are not done yet may be left out.
    pub(super) hurried: AtomicBool,
    /// Called while the space of freed clusters goes back to the host.
    #[cfg(test)]
    pub(super) on_reclaim: Mutex<Option<fn(&ImageDisk)>>,
    /// Holds locks until the disk is closed.
    _locks: ImageOpener,
}

/// A write that is under way.
#[derive(Debug)]
pub(super) struct InPlace(Arc<AtomicU64>);

impl InPlace {
    fn begin(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        InPlace(count.clone())
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long a commit waits for writes that are under way, and between two looks.
const IN_PLACE_LIMIT: Duration = Duration::from_secs(20);
const IN_PLACE_TICK: Duration = Duration::from_millis(1);

/// Where a piece of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file of this number, at this offset.
    File { file: usize, offset: u64 },
    /// Nowhere; it reads as zeros.
    Zero,
    /// To be read through imago.
    Packed,
}

/// What a piece is in the top layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Its own clusters, at this offset of the top file.
    Own(u64),
    /// It reads as zeros.
    Zero,
    /// It is in clusters that are not to be written to: in a backing file, compressed, or of a snapshot as well.
    Elsewhere,
}

impl ImageDisk {
    /// A disk of `image`, whose files are locked; with direct I/O if `access` says so.
    ///
    /// # Errors
    /// The host has no descriptor left, or the image cannot be read.
    pub(crate) fn new(image: Image, access: Access) -> io::Result<Self> {
        let mut files = Vec::new();
        for (index, layer) in image.files().iter().enumerate() {
            let access = Access { read_only: access.read_only || index > 0, ..access };
            files.push(Arc::new(DiskFile::layer(layer.file(), layer.path(), access)?));
        }
        let top = image.files().first().ok_or(io::ErrorKind::NotFound)?;
        if image.format() == Format::Qcow2 && !access.read_only {
            // imago may have changed the header when it opened the image.
            image.access().flush()?;
            top.hold_writes()?;
        }
        let sectors = AtomicU64::new(image.size() / SECTOR);
        Ok(ImageDisk {
            image,
            files,
            sectors,
            read_only: access.read_only,
            discards: true,
            temporary: false,
            changes: Mutex::default(),
            in_place: Arc::default(),
            reads: RwLock::default(),
            caches: RwLock::default(),
            changed: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            hurried: AtomicBool::new(false),
            #[cfg(test)]
            on_reclaim: Mutex::default(),
            _locks: ImageOpener::default(),
        })
    }

    /// The same, with what holds the locks on its files and on what they lie on.
    pub(crate) fn with_locks(mut self, locks: ImageOpener) -> Self {
        self._locks = locks;
        self
    }

    /// The same, whose top file is gone when the machine ends: nothing has to be on the host's disk.
    #[must_use]
    pub(crate) fn temporary(mut self, temporary: bool) -> Self {
        self.temporary = temporary;
        self
    }

    /// The same, whose space the guest gives back as `wish` says.
    #[must_use]
    pub(crate) fn discarding(mut self, wish: DiskDiscard) -> Self {
        let is_reserved = || self.top().is_some_and(|top| is_reserved(&top.buffered, self.length()));
        self.discards = wish == DiskDiscard::On || wish == DiskDiscard::Auto && !is_reserved();
        self
    }

    /// Reads the disk; fewer bytes at its end.
    ///
    /// # Errors
    /// A file cannot be read, or the image is broken.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let _reads = self.reads.read().unwrap_or_else(PoisonError::into_inner);
        self.image.read_at(buffer, offset)
    }

    /// Its files, the top one first, as they were when they were opened.
    pub(crate) fn layers(&self) -> &[Layer] {
        self.image.layers()
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.sectors().saturating_mul(SECTOR)
    }

    /// The bytes that the top file occupies on the host.
    pub(crate) fn used(&self) -> Option<u64> {
        self.image.used().ok()
    }

    /// Its size in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Its size in sectors. It grows by [`ImageDisk::resize`] only.
    ///
    /// # Errors
    /// None; a raw disk has some.
    pub(crate) fn measure(&self) -> io::Result<u64> {
        Ok(self.sectors())
    }

    /// The disk for the device model.
    pub(crate) fn disk(&self, serial: impl Into<String>, queues: NonZeroU16) -> Disk {
        let top = self.top();
        Disk {
            sectors: self.sectors(),
            read_only: self.read_only,
            serial: serial.into(),
            queues,
            topology: self.topology(),
            discard: top.and_then(|top| top.discard).filter(|_| self.discards),
        }
    }

    /// An image has sectors of 512 bytes, whatever it lies on.
    fn topology(&self) -> Topology {
        let below = self.top().map_or_else(Topology::default, |top| top.topology);
        Topology { logical_block: 512, physical_block: 512, ..below }
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(in super::super) fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// The size that the guest sees from now on.
    pub(super) fn set_size(&self, bytes: u64) {
        self.sectors.fetch_max(bytes / SECTOR, Ordering::AcqRel);
    }

    pub(super) fn files(&self) -> &[Arc<DiskFile>] {
        &self.files
    }

    /// The top file.
    pub(in super::super) fn top(&self) -> Option<&Arc<DiskFile>> {
        self.files.first()
    }

    /// The metadata writes that are held back; `None` if there are none to hold.
    pub(super) fn held(&self) -> Option<&HeldWrites> {
        self.image.files().first()?.held_writes()
    }

    /// Where the piece at `offset` is, and how many of `length` bytes are there.
    pub(super) fn find(&self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let _cached = self.cached();
        let (mapping, found) = self.image.access().get_mapping(offset, length)?;
        let place = match mapping {
            Mapping::Raw { storage, offset, .. } => Place::File { file: self.number(storage), offset },
            Mapping::Zero { .. } => Place::Zero,
            // The guest's size is never larger than the image's.
            Mapping::Eof { .. } => return Ok((Place::Zero, length)),
            _ => Place::Packed,
        };
        Ok((place, some(found)?))
    }

    /// What the piece at `offset` is in the top layer, and how many of `length` bytes are so.
    pub(super) fn target(&self, offset: u64, length: u64) -> io::Result<(Target, u64)> {
        let _cached = self.cached();
        let (mapping, found) = self.image.access().get_shallow_mapping(offset, length)?;
        let target = match mapping {
            ShallowMapping::Raw { offset, writable: true, .. } => Target::Own(offset),
            ShallowMapping::Zero { .. } => Target::Zero,
            ShallowMapping::Eof { .. } => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Target::Elsewhere,
        };
        Ok((target, some(found)?))
    }

    /// The number of a layer's file.
    fn number(&self, layer: &ImageFile) -> usize {
        (self.files.len() - 1).saturating_sub(layer.height())
    }

    /// For the change of a mapping.
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a look at mappings.
    pub(super) fn cached(&self) -> RwLockReadGuard<'_, ()> {
        self.caches.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a time when nothing is read through imago. Take it after [`ImageDisk::change`], during which parts are read.
    pub(super) fn no_reads(&self) -> RwLockWriteGuard<'_, ()> {
        self.reads.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the end of what is cached. Take it after [`ImageDisk::no_reads`].
    pub(super) fn uncached(&self) -> RwLockWriteGuard<'_, ()> {
        self.caches.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody would wait now.
    #[cfg(test)]
    pub(super) fn is_locked(&self) -> bool {
        self.changes.try_lock().is_err() || self.reads.try_read().is_err() || self.caches.try_read().is_err()
    }

    /// Begins a write to clusters that have their place, which ends with what this returns. `None` after a sync that failed, until a commit has
    /// mended that: it is then done while the change of mappings is locked, because a commit may write to these clusters as well.
    pub(super) fn begin_in_place(&self) -> Option<InPlace> {
        // In this order: see [`ImageDisk::wait_for_in_place`].
        let begun = InPlace::begin(&self.in_place);
        (!self.held().is_some_and(HeldWrites::is_doubted)).then_some(begun)
    }

    /// Waits for those that began before a sync failed. Call it when one has, with the change of mappings locked.
    pub(super) fn wait_for_in_place(&self) -> io::Result<()> {
        let until = Instant::now() + IN_PLACE_LIMIT;
        while self.in_place.load(Ordering::SeqCst) > 0 {
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(IN_PLACE_TICK);
        }
        Ok(())
    }

    /// A mapping has changed.
    pub(super) fn has_changed(&self) {
        self.changed.fetch_add(1, Ordering::AcqRel);
    }

    /// How many mappings have changed.
    pub(super) fn changes_so_far(&self) -> u64 {
        self.changed.load(Ordering::Acquire)
    }

    /// So many changes are on the medium.
    pub(super) fn are_flushed(&self, changes: u64) {
        self.flushed.fetch_max(changes, Ordering::AcqRel);
    }

    /// Whether a flush has metadata to write.
    pub(super) fn is_changed(&self) -> bool {
        self.changes_so_far() != self.flushed.load(Ordering::Acquire)
    }
}

/// imago never finds nothing inside of a disk; a loop over pieces must not depend on it.
fn some(found: u64) -> io::Result<u64> {
    if found > 0 {
        Ok(found)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "a mapping has no length"))
    }
}
