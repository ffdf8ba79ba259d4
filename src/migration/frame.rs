//! The frames of a migration: `u32` kind, `u32` CRC-32 (IEEE 802.3) of kind, length and body, `u64` length of the body, body; all
//! little-endian. What is read is hostile: a body has a bounded length, and takes memory as it comes.

use std::io::{self, Read, Write};

/// Most bytes of a body.
pub(super) const MOST_BODY: u64 = 16 << 20;
const HEAD: usize = 16;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u32,
    pub(crate) body: Vec<u8>,
}

fn crc(kind: u32, parts: &[&[u8]]) -> u32 {
    let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&kind.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Writes a frame whose body is these parts.
pub(super) fn write(to: &mut dyn Write, kind: u32, parts: &[&[u8]]) -> io::Result<()> {
    let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
    if len > MOST_BODY {
        return Err(io::Error::other(format!("a frame of {len} bytes is too long")));
    }
    let mut head = [0; HEAD];
    for (to, from) in head
        .iter_mut()
        .zip(kind.to_le_bytes().into_iter().chain(crc(kind, parts).to_le_bytes()).chain(len.to_le_bytes()))
    {
        *to = from;
    }
    to.write_all(&head)?;
    parts.iter().try_for_each(|part| to.write_all(part))
}

/// The bytes of the frame that these begin, as it says itself, if enough have come to know.
pub(super) fn whole_length(bytes: &[u8]) -> Option<usize> {
    let len = u64::from_le_bytes(bytes.get(8..HEAD)?.try_into().ok()?);
    Some(usize::try_from(len).ok().and_then(|len| len.checked_add(HEAD)).unwrap_or(usize::MAX))
}

impl Frame {
    /// Reads the next one; `None` if the stream ends before it.
    pub(crate) fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        let mut head = Vec::with_capacity(HEAD);
        from.take(HEAD as u64).read_to_end(&mut head)?;
        if head.is_empty() {
            return Ok(None);
        }
        let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends inside a frame");
        let [a, b, c, d, e, f, g, h, rest @ ..] = head.as_slice() else { return Err(cut()) };
        let (kind, sum) = (u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h]));
        let len = u64::from_le_bytes(rest.try_into().map_err(|_| cut())?);
        if len > MOST_BODY {
            return Err(invalid("a frame is longer than any can be"));
        }
        let mut body = Vec::new();
        from.take(len).read_to_end(&mut body)?;
        if body.len() as u64 != len {
            return Err(cut());
        }
        if crc(kind, &[&body]) != sum {
            return Err(invalid("a frame has a wrong checksum"));
        }
        Ok(Some(Frame { kind, body }))
    }

    /// Writes it.
    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        write(to, self.kind, &[&self.body])
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what}, so that it was damaged on its way or is no migration of minivmm"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_read_as_it_was_written_and_any_change_is_noticed() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, &[b"one", b"two"]).unwrap();
        let frame = Frame { kind: 7, body: b"onetwo".to_vec() };
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap(), Some(frame.clone()));
        let mut again = Vec::new();
        frame.write(&mut again).unwrap();
        assert_eq!(again, bytes);
        assert_eq!(Frame::read(&mut [].as_slice()).unwrap(), None);
        for at in 0..bytes.len() {
            assert!(Frame::read(&mut &bytes[..at.max(1)]).is_err(), "{at}");
            for flip in [1, 0x80] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                assert!(Frame::read(&mut bad.as_slice()).is_err(), "{at}");
            }
        }
        let mut long = bytes.clone();
        long[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Frame::read(&mut long.as_slice()).unwrap_err().to_string().contains("longer"));
    }
}
