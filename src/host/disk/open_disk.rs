//! A disk of a machine, whatever format its image has.

use std::fs::File;
use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;

use boot::read::ReadAt;
use diskimage::{Format, Layer};
use virtio::block::{AnyEngine, Disk};
use virtio::worker::MakePoller;

use super::copy::WrittenFile;
use super::engine::{EngineKind, make_engine};
use super::error::DiskError;
use super::file::DiskFile;
use super::mapped::ImageDisk;
use super::open::Access;
use super::{exchange, layers};
use crate::spec::DiskSpec;

/// An open and locked disk. Clones are of the same one.
#[derive(Debug, Clone)]
pub(crate) enum OpenDisk {
    /// A raw image or a block device.
    Raw(Arc<DiskFile>),
    /// An image in another format, or of several files.
    Image(Arc<ImageDisk>),
}

/// What reads a disk by position, beside its engine.
#[derive(Debug)]
pub(crate) struct DiskReader {
    /// Where its bytes are.
    pub(crate) bytes: DiskBytes,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Its logical sector size in bytes.
    pub(crate) sector: u64,
}

/// The bytes of a disk.
#[derive(Debug)]
pub(crate) enum DiskBytes {
    /// Those of a file, at the same offsets.
    File(File),
    /// Those that the mappings of an image lead to.
    Mapped(MappedReader),
}

/// Reads an image as the guest sees it.
#[derive(Debug)]
pub(crate) struct MappedReader(Arc<ImageDisk>);

impl MappedReader {
    /// The largest part of it that one read may have to decompress, in bytes.
    pub(crate) fn cluster(&self) -> u64 {
        self.0
            .layers()
            .iter()
            .filter_map(|layer| Some(layer.header.as_ref()?.cluster_size()))
            .max()
            .unwrap_or_default()
    }
}

impl ReadAt for MappedReader {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.length())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
}

impl OpenDisk {
    /// Opens and locks the images of a disk.
    ///
    /// # Errors
    /// [`DiskError`], with its cure.
    pub(crate) fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        exchange::check(spec)?;
        let access = Access { read_only: spec.read_only, direct: spec.direct };
        let wish = spec.discard.unwrap_or_default();
        if spec.overlay.is_none() && !spec.snapshot && spec.format() == Format::Raw {
            let file = DiskFile::open_as(&spec.path, access, spec.format);
            return file.map(|file| OpenDisk::Raw(Arc::new(file.discarding(wish))));
        }
        let (image, locks) = layers::open(spec)?;
        let image = ImageDisk::new(image, access);
        let image = image.map(|image| image.with_locks(locks).discarding(wish).temporary(spec.snapshot));
        image.map(|image| OpenDisk::Image(Arc::new(image))).map_err(|error| DiskError::Io {
            path: spec.image().into(),
            action: "preparing it",
            error,
        })
    }

    /// As [`OpenDisk::open`], for a disk with `snapshot` whose guest has written `written` already.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn open_on(spec: &DiskSpec, written: &File) -> Result<Self, DiskError> {
        let access = Access { read_only: spec.read_only, direct: spec.direct };
        let failed = |error| DiskError::Io { path: spec.image().into(), action: "preparing it", error };
        let (image, locks) = layers::open_on(spec, written.try_clone().map_err(failed)?)?;
        let image = ImageDisk::new(image, access).map_err(failed)?;
        let image = image.with_locks(locks).discarding(spec.discard.unwrap_or_default()).temporary(true);
        Ok(OpenDisk::Image(Arc::new(image)))
    }

    /// A copy of what the guest has written to a disk with `snapshot`, which rests.
    ///
    /// # Errors
    /// The host has no room.
    pub(crate) fn copy_written(&self) -> io::Result<Option<File>> {
        match self {
            OpenDisk::Image(image) if image.is_temporary() => {
                image.complete()?;
                image.top().map(|top| layers::copy(&top.buffered)).transpose()
            }
            OpenDisk::Image(_) | OpenDisk::Raw(_) => Ok(None),
        }
    }

    /// A reader of the disk as the guest sees it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(crate) fn reader(&self) -> io::Result<DiskReader> {
        match self {
            OpenDisk::Raw(file) => {
                let (file, len, sector) = file.reader()?;
                Ok(DiskReader { bytes: DiskBytes::File(file), len, sector })
            }
            OpenDisk::Image(image) => {
                let sector = image.disk("", NonZeroU16::MIN).topology.logical_block.into();
                let bytes = DiskBytes::Mapped(MappedReader(image.clone()));
                Ok(DiskReader { bytes, len: image.length(), sector })
            }
        }
    }

    /// How often it was brought to the medium while engines wrote on, and with none in flight.
    #[cfg(test)]
    pub(crate) fn syncs_and_flushes(&self) -> [u64; 2] {
        let file = self.writable().unwrap();
        [&file.syncs, &file.flushes].map(|count| count.load(std::sync::atomic::Ordering::SeqCst))
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            OpenDisk::Raw(file) => file.length(),
            OpenDisk::Image(image) => image.length(),
        }
    }

    /// The bytes that the image occupies on the host; `None` for a block device.
    pub(crate) fn used(&self) -> Option<u64> {
        match self {
            OpenDisk::Raw(file) => file.used(),
            OpenDisk::Image(image) => image.used(),
        }
    }

    /// The images that it consists of, the one that the guest writes to on top; none for a raw image alone.
    pub(crate) fn layers(&self) -> &[Layer] {
        match self {
            OpenDisk::Raw(_) => &[],
            OpenDisk::Image(image) => image.layers(),
        }
    }

    /// Its size in sectors, as last measured.
    pub(crate) fn sectors(&self) -> u64 {
        match self {
            OpenDisk::Raw(file) => file.sectors(),
            OpenDisk::Image(image) => image.sectors(),
        }
    }

    /// Updates the size after the image has grown, and returns it in sectors. A smaller size is ignored.
    pub(crate) fn measure(&self) -> io::Result<u64> {
        match self {
            OpenDisk::Raw(file) => file.measure(),
            OpenDisk::Image(image) => image.measure(),
        }
    }

    /// The length in bytes that it has on the host now.
    pub(crate) fn present_length(&self) -> io::Result<u64> {
        match self {
            OpenDisk::Raw(file) => file.present_length(),
            OpenDisk::Image(image) => Ok(image.length()),
        }
    }

    /// Grows the image to so many bytes, which [`OpenDisk::measure`] takes over.
    pub(crate) fn grow(&self, bytes: u64) -> io::Result<()> {
        match self {
            OpenDisk::Raw(file) => file.set_length(bytes),
            OpenDisk::Image(image) => image.resize(bytes),
        }
    }

    /// The file that the guest's writes change; `None` if it may not write. Bring it to [`OpenDisk::rest`] before it is copied.
    ///
    /// # Errors
    /// The host has no descriptor left, or the working directory is gone.
    pub(crate) fn written_file(&self) -> io::Result<Option<WrittenFile>> {
        if self.is_read_only() {
            return Ok(None);
        }
        let (top, format, base) = match self {
            OpenDisk::Raw(file) => (Some(file), Format::Raw, None),
            OpenDisk::Image(image) => {
                let base = image.layers().get(1).map(|base| std::path::absolute(&base.path)).transpose()?;
                let format = image.layers().first().map_or(Format::Raw, |top| top.format);
                (image.top(), format, base)
            }
        };
        let written = |top: &Arc<DiskFile>| {
            Ok(WrittenFile { file: top.reader()?.0, format, base, is_device: top.is_device() })
        };
        top.map(written).transpose()
    }

    /// Whether it is a block device, or the image that the guest writes to lies on one.
    pub(crate) fn is_device(&self) -> bool {
        match self {
            OpenDisk::Raw(file) => file.is_device(),
            OpenDisk::Image(image) => image.top().is_some_and(|top| top.is_device()),
        }
    }

    /// Bytes of a sector, as the guest sees it.
    pub(crate) fn sector_size(&self) -> u64 {
        self.disk("", NonZeroU16::MIN).topology.logical_block.into()
    }

    /// Whether the guest may not write.
    pub(crate) fn is_read_only(&self) -> bool {
        match self {
            OpenDisk::Raw(file) => file.is_read_only(),
            OpenDisk::Image(image) => image.disk("", NonZeroU16::MIN).read_only,
        }
    }

    /// The disk for the device model.
    pub(crate) fn disk(&self, serial: &str, queues: NonZeroU16) -> Disk {
        match self {
            OpenDisk::Raw(file) => file.disk(serial, queues),
            OpenDisk::Image(image) => image.disk(serial, queues),
        }
    }

    /// The number of threads that may serve its queues, each with an engine of its own.
    pub(crate) fn most_threads(&self) -> u16 {
        match self {
            OpenDisk::Raw(_) => u16::MAX,
            OpenDisk::Image(_) => 1,
        }
    }

    /// Makes its engine, on the thread that calls what this returns.
    pub(crate) fn make_engine(&self, kind: EngineKind) -> MakePoller<AnyEngine> {
        match self {
            OpenDisk::Raw(file) => make_engine(file.clone(), kind),
            OpenDisk::Image(image) => image.clone().make_engine(kind),
        }
    }
}
