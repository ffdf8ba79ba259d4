//! Which engine serves a disk.

use std::io;
use std::sync::Arc;

use virtio::block::AnyEngine;
use virtio::worker::MakePoller;

use super::file::DiskFile;
use super::sync::SyncEngine;
use super::uring::UringEngine;

/// How a disk is read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// The best that the host has.
    #[default]
    Best,
    /// io_uring, or an error.
    Uring,
    /// Positioned calls on the disk's thread.
    Sync,
}

#[cfg(test)]
impl EngineKind {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [EngineKind::Uring, EngineKind::Sync];
}

/// An engine on `file`. To be made on the thread that uses it.
///
/// # Errors
/// The host has no file descriptor left, or not the engine that was asked for.
pub(super) fn engine(file: Arc<DiskFile>, kind: EngineKind) -> io::Result<AnyEngine> {
    if kind != EngineKind::Sync {
        match UringEngine::new(file.clone()) {
            Ok(engine) => return Ok(Box::new(engine)),
            Err(error) if kind == EngineKind::Uring => return Err(error),
            Err(error) => {
                log::info!("disks are served without io_uring, which this host does not give: {error}")
            }
        }
    }
    Ok(Box::new(SyncEngine::new(file)?))
}

/// As [`engine`], for a worker to call on its thread.
pub(crate) fn make_engine(file: Arc<DiskFile>, kind: EngineKind) -> MakePoller<AnyEngine> {
    Box::new(move || engine(file, kind))
}
