//! Reads files of an ext4 file system without mounting it: names to where a file's bytes lie in the image, so that they
//! go from there into guest memory with nothing in between.
//!
//! Laid out in the kernel's Documentation/filesystems/ext4. Nothing is written and nothing is kept but what is
//! asked for. Everything read is hostile: lengths are bounded before anything of that length is made, trees by their
//! depth, and all reading together by the disk's budget.
//!
//! Checksums are left to the guest's own fsck: they tell of decay, not of lies, and a kernel that has decayed says so itself.

mod dir;
mod extents;
mod inode;
mod journal;

use std::collections::HashMap;

pub(crate) use extents::Run;
pub(super) use inode::{FileKind, Inode};

use super::disk::{Disk, Fields, ReadError, Window};

/// The superblock: at byte 1024, of 1024 bytes (super.rst).
const SUPERBLOCK: u64 = 1024;
const MAGIC: (usize, u16) = (0x38, 0xef53);
/// Features that change how files are read (`s_feature_incompat`).
mod incompat {
    pub(super) const FILETYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const EXTENTS: u32 = 0x40;
    pub(super) const BITS64: u32 = 0x80;
    const MMP: u32 = 0x100;
    const FLEX_BG: u32 = 0x200;
    const EA_INODE: u32 = 0x400;
    const CSUM_SEED: u32 = 0x2000;
    const LARGEDIR: u32 = 0x4000;
    const ENCRYPT: u32 = 0x1_0000;
    const CASEFOLD: u32 = 0x2_0000;
    /// Those that are read here, or that matter only to files that are not.
    pub(super) const KNOWN: u32 = FILETYPE
        | RECOVER
        | EXTENTS
        | BITS64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | ENCRYPT
        | CASEFOLD;
}

/// An ext4 file system on a part of a disk.
#[derive(Debug)]
pub(super) struct Ext4<'a> {
    disk: &'a Disk<'a>,
    window: Window,
    block_size: u64,
    blocks: u64,
    inode_size: u64,
    inodes_per_group: u32,
    inodes: u32,
    first_data_block: u64,
    descriptor_size: u64,
    /// Blocks whose newest content is in the journal, and where: it was not unmounted.
    replayed: HashMap<u64, u64>,
}

impl<'a> Ext4<'a> {
    /// Looks for one in `window`; `None` where there is none.
    pub(super) fn open(disk: &'a Disk<'a>, window: Window) -> Result<Option<Self>, ReadError> {
        let mut superblock = [0; 1024];
        match disk.read(window, SUPERBLOCK, &mut superblock, "its superblock") {
            // Too small for one.
            Err(ReadError::Outside(_)) => return Ok(None),
            other => other?,
        }
        let fields = Fields(&superblock);
        if fields.le16(MAGIC.0)? != MAGIC.1 {
            return Ok(None);
        }
        let features = fields.le32(0x60)?;
        if features & incompat::EXTENTS == 0 {
            return Err(ReadError::Unsupported("no extents (it is ext2 or ext3)"));
        }
        if features & !incompat::KNOWN != 0 {
            return Err(ReadError::Unsupported("a feature of ext4"));
        }
        let wide = features & incompat::BITS64 != 0;
        let high = if wide { fields.le32(0x150)? } else { 0 };
        let mut fs = Ext4 {
            disk,
            window,
            // 64 KiB is the largest that Linux has.
            block_size: 1024_u64 << Some(fields.le32(0x18)?).filter(|log| *log <= 6).ok_or(odd())?,
            blocks: u64::from(high) << 32 | u64::from(fields.le32(0x4)?),
            inode_size: fields.le16(0x58)?.into(),
            inodes_per_group: fields.le32(0x28)?,
            inodes: fields.le32(0)?,
            first_data_block: fields.le32(0x14)?.into(),
            descriptor_size: if wide { fields.le16(0xfe)?.into() } else { 32 },
            replayed: HashMap::new(),
        };
        let descriptors = if wide { 64..=1024 } else { 32..=32 };
        let sane = fs.inodes_per_group > 0
            && fs.inode_size >= 128
            && fs.inode_size <= fs.block_size
            && fs.first_data_block <= 1
            && descriptors.contains(&fs.descriptor_size)
            && fs.blocks.checked_mul(fs.block_size).is_some();
        if !sane {
            return Err(odd());
        }
        // HAS_JOURNAL, and the journal holds what is not in its place yet.
        if features & incompat::RECOVER != 0 && fields.le32(0x5c)? & 0x4 != 0 {
            fs.replayed = journal::replay(&fs, fields.le32(0xe0)?)?;
        }
        Ok(Some(fs))
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Where a block's newest content lies.
    fn newest(&self, block: u64) -> u64 {
        self.replayed.get(&block).copied().unwrap_or(block)
    }

    /// Reads within one block.
    fn read_block(&self, block: u64, at: u64, buf: &mut [u8], what: &'static str) -> Result<(), ReadError> {
        if block == 0 || block >= self.blocks || at + buf.len() as u64 > self.block_size {
            return Err(ReadError::Outside(what));
        }
        let place = self.newest(block).checked_mul(self.block_size).and_then(|start| start.checked_add(at));
        self.disk.read(self.window, place.ok_or(ReadError::Outside(what))?, buf, what)
    }

    /// A whole block.
    fn block(&self, block: u64, what: &'static str) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; usize::try_from(self.block_size).map_err(|_| odd())?];
        self.read_block(block, 0, &mut bytes, what)?;
        Ok(bytes)
    }

    /// Where on the disk this byte of this block lies.
    fn place(&self, block: u64) -> Option<u64> {
        let at = self.newest(block).checked_mul(self.block_size)?;
        let end = at.checked_add(self.block_size)?;
        (block < self.blocks && end <= self.window.len).then(|| self.window.start + at)
    }
}

fn odd() -> ReadError {
    ReadError::Damaged("its superblock does not hold together")
}

#[cfg(test)]
mod tests;
