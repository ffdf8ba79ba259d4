//! The host's side of a disk: a raw image or a block device, and the engines that read and write it.
//!
//! [`DiskFile::open`] checks, locks and describes the file; [`make_engine`] makes the event loop of a disk's
//! thread: io_uring where the host offers it, positioned calls otherwise.

mod engine;
mod error;
mod file;
mod flight;
mod format;
mod helper;
mod holder;
mod loop_device;
mod open;
mod ring;
mod room;
mod sync;
mod transfer;
mod uring;

#[cfg(test)]
mod tests;

pub(crate) use engine::{EngineKind, make_engine};
pub use error::DiskError;
pub(crate) use file::DiskFile;
pub(crate) use format::IMAGE_FORMATS;
pub use holder::DiskHolder;
pub(crate) use open::Access;
pub(crate) use room::free_space;
