//! Reading the tables of an image: only what the file holds, for a table in a hole has no entries and costs nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ImageError;
use crate::holes::next_data;

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

/// A file and its length.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    file: &'a File,
    path: &'a Path,
    length: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a File, path: &'a Path) -> Result<Self, ImageError> {
        let length = crate::storage::length(file).map_err(ImageError::io(path, "read the size of"))?;
        // QEMU counts files in sectors.
        Ok(Self { file, path, length: length.next_multiple_of(512) })
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The bytes from `offset`; fewer at the end of the file. The caller bounds `length`.
    pub(crate) fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, ImageError> {
        let there = length.min(self.length.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(there).unwrap_or(0)];
        let read = self.fill(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Calls `each` with the index and the value of every word of 8 bytes that is not zero, of `words` from `offset` on.
    pub(crate) fn words(
        &self,
        offset: u64,
        words: u64,
        each: &mut dyn FnMut(u64, u64) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let end = offset.saturating_add(words.saturating_mul(8)).min(self.length);
        let mut piece = vec![0; usize::try_from(PIECE.min(end.saturating_sub(offset))).unwrap_or(0)];
        let mut at = offset;
        while at < end {
            let data = next_data(self.file, at).map_err(ImageError::io(self.path, "read"))?;
            let Some(data) = data.filter(|data| *data < end) else { break };
            // Words begin at multiples of 8 after the offset.
            at = data - (data - offset) % 8;
            let length = usize::try_from(PIECE.min(end - at)).unwrap_or(0);
            let Some(bytes) = piece.get_mut(..length) else { break };
            let read = self.fill(bytes, at)?;
            for (index, word) in (0_u64..).zip(bytes.get(..read).unwrap_or_default().chunks_exact(8)) {
                let value = be64(word, 0);
                if value != 0 {
                    each((at - offset) / 8 + index, value)?;
                }
            }
            at += PIECE;
        }
        Ok(())
    }

    fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<usize, ImageError> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::io(self.path, "read")(error)),
            }
        }
        Ok(filled)
    }
}

/// The number at `at`; 0 if the bytes end before it.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at).map_or(0, u64::from_be_bytes)
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    number(bytes, at).map_or(0, u32::from_be_bytes)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    number(bytes, at).map_or(0, u16::from_be_bytes)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
