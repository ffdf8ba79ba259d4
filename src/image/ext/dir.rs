//! Directories (directory.rst). They are read linearly: the index blocks of a hash tree look like unused
//! entries, by design.

use super::{ExtFs, Fields, FileKind, Inode, ReadError};
use crate::image::disk::ENTRY_COST;

/// Maximum length of a directory: some 100,000 names.
const FOLDER_MAX: u64 = 8 << 20;
/// Length of an entry before its name.
const HEAD: usize = 8;
/// Length of the part of an inline directory in the inode's block map, which begins with the parent's inode
/// number.
const INLINE_PART: usize = 60;
const PARENT: usize = 4;

impl ExtFs<'_> {
    /// The inode number of this name in a folder.
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

    /// The names in a folder, at most `max` of those that are `wanted`; names that are not UTF-8 are left
    /// out.
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

    /// Calls `visit` for each entry until it returns false.
    fn entries(&self, folder: &Inode, mut visit: impl FnMut(u32, &[u8]) -> bool) -> Result<(), ReadError> {
        let bytes = self.read(folder, FOLDER_MAX)?;
        let block = usize::try_from(self.block_size()).map_err(|_| ReadError::Endless)?;
        // An inline directory begins with its parent's number; the attribute's content is a block of its own.
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
                // A block of 64 KiB stores its whole length as 0 or 65535.
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
