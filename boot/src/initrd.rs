//! What has to be known of an initrd to place it: its length and how much it will grow. One small read, and
//! a walk over the plain part that it may start with.

use std::io::{self, BufRead, BufReader, Read};

use crate::compression::Compression;
use crate::inspect::{Stream, cpio};
use crate::read::ReadAt;

/// An initrd file that can be handed to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    len: u64,
    compression: Option<Compression>,
    /// Length of the plain archives in front of what is packed; CPU microcode, most often.
    plain: u64,
}

/// A file that cannot serve as an initrd. The path is the caller's to add.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// The operating system refused to read it.
    #[error("The initrd cannot be read.")]
    Read(#[source] io::Error),
    /// Nothing in it.
    #[error("The initrd is empty: copy it again, or make it anew (Debian: update-initramfs -u).")]
    Empty,
    /// A bzImage.
    #[error(
        "This is a kernel and was given as the initrd: give it as the kernel, and /boot/initrd.img-* here."
    )]
    Kernel,
}

impl Initrd {
    /// Looks at the first bytes of `file`. Any content passes but a kernel: what an initrd is, the guest decides.
    pub fn parse<R: ReadAt + ?Sized>(file: &R) -> Result<Self, InitrdError> {
        let len = file.length().map_err(InitrdError::Read)?;
        let mut head = [0; 0x206];
        let read = file.read_at(&mut head, 0).map_err(InitrdError::Read)?;
        if len == 0 || read == 0 {
            return Err(InitrdError::Empty);
        }
        // The magic of a bzImage's setup header, at 0x202.
        if head.ends_with(b"HdrS") {
            return Err(InitrdError::Kernel);
        }
        let (plain, compression) = match packed_behind(file, &head) {
            Some((plain, compression)) => (plain.min(len), Some(compression)),
            None => (0, Compression::of(&head)),
        };
        Ok(Initrd { len, compression, plain })
    }

    /// Length in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// How it is packed, behind a plain part (CPU microcode) if it starts with one; `None` for a plain archive.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Memory without which it cannot be unpacked: a plain archive is there twice, and of a packed one its file alone is known.
    pub(crate) fn least_memory(&self) -> u64 {
        if self.compression.is_some() { self.len } else { self.working_memory() }
    }

    /// Memory for the initrd and what the kernel unpacks from it: it is freed only afterwards.
    pub(crate) fn working_memory(&self) -> u64 {
        let packed = (self.len - self.plain).saturating_mul(self.compression.map_or(4, growth)) / 2;
        packed.saturating_add(self.plain.saturating_mul(2))
    }
}

/// An initrd and what is unpacked from it, in halves of its file's length. What is named must boot. Debian 12's initrd of
/// its cloud kernel, packed in each of these ways, makes 2.7 (LZ4) to 4.7 (XZ) times its file; its smallest memory in steps of
/// 5 MiB, and what this names: zstd 150 and 165, gzip 145 and 160, XZ 150 and 160, LZ4 160 and 169.
fn growth(compression: Compression) -> u64 {
    match compression {
        Compression::Lz4 | Compression::Lzo => 9,
        Compression::Gzip => 10,
        Compression::Zstd | Compression::Bzip2 => 12,
        Compression::Xz | Compression::Lzma => 14,
    }
}

/// Longest plain part that is walked to what is packed behind it. Debian's microcode has 6 to 14 MiB.
const PLAIN_MAX: u64 = 32 << 20;

/// Where the packed part behind a plain one starts, and how it is packed.
fn packed_behind<R: ReadAt + ?Sized>(file: &R, head: &[u8]) -> Option<(u64, Compression)> {
    // The plain part of a whole initrd is not walked: its names are others.
    let marks: [&[u8]; 3] = [b"kernel\0", b"kernel/x86", b"early_cpio"];
    if !marks.iter().any(|mark| head.windows(mark.len()).any(|bytes| bytes == *mark)) {
        return None;
    }
    let stream = |at| BufReader::with_capacity(64 << 10, Stream { file, at });
    let mut plain = 0;
    let mut first = head.get(..cpio::MAGIC)?.try_into().ok()?;
    while cpio::is_cpio(first) {
        // The walk begins behind the magic.
        let mut archive = stream(plain + cpio::MAGIC as u64).take(PLAIN_MAX.checked_sub(plain)?);
        let limit = archive.limit();
        cpio::walk(&mut archive, |_, _| Ok(())).ok()?;
        plain += cpio::MAGIC as u64 + (limit - archive.limit());
        let (at, magic) = behind_zeros(&mut stream(plain).take(PLAIN_MAX.checked_sub(plain)?))?;
        (plain, first) = (plain + at, magic);
    }
    // Not of a packed initrd without a plain part.
    (plain > 0).then(|| Compression::of(&first)).flatten().map(|compression| (plain, compression))
}

/// The first bytes behind zeros, and how many zeros there are.
fn behind_zeros(stream: &mut impl BufRead) -> Option<(u64, [u8; cpio::MAGIC])> {
    let mut zeros = 0;
    loop {
        let buf = stream.fill_buf().ok().filter(|buf| !buf.is_empty())?;
        let (count, all) = (buf.iter().take_while(|byte| **byte == 0).count(), buf.len());
        stream.consume(count);
        zeros += count as u64;
        if count < all {
            let mut magic = [0; cpio::MAGIC];
            stream.read_exact(&mut magic).ok()?;
            return Some((zeros, magic));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_given_as_initrd_is_named() {
        let mut file = vec![0; 0x400];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        let error = Initrd::parse(&file[..]).unwrap_err();
        assert!(error.to_string().contains("give it as the kernel"), "{error}");
    }

    #[test]
    fn empty_initrd_is_an_error() {
        assert!(matches!(Initrd::parse(&[][..]), Err(InitrdError::Empty)));
    }

    #[test]
    fn packed_initrd_needs_more_room_than_a_plain_one() {
        let packed = Initrd::parse(&b"\x28\xb5\x2f\xfd...."[..]).unwrap();
        let plain = Initrd::parse(&b"070701.."[..]).unwrap();
        assert_eq!((packed.working_memory(), plain.working_memory()), (48, 16));
    }
}
