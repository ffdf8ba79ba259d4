//! Why a machine has no port of a switch. Each message ends with the cure.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::shown::path as shown;
use crate::spec::SwitchName;

/// Why a machine has no port of a switch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchPortError {
    /// There is none of this name.
    #[error("no switch {0} runs; start it with `minivmm switch {0}`")]
    NoSwitch(SwitchName),
    /// The path does not fit into the address of a socket.
    #[error(
        "the path of the switch {name} is too long for a socket: {path} (107 bytes at most); choose a shorter name, or set \
         XDG_RUNTIME_DIR to a folder with a shorter path", path = shown(path)
    )]
    TooLong {
        /// The switch.
        name: SwitchName,
        /// The socket.
        path: PathBuf,
    },
    /// The socket is another user's, who could read and change all frames.
    #[error(
        "the switch {name} at {path} belongs to another user (uid {user}): a machine uses switches of its own user and of root",
        path = shown(path)
    )]
    OtherUser {
        /// The switch.
        name: SwitchName,
        /// The socket.
        path: PathBuf,
        /// Its user.
        user: u32,
    },
    /// The answer is none of a switch.
    #[error(
        "the program that listens on {path} is no switch of minivmm: {reason}; end it, or choose another name for the switch",
        path = shown(path)
    )]
    NotASwitch {
        /// The socket.
        path: PathBuf,
        /// What it said.
        reason: &'static str,
    },
    /// The switch gives no port.
    #[error("the switch {name} gives no port: {reason}")]
    Refused {
        /// The switch.
        name: SwitchName,
        /// Its sentence.
        reason: String,
    },
    /// There is no answer.
    #[error(
        "the switch {0} does not answer: its process is stopped, or the host is overloaded; end it with `minivmm switch stop {0}`"
    )]
    Silent(SwitchName),
    /// The host refused.
    #[error("cannot attach to the switch {name}: {source}{}", cure(.source))]
    Host {
        /// The switch.
        name: SwitchName,
        /// The host's error.
        source: io::Error,
    },
}

impl SwitchPortError {
    pub(in crate::host) fn host(name: &SwitchName, source: io::Error) -> Self {
        SwitchPortError::Host { name: name.clone(), source }
    }

    /// The error of an attempt to reach the socket at `path`.
    pub(super) fn unreachable(name: &SwitchName, path: &Path, source: io::Error) -> Self {
        match (source.kind(), source.raw_os_error()) {
            (ErrorKind::InvalidInput, _) => {
                SwitchPortError::TooLong { name: name.clone(), path: path.to_owned() }
            }
            (_, Some(libc::EPROTOTYPE)) => {
                SwitchPortError::NotASwitch { path: path.to_owned(), reason: "its socket takes datagrams" }
            }
            (ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::ConnectionRefused, _) => {
                SwitchPortError::NoSwitch(name.clone())
            }
            _ => Self::host(name, source),
        }
    }

    /// Whether a machine that waits for its switch says it: a switch that is away, or has no time just now, is no news.
    pub(in crate::host) fn is_worth_a_warning(&self) -> bool {
        match self {
            SwitchPortError::NoSwitch(_) => false,
            SwitchPortError::Host { source, .. } => source.kind() != ErrorKind::WouldBlock,
            _ => true,
        }
    }
}

fn cure(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied => "; a switch is its user's alone: start the machine as that user",
        _ if source.raw_os_error() == Some(libc::EMFILE) => "; raise `ulimit -n`",
        _ => "",
    }
}
