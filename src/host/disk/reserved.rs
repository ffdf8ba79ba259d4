//! Whether somebody has reserved the space of an image: what its guest gives back would go to others.
//!
//! Nobody wrote down how an image came to its space, and one that its guest has written full has as much as a reserved one. But
//! reserved space that was never written reads as zeros, and so the kernel shows it as a hole, though it is taken.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Most holes that are looked at. A full image with more is one of reserved space.
const MOST_HOLES: usize = 4096;
/// A file system counts its own blocks for a file as well: less than this part of it (12 bytes for 4 KiB on ext4).
const OWN_BLOCKS: u64 = 256;

/// Whether the space for a disk of `length` bytes is reserved in `file`: all of it is taken, and some of it is in holes.
pub(super) fn is_reserved(file: &File, length: u64) -> bool {
    let Some(metadata) = file.metadata().ok().filter(Metadata::is_file) else { return false };
    let (used, end) = (metadata.blocks().saturating_mul(512), metadata.len());
    if used < length {
        return false;
    }
    // Holes that are taken by nobody: a qcow2 image has some between its tables.
    let empty = end.saturating_sub(used).saturating_add(length / OWN_BLOCKS);
    let (mut at, mut holes) = (0, 0);
    for _ in 0..MOST_HOLES {
        let Some(hole) = seek(file, at, libc::SEEK_HOLE).filter(|hole| *hole < end) else { return false };
        at = seek(file, hole, libc::SEEK_DATA).unwrap_or(end).min(end);
        holes += at.saturating_sub(hole);
        if holes > empty {
            return true;
        }
    }
    true
}

/// `None` behind the last data and the end, and where the file system knows no holes.
fn seek(file: &File, offset: u64, whence: i32) -> Option<u64> {
    let offset = i64::try_from(offset).ok()?;
    // SAFETY: a call on an open descriptor, without memory. All other calls on it say where.
    u64::try_from(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }).ok()
}
