//! Positioned reads: the loaders' interface to a file, so that tests and fuzzers can use bytes instead.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A source of known length that is read by position. A file's own position never changes, so several threads
/// can parse, inspect and copy one open file.
pub trait ReadAt {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills the front of `buf` from `offset` on; a short count only at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(metadata.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        fill(buf, |rest, done| FileExt::read_at(self, rest, offset.saturating_add(done)))
    }
}

impl ReadAt for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }
}

/// Calls `read` until `buf` is full or the file ends, also after a signal.
fn fill(buf: &mut [u8], mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read(rest, done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The little-endian fields of a header in memory; `None` outside of it.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    pub(crate) fn slice(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }

    pub(crate) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(crate) fn u16(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_end_where_they_end() {
        let data: &[u8] = &[1, 2, 3];
        let mut buf = [0; 2];
        assert_eq!(data.read_at(&mut buf, 2).unwrap(), 1);
        assert_eq!(data.read_at(&mut buf, 3).unwrap(), 0);
        assert_eq!(data.read_at(&mut buf, u64::MAX).unwrap(), 0);
        assert_eq!(Fields(data).u16(2), None);
        assert_eq!(Fields(data).u16(usize::MAX), None);
        assert_eq!(Fields(data).u16(1), Some(0x302));
    }

    #[test]
    fn interrupted_read_goes_on() {
        let mut calls = 0;
        let mut buf = [0; 4];
        let done = fill(&mut buf, |rest, _| {
            calls += 1;
            match calls {
                1 => Err(io::ErrorKind::Interrupted.into()),
                _ => {
                    rest[0] = calls;
                    Ok(1)
                }
            }
        });
        assert_eq!((done.unwrap(), buf), (4, [2, 3, 4, 5]));
    }

    #[test]
    fn directory_is_not_read() {
        let dir = File::open(std::env::temp_dir()).unwrap();
        assert_eq!(dir.length().unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }
}
