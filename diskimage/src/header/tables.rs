//! The tables that a header points to, held against QEMU's limits, the size of the disk and the size of the file.

use super::Header;

/// QEMU's limit on the L1 table, in entries of eight bytes.
pub(crate) const MOST_L1_BYTES: u64 = 32 << 20;
/// QEMU's limit on the refcount table.
pub(crate) const MOST_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// QEMU's limit on snapshots.
pub(crate) const MOST_SNAPSHOTS: u32 = 65536;
/// Offsets in the file have 56 bits.
const LARGEST_FILE: u64 = 1 << 56;

impl Header {
    /// Checks what the header says of its tables; `length` is the length of the file.
    pub(super) fn check_tables(&self, length: u64) -> Result<(), String> {
        if self.snapshots > MOST_SNAPSHOTS {
            return Err(format!("it says that it has {} snapshots", self.snapshots));
        }
        if self.size > largest(self.cluster_bits) {
            return Err(format!("its disk would have {} bytes", self.size));
        }
        let needed = l1_entries(self.size, self.cluster_bits);
        let entries = u64::from(self.l1_entries);
        if entries < needed {
            return Err(format!(
                "its L1 table has {entries} entries, and its disk of {} bytes needs {needed}",
                self.size
            ));
        }
        if entries * 8 > MOST_L1_BYTES {
            return Err(format!("its L1 table would have {} bytes", entries * 8));
        }
        if entries > 0 {
            self.check_place("L1 table", self.l1_offset, entries * 8, length)?;
        }
        let bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if bytes == 0 || bytes > MOST_REFCOUNT_TABLE_BYTES.max(self.cluster_size()) {
            return Err(format!("its refcount table would have {bytes} bytes"));
        }
        self.check_place("refcount table", self.refcount_table_offset, bytes, length)
    }

    fn check_place(&self, table: &str, offset: u64, bytes: u64, length: u64) -> Result<(), String> {
        let cluster = self.cluster_size();
        if offset == 0 || !offset.is_multiple_of(cluster) {
            return Err(format!("its {table} does not begin at a cluster"));
        }
        // The last cluster of a file may be there in part.
        let room = length.checked_next_multiple_of(cluster).unwrap_or(length).min(LARGEST_FILE);
        match offset.checked_add(bytes) {
            Some(end) if end <= room => Ok(()),
            _ => Err(format!("its {table} lies behind the end of the file")),
        }
    }
}

/// Entries that an L1 table needs for a disk.
pub(crate) fn l1_entries(size: u64, cluster_bits: u32) -> u64 {
    // An L2 table is a cluster of entries of eight bytes.
    size.div_ceil(1 << (2 * cluster_bits - 3))
}

/// The largest disk that a qcow2 image with such clusters can have.
pub(crate) fn largest(cluster_bits: u32) -> u64 {
    let by_table = (MOST_L1_BYTES / 8).saturating_mul(1 << (2 * cluster_bits - 3));
    by_table.min(LARGEST_FILE)
}
