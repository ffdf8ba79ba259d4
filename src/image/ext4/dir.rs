//! Folders (directory.rst). They are read from end to end: the blocks of a hash tree look like blocks of unused entries to
//! whoever reads so, by design.

use super::{Ext4, Fields, FileKind, Inode, ReadError};

/// Longest folder that is read: some 100,000 names.
const FOLDER_MAX: u64 = 8 << 20;
/// Fields of an entry before its name.
const HEAD: usize = 8;

impl Ext4<'_> {
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

    /// Gives each entry to `see` until that returns false.
    fn entries(&self, folder: &Inode, mut see: impl FnMut(u32, &[u8]) -> bool) -> Result<(), ReadError> {
        let bytes = self.read(folder, FOLDER_MAX)?;
        let block = usize::try_from(self.block_size()).map_err(|_| ReadError::Endless)?;
        for block in bytes.chunks(block) {
            let mut at = 0;
            while at + HEAD <= block.len() {
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
                if inode != 0 && !see(inode, name) {
                    return Ok(());
                }
                at += len;
            }
        }
        Ok(())
    }
}
