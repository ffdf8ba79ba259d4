//! The mapping of a file's blocks: in place, or newer in the journal.

use super::{ExtFs, ReadError};
use crate::image::disk::PIECE_COST;
use crate::image::runs::{Run, Runs};

/// The runs of a file of `size` bytes; gaps are zeros.
pub(super) struct Mapping<'a, 'd> {
    pub(super) fs: &'a ExtFs<'d>,
    size: u64,
    runs: Runs,
}

impl<'a, 'd> Mapping<'a, 'd> {
    pub(super) fn new(fs: &'a ExtFs<'d>, size: u64) -> Self {
        Mapping { fs, size, runs: Runs::default() }
    }

    /// Whether the file extends beyond its block `file`.
    pub(super) fn wants(&self, file: u64) -> bool {
        file.checked_mul(self.fs.block_size).is_some_and(|at| at < self.size)
    }

    /// Maps `count` blocks of the file from its block `file` on to those from `start` on, or to newer ones in
    /// the journal. Calls come in the file's order, so that no byte is mapped twice.
    pub(super) fn add(&mut self, file: u64, start: u64, count: u64) -> Result<(), ReadError> {
        let block = self.fs.block_size;
        if file.checked_mul(block).is_none_or(|at| at < self.runs.end()) {
            return Err(ReadError::Damaged("the blocks of a file are out of order"));
        }
        // Blocks after the file's end are allocated and not part of it.
        let wanted = self.size.div_ceil(block).saturating_sub(file).min(count);
        let mut done = 0;
        while done < wanted {
            self.fs.disk.charge(PIECE_COST)?;
            let from = start + done;
            let (len, at) = match self.fs.next_replayed(from, start + wanted) {
                Some((home, journal)) if home == from => (1, journal),
                Some((home, _)) => (home - from, from),
                None => (wanted - done, from),
            };
            self.push((file + done) * block, at, len)?;
            done += len;
        }
        Ok(())
    }

    fn push(&mut self, file: u64, start: u64, count: u64) -> Result<(), ReadError> {
        let disk = self.fs.place(start, count).ok_or(ReadError::Outside("a file's block"))?;
        let len = (count * self.fs.block_size).min(self.size - file);
        self.runs.push(Run { file, disk, len })
    }

    pub(super) fn finish(self) -> Vec<Run> {
        self.runs.finish()
    }
}
