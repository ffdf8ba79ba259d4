//! Copies of images, from a whole chain into one file. What reads as zeroes takes no space in the copy.
//!
//! A copy is whole or not there if the caller does it so: make a temporary file in the folder of the target, by a name that nothing
//! else uses; [`convert`] into it, which brings its bytes to the disk before it returns; rename it to the target's name; and
//! `fsync` the folder. On any error, remove the temporary file.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use crate::holes::runs;
use crate::reader::{Pieces, Reader};
use crate::{CreateOptions, Format, Image, ImageError, Progress, create};

/// Zeroes of this many bytes become a hole in a raw image; it is the block of most file systems, and what `qemu-img convert` does.
const RAW_GRANULARITY: u64 = 4096;
/// QEMU counts the bytes of a qcow2 image in sectors, and forgets the rest.
const SECTOR: u64 = 512;

/// What a copy is to be.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// Its format.
    pub format: Format,
    /// Bytes of a cluster of a qcow2 image; 64 KiB if nothing is said.
    pub cluster_size: Option<u32>,
}

impl ConvertOptions {
    /// A copy in this format.
    pub fn new(format: Format) -> Self {
        ConvertOptions { format, cluster_size: None }
    }

    /// With clusters of this size.
    pub fn cluster_size(mut self, bytes: u32) -> Self {
        self.cluster_size = Some(bytes);
        self
    }
}

/// What a copy has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of data that were written; none for a reflink.
    pub written: u64,
    /// The file system shares the blocks of both files until one of them is written to.
    pub reflink: bool,
}

/// Copies an image into `to`, an empty file that is open for reading and writing; `path` is for messages. The bytes are on the disk
/// when it returns.
///
/// # Errors
///
/// If something cannot be read or written, or if `progress` ends the work. `to` is then a part of a copy.
pub fn convert(
    from: &Image,
    to: &File,
    path: &Path,
    options: &ConvertOptions,
    progress: &mut dyn Progress,
) -> Result<Converted, ImageError> {
    let written = match options.format {
        Format::Raw => {
            if clone_whole(from, to) {
                to.sync_all().map_err(ImageError::io(path, "write"))?;
                return Ok(Converted { size: from.size(), written: 0, reflink: true });
            }
            create(to, path, &CreateOptions::new(Format::Raw, from.size()))?;
            let mut copy = Copy::new(from, path, RAW_GRANULARITY, progress);
            copy.run(&mut |bytes, offset| to.write_all_at(bytes, offset))?;
            copy.written
        }
        Format::Qcow2 => {
            let size = from.size().checked_next_multiple_of(SECTOR).unwrap_or(from.size());
            let mut made = CreateOptions::new(Format::Qcow2, size);
            made.cluster_size = options.cluster_size;
            create(to, path, &made)?;
            let file = to.try_clone().map_err(ImageError::io(path, "write"))?;
            let image = Image::alone(file, path, Format::Qcow2, true)?;
            let granularity = image.header().map_or(RAW_GRANULARITY, |header| header.cluster_size());
            let mut copy = Copy::new(from, path, granularity, progress);
            copy.run(&mut |bytes, offset| image.write_at(bytes, offset))?;
            image.flush().map_err(ImageError::io(path, "write"))?;
            copy.written
        }
    };
    to.sync_all().map_err(ImageError::io(path, "write"))?;
    Ok(Converted { size: from.size(), written, reflink: false })
}

/// Has the file system share the blocks, where source and copy are the same bytes in one file each.
fn clone_whole(from: &Image, to: &File) -> bool {
    let [source] = from.files() else { return false };
    // A file system that cannot says so, and leaves the copy empty.
    from.format() == Format::Raw && rustix::fs::ioctl_ficlone(to, source.file()).is_ok()
}

type Write<'w> = &'w mut dyn FnMut(&[u8], u64) -> io::Result<()>;

/// A copy that is being made.
struct Copy<'a> {
    from: &'a Image,
    path: &'a Path,
    /// Zeroes are left out in parts of this size.
    granularity: u64,
    progress: &'a mut dyn Progress,
    written: u64,
}

impl<'a> Copy<'a> {
    fn new(from: &'a Image, path: &'a Path, granularity: u64, progress: &'a mut dyn Progress) -> Self {
        Copy { from, path, granularity, progress, written: 0 }
    }

    /// Copies what the image holds: the next piece is read while one is written.
    fn run(&mut self, write: Write<'_>) -> Result<(), ImageError> {
        let (from, granularity) = (self.from, self.granularity);
        thread::scope(|scope| {
            let (reader, pieces) = Reader::new(from, granularity);
            let begun = thread::Builder::new().name("read".into()).spawn_scoped(scope, || reader.run());
            let reading = begun.map_err(ImageError::io(from.path(), "read"))?;
            let written = self.write(pieces, write);
            let panicked = |_| Err(ImageError::io(from.path(), "read")(io::ErrorKind::Other.into()));
            let read = reading.join().unwrap_or_else(panicked);
            written.and(read)
        })
    }

    /// Writes the pieces until there are no more. The reader ends when they are dropped.
    fn write(&mut self, pieces: Pieces, write: Write<'_>) -> Result<(), ImageError> {
        while let Some(piece) = pieces.next() {
            let (offset, bytes) = (piece.offset, piece.bytes());
            let end = offset + bytes.len() as u64;
            let written = &mut self.written;
            runs(bytes, offset, self.granularity, |offset, run, zero| {
                if zero {
                    return Ok(());
                }
                *written += run.len() as u64;
                write(run, offset)
            })
            .map_err(ImageError::io(self.path, "write"))?;
            self.say(end)?;
            pieces.give_back(piece);
        }
        Ok(())
    }

    fn say(&mut self, done: u64) -> Result<(), ImageError> {
        match self.progress.at(done, self.from.size()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ImageError::Interrupted { path: self.path.into() }),
        }
    }
}
