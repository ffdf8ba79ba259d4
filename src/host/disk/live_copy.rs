//! A disk that is copied while its guest writes: what is left to be copied of it, and its bytes as the guest sees them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use boot::read::ReadAt;
use vmm_sys_util::seek_hole::SeekHole;

use super::block_set::BlockSet;
use super::drive::{Drive, Medium};
use super::open_disk::{DiskBytes, DiskReader, OpenDisk};
use super::write_log::LogReader;

/// See the module. Dropped, the log is switched off.
#[derive(Debug)]
pub(crate) struct LiveCopy {
    log: LogReader,
    source: Source,
    /// All of it in bytes, also what is no whole sector.
    len: u64,
    /// What is to be copied.
    left: BlockSet,
}

/// Where its bytes come from.
#[derive(Debug)]
struct Source {
    reader: DiskReader,
    /// The same file, to look for its holes: nobody else uses its position.
    seeking: Option<File>,
    medium: Arc<Medium>,
}

impl Drive {
    /// Begins to copy the disk, all of which is left.
    ///
    /// # Errors
    /// The host has no descriptor left, or does not say how long the disk is.
    pub(crate) fn copy_live(&self) -> io::Result<LiveCopy> {
        let medium = self.medium();
        let (len, reader) = (medium.present_length()?, medium.reader()?);
        let seeking = match &reader.bytes {
            DiskBytes::File(file) => Some(file.try_clone()?),
            DiskBytes::Mapped(_) => None,
        };
        // Before a byte is read.
        let log = self.log_writes(len);
        Ok(LiveCopy { log, source: Source { reader, seeking, medium }, len, left: BlockSet::all(len) })
    }
}

impl LiveCopy {
    /// Bytes of the disk.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What was written, discarded or zeroed since the last call is left, too.
    pub(crate) fn take_written(&mut self) {
        self.log.take_to(&mut self.left);
    }

    /// What is left, of which nothing is left then.
    pub(crate) fn take_left(&mut self) -> BlockSet {
        std::mem::replace(&mut self.left, BlockSet::new(self.len))
    }

    /// The bytes of what is left, holes left out.
    pub(crate) fn left(&mut self) -> io::Result<u64> {
        let mut bytes = 0;
        for mut range in self.left.ranges() {
            while !range.is_empty() {
                let (is_hole, len) = self.source.next(&range)?;
                bytes += if is_hole { 0 } else { len };
                range.start += len;
            }
        }
        Ok(bytes)
    }

    /// Whether the beginning of `range`, which is not empty, is a hole, and for how many bytes: some.
    pub(crate) fn next(&mut self, range: &Range<u64>) -> io::Result<(bool, u64)> {
        self.source.next(range)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = match &self.source.reader.bytes {
                DiskBytes::File(file) => file.read_at(rest, offset + done as u64),
                DiskBytes::Mapped(image) => image.read_at(rest, offset + done as u64),
            };
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it is as long as when the copy began.
    pub(crate) fn has_its_length(&self) -> io::Result<bool> {
        Ok(self.source.medium.present_length()? == self.len)
    }
}

impl Source {
    fn next(&mut self, range: &Range<u64>) -> io::Result<(bool, u64)> {
        let len = range.end - range.start;
        let Some(file) = &mut self.seeking else {
            return match &**self.medium {
                OpenDisk::Image(image) => image.is_hole(range.start, len),
                OpenDisk::Raw(_) => Ok((false, len)),
            };
        };
        let (is_hole, end) = match file.seek_data(range.start) {
            Ok(None) => (true, None),
            Ok(Some(data)) if data > range.start => (true, Some(data)),
            Ok(Some(_)) => (false, file.seek_hole(range.start).ok().flatten()),
            // A file system or a device that knows no holes.
            Err(_) => (false, None),
        };
        let end = end.filter(|end| *end > range.start).unwrap_or(range.end);
        Ok((is_hole, (end - range.start).min(len)))
    }
}
