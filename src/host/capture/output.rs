//! Where a capture goes: a new file, an earlier capture, a FIFO that Wireshark reads, or standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::lock::{self, Kind};
use super::pcapng;

/// Most bytes that a pipe takes without a wait once poll(2) reports room (PIPE_BUF, pipe(7)).
const PIPE_BUF: usize = 4096;

/// What a capture is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptureTarget {
    /// A file or a FIFO.
    File(PathBuf),
    /// Standard output.
    Standard,
}

impl std::fmt::Display for CaptureTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CaptureTarget::File(path) => path.display().fmt(f),
            CaptureTarget::Standard => f.write_str("standard output"),
        }
    }
}

/// Why frames cannot be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The path is no regular file.
    #[error(
        "cannot capture to {}: it is no regular file and no FIFO; give the name of a new file",
        .0.display()
    )]
    NoFile(PathBuf),
    /// The file is something else.
    #[error(
        "cannot capture to {}: the file is there already and is no capture; remove it, or give the name of a new file",
        .0.display()
    )]
    NoCapture(PathBuf),
    /// Another capture writes to it.
    #[error("cannot capture to {}: another capture writes to it; give each interface a file of its own", .0.display())]
    InUse(PathBuf),
    /// Standard output is a terminal.
    #[error(
        "cannot capture to the terminal: send it to a program (`-w - | wireshark -k -i -`), or give the name of a file"
    )]
    Terminal,
    /// The host refused.
    #[error("cannot capture to {target}: {source}{}", cure(.source))]
    Host {
        /// Where it was to go.
        target: CaptureTarget,
        /// The host's error.
        source: io::Error,
    },
}

impl CaptureError {
    pub(super) fn host(target: &CaptureTarget, source: io::Error) -> Self {
        CaptureError::Host { target: target.clone(), source }
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

impl Output {
    /// Opens `target`: a new file is its owner's alone, an earlier capture is replaced, anything else is left alone.
    pub(super) fn open(target: &CaptureTarget) -> Result<Self, CaptureError> {
        let host = |source| CaptureError::host(target, source);
        let path = match target {
            CaptureTarget::File(path) => path,
            CaptureTarget::Standard => return standard().map_err(host)?.ok_or(CaptureError::Terminal),
        };
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_fifo() => return Ok(Output::Fifo(path.clone())),
            Ok(file) if !file.is_file() => return Err(CaptureError::NoFile(path.clone())),
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
            return Err(CaptureError::NoFile(path.clone()));
        }
        if !lock::try_lock(&file, Kind::Exclusive).map_err(host)? {
            return Err(CaptureError::InUse(path.clone()));
        }
        if !is_capture(&mut file).map_err(host)? {
            return Err(CaptureError::NoCapture(path.clone()));
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(host)?;
        Ok(Output::File(file))
    }

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

/// Standard output, without a change of its flags, which other processes share; `None` for a terminal.
fn standard() -> io::Result<Option<Output>> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Ok(None);
    }
    let file = File::from(stdout.as_fd().try_clone_to_owned()?);
    let is_file = file.metadata()?.is_file();
    Ok(Some(if is_file { Output::File(file) } else { Output::Stream(file) }))
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
