//! The locations of a file's bytes on a disk: runs, in the file's order.

use super::disk::{Disk, ReadError};

/// Maximum runs of a file: an initrd of 1 GiB in pieces of 16 KiB.
const RUNS: usize = 65_536;

/// Contiguous bytes of a file on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Offset in the file.
    pub(crate) file: u64,
    /// Offset on the disk.
    pub(crate) disk: u64,
    /// Number of bytes.
    pub(crate) len: u64,
}

/// The runs of a file, while they are collected.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// The offset in the file after the last run.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |run| run.file + run.len)
    }

    /// Appends a run. One that continues the last run is merged into it.
    pub(super) fn push(&mut self, run: Run) -> Result<(), ReadError> {
        let full = self.0.len() >= RUNS;
        match self.0.last_mut() {
            Some(last) if last.file + last.len == run.file && last.disk + last.len == run.disk => {
                last.len += run.len;
            }
            _ if full => return Err(ReadError::Damaged("a file is in too many pieces")),
            _ => self.0.push(run),
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<Run> {
        self.0
    }
}

/// The content of a file of `size` bytes; gaps are zeros.
pub(super) fn read(disk: &Disk<'_>, runs: &[Run], size: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| ReadError::Endless)?];
    for run in runs {
        let (from, to) = (run.file, (run.file + run.len).min(size));
        let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else { continue };
        if let Some(part) = bytes.get_mut(from..to) {
            disk.read(disk.whole(), run.disk, part, "a file")?;
        }
    }
    Ok(bytes)
}
