//! The block map of a file of ext2 and ext3, and of an older file of ext4 (ifork.rst, "Direct/Indirect Block
//! Addressing"): twelve direct blocks, then indirect, double indirect and triple indirect blocks.

use super::runs::Mapping;
use super::{Fields, Inode, ReadError};
use crate::image::disk::ENTRY_COST;

/// Direct blocks in the inode.
const DIRECT: usize = 12;
/// Length of a block number.
const NUMBER: usize = 4;

/// Maps a file.
pub(super) fn map(mapping: &mut Mapping<'_, '_>, inode: &Inode) -> Result<(), ReadError> {
    let mut map = BlockMap { mapping, next: 0, pending: None };
    let fields = Fields(&inode.data);
    for index in 0..DIRECT {
        map.block(fields.le32(index * NUMBER)?.into())?;
    }
    for depth in 1..=3 {
        map.indirect(fields.le32((DIRECT + depth - 1) * NUMBER)?.into(), depth)?;
    }
    map.flush()
}

struct BlockMap<'m, 'a, 'd> {
    mapping: &'m mut Mapping<'a, 'd>,
    /// The next block of the file.
    next: u64,
    /// Contiguous blocks: first of the file, first on the disk, count.
    pending: Option<(u64, u64, u64)>,
}

impl BlockMap<'_, '_, '_> {
    /// The next block of the file; number 0 is a hole.
    fn block(&mut self, number: u64) -> Result<(), ReadError> {
        self.mapping.fs.disk.charge(ENTRY_COST)?;
        match &mut self.pending {
            _ if number == 0 => {}
            Some((_, start, count)) if *start + *count == number => *count += 1,
            _ => {
                self.flush()?;
                self.pending = Some((self.next, number, 1));
            }
        }
        if number == 0 {
            self.flush()?;
        }
        self.next += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ReadError> {
        match self.pending.take() {
            Some((file, start, count)) if self.mapping.wants(file) => self.mapping.add(file, start, count),
            _ => Ok(()),
        }
    }

    /// An indirect block of this depth; number 0 is a hole of that size.
    fn indirect(&mut self, number: u64, depth: usize) -> Result<(), ReadError> {
        if !self.mapping.wants(self.next) {
            return Ok(());
        }
        let fs = self.mapping.fs;
        let each = fs.block_size / NUMBER as u64;
        if number == 0 {
            self.flush()?;
            self.next += (0..depth).fold(1, |blocks: u64, _| blocks.saturating_mul(each));
            return Ok(());
        }
        let numbers = fs.block(number, "a block of a file's map")?;
        for entry in numbers.chunks_exact(NUMBER) {
            if !self.mapping.wants(self.next) {
                break;
            }
            let number = Fields(entry).le32(0)?.into();
            if depth == 1 { self.block(number)? } else { self.indirect(number, depth - 1)? }
        }
        Ok(())
    }
}
