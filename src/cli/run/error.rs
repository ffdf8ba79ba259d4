//! Why a command could not be run at all.

use std::io;
use std::path::PathBuf;

use boot::cpio::CpioError;
use boot::modules::ModuleError;

use crate::cli::preflight::PreflightError;
use crate::control::ClaimError;
use crate::machine::StartError;
use crate::spec::{MemSize, SpecError};

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The options do not fit each other.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What is known before the machine is made.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The machine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its name, or the socket of that name.
    #[error(transparent)]
    Name(#[from] ClaimError),
    /// More ports than fit beside those of `run`.
    #[error("{asked} ports were asked for, and beside those of `minivmm run` a guest can have {max}")]
    Ports {
        /// As many.
        asked: usize,
        /// The most.
        max: usize,
    },
    /// No kernel was named, and the host's are not there or not readable.
    #[error(
        "no kernel was named, and {found}; name one with `--kernel FILE`, or a disk that has one with `--disk`"
    )]
    NoKernel {
        /// What /boot has.
        found: String,
    },
    /// The kernel's modules are not to be found.
    #[error(
        "the drivers of Linux {release} are modules, and they are not there (looked for in {looked}); install the kernel's \
         package, or name the directory with `--modules DIR`"
    )]
    NoModules {
        /// The kernel.
        release: String,
        /// Where.
        looked: String,
    },
    /// The folder that was named is none, or has none.
    #[error("the directory {path} has no modules for Linux {release}: neither it nor {release} or lib/modules/{release} in it has a modules.dep or a kernel directory", path = path.display())]
    NotModules {
        /// What was named.
        path: PathBuf,
        /// The kernel.
        release: String,
    },
    /// They are, but this one is not among them.
    #[error("Linux {release} cannot be used by `minivmm run`: {source}, and it is not built in")]
    NoDriver {
        /// The kernel.
        release: String,
        /// Which module.
        source: ModuleError,
    },
    /// They cannot be listed, or one cannot be read.
    #[error("cannot read the modules of Linux {release}: {said}")]
    Modules {
        /// The kernel.
        release: String,
        /// Why.
        said: String,
    },
    /// There is none, or only one that needs libraries.
    #[error(
        "{found}; install it (Debian: apt-get install busybox-static), or give the guest's files with `--root DIR`"
    )]
    NoBusybox {
        /// What is wrong.
        found: String,
    },
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there and no folder.
    #[error("--root {path} is no directory; name the one that holds the guest's /bin, /lib and so on", path = path.display())]
    NoFolder {
        /// What was named.
        path: PathBuf,
    },
    /// No program of the folder could run the command.
    #[error(
        "--root {path} has no /bin/sh, and this host has no static busybox to run the command with; put a shell there, or \
         install busybox-static",
        path = path.display()
    )]
    NoShell {
        /// The folder.
        path: PathBuf,
    },
    /// It holds more than the guest has memory.
    #[error("--root {path} holds more than the guest's memory of {mem}: give it more than twice as much as is in the directory with `--mem`, or put what is large on a disk", path = path.display())]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// What the guest has.
        mem: MemSize,
    },
    /// Something in it does not fit the format.
    #[error("cannot make the initramfs: {0}")]
    Archive(#[from] CpioError),
    /// The host refused threads, or signals.
    #[error("the host refused {what}: {source}")]
    Host {
        /// Which.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}
