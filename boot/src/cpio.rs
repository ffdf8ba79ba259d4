//! Makes initramfs archives: the "newc" cpio format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! An archive is a list of headers and contents. Files of the host are read only when the archive is read, so
//! a directory of any size goes into guest memory without another copy. The output is reproducible.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::read::ReadAt;

/// `PATH_MAX` without its zero: Linux skips members with longer names (init/initramfs.c).
const NAME_MAX: usize = 4095;
const TRAILER: &[u8] = b"TRAILER!!!";
const DIRECTORY: Kind = Kind::Directory;

/// Why a member cannot be added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpioError {
    /// Sizes are 32 bits in this format.
    #[error(
        "{name} has {size} bytes, and no file of 4 GiB or more fits into an initramfs: leave it out, or give it on a disk"
    )]
    TooLarge {
        /// Its name.
        name: String,
        /// Its length.
        size: u64,
    },
    /// Empty, too long, or with `..`.
    #[error("{name:?} cannot be the name of a file in an initramfs")]
    Name {
        /// The name.
        name: String,
    },
    /// The name exists already.
    #[error("{name} would be twice in the initramfs: give it another name")]
    Twice {
        /// The name.
        name: String,
    },
    /// A parent of the member is a file.
    #[error("{name} cannot be in the initramfs, because {parent} in it is no folder")]
    Parent {
        /// The name.
        name: String,
        /// The parent.
        parent: String,
    },
}

/// The content of a regular file.
#[derive(Debug)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Vec<u8>),
    /// The content of a file of the host, read together with the archive.
    Host {
        /// Its path.
        path: PathBuf,
        /// Its length now. If it is shorter later, reading fails; if it is longer, the rest is left out.
        size: u64,
        /// Its device and inode: a file that replaces it is refused.
        identity: (u64, u64),
    },
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Host { size, .. } => *size,
        }
    }
}

/// Kinds of members.
#[derive(Debug)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A regular file.
    File(Content),
    /// A hard link to the regular file with this number; both have the right number of [`Member::links`].
    Link(Inode),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device with these major and minor numbers.
    CharacterDevice(u32, u32),
    /// A block device with these major and minor numbers.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// `S_IFMT` of its mode.
    fn bits(&self) -> u32 {
        match self {
            Kind::Directory => 0o040_000,
            Kind::File(_) | Kind::Link(_) => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
            Kind::CharacterDevice(..) => 0o020_000,
            Kind::BlockDevice(..) => 0o060_000,
            Kind::Fifo => 0o010_000,
        }
    }

    fn device(&self) -> (u32, u32) {
        match self {
            Kind::CharacterDevice(major, minor) | Kind::BlockDevice(major, minor) => (*major, *minor),
            _ => (0, 0),
        }
    }

    fn may_have_children(&self) -> bool {
        // Linux follows a symbolic link to a folder that is there already.
        matches!(self, Kind::Directory | Kind::Symlink(_))
    }
}

/// The number of a member in its archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode(u32);

/// A member of an archive.
#[derive(Debug)]
pub struct Member {
    /// Its kind.
    pub kind: Kind,
    /// Its permissions; 12 bits are used.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Number of hard links.
    pub links: u32,
    /// Modification time, in seconds since 1970; 0 for that of [`Archive::dated`].
    pub mtime: u32,
}

impl Member {
    /// A member of root with one name.
    pub fn new(mode: u32, kind: Kind) -> Self {
        Member { kind, mode, uid: 0, gid: 0, links: 1, mtime: 0 }
    }

    /// A regular file of root with this content.
    pub fn file(mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self::new(mode, Kind::File(Content::Bytes(content.into())))
    }

    /// The same with this owner and group.
    #[must_use]
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        Member { uid, gid, ..self }
    }
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    parts: Vec<Part>,
    /// Names, and whether each may have children.
    names: HashMap<Vec<u8>, bool>,
    len: u64,
    /// For members without a modification time.
    mtime: u32,
}

/// A finished archive.
#[derive(Debug)]
pub struct Cpio {
    parts: Vec<Part>,
    len: u64,
}

#[derive(Debug)]
struct Part {
    start: u64,
    /// The header, the name and their padding.
    head: Box<[u8]>,
    content: Content,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Archive::default()
    }

    /// An empty archive with a default modification time, in seconds since 1970.
    pub fn dated(mtime: u32) -> Self {
        Archive { mtime, ..Archive::default() }
    }

    /// Adds a member. Missing parent folders are added, and leading slashes of the name are ignored.
    ///
    /// # Errors
    /// [`CpioError`]; the archive is unchanged, apart from parent folders.
    pub fn add(&mut self, name: impl AsRef<[u8]>, member: Member) -> Result<Inode, CpioError> {
        let name = name.as_ref().trim_ascii_start_matches(b'/');
        let valid = (1..=NAME_MAX).contains(&name.len())
            && name != TRAILER
            && !name.contains(&0)
            && !name.split(|&byte| byte == b'/').any(|part| matches!(part, b"" | b"." | b".."));
        if !valid {
            return Err(CpioError::Name { name: lossy(name) });
        }
        if self.names.contains_key(name) {
            return Err(CpioError::Twice { name: lossy(name) });
        }
        self.folders_above(name)?;
        self.append(name, member)
    }

    /// Whether there is a member of this name.
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.names.contains_key(name.as_ref().trim_ascii_start_matches(b'/'))
    }

    /// Adds a folder of root, unless the name exists.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn folder(&mut self, name: impl AsRef<[u8]>) -> Result<(), CpioError> {
        if !self.contains(&name) {
            self.add(name, Member::new(0o755, DIRECTORY))?;
        }
        Ok(())
    }

    /// Its length so far.
    pub fn length(&self) -> u64 {
        self.len
    }

    /// The finished archive.
    ///
    /// # Errors
    /// None in practice: the last member is like any other.
    pub fn finish(mut self) -> Result<Cpio, CpioError> {
        self.append(TRAILER, Member::file(0, []))?;
        Ok(Cpio { parts: self.parts, len: self.len })
    }

    fn folders_above(&mut self, name: &[u8]) -> Result<(), CpioError> {
        let slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for parent in slashes.filter_map(|(at, _)| name.get(..at)) {
            match self.names.get(parent) {
                Some(true) => {}
                Some(false) => {
                    return Err(CpioError::Parent { name: lossy(name), parent: lossy(parent) });
                }
                None => {
                    self.append(parent, Member::new(0o755, DIRECTORY))?;
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, name: &[u8], member: Member) -> Result<Inode, CpioError> {
        let mode = member.kind.bits() | (member.mode & 0o7777);
        let (device, may_have_children) = (member.kind.device(), member.kind.may_have_children());
        let mut inode = Inode(u32::try_from(self.parts.len() + 1).unwrap_or(u32::MAX));
        let content = match member.kind {
            Kind::File(content) => content,
            Kind::Symlink(target) => Content::Bytes(target),
            Kind::Link(of) => {
                inode = of;
                Content::Bytes(Vec::new())
            }
            _ => Content::Bytes(Vec::new()),
        };
        let size = content.size();
        let size32 = u32::try_from(size).map_err(|_| CpioError::TooLarge { name: lossy(name), size })?;
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // Magic, inode, mode, uid, gid, links, time, size, device of the file (2), its own numbers (2), name,
        // no checksum.
        let numbers = [
            inode.0,
            mode,
            member.uid,
            member.gid,
            member.links,
            if member.mtime == 0 { self.mtime } else { member.mtime },
            size32,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        let mut head = b"070701".to_vec();
        head.extend(numbers.iter().flat_map(|number| format!("{number:08x}").into_bytes()));
        head.extend(name);
        head.push(0);
        head.resize(head.len().next_multiple_of(4), 0);
        let start = self.len;
        self.len += head.len() as u64 + size.next_multiple_of(4);
        self.parts.push(Part { start, head: head.into(), content });
        self.names.insert(name.to_vec(), may_have_children);
        Ok(inode)
    }
}

impl Cpio {
    /// The whole archive.
    ///
    /// # Errors
    /// A file of the host could not be read.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?];
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

impl ReadAt for Cpio {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let first = self.parts.partition_point(|part| part.start <= offset).saturating_sub(1);
        let mut done = 0;
        for part in self.parts.get(first..).unwrap_or_default() {
            let at = offset + done as u64;
            let rest = buf.get_mut(done..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            done += part.read_at(rest, at.saturating_sub(part.start))?;
        }
        Ok(done)
    }
}

impl Part {
    /// Fills the front of `buf` from `offset` within this part, to its end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let head = self.head.len() as u64;
        let size = self.content.size();
        let mut done = self.head[..].read_at(buf, offset)?;
        if let Some((at, place)) = window(buf, offset + done as u64, done, head, size) {
            self.content.read_exact_at(place, at)?;
            done += place.len();
        }
        let padding = head + size.next_multiple_of(4);
        let end = head + size;
        if let Some((_, place)) = window(buf, offset + done as u64, done, end, padding - end) {
            place.fill(0);
            done += place.len();
        }
        Ok(done)
    }
}

/// The part of `buf` after `done` bytes for those of the `len` bytes at `start` that are at `at`, with their
/// offset.
fn window(buf: &mut [u8], at: u64, done: usize, start: u64, len: u64) -> Option<(u64, &mut [u8])> {
    let within = at.checked_sub(start).filter(|within| *within < len)?;
    let rest = buf.get_mut(done..)?;
    let take = usize::try_from(len - within).map_or(rest.len(), |left| left.min(rest.len()));
    Some((within, rest.get_mut(..take)?))
}

impl Content {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Content::Bytes(bytes) => bytes[..].read_at(buf, offset).map(drop),
            Content::Host { path, identity, .. } => {
                let failed = |error: io::Error| {
                    let said = match error.kind() {
                        io::ErrorKind::UnexpectedEof => "it became shorter while it was packed".to_owned(),
                        _ => error.to_string(),
                    };
                    io::Error::new(error.kind(), format!("{}: {said}", path.display()))
                };
                open(path, *identity).and_then(|file| file.read_exact_at(buf, offset)).map_err(failed)
            }
        }
    }
}

fn open(path: &Path, identity: (u64, u64)) -> io::Result<File> {
    let file = File::open(path)?;
    let now = file.metadata()?;
    if now.is_file() && (now.dev(), now.ino()) == identity {
        return Ok(file);
    }
    Err(io::Error::other("another file took its place while it was packed"))
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

trait TrimStart {
    fn trim_ascii_start_matches(&self, byte: u8) -> &[u8];
}

impl TrimStart for [u8] {
    fn trim_ascii_start_matches(&self, byte: u8) -> &[u8] {
        let start = self.iter().position(|&b| b != byte).unwrap_or(self.len());
        self.get(start..).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "cpio_tests.rs"]
mod tests;
