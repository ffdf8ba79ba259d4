//! Who opens the files of an image, and what may be opened.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{Format, ImageError};

/// How a file is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Access {
    /// For writing too: nobody else may have the file open. Else others may read it, and none may write to it.
    pub write: bool,
    /// The user named this path. Else an image did, and the last part of the path must not be a symbolic link.
    pub named: bool,
}

impl Access {
    /// Access to a file that the user named.
    pub fn named(write: bool) -> Self {
        Access { write, named: true }
    }
}

/// Opens what an image consists of. Implementations lock what they open; they decide nothing about names, which was done before.
pub trait Opener {
    /// Opens a file or a block device.
    fn open(&mut self, path: &Path, access: Access) -> Result<File, ImageError>;
}

/// What the user says about an image.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ImageOptions {
    /// The format of the top file.
    pub format: Format,
    /// Open the top file for writing.
    pub write: bool,
    /// Backing files that may be opened, beside those in the folder of the image that names them.
    pub backing: Vec<PathBuf>,
}

impl ImageOptions {
    /// Options for an image of a format.
    pub fn new(format: Format) -> Self {
        ImageOptions { format, ..Self::default() }
    }

    /// The image is to be written too.
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Backing files that may be opened in other folders.
    pub fn backing(mut self, backing: Vec<PathBuf>) -> Self {
        self.backing = backing;
        self
    }
}

/// An opener without locks: for files that nobody else knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnlockedOpener;

impl Opener for UnlockedOpener {
    fn open(&mut self, path: &Path, access: Access) -> Result<File, ImageError> {
        let no_links = if access.named { 0 } else { libc::O_NOFOLLOW };
        // Opening a named pipe would wait for its other end.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | no_links;
        let opened = OpenOptions::new().read(true).write(access.write).custom_flags(flags).open(path);
        opened.map_err(ImageError::io(path, "open"))
    }
}
