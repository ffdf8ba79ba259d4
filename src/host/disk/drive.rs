//! What a disk of a machine is in. The disk in a removable drive can be taken out and replaced while engines serve it.
//!
//! Each engine of such a drive is a [`DriveEngine`] around that of the disk in it. It exchanges it on its own thread, when nothing
//! is in flight: so the file of a disk that was taken out is closed, and its lock given back, as soon as the host has ended the
//! last request, and no request ever reaches another disk than the one it was meant for.

mod engine;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use virtio::block::AnyEngine;
use virtio::worker::MakePoller;
use vmm_sys_util::eventfd::EventFd;

use super::engine::EngineKind;
use super::file::DiskFile;
use super::open_disk::OpenDisk;
use super::write_log::{DiskWriteLog, LogReader, LoggedEngine};
use engine::DriveEngine;

/// See the module.
#[derive(Debug)]
pub(crate) struct Drive {
    is_removable: bool,
    contents: Mutex<Contents>,
    /// How often the disk was exchanged. Written with the contents locked.
    changes: AtomicU64,
    /// Wake the engines.
    bells: Mutex<Vec<Weak<EventFd>>>,
    log: Arc<DiskWriteLog>,
}

#[derive(Debug)]
struct Contents {
    medium: Arc<Medium>,
    /// Disconnected once nothing holds the disk any more that was in it before.
    last: Option<Receiver<()>>,
    /// The same of the one in it.
    present: Receiver<()>,
}

/// The disk in a drive, or what an empty drive has in its place: a disk of no sectors. It is open as long as this lives.
#[derive(Debug)]
pub(crate) struct Medium {
    disk: OpenDisk,
    path: Option<PathBuf>,
    /// Dropped behind the disk.
    _held: Sender<()>,
}

/// Why a disk was not taken out or put in.
#[derive(Debug)]
pub(crate) enum DriveError {
    /// It is for good.
    Fixed,
    /// There is none.
    Empty,
    /// There is one.
    Full(PathBuf),
    /// The host has not ended the requests to the one that was taken out.
    InFlight,
    /// The host.
    Io(io::Error),
}

impl Medium {
    fn new(disk: OpenDisk, path: Option<PathBuf>) -> (Arc<Self>, Receiver<()>) {
        let (held, present) = mpsc::channel();
        (Arc::new(Medium { disk, path, _held: held }), present)
    }

    /// The path that it was opened by; `None` if the drive is empty.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Its engine, for the thread that calls this.
    fn engine(&self, kind: EngineKind) -> io::Result<AnyEngine> {
        // Nothing is ever asked of an empty one.
        let kind = if self.path.is_some() { kind } else { EngineKind::Sync };
        self.disk.make_engine(kind)()
    }
}

impl Deref for Medium {
    type Target = OpenDisk;

    fn deref(&self) -> &OpenDisk {
        &self.disk
    }
}

impl Drive {
    /// With a disk that was opened by `path`.
    pub(crate) fn new(disk: OpenDisk, path: impl Into<PathBuf>, is_removable: bool) -> Self {
        let (medium, present) = Medium::new(disk, Some(path.into()));
        let contents = Mutex::new(Contents { medium, last: None, present });
        Drive {
            is_removable,
            contents,
            changes: AtomicU64::new(0),
            bells: Mutex::default(),
            log: Arc::default(),
        }
    }

    /// What is in it.
    pub(crate) fn medium(&self) -> Arc<Medium> {
        self.contents().medium.clone()
    }

    /// Makes an engine, on the thread that calls what this returns.
    pub(crate) fn make_engine(self: &Arc<Self>, kind: EngineKind) -> MakePoller<AnyEngine> {
        if !self.is_removable {
            let (medium, log) = (self.medium(), self.log.clone());
            let make = medium.make_engine(kind);
            if medium.is_read_only() {
                return make;
            }
            return Box::new(move || Ok(Box::new(LoggedEngine::new(make()?, log))));
        }
        // Nothing of it is ever written.
        let drive = self.clone();
        Box::new(move || Ok(Box::new(DriveEngine::new(drive, kind)?)))
    }

    /// Logs from now on what is written to the first `len` bytes of the disk, what is in flight included, as long as the reader lives. One
    /// at a time.
    pub(super) fn log_writes(&self, len: u64) -> LogReader {
        self.log.begin(len)
    }

    /// Takes the disk out: what is asked of it from now on fails. It is closed once [`Drive::is_released`].
    pub(crate) fn eject(&self) -> Result<(), DriveError> {
        if !self.is_removable {
            return Err(DriveError::Fixed);
        }
        let empty = OpenDisk::Raw(Arc::new(DiskFile::none().map_err(DriveError::Io)?));
        let mut contents = self.contents();
        if contents.medium.path.is_none() {
            return Err(DriveError::Empty);
        }
        let (medium, present) = Medium::new(empty, None);
        contents.last = Some(std::mem::replace(&mut contents.present, present));
        self.exchange(contents, medium);
        Ok(())
    }

    /// Puts a disk, which was opened by `path`, into the empty drive.
    pub(crate) fn insert(&self, disk: OpenDisk, path: PathBuf) -> Result<(), DriveError> {
        self.can_insert()?;
        let mut contents = self.contents();
        let (medium, present) = Medium::new(disk, Some(path));
        contents.present = present;
        self.exchange(contents, medium);
        Ok(())
    }

    /// Puts another disk in the place of the one in it, opened by the same path, between two boots: no engine serves it.
    pub(crate) fn replace(&self, disk: OpenDisk) {
        let mut contents = self.contents();
        let (medium, present) = Medium::new(disk, contents.medium.path.clone());
        contents.present = present;
        self.exchange(contents, medium);
    }

    /// Whether a disk can be put in now.
    pub(crate) fn can_insert(&self) -> Result<(), DriveError> {
        if !self.is_removable {
            return Err(DriveError::Fixed);
        }
        let path = self.contents().medium.path.clone();
        match path {
            Some(path) => Err(DriveError::Full(path)),
            None if self.is_released(Duration::ZERO) => Ok(()),
            None => Err(DriveError::InFlight),
        }
    }

    /// Waits until nothing holds the disk that was taken out, for `limit` at most. One caller at a time.
    pub(crate) fn is_released(&self, limit: Duration) -> bool {
        // Not with the contents locked: engines look at them.
        let Some(last) = self.contents().last.take() else { return true };
        let released = matches!(last.recv_timeout(limit), Err(RecvTimeoutError::Disconnected));
        if !released {
            self.contents().last = Some(last);
        }
        released
    }

    fn exchange(&self, mut contents: MutexGuard<'_, Contents>, medium: Arc<Medium>) {
        let old = std::mem::replace(&mut contents.medium, medium);
        self.changes.fetch_add(1, Ordering::AcqRel);
        drop(contents);
        // The last close of a file may take long.
        drop(old);
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| bell.upgrade().is_some_and(|bell| bell.write(1).is_ok()));
    }

    fn present(&self) -> (Arc<Medium>, u64) {
        let contents = self.contents();
        (contents.medium.clone(), self.changes.load(Ordering::Acquire))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
