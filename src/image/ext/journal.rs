//! The journal of a file system that was not unmounted, as after a power failure or a kill (journal.rst).
//! Committed blocks are read from the journal; nothing is written, so that the guest replays it itself.
//!
//! A transaction counts if its commit block has the right number. (Linux also compares checksums, in case a
//! disk reorders writes.)

use std::collections::HashMap;

use super::{ExtFs, Fields, ReadError};
use crate::image::runs::Run;

const MAGIC: u32 = 0xc03b_3998;
/// Types of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK: u32 = 4;
const REVOKE: u32 = 5;
/// Features (`s_feature_incompat` of the journal's superblock).
const HAS_REVOKE: u32 = 1;
const BITS64: u32 = 2;
const ASYNC_COMMIT: u32 = 4;
const CSUM_V2: u32 = 8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = HAS_REVOKE | BITS64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
/// Blocks for fast commits if the superblock sets no number, and the minimum that is left for others.
const FAST_BLOCKS: u32 = 256;
const MIN_BLOCKS: u32 = 1024;
/// First entry of a fast commit (fs/ext4/fast_commit.h): `EXT4_FC_TAG_HEAD`.
const FAST_HEAD: u16 = 9;
/// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;
/// Maximum blocks of a journal: 4 GiB in blocks of 4 KiB.
const BLOCKS: u64 = 1 << 20;
/// Maximum length of a journal file.
const BYTES: u64 = 4 << 30;
/// Length of a block's header.
const HEADER: usize = 12;

/// The journal's blocks in a row, the superblock first.
struct Journal<'a, 'd> {
    fs: &'a ExtFs<'d>,
    runs: Vec<Run>,
    features: u32,
    /// The blocks of the circular log.
    first: u32,
    end: u32,
}

/// The copy of a file system's block in one transaction.
struct Tag {
    home: u64,
    journal: u32,
    sequence: u32,
}

/// Committed transactions.
#[derive(Default)]
struct Log {
    tags: Vec<Tag>,
    /// Freed blocks, with the last transaction that revoked them: older contents must not return.
    revoked: HashMap<u64, u32>,
}

/// The content of a journal.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// The location of the newest content of each block in it, sorted by block number.
    pub(super) blocks: Vec<(u64, u64)>,
    /// Fast commits follow, which are not supported here.
    pub(super) fast_commits: bool,
}

pub(super) fn replay(fs: &ExtFs<'_>, inode: u32) -> Result<Replayed, ReadError> {
    let inode = fs.inode(inode)?;
    let mut journal = Journal { fs, runs: fs.runs(&inode, BYTES)?, features: 0, first: 0, end: 0 };
    let superblock = journal.block(0)?;
    let fields = Fields(&superblock);
    if fields.be32(0)? != MAGIC || ![SUPERBLOCK_V1, SUPERBLOCK].contains(&fields.be32(4)?) {
        return Err(inconsistent());
    }
    if fields.be32(4)? == SUPERBLOCK {
        journal.features = fields.be32(0x28)?;
    }
    if journal.features & !KNOWN != 0 {
        return Err(ReadError::Unsupported("a feature of the journal"));
    }
    (journal.end, journal.first) = (fields.be32(0x10)?, fields.be32(0x14)?);
    let (sequence, start) = (fields.be32(0x18)?, fields.be32(0x1c)?);
    let fast = if journal.features & FAST_COMMIT == 0 {
        None
    } else {
        Some(journal.reserve(fields.be32(0x54)?).saturating_add(1))
    };
    // A start of 0 means an empty log.
    if start == 0 {
        return Ok(Replayed::default());
    }
    let held = inode.size / fs.block_size;
    let sane = u64::from(journal.end) <= held.min(BLOCKS)
        && journal.first > 0
        && (journal.first..journal.end).contains(&start)
        && u64::from(fields.be32(0xc)?) == fs.block_size;
    if !sane {
        return Err(inconsistent());
    }
    let (log, sequence) = journal.scan(sequence, start)?;
    let mut newest = HashMap::new();
    for tag in log.tags {
        // Transaction numbers wrap: compared by their distance (`tid_gt`).
        let revoked = log.revoked.get(&tag.home).is_some_and(|by| by.wrapping_sub(tag.sequence) < 1 << 31);
        if revoked {
            newest.remove(&tag.home);
        } else {
            newest.insert(tag.home, journal.home(tag.journal)?);
        }
    }
    let mut blocks: Vec<_> = newest.into_iter().collect();
    blocks.sort_unstable();
    Ok(Replayed { blocks, fast_commits: journal.has_fast_commit(fast, sequence)? })
}

impl Journal<'_, '_> {
    /// The file system's block of a block of the journal.
    fn home(&self, block: u32) -> Result<u64, ReadError> {
        let at = u64::from(block) * self.fs.block_size;
        let index = self.runs.partition_point(|run| run.file + run.len <= at);
        let run = self.runs.get(index).filter(|run| run.file <= at).ok_or(inconsistent())?;
        Ok((run.disk - self.fs.window.start + at - run.file) / self.fs.block_size)
    }

    /// Excludes the blocks for fast commits at the end (`jbd2_journal_get_num_fc_blks`); returns the first of
    /// them.
    fn reserve(&mut self, count: u32) -> u32 {
        let count = if count == 0 { FAST_BLOCKS } else { count };
        if let Some(end) = self.end.checked_sub(count).filter(|end| *end >= MIN_BLOCKS) {
            self.end = end;
        }
        self.end
    }

    /// Whether a fast commit follows the last transaction (`ext4_fc_replay_scan`).
    fn has_fast_commit(&self, first: Option<u32>, sequence: u32) -> Result<bool, ReadError> {
        let Some(first) = first else { return Ok(false) };
        let block = match self.block(first) {
            Err(ReadError::Damaged(_) | ReadError::Outside(_)) => return Ok(false),
            other => other?,
        };
        let fields = Fields(&block);
        // An entry is a tag and a length; that of a head contains features and the transaction's number.
        Ok(fields.le16(0)? == FAST_HEAD && fields.le32(8)? == sequence)
    }

    fn block(&self, block: u32) -> Result<Vec<u8>, ReadError> {
        self.fs.block(self.home(block)?, "its journal")
    }

    fn after(&self, block: u32) -> u32 {
        if block + 1 >= self.end { self.first } else { block + 1 }
    }

    /// Reads transactions from `start` to the first incomplete one, and returns its number. A block of
    /// another type or number is the end.
    fn scan(&self, mut sequence: u32, start: u32) -> Result<(Log, u32), ReadError> {
        let mut log = Log::default();
        let mut open = Log::default();
        let (mut at, mut left) = (start, self.end);
        while left > 0 {
            let block = self.block(at)?;
            let fields = Fields(&block);
            if fields.be32(0)? != MAGIC || fields.be32(8)? != sequence {
                break;
            }
            let mut used = 1;
            at = self.after(at);
            match fields.be32(4)? {
                DESCRIPTOR => used += self.descriptor(&block, sequence, &mut at, &mut open)?,
                REVOKE => self.revoke(&block, sequence, &mut open)?,
                COMMIT => {
                    log.tags.append(&mut open.tags);
                    log.revoked.extend(open.revoked.drain());
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
            // Once around the log is everything, and each block is read once.
            left = left.saturating_sub(used);
        }
        Ok((log, sequence))
    }

    /// The tags of a descriptor block, one for each following block ("Descriptor Block").
    fn descriptor(
        &self,
        block: &[u8],
        sequence: u32,
        at: &mut u32,
        open: &mut Log,
    ) -> Result<u32, ReadError> {
        let v3 = self.features & CSUM_V3 != 0;
        let wide = self.features & BITS64 != 0;
        let size = tag_length(self.features);
        let tail = if self.features & (CSUM_V2 | CSUM_V3) != 0 { 4 } else { 0 };
        let (mut place, mut count) = (HEADER, 0);
        while place + size + tail <= block.len() {
            let tag = Fields(block).rest(place);
            let flags = if v3 { tag.be32(4)? } else { tag.be32(4)? & 0xffff };
            let high = if wide { tag.be32(8)? } else { 0 };
            let home = u64::from(high) << 32 | u64::from(tag.be32(0)?);
            if flags & ESCAPED != 0 {
                // The first word of the block was replaced in the journal, as it equals the journal's magic
                // number: only file data can.
                log::debug!("a block of the journal is escaped, and is read as it stands");
            }
            self.fs.disk.charge_journal_entry()?;
            open.tags.push(Tag { home, journal: *at, sequence });
            *at = self.after(*at);
            count += 1;
            place += size + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        Ok(count)
    }

    /// The blocks in a revocation block ("Revocation Block").
    fn revoke(&self, block: &[u8], sequence: u32, open: &mut Log) -> Result<(), ReadError> {
        let fields = Fields(block);
        let end = usize::try_from(fields.be32(12)?).unwrap_or(usize::MAX).min(block.len());
        let wide = self.features & BITS64 != 0;
        let size = if wide { 8 } else { 4 };
        let mut place = HEADER + 4;
        while place + size <= end {
            let entry = fields.rest(place);
            let block = match wide {
                true => u64::from(entry.be32(0)?) << 32 | u64::from(entry.be32(4)?),
                false => entry.be32(0)?.into(),
            };
            self.fs.disk.charge_journal_entry()?;
            open.revoked.insert(block, sequence);
            place += size;
        }
        Ok(())
    }
}

/// Length of a tag (`journal_tag_bytes`).
fn tag_length(features: u32) -> usize {
    if features & CSUM_V3 != 0 {
        return 16;
    }
    let checksum = if features & CSUM_V2 != 0 { 2 } else { 0 };
    let high = if features & BITS64 != 0 { 4 } else { 0 };
    8 + checksum + high
}

fn inconsistent() -> ReadError {
    ReadError::Damaged("its journal does not hold together")
}
