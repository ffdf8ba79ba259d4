//! What a network device did, for whoever compares. Written by its worker alone.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the device was made.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    send_dropped: AtomicU64,
    received: AtomicU64,
    receive_dropped: AtomicU64,
    spilled: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Frames from the guest that the wire took.
    pub sent: u64,
    /// Frames from the guest that were malformed or that the wire refused.
    pub send_dropped: u64,
    /// Frames that the guest got.
    pub received: u64,
    /// Frames that fitted into no buffers of the guest.
    pub receive_dropped: u64,
    /// Frames that a part of was copied, because buffers were short when they came.
    pub spilled: u64,
}

impl Counters {
    /// All of them now.
    pub fn now(&self) -> Counts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            sent: load(&self.sent),
            send_dropped: load(&self.send_dropped),
            received: load(&self.received),
            receive_dropped: load(&self.receive_dropped),
            spilled: load(&self.spilled),
        }
    }

    pub(super) fn sent(&self) {
        add(&self.sent);
    }

    pub(super) fn send_dropped(&self) {
        add(&self.send_dropped);
    }

    pub(super) fn received(&self) {
        add(&self.received);
    }

    pub(super) fn receive_dropped(&self) {
        add(&self.receive_dropped);
    }

    pub(super) fn spilled(&self) {
        add(&self.spilled);
    }
}

/// There is one writer, so that no locked instruction is needed.
fn add(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
