//! The driver's configuration of a queue, and the checks that make a ring of it.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::GuestAddress;

use super::{FEATURE_EVENT_IDX, QueueError};
use crate::memory::Memory;

/// What the driver wrote about a queue (virtio 1.3 §4.1.4.3). Nothing in it is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// Descriptors that the device offers; a power of 2.
    pub max_size: u16,
    /// Descriptors that the driver wants.
    pub size: u16,
    /// The driver enabled the queue.
    pub enabled: bool,
    /// Descriptor area.
    pub descriptors: u64,
    /// Driver area: the available ring.
    pub driver: u64,
    /// Device area: the used ring.
    pub device: u64,
}

/// How far a queue has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Next element of the available ring to take.
    pub next_avail: u16,
    /// Next element of the used ring to fill.
    pub next_used: u16,
}

impl QueueConfig {
    /// A queue as after reset.
    pub fn new(max_size: NonZeroU16) -> Self {
        let max_size = max_size.get();
        QueueConfig { max_size, size: max_size, enabled: false, descriptors: 0, driver: 0, device: 0 }
    }

    /// The ring that it describes, all of it in guest memory.
    pub(super) fn ring(&self, state: QueueState, features: u64, memory: &Memory) -> Result<Ring, QueueError> {
        let event_idx = features & FEATURE_EVENT_IDX != 0;
        let size = u64::from(self.size);
        if !self.size.is_power_of_two() || self.size > self.max_size {
            return Err(QueueError::Size(self.size));
        }
        // §2.7: with EVENT_IDX two bytes follow each ring; they are there without it too.
        let parts = [
            ("the descriptor table", self.descriptors, 16 * size, 16),
            ("the available ring", self.driver, 6 + 2 * size, 2),
            ("the used ring", self.device, 6 + 8 * size, 4),
        ];
        for (part, address, len, align) in parts {
            if !address.is_multiple_of(align) || !memory.holds(GuestAddress(address), len) {
                return Err(QueueError::Ring { part, address });
            }
        }
        let build = || {
            let mut ring = Ring::new(self.max_size)?;
            ring.try_set_size(self.size)?;
            ring.try_set_desc_table_address(GuestAddress(self.descriptors))?;
            ring.try_set_avail_ring_address(GuestAddress(self.driver))?;
            ring.try_set_used_ring_address(GuestAddress(self.device))?;
            ring.set_next_avail(state.next_avail);
            ring.set_next_used(state.next_used);
            ring.set_event_idx(event_idx);
            ring.set_ready(true);
            Ok(ring)
        };
        build().map_err(|_: virtio_queue::Error| QueueError::Size(self.max_size))
    }
}
