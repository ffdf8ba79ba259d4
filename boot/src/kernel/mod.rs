//! Recognises a kernel by its headers. Reads a few KiB, never the whole kernel, and decides no addresses.

mod bzimage;
mod elf;
mod error;
mod foreign;

use std::fmt;

pub(crate) use bzimage::{BzImage, HEADER, printable};
pub(crate) use elf::Elf;
pub use error::KernelError;
pub use foreign::Foreign;

pub use crate::compression::Compression;
use crate::entry::Protocol;
use crate::read::ReadAt;
use foreign::{ELF_MAGIC, HDRS};

/// Number of bytes to read first.
const HEAD: usize = 4096;
/// `COMMAND_LINE_SIZE` of x86 Linux less the terminating zero; a kernel without a setup header has no other
/// limit.
const CMDLINE_MAX: u64 = 2047;

/// A kernel that can be loaded: its headers are valid for the length of its file.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub(crate) image: Image,
    pub(crate) file_len: u64,
}

/// The two kinds of kernel files.
#[derive(Debug, Clone)]
pub(crate) enum Image {
    BzImage(BzImage),
    Elf(Elf),
}

/// The format of a kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Linux's compressed image with a setup header, as in distributions.
    BzImage,
    /// An uncompressed kernel with a PVH note.
    ElfPvh,
    /// An uncompressed kernel with Linux's own entry only.
    Elf,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BzImage => "bzImage",
            Self::ElfPvh => "ELF with PVH entry",
            Self::Elf => "ELF",
        })
    }
}

impl Kernel {
    /// Parses the headers of `file`. Its position does not change.
    pub fn parse<R: ReadAt + ?Sized>(file: &R) -> Result<Self, KernelError> {
        let file_len = file.length().map_err(KernelError::Read)?;
        let mut head = [0; HEAD];
        let read = file.read_at(&mut head, 0).map_err(KernelError::Read)?;
        let head = head.get(..read).unwrap_or_default();
        if file_len == 0 || head.is_empty() {
            return Err(KernelError::Empty);
        }
        let image = if head.starts_with(ELF_MAGIC) {
            Image::Elf(Elf::parse(file, head, file_len)?)
        } else if head.get(HDRS.0..).is_some_and(|rest| rest.starts_with(HDRS.1)) {
            Image::BzImage(BzImage::parse(file, head, file_len)?)
        } else {
            return Err(KernelError::Foreign(Foreign::of(head)));
        };
        Ok(Kernel { image, file_len })
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match &self.image {
            Image::BzImage(_) => Format::BzImage,
            Image::Elf(elf) if elf.pvh_entry.is_some() => Format::ElfPvh,
            Image::Elf(_) => Format::Elf,
        }
    }

    /// Whether it has an entry for `protocol`.
    pub fn supports(&self, protocol: Protocol) -> bool {
        match (&self.image, protocol) {
            (Image::BzImage(image), Protocol::Linux64) => image.long_mode,
            (Image::BzImage(image), Protocol::Linux32) => !image.long_mode,
            (Image::BzImage(_), Protocol::Pvh) => false,
            (Image::Elf(elf), Protocol::Linux64) => elf.entry.is_some() && elf.long_mode,
            (Image::Elf(elf), Protocol::Linux32) => elf.entry.is_some() && !elf.long_mode,
            (Image::Elf(elf), Protocol::Pvh) => elf.pvh_entry.is_some(),
        }
    }

    /// Length of the file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Release, builder and time, from the setup header of a bzImage.
    pub fn version(&self) -> Option<&str> {
        self.bzimage()?.version.as_deref()
    }

    /// The compression of a bzImage's payload; `None` if there is none, or it is not known.
    pub fn compression(&self) -> Option<Compression> {
        self.bzimage()?.compression
    }

    /// Version of the Linux boot protocol of a bzImage, major and minor.
    pub fn boot_protocol(&self) -> Option<(u8, u8)> {
        let [minor, major] = self.bzimage()?.protocol.to_le_bytes();
        Some((major, minor))
    }

    /// The longest command line that it accepts, without the terminating zero.
    pub fn cmdline_max(&self) -> u64 {
        self.bzimage().map_or(CMDLINE_MAX, |image| image.cmdline_max)
    }

    /// Memory from [`Self::pref_address`] on that it needs before it reads its memory map.
    pub fn init_size(&self) -> u64 {
        match &self.image {
            Image::BzImage(image) => image.init_size,
            Image::Elf(elf) => elf.end() - self.pref_address(),
        }
    }

    /// Its preferred physical address.
    pub fn pref_address(&self) -> u64 {
        match &self.image {
            Image::BzImage(image) => image.pref_address,
            Image::Elf(elf) => elf.segments.first().map_or(0, |segment| segment.guest),
        }
    }

    /// Whether it can be loaded at another address.
    pub fn relocatable(&self) -> bool {
        self.bzimage().is_some_and(|image| image.relocatable)
    }

    /// Maximum end address of its initrd, inclusive. ELF kernels have no such field; the limit of PVH and
    /// Linux is 4 GiB.
    pub fn initrd_addr_max(&self) -> u64 {
        self.bzimage().map_or(u64::from(u32::MAX), |image| image.initrd_addr_max)
    }

    fn bzimage(&self) -> Option<&BzImage> {
        match &self.image {
            Image::BzImage(image) => Some(image),
            Image::Elf(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
