//! Folders (directory.rst). They are read from end to end: the blocks of a hash tree look like blocks of unused entries to
//! whoever reads so, by design.

use super::{ExtFs, Fields, FileKind, Inode, ReadError};
use crate::image::disk::ENTRY_COST;

/// Longest folder that is read: some 100,000 names.
const FOLDER_MAX: u64 = 8 << 20;
/// Fields of an entry before its name.
const HEAD: usize = 8;
/// What of an inline folder lies in the place of the block map, and the parent's number at its start.
const INLINE_PART: usize = 60;
const PARENT: usize = 4;

impl ExtFs<'_> {
    /// The inode's number of this name in a folder.
    pub(super) fn lookup(&self, folder: &Inode, name: &[u8]) -> Result<Option<u32>, ReadError> {
        let mut found = None;
        self.entries(folder, |number, entry| {
            if entry == name {
                found = Some(number);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// The names in a folder, at most `max` of those that are `wanted`; those that are not UTF-8 are left out.
    pub(crate) fn list(
        &self,
        folder: &Inode,
        max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ReadError> {
        let mut names = Vec::new();
        if folder.kind == FileKind::Folder {
            self.entries(folder, |_, name| {
                if let Some(name) = std::str::from_utf8(name).ok().filter(|name| wanted(name)) {
                    names.push(name.to_owned());
                }
                names.len() < max
            })?;
        }
        Ok(names)
    }

    /// Gives each entry to `visit` until that returns false.
    fn entries(&self, folder: &Inode, mut visit: impl FnMut(u32, &[u8]) -> bool) -> Result<(), ReadError> {
        let bytes = self.read(folder, FOLDER_MAX)?;
        let block = usize::try_from(self.block_size()).map_err(|_| ReadError::Endless)?;
        // An inline folder begins with the number of its parent; what lies in the attribute is a block of its own.
        let inline = Self::is_inline(folder);
        let split = if inline { bytes.len().min(INLINE_PART) } else { 0 };
        let (first, rest) = bytes.split_at(split);
        let first = first.get(PARENT..).unwrap_or_default();
        for block in std::iter::once(first).filter(|_| inline).chain(rest.chunks(block)) {
            let mut at = 0;
            while at + HEAD <= block.len() {
                self.disk.charge(ENTRY_COST)?;
                let fields = Fields(block).rest(at);
                let (inode, len) = (fields.le32(0)?, usize::from(fields.le16(4)?));
                let [name_len] = fields.bytes(6)?;
                // A block of 64 KiB writes its whole length as 0 or 65535.
                let len = if matches!(len, 0 | 65_535) && block.len() > 65_535 { block.len() } else { len };
                let name = fields.0.get(HEAD..HEAD + usize::from(name_len));
                let name = name.ok_or(ReadError::Damaged("a folder does not hold together"))?;
                if len < HEAD {
                    return Err(ReadError::Damaged("a folder does not hold together"));
                }
                if inode != 0 && !visit(inode, name) {
                    return Ok(());
                }
                at += len;
            }
        }
        Ok(())
    }
}
