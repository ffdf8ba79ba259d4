//! A disk of a machine, whatever format its image has.

use std::fs::File;
use std::io;
use std::num::NonZeroU16;
use std::sync::{Arc, Weak};

use diskimage::{Format, Layer};
use virtio::block::{AnyEngine, Disk};
use virtio::worker::MakePoller;

use super::engine::{EngineKind, make_engine};
use super::error::DiskError;
use super::file::DiskFile;
use super::open::Access;
use crate::spec::DiskSpec;

/// An open and locked disk. Clones are of the same one.
#[derive(Debug, Clone)]
pub(crate) enum OpenDisk {
    /// A raw image or a block device.
    Raw(Arc<DiskFile>),
}

/// An [`OpenDisk`] that does not keep it open.
#[derive(Debug, Clone)]
pub(crate) enum WeakDisk {
    /// As [`OpenDisk::Raw`].
    Raw(Weak<DiskFile>),
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
}

impl OpenDisk {
    /// Opens and locks the images of a disk.
    ///
    /// # Errors
    /// [`DiskError`], with its cure.
    pub(crate) fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        let access = Access { read_only: spec.read_only, direct: spec.direct };
        if spec.overlay.is_some() || spec.snapshot || spec.format() != Format::Raw {
            return Err(DiskError::Image("images in other formats than raw are not served yet".into()));
        }
        DiskFile::open_as(&spec.path, access, spec.format)
            .map(|file| OpenDisk::Raw(Arc::new(file.discarding(spec.discard.unwrap_or_default()))))
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
        }
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            OpenDisk::Raw(file) => file.length(),
        }
    }

    /// The bytes that the image occupies on the host; `None` for a block device.
    pub(crate) fn used(&self) -> Option<u64> {
        match self {
            OpenDisk::Raw(file) => file.used(),
        }
    }

    /// The images that it consists of, the one that the guest writes to on top; none for a raw image alone.
    pub(crate) fn layers(&self) -> &[Layer] {
        match self {
            OpenDisk::Raw(_) => &[],
        }
    }

    /// Its size in sectors, as last measured.
    pub(crate) fn sectors(&self) -> u64 {
        match self {
            OpenDisk::Raw(file) => file.sectors(),
        }
    }

    /// Updates the size after the image has grown, and returns it in sectors. A smaller size is ignored.
    pub(crate) fn measure(&self) -> io::Result<u64> {
        match self {
            OpenDisk::Raw(file) => file.measure(),
        }
    }

    /// The disk for the device model.
    pub(crate) fn disk(&self, serial: &str, queues: NonZeroU16) -> Disk {
        match self {
            OpenDisk::Raw(file) => file.disk(serial, queues),
        }
    }

    /// The number of threads that may serve its queues, each with an engine of its own.
    pub(crate) fn most_threads(&self) -> u16 {
        match self {
            OpenDisk::Raw(_) => u16::MAX,
        }
    }

    /// Makes its engine, on the thread that calls what this returns.
    pub(crate) fn make_engine(&self, kind: EngineKind) -> MakePoller<AnyEngine> {
        match self {
            OpenDisk::Raw(file) => make_engine(file.clone(), kind),
        }
    }

    /// The same, without keeping it open.
    pub(crate) fn downgrade(&self) -> WeakDisk {
        match self {
            OpenDisk::Raw(file) => WeakDisk::Raw(Arc::downgrade(file)),
        }
    }
}

impl WeakDisk {
    /// The disk, unless it is closed.
    pub(crate) fn upgrade(&self) -> Option<OpenDisk> {
        match self {
            WeakDisk::Raw(file) => file.upgrade().map(OpenDisk::Raw),
        }
    }
}
