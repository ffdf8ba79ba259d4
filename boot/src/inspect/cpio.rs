//! The cpio archives of an initrd (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Read};

/// Length of the magic, "070701" or "070702".
pub(crate) const MAGIC: usize = 6;
/// Length of a header with its magic: 13 numbers of 8 hexadecimal digits follow.
const HEADER: usize = 110;
/// Offsets of `c_filesize` and `c_namesize` in the header.
const FILE_SIZE: usize = MAGIC + 6 * 8;
const NAME_SIZE: usize = MAGIC + 11 * 8;
/// `PATH_MAX`: Linux skips members with longer names (init/initramfs.c); here they count as damage.
const NAME_MAX: u64 = 4096;

pub(crate) fn is_cpio(magic: [u8; MAGIC]) -> bool {
    matches!(&magic, b"070701" | b"070702")
}

/// Walks one archive whose first magic has been read, up to and including its trailer. `member` is called
/// with each name and may read the content; the rest is skipped.
pub(crate) fn walk(
    stream: &mut dyn Read,
    mut member: impl FnMut(&[u8], &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let mut magic = Some(*b"070701");
    loop {
        let mut header = [0; HEADER];
        let known = magic.take();
        let (front, rest) = header.split_at_mut(MAGIC);
        match known {
            Some(known) => front.copy_from_slice(&known),
            None => stream.read_exact(front)?,
        }
        stream.read_exact(rest)?;
        if !(header.starts_with(b"070701") || header.starts_with(b"070702")) {
            return Err(damaged("a member of the archive has no magic"));
        }
        let (size, name_size) = (number(&header, FILE_SIZE)?, number(&header, NAME_SIZE)?);
        if name_size == 0 || name_size > NAME_MAX {
            return Err(damaged("the name of a member is empty or too long"));
        }
        // Header with name, and content, are padded to 4 bytes.
        let mut name = Vec::new();
        let padded = (HEADER as u64 + name_size).next_multiple_of(4) - HEADER as u64;
        if stream.take(padded).read_to_end(&mut name)? as u64 != padded {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        if name == b"TRAILER!!!" {
            return skip(stream, size.next_multiple_of(4));
        }
        let mut content = stream.take(size);
        member(name, &mut content)?;
        let left = content.limit() + (size.next_multiple_of(4) - size);
        skip(stream, left)?;
    }
}

/// A number of the header.
fn number(header: &[u8; HEADER], at: usize) -> io::Result<u64> {
    let digits = header.get(at..at + 8).and_then(|digits| std::str::from_utf8(digits).ok());
    let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    value.map(u64::from).ok_or_else(|| damaged("a header has a number that is none"))
}

fn skip(stream: &mut dyn Read, len: u64) -> io::Result<()> {
    match io::copy(&mut stream.take(len), &mut io::sink())? {
        skipped if skipped == len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
