//! Disks at rest: everything written to the medium, and a mark that shows whether somebody writes to them later.

use std::fs::{File, Metadata, metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use virtio::block::{Extent, Operation};

use super::helper;
use super::open_disk::OpenDisk;
use crate::host::proc_path::proc_path;

/// The length of an image and the time of its last change, as its file system has them. Equal marks are of an image that nobody has
/// written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskMark {
    bytes: u64,
    /// Since 1970.
    seconds: i64,
    nanoseconds: i64,
}

impl DiskMark {
    pub(super) fn of(file: &Metadata) -> Self {
        DiskMark { bytes: file.len(), seconds: file.mtime(), nanoseconds: file.mtime_nsec() }
    }

    /// That of the image at `path` now.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&metadata(path)?))
    }
}

impl OpenDisk {
    /// Brings what was written so far to the medium, while its engines write on, so that [`OpenDisk::rest`] has little to do. What an image of
    /// another format has in memory stays there.
    ///
    /// # Errors
    /// The host could not write it.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let Some(file) = self.writable() else { return Ok(()) };
        // Opened once more where that is possible: an error is told once to each open file, and the guest's flushes have to hear of it, too.
        let again = File::open(proc_path(&file.buffered));
        #[cfg(test)]
        file.syncs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        again.or_else(|_| file.buffered.try_clone())?.sync_data()
    }

    /// Brings all of it to the medium, when no request is in flight, and gives its mark then; `None` if it is not written to, or is a
    /// block device, which has none. Nothing is written to it after this until a request comes.
    ///
    /// # Errors
    /// The host could not write it.
    pub(crate) fn rest(&self) -> io::Result<Option<DiskMark>> {
        if self.is_read_only() {
            return Ok(None);
        }
        let file = match self {
            OpenDisk::Raw(file) => {
                helper::run(file, Operation::Flush, Extent::default())?;
                Some(file)
            }
            OpenDisk::Image(image) => {
                image.rest()?;
                image.top()
            }
        };
        let metadata = file.map(|file| file.metadata()).transpose()?;
        Ok(metadata.filter(Metadata::is_file).map(|metadata| DiskMark::of(&metadata)))
    }
}
