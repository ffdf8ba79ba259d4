//! How much the shares of a machine know together. What one does not need the others have.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Most files that all shares of a machine know, some 200 bytes each and their names.
pub(super) const MOST_NODES: usize = 1 << 20;
/// Most bytes of their names.
pub(super) const MOST_NAMES: usize = 64 << 20;

/// See the module. Each share has a thread: two that ask at the same moment may both get the last place, and no more than that.
#[derive(Debug)]
pub(crate) struct Known {
    pub(super) shares: usize,
    nodes: AtomicUsize,
    names: AtomicUsize,
}

impl Known {
    /// Of a machine with so many shares.
    pub(crate) fn of(shares: usize) -> Self {
        Known { shares, nodes: AtomicUsize::new(0), names: AtomicUsize::new(0) }
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes.load(Ordering::Relaxed)
    }

    /// Bytes of all names.
    pub(super) fn names(&self) -> usize {
        self.names.load(Ordering::Relaxed)
    }

    /// So many files more, and bytes of names.
    pub(super) fn add(&self, nodes: usize, names: usize) {
        self.nodes.fetch_add(nodes, Ordering::Relaxed);
        self.names.fetch_add(names, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, nodes: usize, names: usize) {
        self.nodes.fetch_sub(nodes, Ordering::Relaxed);
        self.names.fetch_sub(names, Ordering::Relaxed);
    }
}
