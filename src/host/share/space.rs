//! Space of a file: what is allocated, freed, zeroed or copied by the host, in parts between which it can be ended.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;
use virtio::fs::{Errno, Space, Work};

use super::errno;

/// Least bytes of a file that are allocated, freed or zeroed in one call, and bytes that are copied: what a pause waits for.
const ALLOCATED: u64 = 1 << 30;
const COPIED: u64 = 8 << 20;
/// Most parts of a range. What they take goes by what the file has there, not by their length.
const MOST_PARTS: u64 = 1024;

/// Allocates `range`, frees it or makes it zeros. Of a range that the file system cannot have no data are lost.
pub(super) fn allocation(file: Arc<OwnedFd>, range: Range<u64>, what: Space) -> Work {
    let (flags, keep_size) = match what {
        Space::Allocate { keep_size } => (FallocateFlags::empty(), keep_size),
        Space::Punch => (FallocateFlags::PUNCH_HOLE, true),
        Space::Zero { keep_size } => (FallocateFlags::ZERO_RANGE, keep_size),
    };
    Work::change(move |stops| {
        let call = |part: Range<u64>, keep_size: bool| {
            let flags = if keep_size { flags | FallocateFlags::KEEP_SIZE } else { flags };
            let len = part.end - part.start;
            retry_on_intr(|| rustix::fs::fallocate(&file, flags, part.start, len)).map_err(errno)
        };
        let mut parts: Vec<_> = parts(range.clone()).collect();
        let Some(last) = parts.first().cloned().filter(|_| parts.len() > 1) else {
            return call(range, keep_size).map(|()| 0);
        };
        // What has data goes from its end on, as it is there that a file system refuses, and gets its size last. What is only allocated is seen to
        // be, for where there is no room for all of it.
        let allocates = matches!(what, Space::Allocate { .. });
        if allocates {
            parts.reverse();
        }
        for part in parts {
            call(part, keep_size || !allocates)?;
            if stops.load(Ordering::Relaxed) {
                return Err(Errno::INTR);
            }
        }
        if keep_size || allocates { Ok(0) } else { call(last, false).map(|()| 0) }
    })
}

/// The parts of `range`, the last one first. They end where blocks of the file do.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let len = (range.end - range.start).div_ceil(MOST_PARTS).max(ALLOCATED).next_power_of_two();
    let mut end = range.end;
    std::iter::from_fn(move || {
        let start = (end.checked_sub(1)? / len * len).max(range.start);
        let part = start..end;
        end = if start == range.start { 0 } else { start };
        (part.start < part.end).then_some(part)
    })
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
                Err(rustix::io::Errno::XDEV) => return Err(Errno::NOTSUP),
                Err(error) => return Err(errno(error)),
            }
        }
        Ok(copied)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_and_end_with_blocks() {
        let of = |range| parts(range).collect::<Vec<_>>();
        assert_eq!(of(5..6), vec![5..6]);
        assert_eq!(of(0..0), []);
        assert_eq!(of(0..ALLOCATED), vec![0..ALLOCATED]);
        assert_eq!(
            of(7..2 * ALLOCATED + 1),
            [2 * ALLOCATED..2 * ALLOCATED + 1, ALLOCATED..2 * ALLOCATED, 7..ALLOCATED]
        );
        for start in [0, 1, 3 * ALLOCATED] {
            let all = of(start..i64::MAX.cast_unsigned());
            assert!(all.len() <= 1025, "{}", all.len());
            assert!(all.windows(2).all(|pair| pair[1].end == pair[0].start));
            assert_eq!((all[0].end, all[all.len() - 1].start), (i64::MAX.cast_unsigned(), start));
        }
    }
}
