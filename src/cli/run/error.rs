//! Why a command could not be run at all.

use std::io;
use std::path::PathBuf;

use boot::cpio::CpioError;
use boot::modules::ModuleError;
use diskimage::shell_word;

use crate::cli::preflight::PreflightError;
use crate::cli::switch::EnsureError;
use crate::cli::warm::WarmError;
use crate::control::ClaimError;
use crate::host::share::ShareError;
use crate::machine::StartError;
use crate::shown::path as shown;
use crate::spec::{GuestFolder, MOST_SHARES, MemSize, SpecError};

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The options conflict.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A preflight check.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The start of the machine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The machine's name.
    #[error(transparent)]
    Name(#[from] ClaimError),
    /// A switch of its networks.
    #[error(transparent)]
    Switch(#[from] EnsureError),
    /// What cannot be kept.
    #[error(transparent)]
    Warm(#[from] WarmError),
    /// More ports than a guest can have beside those of `run`.
    #[error("{asked} ports were asked for, and beside those of `minivmm run` a guest can have {max}")]
    Ports {
        /// The number asked for.
        asked: usize,
        /// The maximum.
        max: usize,
    },
    /// No kernel was named, and the host's are missing or not readable.
    #[error(
        "no kernel was named, and {found}; name one with `--kernel FILE`, or a disk that has one with `--disk`"
    )]
    NoKernel {
        /// What /boot has.
        found: String,
    },
    /// More shared folders than a guest can have.
    #[error("a guest has {max} directories of the host at most, that of --root included, and these are {asked}; leave out one of them", max = MOST_SHARES)]
    Shares {
        /// The number asked for.
        asked: usize,
    },
    /// Many guests would have what one has seen.
    #[error("the guest of `--warm` has no folder of the host's: leave out --volume and --share, or --warm")]
    WarmShare,
    /// There is no terminal to type at.
    #[error(
        "-t and -i together are for what is typed at a terminal, and standard input is not one: leave out -t or -i"
    )]
    NoTerminal,
    /// The folder for the command's files cannot be made.
    #[error("--out {path}: {why}", path = shown(path))]
    Out {
        /// The folder.
        path: PathBuf,
        /// The reason, with its cure.
        why: String,
    },
    /// A file is there.
    #[error("--out {path} is a file; name a new directory", path = shown(.0))]
    OutIsFile(PathBuf),
    /// The directory that it would be in is missing.
    #[error("--out {path} cannot be made: there is no directory {parent}; make that first, with `mkdir -p {word}`", path = shown(path), parent = shown(parent), word = shell_word(parent))]
    OutNowhere {
        /// The folder.
        path: PathBuf,
        /// The one that it would be in.
        parent: PathBuf,
    },
    /// Something is there already.
    #[error("--out {path} is not empty; name a new directory, or remove what is in it", path = shown(.0))]
    OutNotEmpty(PathBuf),
    /// The guest could exchange it.
    #[error("--out {path} is in the directory {folder} of --{option}, where the guest can write: let the command write there, or name a directory for --out that is not in it", path = shown(path), folder = shown(folder))]
    OutInShare {
        /// The folder for the files.
        path: PathBuf,
        /// Which option names the other.
        option: &'static str,
        /// That one.
        folder: PathBuf,
    },
    /// It would be mounted over what the guest needs.
    #[error("{share} at {folder} would cover {what}; name another path of the guest, such as /mnt{folder}")]
    Covers {
        /// Where it was asked for, and the host's folder.
        share: String,
        /// The folder of the guest.
        folder: GuestFolder,
        /// What is there.
        what: &'static str,
    },
    /// It would be mounted in another one, which has no place for it.
    #[error("{share}:{folder} {why}")]
    NoPlace {
        /// Where it was asked for, and the host's folder.
        share: String,
        /// The folder of the guest.
        folder: GuestFolder,
        /// What is wrong there, and what helps.
        why: String,
    },
    /// A directory of the host that the guest cannot have.
    #[error(transparent)]
    Share(#[from] Box<ShareError>),
    /// A directory that is no kernel.
    #[error("--kernel {path} {what}", path = shown(path))]
    NotBuilt {
        /// The directory.
        path: PathBuf,
        /// What it is, and what helps.
        what: &'static str,
    },
    /// The kernel's modules are missing.
    #[error(
        "the drivers of Linux {release} are modules, and they are not there (looked for in {searched}); install the kernel's \
         package, or name the directory with `--modules DIR`"
    )]
    NoModules {
        /// The kernel's release.
        release: String,
        /// The folders that were searched.
        searched: String,
    },
    /// The folder that was named has no modules of this kernel.
    #[error("the directory {path} has no modules for Linux {release}: neither it nor {release} or lib/modules/{release} in it has a modules.dep or a kernel directory", path = shown(path))]
    NotModules {
        /// The folder.
        path: PathBuf,
        /// The kernel's release.
        release: String,
    },
    /// One driver is neither a module nor built in.
    #[error("Linux {release} cannot be used by `minivmm run`: {source}, and it is not built in")]
    NoDriver {
        /// The kernel's release.
        release: String,
        /// Which module.
        source: ModuleError,
    },
    /// The modules cannot be listed or read.
    #[error("cannot read the modules of Linux {release}: {reason}")]
    Modules {
        /// The kernel's release.
        release: String,
        /// The reason.
        reason: String,
    },
    /// There is none, or only one that needs libraries.
    #[error(
        "{found}; install it (Debian: apt-get install busybox-static), or give the guest's files with `--root DIR`"
    )]
    NoBusybox {
        /// What was found.
        found: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The folder has no shell, and the host no busybox.
    #[error(
        "--root {path} has no /bin/sh, and this host has no static busybox to run the command with; put a shell there, or \
         install busybox-static",
        path = shown(path)
    )]
    NoShell {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is larger than the guest's memory.
    #[error("--root {path} holds more than the guest's memory of {mem}: give it more than twice as much as is in the directory with `--mem`, or put what is large on a disk", path = shown(path))]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// The guest's memory.
        mem: MemSize,
    },
    /// A file does not fit the archive format.
    #[error("cannot make the initramfs: {0}")]
    Archive(#[from] CpioError),
    /// The host refused threads, or signals.
    #[error("the host refused {what}: {source}")]
    Host {
        /// What was refused.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}
