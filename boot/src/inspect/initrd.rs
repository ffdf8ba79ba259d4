//! Facts about an initrd: its archives, and whether they contain virtio.

use flate2::bufread::GzDecoder;
use ruzstd::decoding::StreamingDecoder;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use super::{Stream, cpio};
use crate::compression::Compression;
use crate::initrd::{Initrd, InitrdError};
use crate::kernel::printable;
use crate::read::ReadAt;

/// Maximum unpacked size to inspect, of all archives together.
const UNPACKED_MAX: u64 = 512 << 20;
/// Maximum archives. Debian has two: microcode, and the rest.
const PARTS_MAX: usize = 64;
/// Maximum names to keep of each kind.
const NAMES_MAX: usize = 64;
/// Maximum length of a name.
const NAME_MAX: usize = 128;
/// Maximum length of `modules.builtin`; Debian's has 10 KiB.
const BUILTIN_MAX: u64 = 1 << 20;

/// Facts about an initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitrdFacts {
    /// Length of the file.
    pub file_len: u64,
    /// The archives, in order.
    pub parts: Vec<Part>,
    /// Their content.
    pub contents: Contents,
    /// How much of it was inspected.
    pub coverage: Coverage,
}

/// One archive of an initrd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A plain cpio archive; the first of several is usually CPU microcode.
    Cpio,
    /// A compressed archive.
    Compressed(Compression),
    /// Data that Linux does not unpack.
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

/// How much of an initrd was inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// All of it.
    Complete,
    /// The first 512 MiB.
    Truncated,
    /// Up to a part with this compression, which is not supported here.
    UpToUnsupported(Compression),
    /// Up to damage, or to data that is no archive.
    UpToDamage,
}

/// The content of an initrd's archives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whether there is an /init.
    pub init: bool,
    /// Kernel releases with modules.
    pub releases: Vec<String>,
    /// virtio modules, by their names in `lsmod`.
    pub virtio_modules: Vec<String>,
    /// virtio drivers that `modules.builtin` lists as built in.
    pub virtio_builtin: Vec<String>,
}

/// Reads all archives of an initrd, decompressing gzip and zstd. Memory is bounded, and time by 512 MiB.
pub fn inspect_initrd<R: ReadAt + ?Sized>(file: &R) -> Result<InitrdFacts, InitrdError> {
    inspect_up_to(UNPACKED_MAX, file)
}

pub(super) fn inspect_up_to<R: ReadAt + ?Sized>(limit: u64, file: &R) -> Result<InitrdFacts, InitrdError> {
    let file_len = Initrd::parse(file)?.file_len();
    let mut walk = Walk { parts: Vec::new(), contents: Contents::default(), left: limit };
    let coverage = walk.archives(&mut BufReader::with_capacity(64 << 10, Stream { file, at: 0 }));
    Ok(InitrdFacts { file_len, parts: walk.parts, contents: walk.contents, coverage })
}

struct Walk {
    parts: Vec<Part>,
    contents: Contents,
    /// Bytes that may still be unpacked.
    left: u64,
}

impl Walk {
    /// The archives of the file itself, as in init/initramfs.c: zeros between them are skipped.
    fn archives(&mut self, stream: &mut dyn BufRead) -> Coverage {
        loop {
            let magic = match next_magic(stream) {
                Ok(Some(magic)) if self.parts.len() < PARTS_MAX => magic,
                Ok(Some(_)) => return Coverage::Truncated,
                Ok(None) => return Coverage::Complete,
                Err(_) => return Coverage::UpToDamage,
            };
            let coverage = if cpio::is_cpio(magic) {
                self.parts.push(Part::Cpio);
                self.bounded(stream, |walk, stream| walk.plain(stream))
            } else if let Some(compression) = Compression::of(&magic) {
                self.parts.push(Part::Compressed(compression));
                let mut whole = magic.chain(&mut *stream);
                match compression {
                    Compression::Gzip => self.bounded(&mut GzDecoder::new(&mut whole), Self::unpacked),
                    Compression::Zstd => match StreamingDecoder::new(&mut whole) {
                        Ok(mut decoder) => self.bounded(&mut decoder, Self::unpacked),
                        Err(_) => Coverage::UpToDamage,
                    },
                    other => return Coverage::UpToUnsupported(other),
                }
            } else {
                self.parts.push(Part::Unknown);
                return Coverage::UpToDamage;
            };
            if coverage != Coverage::Complete {
                return coverage;
            }
        }
    }

    /// Calls `look` with `stream`, limited to the bytes that may still be unpacked.
    fn bounded<R: Read + ?Sized>(
        &mut self,
        stream: &mut R,
        look: impl FnOnce(&mut Self, &mut dyn Read) -> io::Result<()>,
    ) -> Coverage {
        let mut stream = stream.take(self.left);
        let result = look(self, &mut stream);
        self.left = stream.limit();
        match result {
            _ if self.left == 0 => Coverage::Truncated,
            Ok(()) => Coverage::Complete,
            Err(_) => Coverage::UpToDamage,
        }
    }

    /// A decompressed stream: plain archives only, to its end.
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

    /// A plain archive after its first magic.
    fn plain(&mut self, stream: &mut dyn Read) -> io::Result<()> {
        cpio::walk(stream, |name, content| self.member(name, content))
    }

    /// Records a member by its name; names are relative, some with a leading `./` or `/`.
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

/// The first bytes of the next archive after any zeros; `None` at the end.
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

/// The name of a virtio module at `path`, compressed or not: virtio itself, `virtio_*`, and transports of
/// other subsystems.
fn virtio_module(path: &str) -> Option<String> {
    let (stem, packing) = path.rsplit('/').next()?.split_once(".ko")?;
    let module = stem.replace('-', "_");
    let known = matches!(packing, "" | ".xz" | ".zst" | ".gz");
    (known && module.contains("virtio")).then_some(module)
}

/// Keeps a printable name once, up to the maximum.
fn note(names: &mut Vec<String>, name: &str) {
    let name = name.as_bytes();
    let Some(name) = printable(name.get(..NAME_MAX).unwrap_or(name)) else { return };
    if names.len() < NAMES_MAX && !names.contains(&name) {
        names.push(name);
    }
}
