//! What a disk tells its driver: features and the configuration structure (virtio 1.3 §5.2.3, §5.2.4).

use std::num::NonZeroU16;

use crate::config_space::ConfigSpace;

/// Bytes of a sector, whatever the block size (§5.2.4).
pub const SECTOR: u64 = 512;
/// Descriptors of a queue. With 512 a request of 1 MiB fits, even if each of its pages lies alone.
pub const QUEUE_SIZE: NonZeroU16 = NonZeroU16::new(512).unwrap();
/// Data segments of a request: a chain is no longer than its queue (§2.7.5.3.1), header and status aside.
pub const MOST_SEGMENTS: u32 = QUEUE_SIZE.get() as u32 - 2;
/// Bytes of one segment.
const MOST_SEGMENT_BYTES: u32 = 1 << 20;
/// Bytes of a request's data, then.
pub(super) const MOST_TRANSFER: u64 = MOST_SEGMENTS as u64 * MOST_SEGMENT_BYTES as u64;

/// Ranges in one discard or write-zeroes request.
pub(super) const MOST_RANGES: u32 = 16;
/// Sectors of a discarded range: 1 GiB.
pub(super) const MOST_DISCARD: u32 = 1 << 21;
/// Sectors of a zeroed range: 32 MiB, what an engine may have to write out where the host cannot zero.
pub const MOST_ZEROES: u32 = 1 << 16;

/// Bytes that an engine is given at once to discard or zero. The host keeps reads and writes of the same file waiting while it does
/// one piece, as a file system that punches a hole, or a block device whose page cache is read.
pub(super) const PIECE: u64 = 64 << 20;

/// Feature bits (§5.2.3).
pub(super) mod feature {
    pub(in crate::block) const SIZE_MAX: u64 = 1 << 1;
    pub(in crate::block) const SEG_MAX: u64 = 1 << 2;
    pub(in crate::block) const RO: u64 = 1 << 5;
    pub(in crate::block) const BLK_SIZE: u64 = 1 << 6;
    pub(in crate::block) const FLUSH: u64 = 1 << 9;
    pub(in crate::block) const TOPOLOGY: u64 = 1 << 10;
    pub(in crate::block) const CONFIG_WCE: u64 = 1 << 11;
    pub(in crate::block) const MQ: u64 = 1 << 12;
    pub(in crate::block) const DISCARD: u64 = 1 << 13;
    pub(in crate::block) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Offset of the capacity, in sectors.
pub(super) const CAPACITY: usize = 0;
/// Offset of the writeback byte.
pub(super) const WRITEBACK: usize = 32;
/// Bytes of the structure, up to what WRITE_ZEROES adds.
const LEN: usize = 60;

/// What a disk is. Only its size changes while its machine runs: see
/// [`Message::DiskSize`](crate::device::Message::DiskSize).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// The driver may not write.
    pub read_only: bool,
    /// What `/dev/disk/by-id` shows; at most 20 bytes count.
    pub serial: String,
    /// How many queues, at least 1.
    pub queues: NonZeroU16,
    /// Sizes that requests had better have.
    pub topology: Topology,
    /// Granularity in bytes in which space can be given back; `None` if it cannot.
    pub discard: Option<u32>,
}

/// Hints on sizes (§5.2.5), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// What the medium addresses: a power of 2, at least 512. Requests are counted in sectors of 512 bytes all the same.
    pub logical_block: u32,
    /// What the medium writes at once: a power of 2.
    pub physical_block: u32,
    /// Least good size of a request.
    pub least_io: u32,
    /// Best size of a request; 0 if there is no such.
    pub best_io: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { logical_block: 512, physical_block: 512, least_io: 512, best_io: 0 }
    }
}

impl Disk {
    /// Feature bits that it offers.
    pub(super) fn features(&self) -> u64 {
        let mut features = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH
            | feature::CONFIG_WCE;
        if self.queues.get() > 1 {
            features |= feature::MQ;
        }
        if self.read_only {
            return features | feature::RO;
        }
        features |= feature::WRITE_ZEROES;
        if self.discard.is_some() {
            features |= feature::DISCARD;
        }
        features
    }

    /// The configuration structure, with the cache in writeback mode.
    pub(super) fn config(&self) -> ConfigSpace {
        let sector = 512;
        // The topology is in units of the logical block; all other fields are in sectors.
        let block = self.topology.logical_block.max(sector);
        let blocks = |bytes: u32| u16::try_from(bytes / block).unwrap_or(u16::MAX);
        let exponent = (self.topology.physical_block / block).checked_ilog2().unwrap_or(0);
        let discard = if self.discard.is_some() { (MOST_DISCARD, MOST_RANGES) } else { (0, 0) };
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend(self.sectors.to_le_bytes());
        bytes.extend(MOST_SEGMENT_BYTES.to_le_bytes());
        bytes.extend(MOST_SEGMENTS.to_le_bytes());
        // Geometry: not offered.
        bytes.extend([0; 4]);
        bytes.extend(block.to_le_bytes());
        bytes.extend([u8::try_from(exponent).unwrap_or(0), 0]);
        bytes.extend(blocks(self.topology.least_io).max(1).to_le_bytes());
        bytes.extend((self.topology.best_io / block).to_le_bytes());
        bytes.extend([1, 0]);
        bytes.extend(self.queues.get().to_le_bytes());
        bytes.extend(discard.0.to_le_bytes());
        bytes.extend(discard.1.to_le_bytes());
        bytes.extend((self.discard.unwrap_or(sector) / sector).max(1).to_le_bytes());
        bytes.extend(MOST_ZEROES.to_le_bytes());
        bytes.extend(MOST_RANGES.to_le_bytes());
        // A zeroed range may be given back, if the driver says so.
        bytes.extend([u8::from(self.discard.is_some()), 0, 0, 0]);
        let mut writable = vec![0; LEN];
        if let Some(writeback) = writable.get_mut(WRITEBACK) {
            *writeback = 1;
        }
        ConfigSpace::with_writable(bytes, writable)
    }
}
