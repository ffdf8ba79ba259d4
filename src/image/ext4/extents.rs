//! The extent tree of a file: which of its blocks lie where (ifork.rst, "Extent Tree").

use super::{Ext4, Fields, Inode, ReadError};

const MAGIC: u16 = 0xf30a;
/// Length of a header and of an entry.
const ENTRY: usize = 12;
/// Deepest tree that Linux makes.
const DEPTH: u16 = 5;
/// An extent longer than this is one of 32768 blocks less that are allocated and not written: zero.
const WRITTEN: u16 = 0x8000;
/// Longest file that is read here: a journal.
const FILE_MAX: u64 = 4 << 30;
/// Most runs of a file that is read here: an initrd of 1 GiB in pieces of 16 KiB.
const RUNS: usize = 65_536;

/// Bytes of a file that lie together in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Offset in the file.
    pub(crate) file: u64,
    /// Offset in the image.
    pub(crate) disk: u64,
    /// Number of bytes.
    pub(crate) len: u64,
}

/// The runs of a file, in order, not past its size.
pub(super) fn runs(fs: &Ext4<'_>, inode: &Inode) -> Result<Vec<Run>, ReadError> {
    if inode.size > FILE_MAX {
        return Err(ReadError::Damaged("a file that is needed is longer than 4 GiB"));
    }
    let mut runs = Vec::new();
    node(fs, &inode.data, None, inode.size, &mut runs)?;
    Ok(runs)
}

/// One node of the tree; each level below is one less deep, so that it ends.
fn node(
    fs: &Ext4<'_>,
    bytes: &[u8],
    depth: Option<u16>,
    size: u64,
    runs: &mut Vec<Run>,
) -> Result<(), ReadError> {
    let fields = Fields(bytes);
    let (entries, here) = (fields.le16(2)?, fields.le16(6)?);
    if fields.le16(0)? != MAGIC || here > DEPTH || depth.is_some_and(|depth| here != depth) {
        return Err(ReadError::Damaged("the tree of a file's blocks does not hold together"));
    }
    for index in 1..=usize::from(entries) {
        let entry = fields.rest(index * ENTRY);
        if let Some(below) = here.checked_sub(1) {
            let child = u64::from(entry.le16(8)?) << 32 | u64::from(entry.le32(4)?);
            node(fs, &fs.block(child, "the tree of a file's blocks")?, Some(below), size, runs)?;
        } else {
            leaf(fs, entry, size, runs)?;
        }
    }
    Ok(())
}

fn leaf(fs: &Ext4<'_>, entry: Fields<'_>, size: u64, runs: &mut Vec<Run>) -> Result<(), ReadError> {
    let (file, len) = (u64::from(entry.le32(0)?), entry.le16(4)?);
    let start = u64::from(entry.le16(6)?) << 32 | u64::from(entry.le32(8)?);
    if len > WRITTEN {
        return Ok(());
    }
    // In order, so that no block is there twice and the work is bounded by the file's length.
    let end = runs.last().map_or(0, |run| run.file + run.len);
    if file * fs.block_size < end {
        return Err(ReadError::Damaged("the blocks of a file are out of order"));
    }
    for block in 0..u64::from(len) {
        let file = (file + block) * fs.block_size;
        if file >= size {
            break;
        }
        let disk = fs.place(start + block).ok_or(ReadError::Outside("a file's block"))?;
        let len = fs.block_size.min(size - file);
        let full = runs.len() >= RUNS;
        match runs.last_mut() {
            // Grown block by block, as the journal may hold one in the middle.
            Some(run) if run.file + run.len == file && run.disk + run.len == disk => run.len += len,
            _ if full => return Err(ReadError::Damaged("a file is in too many pieces")),
            _ => runs.push(Run { file, disk, len }),
        }
    }
    Ok(())
}
