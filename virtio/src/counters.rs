//! What a device has done, in numbers: written by the one thread that works for it, read by any.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number with one writer, so that counting takes no locked instruction. It begins anew behind 2^64.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Counts one more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// How many there were so far.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a device has done on one thread since it was made. Only that thread counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Chains that went back to the driver; those of one frame together are one.
    pub requests: Count,
    /// Bytes that the guest got, without headers.
    pub bytes_in: Count,
    /// Bytes that it gave, without headers.
    pub bytes_out: Count,
    /// Requests that were refused or failed, and frames that were lost.
    pub errors: Count,
    /// Times that a doorbell woke the thread; kicks that come together wake it once.
    pub kicks: Count,
    /// Interrupts for used buffers.
    pub interrupts: Count,
    /// Times that requests had to wait because of a limit.
    pub throttled: Count,
}
