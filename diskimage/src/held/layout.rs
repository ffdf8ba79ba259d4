//! Where a qcow2 image keeps its tables, as the header says (docs/interop/qcow2 of QEMU).

use std::io;
use std::ops::Range;

use crate::entries::REFCOUNT_TABLE_RESERVED;
use crate::header::CLUSTER_BITS;

/// Bytes of the header that are needed here.
pub(super) const HEADER: usize = 104;
/// The pointer to the refcount table and its length, in the header.
pub(super) const REFCOUNT_POINTER: Range<usize> = 48..60;
/// The offset in entries of the refcount table.
pub(super) const BLOCK_OFFSET: u64 = !REFCOUNT_TABLE_RESERVED;

/// A table of 64-bit numbers in a row of clusters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) offset: u64,
    pub(super) entries: u64,
}

impl Table {
    pub(super) fn bytes(self) -> u64 {
        self.entries.saturating_mul(8)
    }

    /// The clusters that it lies in.
    pub(super) fn clusters(self, cluster_bits: u32) -> Range<u64> {
        let end = self.offset.saturating_add(self.bytes());
        let cluster = 1u64 << cluster_bits;
        self.offset >> cluster_bits..end.div_ceil(cluster).max(self.offset >> cluster_bits)
    }
}

/// See the module.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Layout {
    pub(super) cluster_bits: u32,
    /// A refcount has 2 to the power of so many bits.
    pub(super) refcount_order: u32,
    pub(super) l1: Table,
    pub(super) refcounts: Table,
}

impl Layout {
    pub(super) fn parse(header: &[u8]) -> io::Result<Self> {
        let word = |at| number::<4>(header, at).map(u32::from_be_bytes);
        let long = |at| number::<8>(header, at).map(u64::from_be_bytes);
        let cluster_bits = word(20)?;
        let refcount_order = if word(4)? >= 3 { word(96)? } else { 4 };
        if !CLUSTER_BITS.contains(&cluster_bits) || refcount_order > 6 {
            return Err(invalid("its header has changed"));
        }
        let l1 = Table { offset: long(40)?, entries: word(36)?.into() };
        let refcounts = Table { offset: long(48)?, entries: u64::from(word(56)?) << (cluster_bits - 3) };
        Ok(Layout { cluster_bits, refcount_order, l1, refcounts })
    }

    /// Whether this cluster is the header's, or of a table that it points to.
    pub(super) fn holds(&self, cluster: u64) -> bool {
        let within = |table: Table| table.clusters(self.cluster_bits).contains(&cluster);
        cluster == 0 || within(self.l1) || within(self.refcounts)
    }
}

/// The numbers in a table's bytes.
pub(super) fn entries(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect()
}

fn number<const N: usize>(header: &[u8], at: usize) -> io::Result<[u8; N]> {
    header
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or_else(|| invalid("its header is cut off"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
