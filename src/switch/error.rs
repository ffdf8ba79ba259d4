//! Why there is no switch.

use std::io;
use std::path::PathBuf;

use super::command::End;
use crate::control::ClaimError;
use crate::host::forward::ForwardError;
use crate::host::lock::pid_clause;
use crate::shown::path as shown;
use crate::spec::{GuestForward, SwitchName};
use crate::{NetSocketError, TapError};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    /// Another process has the name.
    #[error(
        "a switch called {name} runs already{}; `minivmm switch show {name}` shows it, `minivmm switch stop {name}` ends it",
        pid_clause(.pid)
    )]
    Taken { name: SwitchName, pid: Option<u32> },
    /// The folder of its socket cannot be made.
    #[error("the folder {path} for the sockets of switches cannot be made: {source}; set XDG_RUNTIME_DIR to a folder of yours", path = shown(.path))]
    Folder { path: PathBuf, source: io::Error },
    /// Other users could replace its socket.
    #[error(
        "the folder {path} for the sockets of switches is not yours alone; make it so with `chown` and `chmod 700`, or remove \
         it", path = shown(.path)
    )]
    Shared { path: PathBuf },
    /// The path of its socket is too long for the kernel.
    #[error(
        "the socket {path} of the switch has a path of {length} bytes, and a Unix socket's has 107 at most; set \
         XDG_RUNTIME_DIR to a folder with a shorter path, or choose a shorter name", path = shown(.path)
    )]
    Long { path: PathBuf, length: usize },
    /// The host refused a file of its socket.
    #[error("cannot {action} {path}: {source}; it belongs to the socket of the switch", path = shown(.path))]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The socket of an uplink.
    #[error(transparent)]
    Socket(#[from] NetSocketError),
    /// A forward of an uplink.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A port of the host that a forward of an uplink cannot have.
    #[error(
        "cannot forward {asked}: {} {} is in use by {by}; take another port of the host, or 0 for any that is free \
         (`forward={cure}`)", asked.ports.protocol, asked.ports.bind()
    )]
    PortInUse { asked: GuestForward, by: String, cure: GuestForward },
    /// The network of an uplink.
    #[error("the network of the uplink user cannot be had: {0}")]
    Network(#[source] io::Error),
    /// Options that do not fit an uplink.
    #[error("the uplink {uplink} cannot be had: {reason}")]
    Uplink { uplink: String, reason: String },
    /// The host refused something else.
    #[error("the switch {name} cannot run: {source}")]
    Host { name: SwitchName, source: io::Error },
}

impl SwitchError {
    /// The error of a name that cannot be had.
    pub(crate) fn claim(name: &SwitchName, error: ClaimError) -> Self {
        match error {
            ClaimError::Taken { pid, .. } => SwitchError::Taken { name: name.clone(), pid },
            ClaimError::Folder { path, source } => SwitchError::Folder { path, source },
            ClaimError::Shared { path } => SwitchError::Shared { path },
            ClaimError::Long { path, length } => SwitchError::Long { path, length },
            ClaimError::Host { action, path, source } => SwitchError::File { action, path, source },
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Signal(number) => write!(f, "ended by signal {number}"),
            End::Stopped => f.write_str("stopped"),
            End::Unused => f.write_str("its last port has left"),
            End::NobodyCame => f.write_str("no machine came"),
            End::Failed => f.write_str("the host failed"),
        }
    }
}
