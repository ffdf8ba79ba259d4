//! Committing an overlay: its data goes to its backing file, then the overlay is emptied.
//!
//! The overlay is emptied after the data is on the backing file's disk. Interrupted at any point, the overlay reads as before: what
//! it still has covers the backing file, and what it has no longer is there.

mod empty;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;

use imago::ShallowMapping;

use crate::holes::runs;
use crate::{Format, Image, ImageError, Progress};

/// Bytes that are copied at once, and the longest range whose mapping is asked for at once.
const PIECE: usize = 2 << 20;
const STEP: u64 = 256 << 20;
/// Zeroes of this many bytes become a hole in a raw backing file.
const RAW_GRANULARITY: u64 = 4096;

/// What a commit has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// Bytes of data that were written to the backing file.
    pub written: u64,
    /// The new size of the backing file, if it had to grow.
    pub grown: Option<u64>,
}

/// Commits `overlay`, which is opened alone ([`Image::alone`]) and for writing, to `base`, its backing file with what lies below,
/// which is opened for writing too: that refuses images with snapshots inside, which would change with the backing file. The caller
/// makes sure that `base` is the backing file, and that no other overlay lies on it: that one would change.
///
/// # Errors
///
/// If something cannot be read or written, or if `progress` ends the work. The overlay then reads as before, and may be committed
/// again.
pub fn commit(overlay: Image, base: &Image, progress: &mut dyn Progress) -> Result<Committed, ImageError> {
    check_overlay(&overlay)?;
    if !base.is_writable() {
        return Err(ImageError::ReadOnly { path: base.path().into() });
    }
    let Some(file) = overlay.files().first().cloned() else {
        return Err(ImageError::Unsupported {
            path: overlay.path().into(),
            reason: "it is no open image".into(),
        });
    };
    let grown = (overlay.size() > base.size()).then_some(overlay.size());
    if let Some(size) = grown {
        base.grow(size)?;
    }
    let mut copy = Copy { overlay: &overlay, base, progress, buffer: vec![0; PIECE], written: 0 };
    copy.run()?;
    let written = copy.written;
    // From here on the data is safe in the backing file, and the overlay may forget it.
    base.flush().map_err(ImageError::io(base.path(), "write"))?;
    let size = overlay.size();
    // Nothing of the tables is in memory any more when they are written to the file.
    overlay.flush().map_err(ImageError::io(overlay.path(), "write"))?;
    drop(overlay);
    empty::empty(file.file(), file.path(), &mut || say(progress, size, size, file.path()))?;
    Ok(Committed { written, grown })
}

fn check_overlay(overlay: &Image) -> Result<(), ImageError> {
    let unsupported =
        |reason: &str| Err(ImageError::Unsupported { path: overlay.path().into(), reason: reason.into() });
    if overlay.header().is_none_or(|header| header.backing.is_none()) {
        return unsupported("it has no backing file that its data could go to");
    }
    if !overlay.is_writable() {
        return Err(ImageError::ReadOnly { path: overlay.path().into() });
    }
    Ok(())
}

/// Data on its way.
struct Copy<'a> {
    overlay: &'a Image,
    base: &'a Image,
    progress: &'a mut dyn Progress,
    buffer: Vec<u8>,
    written: u64,
}

impl Copy<'_> {
    fn run(&mut self) -> Result<(), ImageError> {
        let (overlay, size) = (self.overlay, self.overlay.size());
        let mut at = 0;
        while at < size {
            let found = overlay.access().get_shallow_mapping(at, STEP.min(size - at));
            let (mapping, length) = found.map_err(ImageError::io(overlay.path(), "read"))?;
            if length == 0 {
                let problem = format!("it ends after {at} of {size} bytes");
                return Err(ImageError::Damaged { path: overlay.path().into(), problem });
            }
            match mapping {
                ShallowMapping::Raw { .. } | ShallowMapping::Special { .. } => self.data(at, length)?,
                ShallowMapping::Zero { explicit: true, .. } => {
                    self.base.write_zeroes(at, length).map_err(ImageError::io(self.base.path(), "write"))?;
                }
                // What the overlay does not have is in the backing file already.
                _ => {}
            }
            at += length;
            say(self.progress, at, size, overlay.path())?;
        }
        Ok(())
    }

    fn data(&mut self, start: u64, length: u64) -> Result<(), ImageError> {
        let granularity = match (self.base.format(), self.base.header()) {
            (Format::Qcow2, Some(header)) => header.cluster_size(),
            _ => RAW_GRANULARITY,
        };
        let (mut at, end) = (start, start.saturating_add(length));
        while at < end {
            let part = (PIECE as u64 - at % PIECE as u64).min(end - at);
            let buffer = self.buffer.get_mut(..usize::try_from(part).unwrap_or(PIECE)).unwrap_or_default();
            self.overlay.read_at(buffer, at).map_err(ImageError::io(self.overlay.path(), "read"))?;
            let (base, written) = (self.base, &mut self.written);
            runs(buffer, at, granularity, |offset, run, zero| {
                // A part of a cluster is cheaper written than made zero.
                if zero && run.len() as u64 >= granularity {
                    return base.write_zeroes(offset, run.len() as u64);
                }
                *written += run.len() as u64;
                base.write_at(run, offset)
            })
            .map_err(ImageError::io(base.path(), "write"))?;
            at += part;
            say(self.progress, at, self.overlay.size(), self.overlay.path())?;
        }
        Ok(())
    }
}

fn say(progress: &mut dyn Progress, done: u64, total: u64, path: &Path) -> Result<(), ImageError> {
    match progress.at(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ImageError::Interrupted { path: path.into() }),
    }
}
