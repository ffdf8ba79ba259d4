//! Disks that are copied together with the memory.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Copying, SaveError, Zeros};
use crate::host::disk::{Drive, LiveCopy};
use crate::kvm::memory::is_zeros;

/// Bytes that are looked at together, as of memory.
const PIECE: usize = 64 << 10;

/// A disk on its way.
#[derive(Debug)]
pub(super) struct CopiedDisk {
    /// In the list of disks.
    index: usize,
    id: String,
    live: LiveCopy,
}

impl CopiedDisk {
    /// All of it is left.
    pub(super) fn begin(index: usize, id: &str, drive: &Drive) -> Result<Self, SaveError> {
        let live = drive.copy_live().map_err(|source| SaveError::DiskRead { id: id.into(), source })?;
        Ok(CopiedDisk { index, id: id.into(), live })
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn len(&self) -> u64 {
        self.live.len()
    }

    fn left(&mut self) -> Result<u64, SaveError> {
        let left = self.live.left();
        left.map_err(|source| SaveError::DiskRead { id: self.id.clone(), source })
    }

    /// Whether what was copied is the whole disk.
    pub(super) fn check_length(&self) -> Result<(), SaveError> {
        match self.live.has_its_length() {
            Ok(true) => Ok(()),
            Ok(false) => Err(SaveError::DiskResized(self.id.clone())),
            Err(source) => Err(SaveError::DiskRead { id: self.id.clone(), source }),
        }
    }
}

/// What was written to all of them meanwhile is left, too. Bytes of all that is left, for which the host is asked where holes are.
pub(super) fn take_written(disks: &mut [CopiedDisk]) -> Result<u64, SaveError> {
    disks.iter_mut().for_each(|disk| disk.live.take_written());
    left(disks)
}

/// Bytes of all that is left.
pub(super) fn left(disks: &mut [CopiedDisk]) -> Result<u64, SaveError> {
    disks.iter_mut().map(CopiedDisk::left).sum()
}

impl Copying<'_, '_> {
    /// Copies what is left of a disk. Gives the bytes that went to the sink and the time that they took.
    pub(super) fn disk(&mut self, disk: &mut CopiedDisk, zeros: Zeros) -> Result<(u64, Duration), SaveError> {
        let CopiedDisk { index, id, live } = disk;
        let unreadable = |source| SaveError::DiskRead { id: id.clone(), source };
        let unwritable = |source| SaveError::DiskCopy { id: id.clone(), source };
        let mut buffer = vec![0; PIECE];
        let (mut bytes, mut busy) = (0u64, Duration::ZERO);
        for mut range in live.take_left().ranges() {
            while !range.is_empty() {
                let begin = Instant::now();
                let (is_hole, len) = live.next(&range).map_err(unreadable)?;
                if is_hole {
                    if zeros == Zeros::Tell {
                        self.sink.disk_zeros(*index, range.start, len).map_err(unwritable)?;
                    }
                    range.start += len;
                    self.goes_on()?;
                    continue;
                }
                let now = usize::try_from(len).map_or(PIECE, |len| len.min(PIECE));
                let piece = buffer.get_mut(..now).unwrap_or_default();
                live.read(piece, range.start).map_err(unreadable)?;
                let len = piece.len() as u64;
                self.progress.left = self.progress.left.saturating_sub(len);
                if !is_zeros(piece) {
                    self.sink.disk(*index, range.start, piece).map_err(unwritable)?;
                    busy += begin.elapsed();
                    bytes += len;
                    self.sent(len);
                } else if zeros == Zeros::Tell {
                    self.sink.disk_zeros(*index, range.start, len).map_err(unwritable)?;
                }
                range.start += len;
                self.goes_on()?;
            }
        }
        Ok((bytes, busy))
    }

    /// Whether it is still wanted.
    pub(super) fn goes_on(&mut self) -> Result<(), SaveError> {
        match (self.shown.is_wanted(self.progress), (self.watch)(&self.progress)) {
            (true, ControlFlow::Continue(())) => Ok(()),
            _ => Err(SaveError::Cancelled),
        }
    }
}
