//! From a head to the segments of its chain (virtio 1.3 §2.7.5): the one place that reads descriptors.

use vm_memory::{Bytes, GuestAddress};

use super::QueueError;
use crate::memory::{Memory, Segment};

/// Most descriptors of a chain that goes through an indirect table. Linux makes tables longer than the queue.
pub const MOST_SEGMENTS: u16 = 1024;
/// Most bytes of a chain: the used ring counts them in 32 bits (§2.7.8).
pub const MOST_CHAIN_BYTES: u64 = u32::MAX as u64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

/// A table of descriptors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) start: u64,
    pub(super) len: u16,
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Table {
    fn read(&self, index: u16, memory: &Memory) -> Result<Descriptor, QueueError> {
        if index >= self.len {
            return Err(QueueError::BadIndex(index));
        }
        let address = self.start.saturating_add(u64::from(index) * DESCRIPTOR);
        // One copy, which is checked and used: the guest may change its own meanwhile.
        let raw: u128 = memory
            .read_obj(GuestAddress(address))
            .map_err(|_| QueueError::Ring { part: "the descriptor table", address: self.start })?;
        let [address, rest] = [raw, raw >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)));
        let (Ok(address), Ok(rest)) = (address, rest) else { return Err(QueueError::BadIndex(index)) };
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Ok(Descriptor {
            address,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// Appends the chain at `head` to `segments` and returns how many of them are device-readable.
pub(super) fn walk(
    memory: &Memory,
    table: Table,
    head: u16,
    indirect_allowed: bool,
    segments: &mut Vec<Segment>,
) -> Result<usize, QueueError> {
    let mut table = table;
    let mut left = table.len;
    let mut may_be_indirect = indirect_allowed;
    let mut index = head;
    let mut bytes = 0u64;
    let mut readable = 0;
    loop {
        let descriptor = table.read(index, memory)?;
        if descriptor.flags & INDIRECT != 0 {
            // §2.7.5.3.1: alone in its place, and no table in a table. Only as the last of a direct chain.
            if !may_be_indirect || descriptor.flags & NEXT != 0 {
                return Err(QueueError::BadIndirect);
            }
            may_be_indirect = false;
            table = indirect(&descriptor, memory)?;
            left = table.len;
            index = 0;
            continue;
        }
        left = left.checked_sub(1).ok_or(QueueError::TooLong(table.len))?;
        let writable = descriptor.flags & WRITE != 0;
        if !writable && readable < segments.len() {
            return Err(QueueError::Order);
        }
        if descriptor.len > 0 {
            let (address, len) = (descriptor.address, descriptor.len);
            if !memory.holds(GuestAddress(address), len.into()) {
                return Err(QueueError::Memory { address, len });
            }
            bytes += u64::from(len);
            if bytes > MOST_CHAIN_BYTES {
                return Err(QueueError::TooManyBytes);
            }
            segments.push(Segment { address: GuestAddress(address), len });
            readable += usize::from(!writable);
        }
        if descriptor.flags & NEXT == 0 {
            return Ok(readable);
        }
        index = descriptor.next;
    }
}

fn indirect(descriptor: &Descriptor, memory: &Memory) -> Result<Table, QueueError> {
    let len = u64::from(descriptor.len);
    if len == 0 || !len.is_multiple_of(DESCRIPTOR) {
        return Err(QueueError::IndirectLength(descriptor.len));
    }
    if !memory.holds(GuestAddress(descriptor.address), len) {
        return Err(QueueError::Memory { address: descriptor.address, len: descriptor.len });
    }
    let entries = u16::try_from(len / DESCRIPTOR).unwrap_or(u16::MAX);
    if entries > MOST_SEGMENTS {
        return Err(QueueError::TooLong(MOST_SEGMENTS));
    }
    Ok(Table { start: descriptor.address, len: entries })
}
