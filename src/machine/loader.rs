//! Brings the kernel and the initrd into guest memory while the rest of the machine is being made.
//!
//! Reading some ten megabytes into fresh memory is the longest step before the guest runs, and none of the others
//! needs it. The work is cut at the huge pages of guest memory, so that no two threads fault in the same page, and
//! whoever has time takes the next piece: a helper thread from the start, the building thread once it is done.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use boot::plan::Load;
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use super::deadline::Progress;
use super::files::BootFile;
use super::run_resources::Image;
use crate::kvm::memory::GuestRam;

/// Pieces end at multiples of this in guest memory.
const PIECE: u64 = 2 << 20;
/// What is not in one file goes through a buffer of this size: guest memory is never a slice.
const BUFFER: usize = 256 << 10;

/// Where bytes come from.
#[derive(Debug, Clone)]
pub(super) enum ByteSource {
    /// A file, read straight into guest memory.
    File(Arc<File>),
    /// What is made as it is read.
    Made(Arc<dyn Image>),
}

/// A file and what of it goes where.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    origin: ByteSource,
    copies: Vec<Load>,
    /// What loading it is called.
    step: Arc<str>,
}

impl Source {
    /// A file on a guest's disk comes from where it lies in the image, with nothing in between.
    pub(super) fn new(file: &BootFile, copies: &[Load]) -> Self {
        let step = format!("reading {file}").into();
        Source { path: file.name(), origin: file.origin(), copies: file.located(copies), step }
    }

    /// The contents of a saved machine's memory.
    pub(super) fn memory(file: Arc<File>, copies: Vec<Load>) -> Self {
        let step = "reading the saved memory".into();
        Source { path: "the saved memory".into(), origin: ByteSource::File(file), copies, step }
    }

    fn load(&self, ram: &GuestRam, piece: &Load) -> io::Result<()> {
        match &self.origin {
            ByteSource::File(file) => ram.load(file, piece.file_offset, piece.guest, piece.len),
            ByteSource::Made(image) => {
                let mut buffer = vec![0; BUFFER];
                let mut done = 0;
                while done < piece.len {
                    let now = usize::try_from(piece.len - done).map_or(BUFFER, |left| left.min(BUFFER));
                    let bytes = buffer.get_mut(..now).unwrap_or_default();
                    if image.read_at(bytes, piece.file_offset + done)? < now {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let at = GuestAddress(piece.guest + done);
                    ram.memory().write_slice(bytes, at).map_err(io::Error::other)?;
                    done += now as u64;
                }
                Ok(())
            }
        }
    }
}

/// All the pieces, and how far the threads are.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    pieces: Vec<(&'a Source, Load)>,
    next: AtomicUsize,
    progress: &'a Progress,
}

impl<'a> Loader<'a> {
    pub(super) fn new(sources: &'a [Source], progress: &'a Progress) -> Self {
        let pieces = sources
            .iter()
            .flat_map(|source| source.copies.iter().flat_map(cut).map(move |piece| (source, piece)))
            .collect();
        Loader { pieces, next: AtomicUsize::new(0), progress }
    }

    /// Loads pieces until none is left to take.
    pub(super) fn work(&self, ram: &GuestRam) -> Result<(), StartError> {
        while let Some((source, piece)) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.progress.is_stopped() {
                return Err(read_error(&source.path, io::ErrorKind::Interrupted.into()));
            }
            self.progress.begin(source.step.clone());
            source.load(ram, piece).map_err(|error| read_error(&source.path, error))?;
        }
        Ok(())
    }
}

fn read_error(path: &Path, source: io::Error) -> StartError {
    StartError::Read { path: path.to_owned(), source }
}

fn cut(copy: &Load) -> impl Iterator<Item = Load> + use<> {
    let Load { file_offset, guest, len } = *copy;
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = guest + done;
        let piece = (PIECE - at % PIECE).min(len - done);
        let copy = Load { file_offset: file_offset + done, guest: at, len: piece };
        done += piece;
        Some(copy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_copy_once_and_end_at_huge_pages() {
        let copy = Load { file_offset: 20480, guest: 0x100_3000, len: 14 << 20 };
        let pieces: Vec<_> = cut(&copy).collect();
        let mut at = (copy.file_offset, copy.guest);
        for piece in &pieces {
            assert_eq!((piece.file_offset, piece.guest), at);
            at = (piece.file_offset + piece.len, piece.guest + piece.len);
            assert!(at.1.is_multiple_of(PIECE) || at.1 == copy.guest + copy.len);
        }
        assert_eq!(at.1, copy.guest + copy.len);
        assert_eq!(pieces.len(), 8);
    }
}
