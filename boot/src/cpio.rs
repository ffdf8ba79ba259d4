//! Makes initramfs archives: the "newc" cpio format (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! An archive is a list: it holds headers and what it was given as bytes, and reads files of the host when, and as far as,
//! somebody reads the archive. So a directory of any size goes into guest memory without being anywhere else. Same content,
//! same bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::read::ReadAt;

/// `PATH_MAX` with its zero: Linux skips members with longer names (init/initramfs.c).
const NAME_MAX: usize = 4095;
const TRAILER: &[u8] = b"TRAILER!!!";
const DIRECTORY: Kind = Kind::Directory;

/// What a member cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpioError {
    /// Sizes are 32 bits in this format.
    #[error(
        "{name} has {size} bytes, and no file of 4 GiB or more fits into an initramfs: leave it out, or give it on a disk"
    )]
    TooLarge {
        /// Which.
        name: String,
        /// Its length.
        size: u64,
    },
    /// Empty, too long, or one that leads elsewhere.
    #[error("{name:?} cannot be the name of a file in an initramfs")]
    Name {
        /// The name.
        name: String,
    },
    /// Two of one name.
    #[error("{name} would be twice in the initramfs: give it another name")]
    Twice {
        /// The name.
        name: String,
    },
    /// What should hold it is a file.
    #[error("{name} cannot be in the initramfs, because {parent} in it is no folder")]
    Parent {
        /// The name.
        name: String,
        /// What is in its way.
        parent: String,
    },
}

/// What a regular file holds.
#[derive(Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What a file of the host holds, read when the archive is.
    Host {
        /// Where it is.
        path: PathBuf,
        /// Its length now; a file that is shorter by then is an error, what it has grown by is left out.
        size: u64,
        /// Its device and inode: what another file takes the place of is not packed.
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

/// What a member is.
#[derive(Debug)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A regular file.
    File(Content),
    /// A second name of the regular file that got this number; both say that they have several [`Member::links`].
    Link(Inode),
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// A character device of this major and minor number.
    CharacterDevice(u32, u32),
    /// A block device of this major and minor number.
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

    fn holds_others(&self) -> bool {
        // Linux follows a symbolic link to a folder that is there already.
        matches!(self, Kind::Directory | Kind::Symlink(_))
    }
}

/// The number that a member has in its archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode(u32);

/// A member of an archive.
#[derive(Debug)]
pub struct Member {
    /// What it is.
    pub kind: Kind,
    /// Its permissions, of which 12 bits count.
    pub mode: u32,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// How many names it has.
    pub links: u32,
    /// When it was changed, in seconds since 1970; 0 for [`Archive::dated`]'s time.
    pub mtime: u32,
}

impl Member {
    /// One of root's, with one name.
    pub fn new(mode: u32, kind: Kind) -> Self {
        Member { kind, mode, uid: 0, gid: 0, links: 1, mtime: 0 }
    }

    /// A regular file of root's with this content.
    pub fn file(mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self::new(mode, Kind::File(Content::Bytes(content.into())))
    }

    /// Owned by these numbers.
    #[must_use]
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        Member { uid, gid, ..self }
    }
}

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive {
    parts: Vec<Part>,
    /// And whether it holds others.
    names: HashMap<Vec<u8>, bool>,
    len: u64,
    /// Of members that have none.
    mtime: u32,
}

/// A finished archive, to be read.
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
    /// An empty one.
    pub fn new() -> Self {
        Archive::default()
    }

    /// An empty one, whose members were changed at this second since 1970 if they do not say.
    pub fn dated(mtime: u32) -> Self {
        Archive { mtime, ..Archive::default() }
    }

    /// Adds a member. The folders above it are added by themselves, and slashes in front of its name do not count.
    ///
    /// # Errors
    /// [`CpioError`]; the archive is as it was, but for such folders.
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

    /// Adds a folder of root's, if there is nothing of that name.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn folder(&mut self, name: impl AsRef<[u8]>) -> Result<(), CpioError> {
        if !self.contains(&name) {
            self.add(name, Member::new(0o755, DIRECTORY))?;
        }
        Ok(())
    }

    /// How long it is so far.
    pub fn length(&self) -> u64 {
        self.len
    }

    /// The finished archive.
    ///
    /// # Errors
    /// None that is known: the last member is as any other.
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
        let (device, holds) = (member.kind.device(), member.kind.holds_others());
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
        // Magic, inode, mode, uid, gid, links, time, size, device of the file (2), its own numbers (2), name, no check sum.
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
        self.names.insert(name.to_vec(), holds);
        Ok(inode)
    }
}

impl Cpio {
    /// All of it.
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
    /// Fills the front of `buf` from `offset` within this part on, to its end.
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

/// The place in `buf`, of which `done` bytes are full, for what of the `len` bytes at `start` stands at `at`; and where
/// among them that is.
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
