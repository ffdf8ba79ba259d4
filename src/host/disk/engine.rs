//! Chooses the engine of a disk.

use std::io;
use std::sync::Arc;

use virtio::block::AnyEngine;
use virtio::worker::MakePoller;

use super::file::DiskFile;
use super::helper::Helper;
use super::sync::SyncEngine;
use super::uring::UringEngine;

/// The engine of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// The best that the host offers.
    #[default]
    Best,
    /// io_uring, or an error.
    Uring,
    /// Positioned calls on the disk's thread.
    Sync,
}

#[cfg(test)]
impl EngineKind {
    /// All engines.
    pub(super) const ALL: [Self; 2] = [EngineKind::Uring, EngineKind::Sync];
}

/// Makes an engine for `file`. Call it on the thread that uses it.
///
/// # Errors
/// The host has no file descriptor left, or does not offer this engine.
pub(super) fn engine(file: Arc<DiskFile>, kind: EngineKind) -> io::Result<AnyEngine> {
    if kind != EngineKind::Sync {
        match UringEngine::new(vec![file.clone()]) {
            Ok(mut engine) => {
                // io_uring has no operation for a device's discards.
                if file.discards_by_ioctl() && file.discard.is_some() {
                    helper("space", &file).map_or(Ok(()), |space| engine.discard_on(space))?;
                }
                return Ok(Box::new(engine));
            }
            Err(error) if kind == EngineKind::Uring => return Err(error),
            Err(error) => {
                log::info!("disks are served without io_uring, which this host does not give: {error}")
            }
        }
    }
    let helper = |what| if file.read_only { None } else { helper(what, &file) };
    let (space, flush) = (helper("space"), helper("flush"));
    Ok(Box::new(SyncEngine::new(vec![file], space, flush)?))
}

/// A thread for operations that take long. Made together with the engine, so that an error is reported at the
/// start.
fn helper(what: &str, file: &Arc<DiskFile>) -> Option<Helper> {
    Helper::new(what, file.clone())
        .inspect_err(|error| {
            log::warn!("a disk's reads wait for its discards or flushes, which can have no thread of their own: {error}");
        })
        .ok()
}

/// [`engine`] as a closure, for a worker to call on its thread.
pub(super) fn make_engine(file: Arc<DiskFile>, kind: EngineKind) -> MakePoller<AnyEngine> {
    Box::new(move || engine(file, kind))
}
