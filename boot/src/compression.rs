//! Identifies compressions by their magic numbers, which are the same for kernels' payloads and initrds.

use std::fmt;

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// `xz`; Debian's generic kernels.
    Xz,
    /// RFC 8878; Debian's initrds.
    Zstd,
    /// The legacy frame of the kernel's build; Debian's cloud kernels.
    Lz4,
    /// bzip2.
    Bzip2,
    /// The old `.lzma` container.
    Lzma,
    /// lzop.
    Lzo,
}

impl Compression {
    /// Length of the longest magic number.
    pub(crate) const MAGIC_LEN: usize = 6;

    /// The magic numbers of Linux's lib/decompress.c. Like Linux, it does not accept the modern LZ4 frame.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"\x1f\x9e", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"BZh", Compression::Bzip2),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\x89LZO", Compression::Lzo),
        ];
        MAGICS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, which)| *which)
    }

    /// The command that decompresses such a file.
    pub(crate) fn tool(self) -> &'static str {
        match self {
            Self::Gzip => "gzip -dc",
            Self::Xz => "xz -dc",
            Self::Zstd => "zstd -dc",
            Self::Lz4 => "lz4 -dc",
            Self::Bzip2 => "bzip2 -dc",
            Self::Lzma => "xz -dc --format=lzma",
            Self::Lzo => "lzop -dc",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        })
    }
}
