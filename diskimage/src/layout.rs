//! Where a qcow2 image keeps its tables, as the header says (docs/interop/qcow2 of QEMU).

use std::io;
use std::ops::Range;

use crate::header::{Bytes, CLUSTER_BITS};

/// Bytes of the header that are needed here.
pub(crate) const HEADER: usize = 104;
/// The size of the disk, in the header.
pub(crate) const SIZE: Range<usize> = 24..32;
/// The pointer to the refcount table and its length, in the header.
pub(crate) const REFCOUNT_POINTER: Range<usize> = 48..60;

/// A table of 64-bit numbers in a row of clusters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) offset: u64,
    pub(crate) entries: u64,
}

impl Table {
    /// The L1 table and the refcount table. All of this is in the first 72 bytes of a header.
    pub(crate) fn both(header: &[u8], cluster_bits: u32) -> Result<(Table, Table), String> {
        let header = Bytes(header);
        let l1 = Table { offset: header.u64(40)?, entries: header.u32(36)?.into() };
        let entries = u64::from(header.u32(56)?) << (cluster_bits - 3);
        Ok((l1, Table { offset: header.u64(48)?, entries }))
    }

    pub(crate) fn length(self) -> u64 {
        self.entries.saturating_mul(8)
    }

    /// Its bytes in the file.
    pub(crate) fn range(self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length())
    }

    /// The clusters that it lies in.
    pub(crate) fn clusters(self, cluster_bits: u32) -> Range<u64> {
        let Range { start, end } = self.range();
        let first = start >> cluster_bits;
        first..end.div_ceil(1 << cluster_bits).max(first)
    }
}

/// See the module.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) cluster_bits: u32,
    /// A refcount has 2 to the power of so many bits.
    pub(crate) refcount_order: u32,
    pub(crate) l1: Table,
    pub(crate) refcounts: Table,
}

impl Layout {
    pub(crate) fn parse(header: &[u8]) -> io::Result<Self> {
        Self::read(header).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))
    }

    fn read(header: &[u8]) -> Result<Self, String> {
        let numbers = Bytes(header);
        let cluster_bits = numbers.u32(20)?;
        let refcount_order = if numbers.u32(4)? >= 3 { numbers.u32(96)? } else { 4 };
        if !CLUSTER_BITS.contains(&cluster_bits) || refcount_order > 6 {
            return Err("its header has changed".into());
        }
        let (l1, refcounts) = Table::both(header, cluster_bits)?;
        Ok(Layout { cluster_bits, refcount_order, l1, refcounts })
    }

    /// Clusters that a refcount block counts.
    pub(crate) fn clusters_per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }

    /// Whether this cluster is the header's, or of a table that it points to.
    pub(crate) fn holds(&self, cluster: u64) -> bool {
        cluster == 0 || self.is_in_table(cluster)
    }

    /// Whether this cluster is of a table that the header points to.
    pub(crate) fn is_in_table(&self, cluster: u64) -> bool {
        [self.l1, self.refcounts].iter().any(|table| table.clusters(self.cluster_bits).contains(&cluster))
    }
}

/// The numbers in a table's bytes.
pub(crate) fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    #[cfg(test)]
    READ.set(READ.get() + bytes.len() as u64 / 8);
    bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry))
}

#[cfg(test)]
thread_local! {
    /// How many numbers of tables were looked at.
    pub(crate) static READ: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}
