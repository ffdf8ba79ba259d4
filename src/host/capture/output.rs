//! Where a capture goes: a new file, an earlier capture, or a FIFO that Wireshark reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::lock::Kind;
use super::super::lock_soon::lock_soon;
use super::pcapng;
use crate::shown::path as shown;

/// Most bytes that a pipe takes without a wait once poll(2) reports room (PIPE_BUF, pipe(7)).
const PIPE_BUF: usize = 4096;

/// Why frames cannot be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The path is no regular file.
    #[error(
        "cannot capture to {}: it is no regular file and no FIFO; give the name of a new file",
        shown(.0)
    )]
    NoFile(PathBuf),
    /// The file is something else.
    #[error(
        "cannot capture to {}: the file is there already and is no capture; remove it, or give the name of a new file",
        shown(.0)
    )]
    NoCapture(PathBuf),
    /// Another capture writes to it.
    #[error("cannot capture to {}: another capture writes to it; give each capture a file of its own", shown(.0))]
    InUse(PathBuf),
    /// The host refused.
    #[error("cannot capture to {}: {source}{}", shown(path), cure(.source))]
    Host {
        /// Where it was to go.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

impl CaptureError {
    pub(super) fn host(path: &Path, source: io::Error) -> Self {
        CaptureError::Host { path: path.to_owned(), source }
    }
}

fn cure(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound => "; make its folder first (`mkdir -p`)",
        ErrorKind::PermissionDenied => "; choose a path in a folder that is yours",
        _ => "",
    }
}

/// The open output. Only its thread uses it.
#[derive(Debug)]
pub(super) enum Output {
    /// Writes to a file take no wait.
    File(File),
    /// A FIFO without a reader so far.
    Fifo(PathBuf),
    /// Bytes for another process.
    Stream(File),
}

/// An output that is open, and as it was: what may fail has been done.
#[derive(Debug)]
pub(crate) struct CaptureFile {
    path: PathBuf,
    /// `None`: a FIFO.
    file: Option<File>,
}

impl CaptureFile {
    /// Opens a file: a new one is its owner's alone, an earlier capture may be replaced, anything else is left alone.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub(crate) fn open(path: &Path) -> Result<Self, CaptureError> {
        let host = |source| CaptureError::host(path, source);
        let opened = |file| CaptureFile { path: path.to_owned(), file };
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_fifo() => return Ok(opened(None)),
            Ok(file) if !file.is_file() => return Err(CaptureError::NoFile(path.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(host(error)),
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // What is there may have changed since.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(host)?;
        if !file.metadata().map_err(host)?.is_file() {
            return Err(CaptureError::NoFile(path.to_owned()));
        }
        if !lock_soon(&file, Kind::Exclusive).map_err(host)? {
            return Err(CaptureError::InUse(path.to_owned()));
        }
        if !is_capture(&mut file).map_err(host)? {
            return Err(CaptureError::NoCapture(path.to_owned()));
        }
        Ok(opened(Some(file)))
    }

    /// As [`CaptureFile::begin`], for a writer that may wait: for the reader of a FIFO, and for its room.
    pub(crate) fn begin_blocking(self) -> Result<File, CaptureError> {
        let path = self.path.clone();
        let host = |source| CaptureError::host(&path, source);
        match self.begin()? {
            Output::File(file) | Output::Stream(file) => Ok(file),
            Output::Fifo(path) => {
                OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(host)
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins: an earlier capture is gone.
    pub(super) fn begin(self) -> Result<Output, CaptureError> {
        let CaptureFile { path, file } = self;
        let Some(mut file) = file else { return Ok(Output::Fifo(path)) };
        match file.set_len(0).and_then(|()| file.rewind()) {
            Ok(()) => Ok(Output::File(file)),
            Err(source) => Err(CaptureError::host(&path, source)),
        }
    }
}

impl Output {
    /// Writes `bytes` in whole or in part; waits for room for `limit` at most. 0: there is none.
    pub(super) fn write(&mut self, bytes: &[u8], limit: Duration) -> io::Result<usize> {
        match self {
            Output::File(file) => file.write(bytes),
            Output::Fifo(path) => match open_fifo(path) {
                Ok(file) => {
                    *self = Output::Stream(file);
                    self.write(bytes, limit)
                }
                // No reader.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                    std::thread::park_timeout(limit);
                    Ok(0)
                }
                Err(error) => Err(error),
            },
            Output::Stream(file) => {
                if !has_room(file, limit)? {
                    return Ok(0);
                }
                match file.write(bytes.get(..PIPE_BUF).unwrap_or(bytes)) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
                    written => written,
                }
            }
        }
    }
}

fn open_fifo(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.file_type().is_fifo() { Ok(file) } else { Err(ErrorKind::InvalidInput.into()) }
}

/// Whether a file is empty, or a capture by its first bytes.
fn is_capture(file: &mut File) -> io::Result<bool> {
    let mut start = [0; 4];
    match file.read_exact(&mut start) {
        Ok(()) => Ok(u32::from_ne_bytes(start) == pcapng::SECTION_HEADER),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(file.metadata()?.len() == 0),
        Err(error) => Err(error),
    }
}

/// Whether a write will take bytes, or fail, within `limit`.
fn has_room(file: &File, limit: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one pollfd, valid across the call.
    match unsafe { libc::poll(&raw mut poll, 1, limit) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        count => Ok(count > 0),
    }
}
