//! Directories of a FAT file system: entries of 32 bytes, with a long name in the entries before the one that
//! it names.

use super::{FatFs, Fields, FileKind, Node, ReadError, Root};
use crate::image::disk::{ENTRY_COST, NAME_COST};

/// Length of an entry.
const ENTRY: usize = 32;
/// Maximum length of a directory: 65536 entries.
const FOLDER_MAX: u64 = 2 << 20;
/// Maximum entries of one long name, and letters in each.
const PARTS: u8 = 20;
const LETTERS: usize = 13;
/// Attributes.
const LABEL: u8 = 0x08;
const FOLDER: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// First byte of a name: a free entry, and the end of the directory.
const FREE: u8 = 0xe5;
const END: u8 = 0;
/// Stands for a first byte of 0xe5.
const ESCAPED: u8 = 0x05;

/// A directory entry with its names.
struct DirEntry<'e> {
    short: String,
    long: Option<String>,
    entry: Fields<'e>,
    attributes: u8,
}

/// A long name while its entries are collected, last part first.
#[derive(Default)]
struct LongName {
    parts: Vec<[u16; LETTERS]>,
    /// Number of the next part; 0 when complete.
    next: u8,
    checksum: u8,
}

impl FatFs<'_> {
    /// Looks up a path; names are compared without case, as in FAT. `None` if there is no such name.
    pub(in crate::image) fn find(&self, path: &str) -> Result<Option<Node>, ReadError> {
        // There are no symbolic links, so `..` removes the name before it.
        let mut names = Vec::new();
        for name in path.split(['/', '\\']) {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let mut node = Node { kind: FileKind::Folder, size: 0, start: self.root };
        for name in names {
            if node.kind != FileKind::Folder {
                return Ok(None);
            }
            let mut found = None;
            self.entries(&node, |entry_info| {
                let named = |own: &String| own.eq_ignore_ascii_case(name);
                let is_one = entry_info.attributes & LABEL == 0
                    && (named(&entry_info.short) || entry_info.long.iter().any(named));
                if is_one {
                    found = Some(self.node(entry_info)?);
                }
                Ok(found.is_none())
            })?;
            let Some(found) = found else { return Ok(None) };
            node = found;
        }
        Ok(Some(node))
    }

    /// The names in a folder, at most `max` of those that are `wanted`.
    pub(in crate::image) fn list(
        &self,
        folder: &Node,
        max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ReadError> {
        let mut names = Vec::new();
        if folder.kind == FileKind::Folder {
            self.entries(folder, |entry_info| {
                let name = entry_info.long.as_ref().unwrap_or(&entry_info.short);
                if entry_info.attributes & LABEL == 0 && !matches!(name.as_str(), "." | "..") && wanted(name)
                {
                    names.push(name.clone());
                }
                Ok(names.len() < max)
            })?;
        }
        Ok(names)
    }

    /// The label in the root folder.
    pub(super) fn volume_label(&self) -> Result<Option<String>, ReadError> {
        let root = Node { kind: FileKind::Folder, size: 0, start: self.root };
        let mut label = None;
        self.entries(&root, |entry_info| {
            if entry_info.attributes & LABEL != 0 {
                label = Some(text(&entry_info.entry.bytes::<11>(0)?));
            }
            Ok(label.is_none())
        })?;
        Ok(label)
    }

    fn node(&self, entry_info: &DirEntry<'_>) -> Result<Node, ReadError> {
        let high = if self.bits == super::Bits::ThirtyTwo { entry_info.entry.le16(20)? } else { 0 };
        let folder = entry_info.attributes & FOLDER != 0;
        Ok(Node {
            kind: if folder { FileKind::Folder } else { FileKind::File },
            size: if folder { 0 } else { entry_info.entry.le32(28)?.into() },
            start: Root::Cluster(u32::from(high) << 16 | u32::from(entry_info.entry.le16(26)?)),
        })
    }

    /// Calls `visit` for each used entry until it returns false.
    fn entries(
        &self,
        folder: &Node,
        mut visit: impl FnMut(&DirEntry<'_>) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let mut long = LongName::default();
        let (mut at, mut len, mut cluster) = match folder.start {
            Root::Fixed(window) => (window.start, window.len, None),
            Root::Cluster(cluster) => (self.cluster_offset(cluster)?, self.cluster, Some(cluster)),
        };
        let mut left = FOLDER_MAX;
        loop {
            left = left.checked_sub(len).ok_or(ReadError::Damaged("a folder has no end"))?;
            let mut bytes = vec![0; usize::try_from(len).map_err(|_| super::inconsistent())?];
            self.disk.read(self.window, at, &mut bytes, "a folder")?;
            for entry in bytes.chunks_exact(ENTRY) {
                self.disk.charge(ENTRY_COST)?;
                let entry = Fields(entry);
                let ([first], [attributes]) = (entry.bytes(0)?, entry.bytes(11)?);
                match first {
                    END => return Ok(()),
                    FREE => long = LongName::default(),
                    _ if attributes & 0x3f == LONG_NAME => {
                        self.disk.charge(NAME_COST)?;
                        long.add(entry)?;
                    }
                    _ => {
                        self.disk.charge(NAME_COST)?;
                        let short = short_name(entry)?;
                        let entry_info = DirEntry { short, long: long.take(entry)?, entry, attributes };
                        if !visit(&entry_info)? {
                            return Ok(());
                        }
                    }
                }
            }
            let Some(next) = cluster.map(|cluster| self.next(cluster)).transpose()?.flatten() else {
                return Ok(());
            };
            (at, len, cluster) = (self.cluster_offset(next)?, self.cluster, Some(next));
        }
    }
}

impl LongName {
    fn add(&mut self, entry: Fields<'_>) -> Result<(), ReadError> {
        let ([order], [checksum]) = (entry.bytes(0)?, entry.bytes(13)?);
        let number = order & 0x3f;
        if order & 0x40 != 0 && (1..=PARTS).contains(&number) {
            *self = LongName { parts: Vec::new(), next: number, checksum };
        }
        if number == 0 || number != self.next || checksum != self.checksum {
            *self = LongName::default();
            return Ok(());
        }
        let mut letters = [0; LETTERS];
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (letter, start) in letters.iter_mut().zip(places) {
            *letter = entry.le16(start)?;
        }
        self.parts.push(letters);
        self.next -= 1;
        Ok(())
    }

    /// The long name of this entry, if it was complete.
    fn take(&mut self, entry: Fields<'_>) -> Result<Option<String>, ReadError> {
        let LongName { parts, next, checksum } = std::mem::take(self);
        let sum =
            entry.bytes::<11>(0)?.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if parts.is_empty() || next != 0 || sum != checksum {
            return Ok(None);
        }
        let letters = parts.iter().rev().flatten().copied().take_while(|letter| *letter != 0);
        Ok(Some(char::decode_utf16(letters).map(|letter| letter.unwrap_or('\u{fffd}')).collect()))
    }
}

/// The short 8.3 name, in lower case where Windows NT marks that.
fn short_name(entry: Fields<'_>) -> Result<String, ReadError> {
    let mut name = entry.bytes::<8>(0)?;
    if let [first @ ESCAPED, ..] = &mut name {
        *first = FREE;
    }
    let (mut name, mut end) = (text(&name), text(&entry.bytes::<3>(8)?));
    let [case] = entry.bytes(12)?;
    if case & 0x08 != 0 {
        name.make_ascii_lowercase();
    }
    if case & 0x10 != 0 {
        end.make_ascii_lowercase();
    }
    Ok(if end.is_empty() { name } else { format!("{name}.{end}") })
}

/// Text padded with spaces. The code page of non-ASCII bytes is not known.
pub(super) fn text(bytes: &[u8]) -> String {
    let letters = bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '\u{fffd}' });
    letters.collect::<String>().trim_end_matches([' ', '\0']).to_owned()
}
