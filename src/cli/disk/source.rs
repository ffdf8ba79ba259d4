//! Opens the images that a verb reads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use diskimage::{Format, Image, ImageOptions, Verdict};

use super::error::DiskVerbError;
use super::progress::Bar;
use super::{SourceArgs, format_of};
use crate::host::disk::IMAGE_FORMATS;
use crate::host::disk_image::ImageOpener;

/// Bytes that formats are known by.
const HEAD: usize = 512;

/// What is said of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    /// The format, if it is said.
    pub(super) format: Option<Format>,
    /// The flag that says it.
    pub(super) flag: &'static str,
    /// Images below it that may be in another folder.
    pub(super) backing: &'a [PathBuf],
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a Path, args: &'a SourceArgs) -> Self {
        Source { path, format: args.format, flag: "--format", backing: &args.backing }
    }

    /// How to open it.
    pub(super) fn options(self) -> ImageOptions {
        ImageOptions::new(format_of(self.format, self.path)).backing(self.backing.to_vec())
    }

    /// Opens and locks it, with all images below.
    pub(super) fn open(self, write: bool, opener: &mut ImageOpener) -> Result<Image, DiskVerbError> {
        self.open_file(write, opener)?;
        Ok(Image::open(self.path, &self.options().write(write), opener)?)
    }

    /// Refuses an image whose metadata have errors: of one that was cut off, clusters would read as zeros, and a change of the image
    /// could hide that they are missing.
    pub(super) fn refuse_errors(self, bar: &mut Bar) -> Result<(), DiskVerbError> {
        let format = format_of(self.format, self.path);
        if format == Format::Raw {
            return Ok(());
        }
        let file = self.open_file(false, &mut ImageOpener::default())?;
        let report = diskimage::check(&file, self.path, format, bar).map_err(|error| bar.failed(error))?;
        match report.verdict() {
            Verdict::Corrupt => {
                Err(DiskVerbError::Errors { path: self.path.into(), errors: report.corruptions })
            }
            _ => Ok(()),
        }
    }

    /// Opens and locks the file alone.
    ///
    /// What is raw only because nothing says another format is no raw image if it begins like another one: a copy or another size
    /// would not be what was meant.
    pub(super) fn open_file(self, write: bool, opener: &mut ImageOpener) -> Result<File, DiskVerbError> {
        let file = opener.open_disk(self.path, write)?;
        match begins_like(&file) {
            Some(like) if self.format.is_none() && format_of(None, self.path) == Format::Raw => {
                Err(DiskVerbError::LooksLike { path: self.path.into(), like, flag: self.flag })
            }
            _ => Ok(file),
        }
    }
}

/// The format that the first bytes are of, with its article. A guest can write them on a raw disk.
pub(super) fn begins_like(file: &File) -> Option<&'static str> {
    let mut head = [0; HEAD];
    let read = file.read_at(&mut head, 0).ok()?;
    let head = head.get(..read)?;
    let is_at = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    IMAGE_FORMATS.iter().find(|(at, magic, _)| is_at(*at, magic)).map(|(_, _, name)| *name)
}
