//! A guest's statistics of its memory (virtio 1.3 §5.5.6.3). They are the guest's claims, not measurements.

use std::time::Instant;

use crate::queue::Reader;

/// Bytes of an entry: a 16-bit tag, a 64-bit value.
const ENTRY: usize = 10;
/// Most entries that are read; tags go to 15.
const MOST_ENTRIES: usize = 64;

/// A guest's memory statistics. Sizes are in bytes, the others count since its boot; `None` is what it did not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// When they came.
    pub at: Instant,
    /// Memory swapped in.
    pub swap_in: Option<u64>,
    /// Memory swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    pub major_faults: Option<u64>,
    /// Those that did not.
    pub minor_faults: Option<u64>,
    /// Memory that nothing uses.
    pub free: Option<u64>,
    /// All memory that the guest has.
    pub total: Option<u64>,
    /// What it could use without swapping.
    pub available: Option<u64>,
    /// Memory that caches files.
    pub disk_caches: Option<u64>,
    /// Huge pages taken.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages not there when wanted.
    pub hugetlb_failures: Option<u64>,
}

impl Statistics {
    pub(super) fn none(at: Instant) -> Self {
        Statistics {
            at,
            swap_in: None,
            swap_out: None,
            major_faults: None,
            minor_faults: None,
            free: None,
            total: None,
            available: None,
            disk_caches: None,
            hugetlb_allocations: None,
            hugetlb_failures: None,
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>, at: Instant) -> Self {
        let mut statistics = Self::none(at);
        let mut entry = [0; ENTRY];
        for _ in 0..MOST_ENTRIES {
            if reader.read(&mut entry) < ENTRY {
                break;
            }
            let [t0, t1, value @ ..] = entry;
            if let Some(field) = statistics.field(u16::from_le_bytes([t0, t1])) {
                *field = Some(u64::from_le_bytes(value));
            }
        }
        statistics
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            // Tags of later versions.
            _ => return None,
        })
    }
}
