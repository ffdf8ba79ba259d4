//! The extent tree of a file: the location of its blocks (ifork.rst, "Extent Tree").

use super::runs::Mapping;
use super::{Fields, Inode, ReadError};
use crate::image::disk::ENTRY_COST;

const MAGIC: u16 = 0xf30a;
/// Length of a header and of an entry.
const ENTRY: usize = 12;
/// Maximum depth in Linux.
const DEPTH: u16 = 5;
/// A greater length marks an extent of that length less 32768 that is allocated and unwritten: zeros.
const WRITTEN: u16 = 0x8000;

/// Maps a file.
pub(super) fn map(mapping: &mut Mapping<'_, '_>, inode: &Inode) -> Result<(), ReadError> {
    node(mapping, &inode.data, None)
}

/// Maps one node of the tree; each level must be one less deep, so it ends.
fn node(mapping: &mut Mapping<'_, '_>, bytes: &[u8], depth: Option<u16>) -> Result<(), ReadError> {
    let fields = Fields(bytes);
    let (entries, here) = (fields.le16(2)?, fields.le16(6)?);
    if fields.le16(0)? != MAGIC || here > DEPTH || depth.is_some_and(|depth| here != depth) {
        return Err(ReadError::Damaged("the tree of a file's blocks does not hold together"));
    }
    let fs = mapping.fs;
    for index in 1..=usize::from(entries) {
        fs.disk.charge(ENTRY_COST)?;
        let entry = fields.rest(index * ENTRY);
        if let Some(below) = here.checked_sub(1) {
            let child = u64::from(entry.le16(8)?) << 32 | u64::from(entry.le32(4)?);
            node(mapping, &fs.block(child, "the tree of a file's blocks")?, Some(below))?;
            continue;
        }
        let (file, len) = (u64::from(entry.le32(0)?), entry.le16(4)?);
        let start = u64::from(entry.le16(6)?) << 32 | u64::from(entry.le32(8)?);
        if len <= WRITTEN && mapping.wants(file) {
            mapping.add(file, start, len.into())?;
        }
    }
    Ok(())
}
