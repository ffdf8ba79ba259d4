//! Space of a file: what is allocated, freed, zeroed or copied by the host, in parts between which it can be ended.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;
use virtio::fs::{Answer, Errno, Space, Work};

use super::errno;

/// Bytes of a file that are allocated, freed or zeroed in one call, and bytes that are copied: what a pause waits for.
const ALLOCATED: u64 = 1 << 30;
const COPIED: u64 = 8 << 20;

/// Allocates `range`, frees it or makes it zeros.
pub(super) fn allocation(file: Arc<OwnedFd>, range: Range<u64>, what: Space) -> Work {
    let kept = |keep: bool| if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    let flags = match what {
        Space::Allocate { keep_size } => kept(keep_size),
        Space::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Space::Zero { keep_size } => FallocateFlags::ZERO_RANGE | kept(keep_size),
    };
    Work::change(move |stops| in_parts(&file, flags, &range, stops))
}

fn in_parts(file: &OwnedFd, flags: FallocateFlags, range: &Range<u64>, stops: &AtomicBool) -> Answer<u64> {
    let mut at = range.start;
    loop {
        let part = (range.end - at).min(ALLOCATED);
        retry_on_intr(|| rustix::fs::fallocate(file, flags, at, part)).map_err(errno)?;
        at += part;
        if at == range.end {
            return Ok(0);
        } else if stops.load(Ordering::Relaxed) {
            return Err(Errno::INTR);
        }
    }
}

/// Copies `len` bytes at most between two files, from the offsets beside them.
pub(super) fn copy(from: (Arc<OwnedFd>, u64), to: (Arc<OwnedFd>, u64), len: u64) -> Work {
    let ((source, mut from), (target, mut to)) = (from, to);
    Work::change(move |stops| {
        let mut copied = 0;
        while copied < len && (copied == 0 || !stops.load(Ordering::Relaxed)) {
            let part = usize::try_from((len - copied).min(COPIED)).unwrap_or(0);
            let call = || rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), part);
            match retry_on_intr(call) {
                Ok(0) => break,
                Ok(more) => copied += more as u64,
                // The guest hears of the error when it goes on from there.
                Err(_) if copied > 0 => break,
                // The guest copies by reading and writing then.
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::NOSYS) => return Err(Errno::NOTSUP),
                Err(error) => return Err(errno(error)),
            }
        }
        Ok(copied)
    })
}
