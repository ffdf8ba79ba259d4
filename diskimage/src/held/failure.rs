//! What a failed fdatasync leaves behind. The kernel reports the error once and may keep the pages it could not write as clean
//! ones, so that a second call succeeds without them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The failed syncs of a file.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// A sync runs, and may take the error of another one.
    running: AtomicBool,
    /// Of which no flush of the guest knows.
    unreported: AtomicBool,
    /// What the page cache has may not be on the medium.
    doubted: AtomicBool,
}

impl Failures {
    /// Does `sync`, and notes its failure.
    pub(super) fn watch(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.running.store(true, Ordering::SeqCst);
        let result = sync();
        if result.is_err() {
            self.unreported.store(true, Ordering::SeqCst);
            self.doubted.store(true, Ordering::SeqCst);
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

    pub(super) fn is_cache_doubted(&self) -> bool {
        self.doubted.load(Ordering::SeqCst)
    }

    /// Everything was written again, and has arrived.
    pub(super) fn cache_is_good(&self) {
        self.doubted.store(false, Ordering::SeqCst);
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
