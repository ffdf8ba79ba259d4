//! A folder's entries on their way to the guest: `fuse_dirent` or, with attributes, `fuse_direntplus`.

use super::filesystem::{Caching, Entry};
use super::wire;

/// Takes entries until the guest's buffer is full.
#[derive(Debug)]
pub struct Listing<'a> {
    out: &'a mut Vec<u8>,
    end: usize,
    caching: Caching,
    with_attributes: bool,
}

/// `FUSE_UNKNOWN_INO`: what a guest may not know, the number of a folder above the share.
pub const UNKNOWN_INO: u64 = 0xffff_ffff;

impl<'a> Listing<'a> {
    /// One of at most `room` bytes.
    pub(super) fn new(out: &'a mut Vec<u8>, room: usize, caching: Caching, with_attributes: bool) -> Self {
        Listing { end: out.len().saturating_add(room), out, caching, with_attributes }
    }

    /// Whether the guest wants an [`Entry`] with each name.
    pub fn with_attributes(&self) -> bool {
        self.with_attributes
    }

    /// Whether an entry with a name of `name_len` bytes fits. Once one does not, the listing ends.
    pub fn has_room(&self, name_len: usize) -> bool {
        self.out.len().saturating_add(self.size(name_len)) <= self.end
    }

    /// Adds an entry for which there is room: its number, its kind as in `st_mode`, and where the listing goes on behind it.
    /// Without `entry`, where attributes are wanted, the guest looks it up when it needs it.
    pub fn push(&mut self, entry: Option<&Entry>, ino: u64, kind: u32, next: u64, name: &[u8]) {
        if !self.has_room(name.len()) {
            return;
        }
        if self.with_attributes {
            wire::entry(self.out, entry, self.caching);
        }
        wire::u64(self.out, ino);
        wire::u64(self.out, next);
        wire::u32(self.out, u32::try_from(name.len()).unwrap_or(0));
        wire::u32(self.out, kind >> 12 & 0xf);
        self.out.extend(name);
        self.out.resize(self.out.len().next_multiple_of(8), 0);
    }

    fn size(&self, name_len: usize) -> usize {
        let entry = if self.with_attributes { wire::ENTRY } else { 0 };
        entry + (24 + name_len).next_multiple_of(8)
    }
}
