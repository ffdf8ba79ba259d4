//! Small files, directories and links whose content is in their inode (inlinedata.rst): 60 bytes in the block
//! map, and the rest in the extended attribute `system.data` after the inode's fields.

use super::{Fields, ReadError};

/// `EXT4_XATTR_MAGIC`, before the attributes in an inode (attributes.rst).
const MAGIC: u32 = 0xea02_0000;
/// `system.data`: the index of the prefix `system.`, and the rest of the name.
const SYSTEM: u8 = 7;
const NAME: &[u8] = b"data";
/// Length of an entry before its name, and the alignment of entries.
const HEAD: usize = 16;
const ALIGN: usize = 4;
/// End of the fields that every inode has; the length of the extra fields follows.
const FIXED: usize = 128;

/// The part of an inline file's content in the attribute; `inode` is the whole inode.
pub(super) fn attribute(inode: &[u8]) -> Result<Vec<u8>, ReadError> {
    let fields = Fields(inode);
    let extra = usize::from(fields.le16(FIXED).unwrap_or(0));
    let start = FIXED + extra + 4;
    if fields.le32(FIXED + extra).unwrap_or(0) != MAGIC {
        return Ok(Vec::new());
    }
    let entries = fields.rest(start);
    let mut at = 0;
    // An inode is at most 64 KiB long, and an entry at least 16 bytes.
    while at + HEAD <= entries.0.len() && entries.le32(at)? != 0 {
        let entry = entries.rest(at);
        let [name_len, index] = entry.bytes(0)?;
        let (value, len) = (usize::from(entry.le16(2)?), entry.le32(8)? as usize);
        let end = HEAD + usize::from(name_len);
        if index == SYSTEM && entry.0.get(HEAD..end) == Some(NAME) {
            let content = value.checked_add(len).and_then(|end| entries.0.get(value..end));
            return content
                .map(<[u8]>::to_vec)
                .ok_or(ReadError::Damaged("a small file does not hold together"));
        }
        at += end.next_multiple_of(ALIGN);
    }
    Ok(Vec::new())
}
