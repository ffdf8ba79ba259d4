//! Parses an initrd as far as needed to place it: its length and its growth. One small read, and a walk over
//! a plain part at its start.

use std::io::{self, BufRead, BufReader, Read};

use crate::compression::Compression;
use crate::inspect::{Stream, cpio};
use crate::read::ReadAt;

/// An initrd file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    len: u64,
    compression: Option<Compression>,
    /// Length of the plain archives before the compressed one; usually CPU microcode.
    plain: u64,
}

/// Why a file cannot serve as an initrd. The caller adds the path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// The host refused.
    #[error("The initrd cannot be read.")]
    Read(#[source] io::Error),
    /// It is empty.
    #[error("The initrd is empty: copy it again, or make it anew (Debian: update-initramfs -u).")]
    Empty,
    /// A bzImage.
    #[error(
        "This is a kernel and was given as the initrd: give it as the kernel, and /boot/initrd.img-* here."
    )]
    Kernel,
}

impl Initrd {
    /// Reads the first bytes of `file`. Any content but a kernel is accepted: the guest decides about the
    /// rest.
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

    /// Its compression, after a plain part (CPU microcode) if there is one; `None` for a plain archive.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Minimum memory to unpack it: a plain archive exists twice, and of a compressed one only the file's
    /// length is known.
    pub(crate) fn least_memory(&self) -> u64 {
        if self.compression.is_some() { self.len } else { self.working_memory() }
    }

    /// Memory for the initrd and its unpacked content: the file is freed only afterwards.
    pub(crate) fn working_memory(&self) -> u64 {
        let packed = (self.len - self.plain).saturating_mul(self.compression.map_or(4, growth)) / 2;
        packed.saturating_add(self.plain.saturating_mul(2))
    }
}

/// Size of an initrd with its unpacked content, in halves of the file's length. The recommended memory must
/// boot. Debian 12's initrd of its cloud kernel, with each compression, unpacks to 2.7 (LZ4) to 4.7 (XZ)
/// times its file; its minimum memory in steps of 5 MiB, and the recommendation: zstd 150 and 165, gzip 145
/// and 160, XZ 150 and 160, LZ4 160 and 169.
fn growth(compression: Compression) -> u64 {
    match compression {
        Compression::Lz4 | Compression::Lzo => 9,
        Compression::Gzip => 10,
        Compression::Zstd | Compression::Bzip2 => 12,
        Compression::Xz | Compression::Lzma => 14,
    }
}

/// Maximum length of a plain part. Debian's microcode has 6 to 14 MiB.
const PLAIN_MAX: u64 = 32 << 20;

/// The start of the compressed part after a plain one, and its compression.
fn packed_behind<R: ReadAt + ?Sized>(file: &R, head: &[u8]) -> Option<(u64, Compression)> {
    // A plain initrd without microcode is not walked.
    let marks: [&[u8]; 3] = [b"kernel\0", b"kernel/x86", b"early_cpio"];
    if !marks.iter().any(|mark| head.windows(mark.len()).any(|bytes| bytes == *mark)) {
        return None;
    }
    let stream = |at| BufReader::with_capacity(64 << 10, Stream { file, at });
    let mut plain = 0;
    let mut first = head.get(..cpio::MAGIC)?.try_into().ok()?;
    while cpio::is_cpio(first) {
        // The walk begins after the magic.
        let mut archive = stream(plain + cpio::MAGIC as u64).take(PLAIN_MAX.checked_sub(plain)?);
        let limit = archive.limit();
        cpio::walk(&mut archive, |_, _| Ok(())).ok()?;
        plain += cpio::MAGIC as u64 + (limit - archive.limit());
        let (at, magic) = behind_zeros(&mut stream(plain).take(PLAIN_MAX.checked_sub(plain)?))?;
        (plain, first) = (plain + at, magic);
    }
    // `None` for a compressed initrd without a plain part.
    (plain > 0).then(|| Compression::of(&first)).flatten().map(|compression| (plain, compression))
}

/// The first bytes after zeros, and the number of zeros.
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
