//! Reads files of an ext2, ext3 or ext4 file system without mounting it: maps names to the locations of a
//! file's bytes in the image, so that they go directly into guest memory.
//!
//! The layout is in the kernel's Documentation/filesystems/ext4. Nothing is written or cached. All input is
//! hostile: lengths are bounded before an allocation, trees by their depth, and all work by the disk's
//! budget.
//!
//! Checksums are left to the guest's fsck: they detect decay, not attacks, and a damaged kernel fails by
//! itself.

mod block_map;
mod dir;
mod extents;
mod inline;
mod inode;
mod journal;
mod runs;

pub(super) use inode::Inode;

use super::disk::{Disk, Fields, ReadError, Window};
use super::filesystem::FileKind;

/// The superblock: at byte 1024, of 1024 bytes (super.rst).
const SUPERBLOCK: u64 = 1024;
const MAGIC: (usize, u16) = (0x38, 0xef53);
/// Features that change the layout of files (`s_feature_incompat`).
mod incompat {
    pub(super) const FILETYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const EXTENTS: u32 = 0x40;
    pub(super) const BITS64: u32 = 0x80;
    pub(super) const META_BG: u32 = 0x10;
    const MMP: u32 = 0x100;
    const FLEX_BG: u32 = 0x200;
    const EA_INODE: u32 = 0x400;
    const CSUM_SEED: u32 = 0x2000;
    const LARGEDIR: u32 = 0x4000;
    const INLINE_DATA: u32 = 0x8000;
    const ENCRYPT: u32 = 0x1_0000;
    const CASEFOLD: u32 = 0x2_0000;
    /// Supported features, and those that matter only to other files.
    pub(super) const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BITS64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;

    /// Names of unsupported features (as in mke2fs and dumpe2fs), else their bits.
    pub(super) fn unknown(features: u32) -> String {
        let unknown = features & !KNOWN;
        match unknown {
            0x1 => "compression".to_owned(),
            0x8 => "journal_dev".to_owned(),
            0x1000 => "dirdata".to_owned(),
            bits => format!("{bits:#x} of its superblock"),
        }
    }
}

/// Copies of the superblock and of the descriptors are in all groups, or in few (`s_feature_ro_compat`,
/// `s_feature_compat`).
const SPARSE_SUPER: u32 = 0x1;
const SPARSE_SUPER2: u32 = 0x200;

/// An ext2, ext3 or ext4 file system on a part of a disk.
#[derive(Debug)]
pub(super) struct ExtFs<'a> {
    pub(super) disk: &'a Disk<'a>,
    window: Window,
    block_size: u64,
    blocks: u64,
    inode_size: u64,
    inodes_per_group: u32,
    inodes: u32,
    first_data_block: u64,
    descriptor_size: u64,
    descriptors: Descriptors,
    /// The location in the journal of blocks whose newest content is there, sorted by block number.
    replayed: Vec<(u64, u64)>,
    /// Its journal ends with fast commits, which are not supported here.
    fast_commits: bool,
    /// Its kind: `ext2`, `ext3` or `ext4`.
    name: &'static str,
    /// UUID and label of the superblock.
    uuid: String,
    label: String,
}

/// The location of group descriptors (group_descr.rst, "Meta Block Groups").
#[derive(Debug, Clone, Copy)]
struct Descriptors {
    blocks_per_group: u64,
    /// Descriptor blocks from this one on are in the first group that they describe.
    first_meta: u64,
    backups: Backups,
}

/// Groups that begin with a copy of the superblock.
#[derive(Debug, Clone, Copy)]
enum Backups {
    /// All.
    Every,
    /// Groups 0 and 1 and the powers of 3, 5 and 7.
    Sparse,
    /// Group 0 and these two.
    Two(u64, u64),
}

impl Backups {
    fn has(self, group: u64) -> bool {
        let power = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        match self {
            Backups::Every => true,
            Backups::Sparse => group <= 1 || [3, 5, 7].into_iter().any(power),
            Backups::Two(a, b) => group == 0 || group == a || group == b,
        }
    }
}

impl<'a> ExtFs<'a> {
    /// Opens the file system in `window`; `None` if there is none.
    pub(super) fn open(disk: &'a Disk<'a>, window: Window) -> Result<Option<Self>, ReadError> {
        let mut superblock = [0; 1024];
        match disk.read(window, SUPERBLOCK, &mut superblock, "its superblock") {
            // Too small.
            Err(ReadError::Outside(_)) => return Ok(None),
            other => other?,
        }
        let fields = Fields(&superblock);
        if fields.le16(MAGIC.0)? != MAGIC.1 {
            return Ok(None);
        }
        // Revision 0 has neither features nor variable inode sizes.
        let dynamic = fields.le32(0x4c)? > 0;
        let word = |at| if dynamic { fields.le32(at) } else { Ok(0) };
        let (compat, features, ro_compat) = (word(0x5c)?, word(0x60)?, word(0x64)?);
        if features & !incompat::KNOWN != 0 {
            return Err(ReadError::Feature(incompat::unknown(features)));
        }
        let backups = match (compat & SPARSE_SUPER2 != 0, ro_compat & SPARSE_SUPER != 0) {
            (true, _) => Backups::Two(fields.le32(0x24c)?.into(), fields.le32(0x250)?.into()),
            (false, true) => Backups::Sparse,
            (false, false) => Backups::Every,
        };
        // HAS_JOURNAL, and the journal has blocks to replay.
        let journal = compat & 0x4 != 0;
        let unclean = journal && features & incompat::RECOVER != 0;
        let modern = features & (incompat::EXTENTS | incompat::BITS64) != 0;
        let wide = features & incompat::BITS64 != 0;
        let high = if wide { fields.le32(0x150)? } else { 0 };
        let mut fs = ExtFs {
            disk,
            window,
            // 64 KiB is Linux's maximum.
            block_size: 1024_u64 << Some(fields.le32(0x18)?).filter(|log| *log <= 6).ok_or(inconsistent())?,
            blocks: u64::from(high) << 32 | u64::from(fields.le32(0x4)?),
            inode_size: if dynamic { fields.le16(0x58)?.into() } else { 128 },
            inodes_per_group: fields.le32(0x28)?,
            inodes: fields.le32(0)?,
            first_data_block: fields.le32(0x14)?.into(),
            descriptor_size: if wide { fields.le16(0xfe)?.into() } else { 32 },
            descriptors: Descriptors {
                blocks_per_group: fields.le32(0x20)?.into(),
                first_meta: match features & incompat::META_BG {
                    0 => u64::MAX,
                    _ => fields.le32(0x104)?.into(),
                },
                backups,
            },
            replayed: Vec::new(),
            fast_commits: false,
            name: match (modern, journal) {
                (true, _) => "ext4",
                (false, true) => "ext3",
                (false, false) => "ext2",
            },
            uuid: uuid(fields.bytes(0x68)?),
            label: label(fields.bytes(0x78)?),
        };
        let descriptors = if wide { 64..=1024 } else { 32..=32 };
        let sane = fs.inodes_per_group > 0
            && fs.inode_size >= 128
            && fs.inode_size <= fs.block_size
            && fs.first_data_block <= 1
            && descriptors.contains(&fs.descriptor_size)
            && fs.descriptor_size <= fs.block_size
            && fs.blocks.checked_mul(fs.block_size).is_some();
        if !sane {
            return Err(inconsistent());
        }
        if unclean {
            let journal = journal::replay(&fs, fields.le32(0xe0)?)?;
            (fs.replayed, fs.fast_commits) = (journal.blocks, journal.fast_commits);
        }
        Ok(Some(fs))
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Its length in bytes; `None` if its journal may have a newer one.
    pub(super) fn length(&self) -> Option<u64> {
        self.replayed.is_empty().then(|| self.blocks.saturating_mul(self.block_size))
    }

    /// `ext2`, `ext3` or `ext4`.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether its last changes are not visible here.
    pub(super) fn has_fast_commits(&self) -> bool {
        self.fast_commits
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// The first block in `block..end` whose newest content is in the journal, with its location there.
    fn next_replayed(&self, block: u64, end: u64) -> Option<(u64, u64)> {
        let index = self.replayed.partition_point(|(home, _)| *home < block);
        self.replayed.get(index).copied().filter(|(home, _)| *home < end)
    }

    /// The location of a block's newest content.
    fn newest(&self, block: u64) -> u64 {
        self.next_replayed(block, block.saturating_add(1)).map_or(block, |(_, journal)| journal)
    }

    /// The block with the descriptor of `group`, and the descriptor's offset in it.
    fn descriptor(&self, group: u64) -> Result<(u64, u64), ReadError> {
        let each = self.block_size / self.descriptor_size;
        let (index, at) = (group / each, group % each * self.descriptor_size);
        let layout = &self.descriptors;
        if index < layout.first_meta {
            // After the superblock's block, which is not the first data block if clusters of 1 KiB blocks
            // begin at 0.
            return Ok((SUPERBLOCK / self.block_size + 1 + index, at));
        }
        // In the first of the groups that it describes, after that group's copy of the superblock, if any.
        let first = index * each;
        let start =
            first.checked_mul(layout.blocks_per_group).ok_or(ReadError::Outside("a group's descriptor"))?;
        let boot_block = index == 0 && self.block_size == SUPERBLOCK && self.first_data_block == 0;
        let before = u64::from(layout.backups.has(first)) + u64::from(boot_block);
        Ok((self.first_data_block + start + before, at))
    }

    /// Reads within one block.
    fn read_block(&self, block: u64, at: u64, buf: &mut [u8], what: &'static str) -> Result<(), ReadError> {
        if block == 0 || block >= self.blocks || at + buf.len() as u64 > self.block_size {
            return Err(ReadError::Outside(what));
        }
        let place = self.newest(block).checked_mul(self.block_size).and_then(|start| start.checked_add(at));
        self.disk.read(self.window, place.ok_or(ReadError::Outside(what))?, buf, what)
    }

    /// Reads a block.
    fn block(&self, block: u64, what: &'static str) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; usize::try_from(self.block_size).map_err(|_| inconsistent())?];
        self.read_block(block, 0, &mut bytes, what)?;
        Ok(bytes)
    }

    /// The location on the disk of `count` blocks from `block` on, regardless of the journal.
    fn place(&self, block: u64, count: u64) -> Option<u64> {
        let at = block.checked_mul(self.block_size)?;
        let end = at.checked_add(count.checked_mul(self.block_size)?)?;
        let inside = block.checked_add(count)? <= self.blocks && end <= self.window.len;
        inside.then(|| self.window.start + at)
    }
}

/// In the format of an fstab.
fn uuid(bytes: [u8; 16]) -> String {
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [hex.get(..4), hex.get(4..6), hex.get(6..8), hex.get(8..10), hex.get(10..)];
    parts.map(|part| part.unwrap_or_default().concat()).join("-")
}

fn label(bytes: [u8; 16]) -> String {
    let label = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(label).into_owned()
}

fn inconsistent() -> ReadError {
    ReadError::Damaged("its superblock does not hold together")
}

#[cfg(test)]
mod tests;
