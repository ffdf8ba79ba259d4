//! A disk that is read by position, with a budget of work: a hostile image can send its reader round in circles, and the
//! budget is where they end. Everything that is done once a read, an entry or a piece of a file is charged to it.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use boot::read::ReadAt;

/// What looking for a kernel may cost, in bytes read or work that takes as long: half a second of a slow processor. A Debian
/// of today costs about 1 MiB; one with a journal of 1 GiB to replay, all of it in the smallest transactions, 700 MiB.
const TOTAL: u64 = 1 << 30;
/// What things cost that are no reads: an entry of a folder or of a table, and a piece of a file that is mapped.
pub(super) const ENTRY_COST: u64 = 32;
pub(super) const PIECE_COST: u64 = 128;
/// An entry whose name is made text of, in several steps.
pub(super) const NAME_COST: u64 = 256;
/// A byte of a text: it is read, copied and taken apart, at worst in words of one letter.
pub(super) const TEXT_BYTE_COST: u64 = 64;
/// A step of a script: a few allocations.
pub(super) const SCRIPT_STEP_COST: u64 = 64;
/// Something that is kept and looked up in a table.
const JOURNAL_ENTRY_COST: u64 = 256;
/// Blocks that journals may say something of, which is kept in memory: those of 4 GiB in blocks of 4 KiB.
const JOURNAL_ENTRIES: u64 = 1 << 20;
/// A read counts as this much at least.
const READ_COST: u64 = 4096;

/// Why something on a disk cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The host refused.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It points outside of the disk.
    #[error("it is damaged: {0} lies outside of it")]
    Outside(&'static str),
    /// It holds something that cannot be.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It has something that is not known here.
    #[error("it has {0}, which is not read here")]
    Unsupported(&'static str),
    /// Its superblock names features that change how it is read and are not known here.
    #[error("it has the feature {0}, which is not read here")]
    Feature(String),
    /// A file on it is longer than any that is needed.
    #[error("a file in it that is needed is {mib} MiB long, and at most {max} MiB are read")]
    TooLong {
        /// Its length.
        mib: u64,
        /// The most that is read.
        max: u64,
    },
    /// It asked for more than any sane one.
    #[error("it is damaged: looking for a kernel in it would never end")]
    Endless,
}

/// Work that may still be done. One budget serves all the disks of a start.
#[derive(Debug)]
pub(crate) struct Budget {
    steps: Cell<u64>,
    journal_entries: Cell<u64>,
    /// Set by another thread to abort the search.
    stop: Option<Arc<AtomicBool>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

impl Budget {
    /// That of a whole start.
    pub(crate) fn new() -> Self {
        Budget { steps: Cell::new(TOTAL), journal_entries: Cell::new(JOURNAL_ENTRIES), stop: None }
    }

    /// The same, which is also exhausted as soon as `stop` is set.
    pub(crate) fn until(self, stop: Arc<AtomicBool>) -> Self {
        Budget { stop: Some(stop), ..self }
    }

    /// What was used up.
    pub(super) fn spent(&self) -> u64 {
        TOTAL.saturating_sub(self.steps.get())
    }
}

/// A disk that is read within a budget.
pub(crate) struct Disk<'a> {
    source: &'a dyn ReadAt,
    len: u64,
    sector: u64,
    budget: &'a Budget,
}

/// A part of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl<'a> Disk<'a> {
    /// A disk whose sectors are `sector` bytes long.
    pub(super) fn new(source: &'a dyn ReadAt, sector: u64, budget: &'a Budget) -> Result<Self, ReadError> {
        Ok(Disk { source, len: source.length()?, sector, budget })
    }

    /// The unit in which partition tables count: the logical sector of the guest's disk.
    pub(super) fn sector(&self) -> u64 {
        self.sector
    }

    /// All of it.
    pub(super) fn whole(&self) -> Window {
        Window { start: 0, len: self.len }
    }

    /// Something of the disk is to be kept in memory.
    pub(super) fn charge_journal_entry(&self) -> Result<(), ReadError> {
        let journal_entries = &self.budget.journal_entries;
        journal_entries.set(journal_entries.get().checked_sub(1).ok_or(ReadError::Endless)?);
        self.charge(JOURNAL_ENTRY_COST)
    }

    /// Some work is to be done that costs as much as reading so many bytes.
    pub(super) fn charge(&self, cost: u64) -> Result<(), ReadError> {
        if self.budget.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(ReadError::Endless);
        }
        let steps = &self.budget.steps;
        steps.set(steps.get().checked_sub(cost).ok_or(ReadError::Endless)?);
        Ok(())
    }

    /// Fills `buf` from `at` in `window` on; `what` is it called.
    pub(super) fn read(
        &self,
        window: Window,
        at: u64,
        buf: &mut [u8],
        what: &'static str,
    ) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        let end = at.checked_add(len).filter(|end| *end <= window.len).ok_or(ReadError::Outside(what))?;
        let place = window.start.checked_add(at).ok_or(ReadError::Outside(what))?;
        if window.start.checked_add(end).is_none_or(|end| end > self.len) {
            return Err(ReadError::Outside(what));
        }
        self.charge(len.max(READ_COST))?;
        match self.source.read_at(buf, place)? {
            read if read as u64 == len => Ok(()),
            _ => Err(ReadError::Outside(what)),
        }
    }
}

impl fmt::Debug for Disk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("len", &self.len).field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// An image or block device, opened for reading.
#[derive(Debug)]
pub(crate) struct DiskFile {
    pub(crate) file: File,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// The length of its sectors in bytes: 512 of an image.
    pub(crate) sector: u64,
}

impl DiskFile {
    /// The disk to search, within a budget.
    pub(crate) fn disk<'a>(&'a self, budget: &'a Budget) -> Disk<'a> {
        Disk { source: self, len: self.len, sector: self.sector, budget }
    }
}

impl ReadAt for DiskFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => Ok(buf.len()),
            // Shorter than it was a moment ago.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// The fields of a structure that was read; what lies outside of it is damage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes<const N: usize>(self, at: usize) -> Result<[u8; N], ReadError> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(ReadError::Damaged("a structure ends too early"))
    }

    pub(super) fn le16(self, at: usize) -> Result<u16, ReadError> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    pub(super) fn le32(self, at: usize) -> Result<u32, ReadError> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    pub(super) fn le64(self, at: usize) -> Result<u64, ReadError> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    pub(super) fn be32(self, at: usize) -> Result<u32, ReadError> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    pub(super) fn rest(self, at: usize) -> Fields<'a> {
        Fields(self.0.get(at..).unwrap_or_default())
    }
}
