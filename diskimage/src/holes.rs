//! Holes of files: what a file does not hold reads as zeroes and costs nothing.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Where data begins, at `offset` or behind it; `None` if there is only a hole up to the end. A file system that knows no holes has
/// data everywhere.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

/// Where the data at `offset` ends: at a hole, or at the end of the file; `end` if nobody knows.
pub(crate) fn next_hole(file: &File, offset: u64, end: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(offset)) {
        Ok(hole) => Ok(hole.min(end)),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => Ok(end),
        Err(error) => Err(error.into()),
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Without an early end within a chunk, this becomes vector instructions.
    bytes.chunks(128).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// Cuts `bytes`, which stand at `offset`, at multiples of `granularity`, and calls `each` for every run of parts that are all zero or
/// all not: with its offset, its bytes, and whether they are zero.
pub(crate) fn runs<E>(
    bytes: &[u8],
    offset: u64,
    granularity: u64,
    mut each: impl FnMut(u64, &[u8], bool) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        let zero = is_zero(part(rest, at, granularity));
        let mut length = 0;
        while let Some(next) = rest.get(length..).filter(|next| !next.is_empty()) {
            let next = part(next, at + length as u64, granularity);
            if length > 0 && is_zero(next) != zero {
                break;
            }
            length += next.len();
        }
        let (run, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        each(at, run, zero)?;
        at += run.len() as u64;
        rest = behind;
    }
    Ok(())
}

/// The bytes up to the next multiple of `granularity`.
fn part(bytes: &[u8], offset: u64, granularity: u64) -> &[u8] {
    let length = usize::try_from(granularity - offset % granularity).unwrap_or(usize::MAX);
    bytes.get(..length).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8], offset: u64, granularity: u64) -> Vec<(u64, usize, bool)> {
        let mut runs_found = Vec::new();
        runs(bytes, offset, granularity, |at, run, zero| {
            runs_found.push((at, run.len(), zero));
            Ok::<(), ()>(())
        })
        .unwrap();
        runs_found
    }

    #[test]
    fn runs_begin_at_multiples_of_the_granularity() {
        let mut bytes = vec![0; 40];
        bytes[9] = 1;
        assert_eq!(found(&bytes, 0, 8), [(0, 8, true), (8, 8, false), (16, 24, true)]);
        // The same bytes from offset 4 on: the byte is at 13, still in the part from 8 to 16.
        assert_eq!(found(&bytes, 4, 8), [(4, 4, true), (8, 8, false), (16, 28, true)]);
        assert_eq!(found(&[1; 5], 0, 8), [(0, 5, false)]);
        assert_eq!(found(&[], 0, 8), []);
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for at in [0, 1, 127, 128, 299] {
            let mut bytes = vec![0; 300];
            assert!(is_zero(&bytes));
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
