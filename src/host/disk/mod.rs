//! The host's side of a disk: a raw image or a block device, and the engines that read and write it.
//!
//! [`DiskFile::open`] checks, locks and describes the file. [`OpenDisk`] is what a machine has of it;
//! [`OpenDisk::make_engine`] makes the event loop of a disk's thread: io_uring where the host offers it, positioned calls
//! otherwise.

mod block_device;
mod block_set;
mod copy;
mod current;
mod drive;
mod engine;
mod error;
mod exchange;
mod file;
mod flight;
mod format;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
mod hand_over;
mod helper;
mod holder;
mod layers;
mod live_copy;
mod loop_device;
mod mapped;
mod mover;
mod open;
mod open_disk;
mod reserved;
mod rest;
mod ring;
mod room;
mod sync;
mod transfer;
mod uring;
mod write_log;

#[cfg(test)]
mod tests;

pub(crate) use block_set::BlockSet;
pub(crate) use copy::{WrittenFile, base_of, copy_file, write_zeros};
pub(crate) use drive::{Drive, DriveError};
pub(crate) use engine::EngineKind;
pub use error::DiskError;
pub(crate) use exchange::{CutExchange, ExchangeMark, cut_exchange, has_mark, image_place, remove_mark};
pub(crate) use format::IMAGE_FORMATS;
#[cfg_attr(not(feature = "cli"), allow(unused_imports, reason = "migrations are the command's"))]
pub(crate) use hand_over::TakeBackError;
pub use holder::DiskHolder;
pub(crate) use holder::find as find_holder;
pub(crate) use live_copy::LiveCopy;
pub(crate) use loop_device::FilesBehind;
pub use mapped::RunningImage;
pub(crate) use open::{Access, lock, open_file, open_no_link};
pub(crate) use open_disk::{DiskBytes, OpenDisk};
pub(crate) use rest::DiskMark;
pub(crate) use room::free_space;
