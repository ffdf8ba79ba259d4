//! What a failed fdatasync leaves behind. The kernel reports the error once and may keep the pages it could not write as clean
//! ones, so that a second call succeeds without them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The failed syncs of a file.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// A sync runs, and may take the error of another one.
    running: AtomicBool,
    /// Of which no flush of the guest knows.
    unreported: AtomicBool,
    /// How many there were.
    count: AtomicU64,
    /// After so many of them all that waited was written again. If there were more, what the page cache has may not be on the
    /// medium.
    mended: AtomicU64,
}

impl Failures {
    /// Does `sync`, and notes its failure.
    pub(super) fn watch(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.running.store(true, Ordering::SeqCst);
        let result = sync();
        if result.is_err() {
            self.unreported.store(true, Ordering::SeqCst);
            self.doubt();
        }
        self.running.store(false, Ordering::SeqCst);
        result.map_err(flush_failed)
    }

    pub(super) fn are_possible(&self) -> bool {
        // In this order: a sync that has ended by now has told of its failure.
        self.running.load(Ordering::SeqCst) || self.unreported.load(Ordering::SeqCst)
    }

    pub(super) fn take_unreported(&self) -> bool {
        self.unreported.swap(false, Ordering::SeqCst)
    }

    /// A sync has failed.
    pub(super) fn doubt(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn is_cache_doubted(&self) -> bool {
        self.count() != self.mended.load(Ordering::SeqCst)
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Everything was written again after so many failures, and has arrived.
    pub(super) fn are_mended(&self, count: u64) {
        self.mended.store(count, Ordering::SeqCst);
    }
}

/// The error of an fdatasync(2) as one that names no room. An operation that waits for room is repeated, and a sync must not be:
/// the second call would succeed without what is lost.
pub fn flush_failed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            io::Error::other(format!("{error}, and what was not written yet may be lost"))
        }
        _ => error,
    }
}
