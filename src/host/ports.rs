//! The sockets of a machine's named ports: made before its first boot, removed after its last.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use virtio::console::{Backend, SocketBackend};

use super::socket_address::SocketKind;
use super::socket_file::{SocketFault, SocketFile};
use crate::shown::path as shown;
use crate::spec::PortName;

/// Why the socket of a port could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The path is another kind of file.
    #[error(
        "cannot make the socket of port {name}: {path} is there already and is no socket; remove it, or give another path with `--port`",
        path = shown(path)
    )]
    NoSocket {
        /// The port.
        name: String,
        /// The path of the socket.
        path: PathBuf,
    },
    /// A program listens there.
    #[error(
        "cannot make the socket of port {name}: another program listens on {path}, perhaps a second machine; give each machine a socket of its own",
        path = shown(path)
    )]
    InUse {
        /// The port.
        name: String,
        /// The path of the socket.
        path: PathBuf,
    },
    /// The host refused.
    #[error("cannot make the socket of port {name} at {path}: {source}{}", cure(.source), path = shown(path))]
    Host {
        /// The port.
        name: String,
        /// The path of the socket.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

fn cure(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound => "; make its folder first (`mkdir -p`)",
        ErrorKind::PermissionDenied => "; choose a path in a folder that is yours",
        _ => "",
    }
}

/// A port's socket, removed on drop.
#[derive(Debug)]
pub(crate) struct PortSocket {
    backend: SocketBackend,
    /// A client of the socket talks to a program in the guest.
    _file: SocketFile,
}

impl PortSocket {
    /// Makes the socket `path` for the port `name`. A stale socket is replaced.
    pub(crate) fn open(name: &PortName, path: &Path) -> Result<Self, PortError> {
        let (name, path) = (name.to_string(), path.to_path_buf());
        let host = |source| PortError::Host { name: name.clone(), path: path.clone(), source };
        let (socket, file) = SocketFile::bind(&path, SocketKind::Stream).map_err(|fault| match fault {
            SocketFault::NoSocket => PortError::NoSocket { name: name.clone(), path: path.clone() },
            SocketFault::InUse => PortError::InUse { name: name.clone(), path: path.clone() },
            SocketFault::Host(source) => host(source),
        })?;
        let backend = SocketBackend::new(UnixListener::from(socket)).map_err(host)?;
        Ok(PortSocket { backend, _file: file })
    }

    /// A backend for the device of one boot.
    pub(crate) fn backend(&self) -> Box<dyn Backend> {
        Box::new(self.backend.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    fn open(path: &Path) -> Result<PortSocket, PortError> {
        PortSocket::open(&"agent".parse().unwrap(), path)
    }

    #[test]
    fn socket_is_its_owners_alone_and_goes_with_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let socket = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn socket_of_a_dead_machine_is_replaced_and_that_of_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = open(&path).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, PortError::InUse { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn socket_whose_owner_takes_no_clients_does_not_hold_up_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let owner = UnixListener::bind(&path).unwrap();
        // SAFETY: takes and gives numbers. The shortest backlog, which one client fills.
        assert_eq!(unsafe { libc::listen(owner.as_raw_fd(), 0) }, 0);
        let _waits = UnixStream::connect(&path).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, PortError::InUse { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn file_in_the_place_of_the_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, "precious").unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, PortError::NoSocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = open(&folder.path().join("no/such/folder")).unwrap_err();
        assert!(error.to_string().ends_with("make its folder first (`mkdir -p`)"), "{error}");
    }

    #[test]
    fn socket_that_is_another_machines_by_now_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let first = open(&path).unwrap();
        // The file is kept under another name, so that its inode is not reused.
        fs::rename(&path, folder.path().join("old")).unwrap();
        let _second = open(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
