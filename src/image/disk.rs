//! A disk that is read by position, within a budget of work: a hostile image can contain cycles, and the
//! budget ends them. Everything that is done once per read, entry or piece of a file is charged to it.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use boot::read::ReadAt;

/// Limit for a search, in bytes read or work that takes as long: half a second on a slow processor. A current
/// Debian costs about 1 MiB; one with a journal of 1 GiB to replay, all in the smallest transactions, 700 MiB.
const TOTAL: u64 = 1 << 30;
/// Cost of an entry of a folder or a table, and of a mapped piece of a file.
pub(super) const ENTRY_COST: u64 = 32;
pub(super) const PIECE_COST: u64 = 128;
/// Cost of a directory entry whose name is decoded.
pub(super) const NAME_COST: u64 = 256;
/// Cost of a byte of text: it is read, copied and parsed, at worst into words of one letter.
pub(super) const TEXT_BYTE_COST: u64 = 64;
/// A byte that a script handles: a part of a word, which is allocated and copied a few times.
pub(super) const SCRIPT_BYTE_COST: u64 = 64;
/// Limit for all scripts of one grub.cfg: half of the budget, so that an endless script is passed over and does not end
/// the search.
pub(super) const SCRIPT_BUDGET: u64 = TOTAL / 2;
/// Cost of an entry that is kept in a table.
const JOURNAL_ENTRY_COST: u64 = 256;
/// Maximum blocks of journals that are kept in memory: those of 4 GiB in blocks of 4 KiB.
const JOURNAL_ENTRIES: u64 = 1 << 20;
/// Minimum cost of a read.
const READ_COST: u64 = 4096;
/// So many bytes are decompressed in the time of one byte of cost.
const DECOMPRESSED_FASTER: u64 = 16;

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
    /// Its content is inconsistent.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It has a part that is not supported here.
    #[error("it has {0}, which is not read here")]
    Unsupported(&'static str),
    /// Its superblock has features that change its layout and are not supported here.
    #[error("it has the feature {0}, which is not read here")]
    Feature(String),
    /// A file on it is longer than necessary.
    #[error("a file in it that is needed is {mib} MiB long, and at most {max} MiB are read")]
    TooLong {
        /// Its length.
        mib: u64,
        /// The limit.
        max: u64,
    },
    /// The budget is exhausted.
    #[error("it is damaged: looking for a kernel in it would never end")]
    Endless,
}

/// The work that may still be done. One budget serves all disks of a start.
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
    /// The budget of a start.
    pub(crate) fn new() -> Self {
        Budget { steps: Cell::new(TOTAL), journal_entries: Cell::new(JOURNAL_ENTRIES), stop: None }
    }

    /// The same, which is also exhausted as soon as `stop` is set.
    pub(crate) fn until(self, stop: Arc<AtomicBool>) -> Self {
        Budget { stop: Some(stop), ..self }
    }

    /// The work that was done.
    pub(super) fn spent(&self) -> u64 {
        TOTAL.saturating_sub(self.steps.get())
    }
}

/// A disk that is read within a budget.
pub(crate) struct Disk<'a> {
    source: &'a dyn ReadAt,
    len: u64,
    sector: u64,
    /// Minimum cost of a read.
    read_cost: u64,
    budget: &'a Budget,
}

/// A part of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl<'a> Disk<'a> {
    /// A disk whose sectors have `sector` bytes.
    pub(super) fn new(source: &'a dyn ReadAt, sector: u64, budget: &'a Budget) -> Result<Self, ReadError> {
        Ok(Disk { source, len: source.length()?, sector, read_cost: READ_COST, budget })
    }

    /// The unit of partition tables: the logical sector of the guest's disk.
    pub(super) fn sector(&self) -> u64 {
        self.sector
    }

    /// The whole disk.
    pub(super) fn whole(&self) -> Window {
        Window { start: 0, len: self.len }
    }

    /// Charges an entry of a journal that is kept in memory.
    pub(super) fn charge_journal_entry(&self) -> Result<(), ReadError> {
        let journal_entries = &self.budget.journal_entries;
        journal_entries.set(journal_entries.get().checked_sub(1).ok_or(ReadError::Endless)?);
        self.charge(JOURNAL_ENTRY_COST)
    }

    /// Charges work that costs as much as reading this many bytes.
    pub(super) fn charge(&self, cost: u64) -> Result<(), ReadError> {
        if self.budget.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(ReadError::Endless);
        }
        let steps = &self.budget.steps;
        steps.set(steps.get().checked_sub(cost).ok_or(ReadError::Endless)?);
        Ok(())
    }

    /// Fills `buf` from offset `at` of `window`; `what` names it in an error.
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
        self.charge(len.max(self.read_cost))?;
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
    pub(crate) bytes: DiskBytes,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Its sector size in bytes: 512 for an image.
    pub(crate) sector: u64,
}

/// Where the bytes of a disk are.
pub(crate) enum DiskBytes {
    /// In a file, at the same offsets.
    File(Arc<File>),
    /// Where the mappings of an image lead to.
    Mapped {
        /// Reads it.
        image: Box<dyn ReadAt + Send + Sync>,
        /// The largest part of it that one read may have to decompress, in bytes.
        cluster: u64,
    },
}

impl fmt::Debug for DiskBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskBytes::File(file) => file.fmt(f),
            DiskBytes::Mapped { .. } => f.debug_struct("Mapped").finish_non_exhaustive(),
        }
    }
}

impl DiskFile {
    /// The disk for a search, within a budget.
    pub(crate) fn disk<'a>(&'a self, budget: &'a Budget) -> Disk<'a> {
        let read_cost = match self.bytes {
            DiskBytes::File(_) => READ_COST,
            DiskBytes::Mapped { cluster, .. } => READ_COST.max(cluster / DECOMPRESSED_FASTER),
        };
        Disk { source: self, len: self.len, sector: self.sector, read_cost, budget }
    }
}

impl ReadAt for DiskFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = match &self.bytes {
            DiskBytes::File(file) => file,
            DiskBytes::Mapped { image, .. } => return image.read_at(buf, offset),
        };
        match file.read_exact_at(buf, offset) {
            Ok(()) => Ok(buf.len()),
            // The file was truncated meanwhile.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// The fields of a structure; an access outside of it is damage.
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
