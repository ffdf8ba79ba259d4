//! Facts about an initrd: the archives in a row that it is made of, and whether virtio is in them.

use flate2::bufread::GzDecoder;
use ruzstd::decoding::StreamingDecoder;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use super::{Stream, cpio};
use crate::compression::Compression;
use crate::initrd::{Initrd, InitrdError};
use crate::kernel::printable;
use crate::read::ReadAt;

/// What is unpacked and looked at, at most, of all archives together.
const UNPACKED_MAX: u64 = 512 << 20;
/// Debian has two archives: microcode, and the rest.
const PARTS_MAX: usize = 64;
/// Names that are kept of each sort.
const NAMES_MAX: usize = 64;
/// `modules.builtin` of Debian has 10 KiB.
const BUILTIN_MAX: u64 = 1 << 20;

/// What there is to say of an initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitrdFacts {
    /// Length of the file.
    pub file_len: u64,
    /// The archives, in order.
    pub parts: Vec<Part>,
    /// What is in them.
    pub contents: Contents,
    /// How much of that could be seen.
    pub seen: Seen,
}

/// One archive of an initrd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A plain cpio archive; a first one of several is CPU microcode, most often.
    Cpio,
    /// A packed one.
    Compressed(Compression),
    /// Nothing that Linux would unpack.
    Unknown,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpio => f.write_str("cpio"),
            Self::Compressed(compression) => compression.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// How much of an initrd was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// All of it.
    All,
    /// The first 512 MiB.
    Beginning,
    /// Not what follows a part with this compression, which is not unpacked here.
    UpTo(Compression),
    /// Up to a place where it is damaged, or is no archive.
    UpToDamage,
}

/// What was found in an initrd's archives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whether there is an /init.
    pub init: bool,
    /// Kernel releases that there are modules for.
    pub releases: Vec<String>,
    /// virtio modules, as `lsmod` names them.
    pub virtio_modules: Vec<String>,
    /// virtio drivers that `modules.builtin` says are in the kernel itself.
    pub virtio_builtin: Vec<String>,
}

/// Reads all archives of an initrd, unpacking gzip and zstd on the way. Memory is bounded, time by 512 MiB.
pub fn inspect_initrd<R: ReadAt + ?Sized>(file: &R) -> Result<InitrdFacts, InitrdError> {
    inspect_up_to(UNPACKED_MAX, file)
}

pub(super) fn inspect_up_to<R: ReadAt + ?Sized>(limit: u64, file: &R) -> Result<InitrdFacts, InitrdError> {
    let file_len = Initrd::parse(file)?.file_len();
    let mut walk = Walk { parts: Vec::new(), contents: Contents::default(), left: limit };
    let seen = walk.archives(&mut BufReader::with_capacity(64 << 10, Stream { file, at: 0 }));
    Ok(InitrdFacts { file_len, parts: walk.parts, contents: walk.contents, seen })
}

struct Walk {
    parts: Vec<Part>,
    contents: Contents,
    /// What may still be unpacked.
    left: u64,
}

impl Walk {
    /// The archives of the file itself, as init/initramfs.c walks them: zeros between them are skipped.
    fn archives(&mut self, stream: &mut dyn BufRead) -> Seen {
        loop {
            let magic = match next_magic(stream) {
                Ok(Some(magic)) if self.parts.len() < PARTS_MAX => magic,
                Ok(Some(_)) => return Seen::Beginning,
                Ok(None) => return Seen::All,
                Err(_) => return Seen::UpToDamage,
            };
            let seen = if cpio::is_cpio(magic) {
                self.parts.push(Part::Cpio);
                self.bounded(stream, |walk, stream| walk.plain(stream))
            } else if let Some(compression) = Compression::of(&magic) {
                self.parts.push(Part::Compressed(compression));
                let mut whole = magic.chain(&mut *stream);
                match compression {
                    Compression::Gzip => self.bounded(&mut GzDecoder::new(&mut whole), Self::unpacked),
                    Compression::Zstd => match StreamingDecoder::new(&mut whole) {
                        Ok(mut decoder) => self.bounded(&mut decoder, Self::unpacked),
                        Err(_) => Seen::UpToDamage,
                    },
                    other => return Seen::UpTo(other),
                }
            } else {
                self.parts.push(Part::Unknown);
                return Seen::UpToDamage;
            };
            if seen != Seen::All {
                return seen;
            }
        }
    }

    /// Lets `look` read as much of `stream` as may be unpacked in all.
    fn bounded<R: Read + ?Sized>(
        &mut self,
        stream: &mut R,
        look: impl FnOnce(&mut Self, &mut dyn Read) -> io::Result<()>,
    ) -> Seen {
        let mut stream = stream.take(self.left);
        let result = look(self, &mut stream);
        self.left = stream.limit();
        match result {
            _ if self.left == 0 => Seen::Beginning,
            Ok(()) => Seen::All,
            Err(_) => Seen::UpToDamage,
        }
    }

    /// A stream that was packed: nothing but plain archives, to its end.
    fn unpacked(&mut self, stream: &mut dyn Read) -> io::Result<()> {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        while let Some(magic) = next_magic(&mut stream)? {
            if !cpio::is_cpio(magic) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.plain(&mut stream)?;
        }
        Ok(())
    }

    /// A plain archive behind its first magic.
    fn plain(&mut self, stream: &mut dyn Read) -> io::Result<()> {
        cpio::walk(stream, |name, content| self.member(name, content))
    }

    /// Notes what a member is, by its name; the names are relative, some with a leading `./` or `/`.
    fn member(&mut self, name: &[u8], content: &mut dyn Read) -> io::Result<()> {
        let name = String::from_utf8_lossy(name);
        let name = name.strip_prefix('.').unwrap_or(&name);
        let name = name.strip_prefix('/').unwrap_or(name);
        self.contents.init |= name == "init";
        let Some(path) = name.strip_prefix("usr/").unwrap_or(name).strip_prefix("lib/modules/") else {
            return Ok(());
        };
        let Some((release, path)) = path.split_once('/') else { return Ok(()) };
        note(&mut self.contents.releases, release);
        if path == "modules.builtin" {
            let mut list = Vec::new();
            content.take(BUILTIN_MAX).read_to_end(&mut list)?;
            let list = String::from_utf8_lossy(&list);
            list.lines().filter_map(virtio_module).for_each(|m| note(&mut self.contents.virtio_builtin, &m));
        } else if let Some(module) = virtio_module(path) {
            note(&mut self.contents.virtio_modules, &module);
        }
        Ok(())
    }
}

/// The first bytes of the next archive behind any zeros; `None` at the end.
fn next_magic(stream: &mut (impl BufRead + ?Sized)) -> io::Result<Option<[u8; cpio::MAGIC]>> {
    let mut magic = [0; cpio::MAGIC];
    loop {
        let buf = stream.fill_buf()?;
        let zeros = buf.iter().take_while(|&&byte| byte == 0).count();
        let (empty, all) = (buf.is_empty(), zeros == buf.len());
        stream.consume(zeros);
        if empty {
            return Ok(None);
        }
        if !all {
            stream.read_exact(&mut magic)?;
            return Ok(Some(magic));
        }
    }
}

/// The name of a virtio module at `path`, packed or not: virtio itself, `virtio_*`, and the transports of others.
fn virtio_module(path: &str) -> Option<String> {
    let (stem, packing) = path.rsplit('/').next()?.split_once(".ko")?;
    let module = stem.replace('-', "_");
    let known = matches!(packing, "" | ".xz" | ".zst" | ".gz");
    (known && module.contains("virtio")).then_some(module)
}

/// Keeps a name once, if there are not too many, as far as it can be printed.
fn note(names: &mut Vec<String>, name: &str) {
    let name = name.get(..128).unwrap_or(name);
    let Some(name) = printable(name.as_bytes()) else { return };
    if names.len() < NAMES_MAX && !names.contains(&name) {
        names.push(name);
    }
}
