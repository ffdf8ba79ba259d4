//! Images of disks in files: raw and qcow2, overlays on backing files, and the work on images that no machine uses.
//!
//! The crate owns the formats. It opens no path by itself: an [`Opener`] does, which locks what it opens; which names an image may
//! have opened is decided here, from what the user allowed. What an image says is hostile: it is checked before it is believed,
//! and costs bounded work.

mod backing;
mod chain;
mod check;
mod commit;
mod convert;
mod create;
mod entries;
mod error;
mod format;
mod header;
mod held;
mod holes;
mod image;
mod layout;
mod opener;
mod order;
mod progress;
mod reader;
mod space;
mod storage;
mod tables;
mod words;

pub use imago;

pub use chain::{Layer, MOST_LAYERS};
pub use check::{Finding, Report, TableKind, Verdict, check};
pub use commit::{Committed, commit};
pub use convert::{ConvertOptions, Converted, convert};
pub use create::{CreateOptions, Preallocate, create};
pub use error::ImageError;
pub use format::{Format, UnknownFormat};
pub use header::{Backing, Compression, Encryption, Features, Header, set_backing_name};
pub use held::{Commit, HeldWrites, Punched, flush_failed};
pub use image::Image;
pub use opener::{Access, ImageOptions, Opener, UnlockedOpener};
pub use progress::{NoProgress, Progress};
pub use storage::ImageFile;
pub use words::{is_unprintable, name as printable_name, shell as shell_word};
