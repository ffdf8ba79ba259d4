//! Checking an image: do the reference counts agree with the references, does every entry point into the file, and does nothing lie on
//! a table? Nothing is written. The verdict is that of `qemu-img check`.
//!
//! The image is hostile: tables are read only where the file holds data, each once, and memory grows with the size of the file.

mod counts;
mod l2;
pub(crate) mod layout;
mod report;
pub(crate) mod source;
mod walk;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;

pub use report::{Finding, Report, TableKind, Verdict};

use crate::{Format, ImageError, Progress};

/// Checks an image. `path` is for messages. The backing file is not looked at: it is an image of its own.
///
/// # Errors
///
/// If the file cannot be read, if its header contradicts itself, or if `progress` ends the work. An image that can be checked and is
/// damaged is no error: the [`Report`] says so.
pub fn check(
    file: &File,
    path: &Path,
    format: Format,
    progress: &mut dyn Progress,
) -> Result<Report, ImageError> {
    match format {
        Format::Raw => Ok(Report::raw()),
        Format::Qcow2 => {
            let source = source::Source::new(file, path)?;
            let layout = layout::Layout::read(&source)?;
            walk::Walk::new(&source, &layout)?.run(progress)
        }
    }
}
