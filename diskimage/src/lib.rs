//! Images of disks in files: raw and qcow2, overlays on backing files, and the work on images that no machine uses.
//!
//! The crate owns the formats. It opens no path by itself: an [`Opener`] does, which knows what a user allowed, and locks what it
//! opens. What an image says is hostile: it is checked before it is believed, and costs bounded work.

mod format;
mod progress;

pub use format::{Format, UnknownFormat};
pub use progress::{NoProgress, Progress};
