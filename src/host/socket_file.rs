//! A Unix socket that this process makes in the file system: for its owner only, removed on drop. A stale one, which nobody
//! has open any more, is replaced; nothing else is.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::identity::identity;
use super::socket_address::{SocketAddress, SocketKind, bind, connect_now, socket};

/// Why a socket could not be made.
#[derive(Debug)]
pub(crate) enum SocketFault {
    /// The path is another kind of file.
    NoSocket,
    /// A program has it open.
    InUse,
    /// The host refused.
    Host(io::Error),
}

/// The socket's place in the file system.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that another machine's socket is not removed.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Makes the socket at `path`. Its calls do not block; a stream socket listens.
    pub(crate) fn bind(path: &Path, kind: SocketKind) -> Result<(OwnedFd, SocketFile), SocketFault> {
        let address = SocketAddress::at(path).map_err(SocketFault::Host)?;
        remove_stale(path, &address)?;
        let socket = socket(kind).map_err(SocketFault::Host)?;
        bind(&socket, kind, &address).map_err(SocketFault::Host)?;
        let identity = fs::symlink_metadata(path).map(|file| identity(&file)).ok();
        Ok((socket, SocketFile { path: path.to_owned(), identity }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let here = fs::symlink_metadata(&self.path).map(|file| identity(&file)).ok();
        if here.is_some() && here == self.identity {
            // If this fails, the next machine replaces the socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path, address: &SocketAddress) -> Result<(), SocketFault> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketFault::Host(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(SocketFault::NoSocket),
        Ok(_) => {}
    }
    let connected = socket(SocketKind::Stream).and_then(|socket| connect_now(&socket, address));
    match connected {
        Ok(()) => Err(SocketFault::InUse),
        // A listener whose backlog is full (its process may be stopped), or a socket of another kind.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EPROTOTYPE)) => {
            Err(SocketFault::InUse)
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(SocketFault::Host)
        }
        Err(error) => Err(SocketFault::Host(error)),
    }
}
