//! How much the shares of a machine know together in one boot. What one does not need the others have.

use std::sync::atomic::{AtomicUsize, Ordering};

use virtio::fs::Name;

/// Most files that all shares of a machine know, some 200 bytes each and their names.
pub(super) const MOST_NODES: usize = 1 << 20;
/// Most bytes of their names.
pub(super) const MOST_NAMES: usize = 64 << 20;

/// See the module. Each share has a thread, and asks before it adds: as many shares as ask at the same moment may each get the last place.
#[derive(Debug)]
pub(crate) struct Known {
    most_nodes: usize,
    most_names: usize,
    nodes: AtomicUsize,
    names: AtomicUsize,
}

impl Default for Known {
    fn default() -> Self {
        Known {
            most_nodes: MOST_NODES,
            most_names: MOST_NAMES,
            nodes: AtomicUsize::default(),
            names: AtomicUsize::default(),
        }
    }
}

impl Known {
    /// With other limits, and what `self` has.
    #[cfg(test)]
    pub(super) fn limited(&self, most_nodes: usize, most_names: usize) -> Self {
        Known { most_nodes, most_names, nodes: self.nodes().into(), names: self.names().into() }
    }

    fn nodes(&self) -> usize {
        self.nodes.load(Ordering::Relaxed)
    }

    /// Bytes of all names.
    fn names(&self) -> usize {
        self.names.load(Ordering::Relaxed)
    }

    /// Whether another file may be known.
    pub(super) fn may_grow(&self) -> bool {
        self.nodes() < self.most_nodes && self.names() < self.most_names
    }

    /// Whether names that are known may have so many bytes more.
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        self.names() + more <= self.most_names + Name::MAX
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
