//! The move of the L1 table, when a disk grows: the old table is free only after the header points to the new one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Order, medium};
use crate::entries::{refcount, set_refcount};
use crate::layout::SIZE;

/// Writes that become one change.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) header: Option<Vec<u8>>,
    pub(super) blocks: BTreeMap<u64, Vec<u8>>,
}

impl Order {
    /// From here to the next [`Order::release`], refcounts and the header change together. The header in the file keeps this size
    /// until [`Order::show_size`].
    pub(crate) fn begin(&mut self, size: u64) {
        self.transaction = Some(Transaction::default());
        self.shown_size = Some(size);
    }

    /// Writes the disk's new size to the header.
    pub(crate) fn show_size(&mut self, file: &File, size: u64) -> io::Result<()> {
        self.shown_size = None;
        self.sync(file)?;
        medium::write(file, &size.to_be_bytes(), SIZE.start as u64)?;
        self.sync(file)
    }

    /// First the refcounts that rise, then the header, then the refcounts that fall.
    pub(super) fn commit(&mut self, file: &File) -> io::Result<()> {
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        let done = self.write_in_order(file, &transaction);
        if done.is_err() {
            self.transaction = Some(transaction);
        }
        done
    }

    fn write_in_order(&mut self, file: &File, transaction: &Transaction) -> io::Result<()> {
        for (offset, block) in &transaction.blocks {
            let mut merged = vec![0; block.len()];
            file.read_exact_at(&mut merged, *offset)?;
            raise(&mut merged, block, self.refcount_bits);
            medium::write(file, &merged, *offset)?;
        }
        self.sync(file)?;
        self.release_refcount_table(file)?;
        if let Some(header) = &transaction.header {
            medium::write(file, header, 0)?;
            self.sync(file)?;
        }
        for (offset, block) in &transaction.blocks {
            medium::write(file, block, *offset)?;
        }
        self.sync(file)
    }
}

/// Gives each refcount the larger of two values.
fn raise(counts: &mut [u8], others: &[u8], bits: u32) {
    let order = bits.trailing_zeros();
    for index in 0..counts.len() as u64 * 8 / u64::from(bits) {
        let other = refcount(others, order, index).unwrap_or(0);
        if refcount(counts, order, index).is_some_and(|count| count < other) {
            let _ = set_refcount(counts, order, index, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_are_raised() {
        let raised = |bits, a: &[u8], b: &[u8]| {
            let mut counts = a.to_vec();
            raise(&mut counts, b, bits);
            counts
        };
        assert_eq!(raised(1, &[0b0101], &[0b0011]), [0b0111]);
        assert_eq!(raised(2, &[0b10_01_00_11], &[0b01_10_11_00]), [0b10_10_11_11]);
        assert_eq!(raised(4, &[0x2f], &[0xf1]), [0xff]);
        assert_eq!(raised(8, &[1, 0], &[0, 2]), [1, 2]);
        assert_eq!(raised(16, &[1, 0, 0, 255], &[0, 255, 1, 0]), [1, 0, 1, 0]);
        assert_eq!(raised(64, &[0, 0, 0, 0, 0, 0, 0, 1], &[0; 8]), [0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
