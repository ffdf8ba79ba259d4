//! Why a machine cannot be what its spec says.

use std::io;
use std::path::PathBuf;

use super::{InterfaceName, MacAddress, MemSize, PortName};

/// Why there is no usable [`Spec`](super::Spec).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The machine has neither a kernel nor a disk to find one on.
    #[error(
        "no kernel was named, and there is no disk to find one on; give the disk of a guest with `--disk vm0.raw`, \
         or a kernel with `--kernel /boot/vmlinuz-VERSION`"
    )]
    NoKernel,
    /// The file cannot be read.
    #[error("the machine's file {path} cannot be read", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file is not TOML, or not a machine's.
    #[error("{path}, line {line}: {message}", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, from 1 on.
        line: usize,
        /// What is wrong there and what may stand there.
        message: String,
    },
    /// A version of the format that is not known.
    #[error(
        "version {found} of the format of a machine's description is not known here; this minivmm reads version {known}: use \
         the minivmm that wrote it, or describe the machine with `version = {known}`",
        known = super::SpecVersion::CURRENT.get()
    )]
    Version {
        /// The version that was found.
        found: u32,
    },
    /// A path that TOML cannot hold, TOML being UTF-8.
    #[error("this machine cannot be written as TOML; its paths must be UTF-8")]
    Unwritable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// More devices of a kind than a machine has places for.
    #[error("{asked} times `{flag}` were given, and a machine has {max} at most")]
    TooMany {
        /// The option.
        flag: &'static str,
        /// How many were asked for.
        asked: usize,
        /// How many there can be.
        max: usize,
    },
    /// The same image twice, and somebody would write to it.
    #[error(
        "the disk {path} was given twice, and a guest that writes to a disk under two names destroys it; \
         give it once, or both times with `,ro`", path = path.display()
    )]
    DiskTwice {
        /// The image.
        path: PathBuf,
    },
    /// The same TAP twice.
    #[error("the TAP {0} was given twice; each network interface needs a TAP of its own")]
    TapTwice(InterfaceName),
    /// The same address twice.
    #[error("two network interfaces have the MAC address {0}; give one of them another with `,mac=ADDRESS`")]
    MacTwice(MacAddress),
    /// The same name twice.
    #[error("two ports are called {0}; give each a name of its own")]
    PortTwice(PortName),
    /// The same socket twice.
    #[error("two ports have the socket {path}; give each a socket of its own", path = path.display())]
    SocketTwice {
        /// The socket.
        path: PathBuf,
    },
    /// A path that no socket can have.
    #[error(
        "the path of the socket {path} is longer than a socket's can be ({max} bytes); give a shorter one, \
         such as a relative one", path = path.display(), max = super::check::SOCKET_PATH_MAX
    )]
    SocketPath {
        /// The socket.
        path: PathBuf,
    },
    /// The balloon would leave the guest nothing.
    #[error("a balloon of {balloon} leaves a guest of {mem} no memory; give it less with `--balloon`")]
    Balloon {
        /// What was asked for.
        balloon: super::BalloonSize,
        /// What the guest has.
        mem: MemSize,
    },
}
