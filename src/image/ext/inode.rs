//! Inodes (inodes.rst), and the lookup of a path.

use super::runs::Mapping;
use super::{ExtFs, Fields, FileKind, ReadError, block_map, extents, inline};
use crate::image::disk::ENTRY_COST;
use crate::image::runs::{self, Run};

/// The root folder's inode.
const ROOT: u32 = 2;
/// Maximum symbolic links in one lookup, as in Linux (`MAXSYMLINKS`).
const LINKS: usize = 40;
/// Maximum length of a path and of a link's target (`PATH_MAX`).
const PATH_MAX: u64 = 4096;
/// Maximum names in one lookup, links followed, as a bound on links to links.
const STEPS: usize = 512;
/// Flags.
const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;
const ENCRYPTED: u32 = 0x800;

/// A file, folder or link.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    pub(crate) size: u64,
    flags: u32,
    /// `i_block`: the root of the extent tree, a block map, a short link's target, or the start of inline
    /// content.
    pub(super) data: [u8; 60],
    /// The rest of inline content.
    more: Vec<u8>,
}

impl ExtFs<'_> {
    /// Looks up a path; symbolic links are followed and stay within the file system. `None` if there is no
    /// such name.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Inode>, ReadError> {
        let mut rest: Vec<Vec<u8>> = names(path.as_bytes());
        let root = self.inode(ROOT)?;
        // The folders from the root to the current one, for `..`.
        let mut folders = vec![root];
        let mut links = 0;
        for _ in 0..STEPS {
            let Some(name) = rest.pop() else { return Ok(folders.pop()) };
            self.disk.charge(ENTRY_COST)?;
            let Some(folder) = folders.last() else { return Ok(None) };
            if name == b".." {
                if folders.len() > 1 {
                    folders.pop();
                }
                continue;
            }
            if folder.kind != FileKind::Folder {
                return Ok(None);
            }
            let Some(number) = self.lookup(folder, &name)? else { return Ok(None) };
            let inode = self.inode(number)?;
            if inode.kind != FileKind::Link {
                folders.push(inode);
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(ReadError::Damaged("its symbolic links go round in circles"));
            }
            let target = self.target(&inode)?;
            if target.starts_with(b"/") {
                folders.truncate(1);
            }
            rest.extend(names(&target));
        }
        Err(ReadError::Damaged("its symbolic links go round in circles"))
    }

    pub(super) fn inode(&self, number: u32) -> Result<Inode, ReadError> {
        if number == 0 || number > self.inodes {
            return Err(ReadError::Damaged("a name leads to no inode"));
        }
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let table = self.inode_table(group)?;
        let at = u64::from(index) * self.inode_size;
        let mut bytes = [0; 128];
        let block = table.checked_add(at / self.block_size).ok_or(ReadError::Outside("an inode"))?;
        self.read_block(block, at % self.block_size, &mut bytes, "an inode")?;
        let fields = Fields(&bytes);
        let flags = fields.le32(0x20)?;
        let mut more = Vec::new();
        if flags & INLINE != 0 {
            let mut whole = vec![0; usize::try_from(self.inode_size).map_err(|_| ReadError::Endless)?];
            self.read_block(block, at % self.block_size, &mut whole, "an inode")?;
            more = inline::attribute(&whole)?;
        }
        let kind = match fields.le16(0)? & 0xf000 {
            0x8000 => FileKind::File,
            0x4000 => FileKind::Folder,
            0xa000 => FileKind::Link,
            _ => FileKind::Special,
        };
        Ok(Inode {
            kind,
            size: u64::from(fields.le32(0x6c)?) << 32 | u64::from(fields.le32(0x4)?),
            flags,
            data: fields.bytes(0x28)?,
            more,
        })
    }

    /// First block of a group's inode table (group_descr.rst).
    fn inode_table(&self, group: u32) -> Result<u64, ReadError> {
        let (block, at) = self.descriptor(group.into())?;
        let mut bytes = [0; 64];
        let len = if self.descriptor_size >= 64 { 64 } else { 32 };
        let part = bytes.get_mut(..len).ok_or(ReadError::Outside("a group"))?;
        self.read_block(block, at, part, "a group's descriptor")?;
        let fields = Fields(&bytes);
        Ok(u64::from(fields.le32(0x28)?) << 32 | u64::from(fields.le32(0x8)?))
    }

    /// The runs of a file's bytes in the image, in order; gaps are zeros. A file longer than `max` is refused
    /// before its map is read.
    pub(crate) fn runs(&self, inode: &Inode, max: u64) -> Result<Vec<Run>, ReadError> {
        if inode.size > max {
            return Err(ReadError::TooLong { mib: inode.size >> 20, max: max >> 20 });
        }
        if inode.flags & ENCRYPTED != 0 {
            return Err(ReadError::Unsupported("an encrypted file"));
        }
        if inode.flags & INLINE != 0 {
            return Err(ReadError::Unsupported("a file of a few bytes where a kernel should be"));
        }
        let mut mapping = Mapping::new(self, inode.size);
        if inode.flags & EXTENTS != 0 {
            extents::map(&mut mapping, inode)?;
        } else {
            block_map::map(&mut mapping, inode)?;
        }
        Ok(mapping.finish())
    }

    /// The content of a small file.
    pub(crate) fn read(&self, inode: &Inode, max: u64) -> Result<Vec<u8>, ReadError> {
        if inode.size > max {
            return Err(ReadError::Damaged("a file that should be short is long"));
        }
        let len = usize::try_from(inode.size).map_err(|_| ReadError::Endless)?;
        if inode.flags & INLINE != 0 {
            let whole = [&inode.data, &*inode.more].concat();
            let content =
                whole.get(..len).ok_or(ReadError::Damaged("a small file does not hold together"))?;
            return Ok(content.to_vec());
        }
        runs::read(self.disk, &self.runs(inode, max)?, inode.size)
    }

    /// Whether its content is in the inode.
    pub(super) fn is_inline(inode: &Inode) -> bool {
        inode.flags & INLINE != 0
    }

    /// The target of a symbolic link. A short one is in the inode itself (symlinks.rst).
    fn target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        match usize::try_from(inode.size) {
            Ok(len @ 1..60) if inode.flags & INLINE == 0 => {
                Ok(inode.data.get(..len).unwrap_or_default().to_vec())
            }
            _ => self.read(inode, PATH_MAX),
        }
    }
}

/// The names of a path, last first.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let mut names: Vec<_> = names.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}
