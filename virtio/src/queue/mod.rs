//! Virtqueues, the device's side: split rings (virtio 1.3 §2.7) on the `virtio-queue` crate, with everything that a
//! guest writes into them checked before it is used.
//!
//! The rings' extents are checked once, when a queue is made; a descriptor chain is copied and checked once, when it
//! is popped, and is never read again. The first thing wrong makes a [`QueueFault`]: the worker marks that queue as broken
//! and no other.

mod chain;
mod config;
mod walk;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests;

use std::num::Wrapping;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Error as RingError, Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::counters::Counters;
use crate::memory::{Memory, Segment};
use crate::shared_registers::SharedRegisters;
pub use chain::{Chain, Reader, Writer};
pub use config::{QueueConfig, QueueState};
pub use walk::{MOST_CHAIN_BYTES, MOST_SEGMENTS};

/// VIRTIO_F_INDIRECT_DESC, as a bit of the features (virtio 1.3 §6).
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// Room for segments that a queue keeps between requests: 64 KiB, or 256 requests of 16 segments.
const MOST_SPARE_SEGMENTS: usize = 4096;
/// The driver wants no interrupts (virtio 1.3 §2.7.7), where EVENT_IDX is not in use.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// What a guest did wrong in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// §2.7.10: a size that is a power of 2, at most the offered one.
    #[error("queue size {0} is not one that was offered")]
    Size(u16),
    /// §2.7: alignment 16, 2 and 4; whole extent in guest memory.
    #[error("{part} at {address:#x} is misaligned or not in guest memory")]
    Ring {
        /// Which part of the queue.
        part: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// §2.7.13.3: the driver must not run ahead by more than the queue's size.
    #[error("the available ring's index jumped by more than the queue's size")]
    IndexJump,
    /// More chains at once than descriptors exist: one head was made available twice.
    #[error("more buffers are in use than the queue has")]
    TooManyInFlight,
    /// A head or next field points outside its table.
    #[error("descriptor {0} is outside its table")]
    BadIndex(u16),
    /// §2.7.5.2: a chain longer than the queue; what a cycle becomes.
    #[error("a descriptor chain is longer than {0} descriptors (or a circle)")]
    TooLong(u16),
    /// §2.7.5: more than 2^32 bytes.
    #[error("a descriptor chain has more bytes than a chain may have")]
    TooManyBytes,
    /// §2.7.5.3.1: an indirect table in an indirect table, one with a next descriptor, or without the feature.
    #[error("an indirect descriptor stands where none may stand")]
    BadIndirect,
    /// §2.7.5.3: its length is a multiple of 16, not 0.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// Not guest memory.
    #[error("a descriptor names {len} bytes at {address:#x}, which are not guest memory")]
    Memory {
        /// First byte.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// §2.7.4.2: all readable ones come first.
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
}

/// A [`QueueError`] and whose it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("queue {queue}: {error}")]
pub struct QueueFault {
    /// Index of the queue.
    pub queue: u16,
    /// What was wrong.
    pub error: QueueError,
}

/// An active queue. Its owner alone accesses its rings from the host's side.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    memory: Memory,
    shared: Arc<SharedRegisters>,
    counters: Arc<Counters>,
    index: u16,
    indirect: bool,
    /// Value of `next_used` at the last decision about an interrupt.
    signalled: Wrapping<u16>,
    in_flight: u16,
    /// Segment lists of chains that are done with, for the next ones: no allocation per request.
    spare: Vec<Vec<Segment>>,
    /// Room for segments in all of `spare`.
    spare_room: usize,
}

impl Queue {
    /// The queue that `config` describes, with `features` negotiated, from where `state` left off.
    ///
    /// # Errors
    /// [`QueueFault`] where size or rings are not as they must be.
    pub fn new(
        index: u16,
        config: &QueueConfig,
        state: QueueState,
        features: u64,
        memory: &Memory,
        shared: &Arc<SharedRegisters>,
        counters: &Arc<Counters>,
    ) -> Result<Self, QueueFault> {
        let ring =
            config.ring(state, features, memory).map_err(|error| QueueFault { queue: index, error })?;
        Ok(Queue {
            signalled: Wrapping(ring.next_used()),
            ring,
            memory: memory.clone(),
            shared: shared.clone(),
            counters: counters.clone(),
            index,
            indirect: features & FEATURE_INDIRECT != 0,
            in_flight: 0,
            spare: Vec::new(),
            spare_room: 0,
        })
    }

    /// Which queue of its device this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Descriptors it has.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains popped and not yet completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// What its device has done. The queue itself counts requests and interrupts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The memory that chains of this queue point into.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Its position, for [`Queue::new`] to continue from. Chains in flight are not in it: complete them, or give them
    /// back with [`Queue::put_back`], before.
    pub fn state(&self) -> QueueState {
        QueueState { next_avail: self.ring.next_avail(), next_used: self.ring.next_used() }
    }

    /// The next chain that the driver made available.
    ///
    /// # Errors
    /// [`QueueFault`]; the queue must not be used again before the guest has reset it.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueFault> {
        let head = match self.ring.iter(&*self.memory) {
            Ok(mut heads) => match heads.next() {
                Some(chain) => chain.head_index(),
                None => return Ok(None),
            },
            Err(RingError::InvalidAvailRingIndex) => return Err(self.fault(QueueError::IndexJump)),
            // The crate takes none at address 0.
            Err(_) => {
                let (part, address) = ("the available ring", self.ring.avail_ring());
                return Err(self.fault(QueueError::Ring { part, address }));
            }
        };
        self.walk(head).map(Some)
    }

    /// The chain that begins with descriptor `head`, checked.
    fn walk(&mut self, head: u16) -> Result<Chain, QueueFault> {
        if self.in_flight >= self.ring.size() {
            return Err(self.fault(QueueError::TooManyInFlight));
        }
        let mut segments = self.spare.pop().unwrap_or_default();
        self.spare_room -= segments.capacity();
        segments.clear();
        let table = walk::Table { start: self.ring.desc_table(), len: self.ring.size() };
        let readable = walk::walk(&self.memory, table, head, self.indirect, &mut segments)
            .map_err(|error| self.fault(error))?;
        self.in_flight += 1;
        Ok(Chain::new(head, segments, readable))
    }

    /// Takes a popped chain out of flight without completing it: its driver waits on. The number that this returns gives it
    /// back with [`Queue::take_up`], also after the queue was made anew.
    pub fn set_aside(&mut self, chain: Chain) -> u16 {
        let head = chain.head();
        self.reclaim(chain);
        head
    }

    /// The chain that [`Queue::set_aside`] returned `head` for, read and checked again.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn take_up(&mut self, head: u16) -> Result<Chain, QueueFault> {
        self.walk(head)
    }

    /// Undoes the last [`Queue::pop`]: the same chain comes again. In the opposite order of popping.
    pub fn put_back(&mut self, chain: Chain) {
        self.ring.go_to_previous_position();
        self.reclaim(chain);
    }

    /// Gives a chain back to the driver, with as many bytes as its [`Writer`]s wrote.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn complete(&mut self, chain: Chain) -> Result<(), QueueFault> {
        let (head, written) = (chain.head(), chain.written());
        self.reclaim(chain);
        self.use_last(head, written)
    }

    /// Gives several chains back, which the driver sees all at once: what a frame in merged buffers needs (§5.1.6.4).
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn complete_together(&mut self, chains: impl IntoIterator<Item = Chain>) -> Result<(), QueueFault> {
        let mut next = Wrapping(self.ring.next_used());
        let mut last = None;
        for chain in chains {
            if let Some((head, written)) = last.replace((chain.head(), chain.written())) {
                self.write_used(next.0, head, written)?;
                next += 1;
            }
            self.reclaim(chain);
        }
        let Some((head, written)) = last else { return Ok(()) };
        // The crate writes the last element, and with the index everything becomes visible.
        self.ring.set_next_used(next.0);
        self.use_last(head, written)
    }

    /// Writes the last or only used element of a request, which makes it visible.
    fn use_last(&mut self, head: u16, written: u32) -> Result<(), QueueFault> {
        // Count first: when the driver sees the request, it is counted.
        self.counters().requests.add_one();
        self.ring.add_used(&*self.memory, head, written).map_err(|_| self.used_ring_gone())
    }

    /// Interrupts the driver if it asked for that for a chain completed since the last call (§2.7.7.2).
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn notify(&mut self) -> Result<(), QueueFault> {
        self.notify_by(|_| false)
    }

    /// As [`Queue::notify`]; where that means to write to an eventfd, `write` is asked first, and returns whether it does it.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn notify_by(&mut self, write: impl FnOnce(RawFd) -> bool) -> Result<(), QueueFault> {
        let new = Wrapping(self.ring.next_used());
        let old = std::mem::replace(&mut self.signalled, new);
        if new == old {
            return Ok(());
        }
        // The used index must be visible before we read whether the driver wants an interrupt (§2.7.13.4.1 in reverse).
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = if self.ring.event_idx_enabled() {
            let event = Wrapping(self.load(self.ring.avail_ring(), 4 + 2 * u64::from(self.ring.size()))?);
            new - event - Wrapping(1) < new - old
        } else {
            self.load(self.ring.avail_ring(), 0)? & AVAIL_NO_INTERRUPT == 0
        };
        if wanted {
            self.counters.interrupts.add_one();
            self.shared.queue_by(self.index, write);
        }
        Ok(())
    }

    /// Asks the driver not to kick. Only a hint (§2.7.10).
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn disable_kicks(&mut self) -> Result<(), QueueFault> {
        self.ring.disable_notification(&*self.memory).map_err(|_| self.used_ring_gone())
    }

    /// Asks the driver to kick from now on. `true`: something became available meanwhile, without a kick.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn enable_kicks(&mut self) -> Result<bool, QueueFault> {
        self.ring.enable_notification(&*self.memory).map_err(|_| self.used_ring_gone())
    }

    fn reclaim(&mut self, chain: Chain) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let segments = chain.into_segments();
        // A guest's longest chains must not stay with us for ever.
        if self.spare_room + segments.capacity() <= MOST_SPARE_SEGMENTS {
            self.spare_room += segments.capacity();
            self.spare.push(segments);
        }
    }

    fn write_used(&self, at: u16, head: u16, written: u32) -> Result<(), QueueFault> {
        let offset = 4 + 8 * u64::from(at % self.ring.size());
        let element = (u64::from(head) | u64::from(written) << 32).to_le();
        let address = GuestAddress(self.ring.used_ring().saturating_add(offset));
        self.memory.write_obj(element, address).map_err(|_| self.used_ring_gone())
    }

    fn load(&self, ring: u64, offset: u64) -> Result<u16, QueueFault> {
        let address = GuestAddress(ring.saturating_add(offset));
        self.memory.load(address, Ordering::Relaxed).map(u16::from_le).map_err(|_| {
            self.fault(QueueError::Ring { part: "the available ring", address: self.ring.avail_ring() })
        })
    }

    fn used_ring_gone(&self) -> QueueFault {
        self.fault(QueueError::Ring { part: "the used ring", address: self.ring.used_ring() })
    }

    fn fault(&self, error: QueueError) -> QueueFault {
        QueueFault { queue: self.index, error }
    }
}
