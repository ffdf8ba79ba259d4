//! Why the sockets of a network interface cannot be used. Each message ends with the cure.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::super::socket_file::SocketFault;
use crate::shown::path as shown;

/// Why the sockets of a network interface cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetSocketError {
    /// The path does not fit into the address of a socket.
    #[error(
        "the path of a network socket is too long: {path} (107 bytes at most); give a shorter one, for example below $XDG_RUNTIME_DIR",
        path = shown(.0)
    )]
    TooLong(PathBuf),
    /// The path is another kind of file.
    #[error("{path} is there already and is no socket; remove it, or give the network interface another path", path = shown(.0))]
    NoSocket(PathBuf),
    /// A program has it open.
    #[error(
        "another program uses the socket {path}, perhaps a second machine; give each network interface a socket of its own{cure}",
        path = shown(path)
    )]
    InUse {
        /// The path.
        path: PathBuf,
        /// Another cure.
        cure: &'static str,
    },
    /// The socket there is of the other kind.
    #[error("the socket {path} carries {is} and not {wanted}: use `--net {cure}`", path = shown(path))]
    OtherKind {
        /// The path.
        path: PathBuf,
        /// What it carries.
        is: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// The option to use.
        cure: &'static str,
    },
    /// Both ends are the same socket.
    #[error("{path} is named for both ends: give LOCAL and REMOTE two paths", path = shown(.0))]
    SamePath(PathBuf),
    /// The host refused.
    #[error("cannot use the network socket {path}: {source}{}", cure(.source), path = shown(path))]
    Host {
        /// The path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

impl NetSocketError {
    pub(super) fn host(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::InvalidInput => NetSocketError::TooLong(path.to_owned()),
            _ => NetSocketError::Host { path: path.to_owned(), source },
        }
    }

    /// `in_use` continues the sentence about a socket that another program has.
    pub(crate) fn fault(path: &Path, fault: SocketFault, in_use: &'static str) -> Self {
        match fault {
            SocketFault::NoSocket => NetSocketError::NoSocket(path.to_owned()),
            SocketFault::InUse => NetSocketError::InUse { path: path.to_owned(), cure: in_use },
            SocketFault::Host(source) => Self::host(path, source),
        }
    }
}

fn cure(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound => "; make its folder first (`mkdir -p`)",
        ErrorKind::PermissionDenied => {
            "; the socket and its folder must be yours, or its owner must let you write to it"
        }
        _ => "",
    }
}
