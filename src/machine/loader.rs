//! Brings the kernel and the initrd into guest memory while the rest of the machine is being made.
//!
//! Reading some ten megabytes into fresh memory is the longest step before the guest runs, and none of the others
//! needs it. The work is cut at the huge pages of guest memory, so that no two threads fault in the same page, and each
//! takes the next piece: a helper thread from the time when it is known what to load, the building thread once it is done.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use boot::plan::Load;
use devices::thread::{self, Role};
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
    /// What is made as it is read, such as the bytes of an image that is not raw.
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

/// How long a helper that is not wanted any more may take for its last piece before it is left alone.
const LINGER: Duration = Duration::from_millis(500);

/// All the pieces, and how far the threads are.
#[derive(Debug)]
struct Loader {
    ram: Arc<GuestRam>,
    sources: Vec<Source>,
    /// With the index of its source.
    pieces: Vec<(usize, Load)>,
    next: AtomicUsize,
    /// Nobody wants the rest.
    stop: AtomicBool,
    progress: Progress,
}

impl Loader {
    fn new(ram: Arc<GuestRam>, sources: Vec<Source>, progress: Progress) -> Self {
        let cut = |(index, source): (usize, &Source)| {
            source.copies.iter().flat_map(cut).map(|piece| (index, piece)).collect::<Vec<_>>()
        };
        let pieces = sources.iter().enumerate().flat_map(cut).collect();
        Loader { ram, sources, pieces, next: AtomicUsize::new(0), stop: AtomicBool::new(false), progress }
    }

    /// Loads pieces until none is left to take.
    fn work(&self) -> Result<(), StartError> {
        while let Some((index, piece)) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let Some(source) = self.sources.get(*index) else { continue };
            if self.stop.load(Ordering::Relaxed) || self.progress.is_stopped() {
                return Err(read_error(&source.path, io::ErrorKind::Interrupted.into()));
            }
            self.progress.begin(source.step.clone());
            source.load(&self.ram, piece).map_err(|error| read_error(&source.path, error))?;
        }
        Ok(())
    }
}

/// A load under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Loading {
    loader: Arc<Loader>,
    /// `None` once it was waited for, or if there was nothing to load.
    helper: Option<JoinHandle<Result<(), StartError>>>,
    /// Closes when the helper is done. The lock makes it [`Sync`]; only the drop takes it.
    ended: Mutex<Receiver<()>>,
}

impl Loading {
    /// Has a thread begin to load, if there is anything to load.
    pub(super) fn begin(
        ram: &Arc<GuestRam>,
        sources: Vec<Source>,
        progress: &Progress,
    ) -> Result<Self, StartError> {
        let loader = Arc::new(Loader::new(ram.clone(), sources, progress.clone()));
        let ((end, ended), own) = (mpsc::channel(), loader.clone());
        let work = move || {
            let _end: Sender<()> = end;
            own.work()
        };
        // A saved machine's memory is mapped, and there is nothing to read.
        let helper = (!loader.pieces.is_empty()).then(|| thread::spawn(Role::Loader, "loader", work));
        let helper = helper.transpose().map_err(StartError::Thread)?;
        Ok(Loading { loader, helper, ended: Mutex::new(ended) })
    }

    /// Helps, and returns when all is loaded.
    pub(super) fn finish(mut self) -> Result<(), StartError> {
        let loaded = self.loader.work();
        if let Some(helper) = self.helper.take() {
            // A panic in the helper goes on here: half a kernel must not run.
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        loaded
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let Some(helper) = self.helper.take() else { return };
        self.loader.stop.store(true, Ordering::Relaxed);
        // A read may hang. The helper ends behind it.
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LINGER) == Err(RecvTimeoutError::Disconnected) {
            // A panic was printed when it happened.
            let _ = helper.join();
        }
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
    use boot::read::ReadAt;

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

    /// Bytes that come when they may.
    #[derive(Debug)]
    struct Slow(Mutex<Receiver<()>>);

    impl ReadAt for Slow {
        fn length(&self) -> io::Result<u64> {
            Ok(8 * PIECE)
        }

        fn read_at(&self, buf: &mut [u8], _: u64) -> io::Result<usize> {
            // The test's end lets all go.
            let _ = self.0.lock().unwrap().recv();
            buf.fill(7);
            Ok(buf.len())
        }
    }

    #[test]
    fn a_load_that_nobody_wants_ends_and_does_not_wait_for_a_read_that_hangs() {
        let (let_go, waits) = mpsc::channel();
        let copies = vec![Load { file_offset: 0, guest: 0, len: 8 * PIECE }];
        let origin = ByteSource::Made(Arc::new(Slow(Mutex::new(waits))));
        let source = Source { path: "slow".into(), origin, copies, step: "reading".into() };
        let ram = Arc::new(GuestRam::new(&[(0, 8 * PIECE)]).unwrap());
        drop(Loading::begin(&ram, vec![source], &Progress::default()).unwrap());
        drop(let_go);
        // The helper has the other reference until its piece is read.
        while Arc::strong_count(&ram) > 1 {
            std::thread::yield_now();
        }
        let mut last = [9; 4];
        ram.memory().read_slice(&mut last, GuestAddress(7 * PIECE)).unwrap();
        assert_eq!(last, [0; 4], "it loads no further piece");
    }
}
