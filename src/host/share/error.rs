//! Why a folder cannot be shared, in a sentence: where it was asked for, what is wrong with it, and what mends that.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use diskimage::shell_word;
use rustix::fs::Access;

use crate::host::closed::ClosedFolder;
use crate::shown::{path as shown, text as shown_text, toml};
use crate::spec::{GuestFolder, ShareOrigin, ShareSpec};

/// A folder that cannot be shared.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}{}", origin.name(path), cure(self))]
#[non_exhaustive]
pub struct ShareError {
    /// The folder.
    pub path: PathBuf,
    /// Where it was asked for.
    pub origin: ShareOrigin,
    /// What is wrong with it.
    pub fault: ShareFault,
}

/// What is wrong with a folder that cannot be shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareFault {
    /// It is not there.
    #[error("there is no such folder")]
    Missing,
    /// It is not there, and what stands in front of a colon in its path is a folder.
    #[error("there is no such folder, and {0}")]
    Colon(String),
    /// It is something else, or something on the way to it is.
    #[error("{}", no_folder(.0.as_deref()))]
    NoFolder(Option<PathBuf>),
    /// It is the kernel's.
    #[error(
        "it is no folder of files, but what the kernel shows of the host (`findmnt -T {0}`), which is not for a guest"
    )]
    Kernels(String),
    /// This user may not list it.
    #[error("{}", closed(.0.as_ref()))]
    Denied(Option<ClosedFolder>),
    /// Its links lead nowhere.
    #[error("symbolic links on the way to it lead round in a circle (`namei {0}`)")]
    Links(String),
    /// The host's kernel, or what it lets a program do, is too old.
    #[error(
        "a folder can be shared with Linux 5.6 or later only, in a container with a seccomp profile that lets openat2(2) through"
    )]
    NoOpenat2,
    /// There is no /proc.
    #[error(
        "a shared folder needs /proc, by which its files are opened; mount it with `mount -t proc proc /proc`"
    )]
    NoProc,
    /// Any other error.
    #[error("it cannot be opened: {0}")]
    Host(#[source] io::Error),
}

/// A path and a mount that were not written as they were meant.
#[derive(Debug)]
struct MountMistake {
    /// The folder in front of the colon.
    host: String,
    /// What is behind it.
    rest: String,
    mount: Option<GuestFolder>,
    way: Way,
}

/// How a share is written where it was asked for.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// In a machine's file.
    Keys,
    /// As one word of a command, whose options are behind commas; those in a path are doubled.
    Commas,
    /// As one word without such options.
    Colons,
}

impl From<&ShareOrigin> for Way {
    fn from(origin: &ShareOrigin) -> Self {
        match origin {
            ShareOrigin::File { .. } => Way::Keys,
            ShareOrigin::Option("--share") => Way::Commas,
            _ => Way::Colons,
        }
    }
}

impl ShareError {
    /// Refuses a folder that is not there or none, before a machine begins to start: the rest is found when it is opened.
    #[cfg(feature = "cli")]
    pub(crate) fn look_at(share: &ShareSpec) -> Result<(), Box<Self>> {
        match std::fs::metadata(&share.path) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Self::of(share, ShareFault::NoFolder(None))),
            Err(error) => Err(Self::new(share, error)),
        }
    }

    /// Refuses a folder that cannot be listed.
    #[cfg(feature = "cli")]
    pub(crate) fn look_into(share: &ShareSpec) -> Result<(), Box<Self>> {
        std::fs::read_dir(&share.path).map(drop).map_err(|error| Self::new(share, error))
    }

    /// What the host's `error` says of the folder of `share`.
    pub(super) fn new(share: &ShareSpec, error: io::Error) -> Box<Self> {
        Self::of(share, ShareFault::of(share, error))
    }

    pub(super) fn of(share: &ShareSpec, fault: ShareFault) -> Box<Self> {
        Box::new(ShareError { path: share.path.clone(), origin: share.origin.clone(), fault })
    }
}

impl ShareFault {
    fn of(share: &ShareSpec, error: io::Error) -> Self {
        let path = share.path.as_path();
        match error.kind() {
            io::ErrorKind::NotFound => match MountMistake::of(share) {
                Some(mistake) => ShareFault::Colon(mistake.to_string()),
                None => ShareFault::Missing,
            },
            io::ErrorKind::NotADirectory => {
                let no_folder = path.ancestors().skip(1).find(|part| part.exists() && !part.is_dir());
                ShareFault::NoFolder(no_folder.map(Path::to_owned))
            }
            io::ErrorKind::PermissionDenied => {
                ShareFault::Denied(ClosedFolder::find(path, Access::READ_OK | Access::EXEC_OK))
            }
            _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                ShareFault::Links(shell_word(path))
            }
            _ => ShareFault::Host(error),
        }
    }
}

impl MountMistake {
    /// Looks for a folder in front of a colon.
    fn of(share: &ShareSpec) -> Option<Self> {
        // What a guest has used was there, and `--root` has no mount.
        if share.origin.is_in_use() || matches!(share.origin, ShareOrigin::Option("--root")) {
            return None;
        }
        let text = share.path.to_str()?;
        let halves =
            text.rmatch_indices(':').filter_map(|(at, _)| Some((text.get(..at)?, text.get(at + 1..)?)));
        let (host, rest) = { halves }.find(|(host, _)| Path::new(host).is_dir())?;
        Some(MountMistake {
            host: host.into(),
            rest: rest.trim_matches(':').into(),
            mount: share.mount.clone(),
            way: Way::from(&share.origin),
        })
    }

    /// The host's folder with this mount, as it is written where it was asked for.
    fn with(&self, mount: &str) -> String {
        let host = match self.way {
            Way::Keys if mount.is_empty() => return format!("`path = {}`", toml(&self.host)),
            Way::Keys => return format!("`path = {}` and `mount = {}`", toml(&self.host), toml(mount)),
            Way::Commas => self.host.replace(',', ",,"),
            Way::Colons => self.host.clone(),
        };
        let word = if mount.is_empty() { host } else { format!("{host}:{mount}") };
        format!("`{}`", shell_word(Path::new(&word)))
    }
}

impl fmt::Display for MountMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = shown_text(&self.rest);
        match &self.mount {
            Some(mount) if self.rest.is_empty() => {
                write!(f, "there is a colon too many: write {}", self.with(mount.as_str()))
            }
            Some(mount) => write!(
                f,
                "a share has one mount, and `{rest}` and `{mount}` are two: write {} or {}",
                self.with(&absolute(&self.rest)),
                self.with(mount.as_str())
            ),
            None if self.rest.is_empty() => write!(
                f,
                "there is no mount behind the colon: write {} without one, or as in {}",
                self.with(""),
                self.with("/mnt/work")
            ),
            None if self.rest.starts_with('/') => {
                write!(f, "in a table the mount is a key of its own: write {}", self.with(&self.rest))
            }
            None => write!(
                f,
                "`{rest}` is no absolute path of the guest: write {}",
                self.with(&absolute(&self.rest))
            ),
        }
    }
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

fn no_folder(on_way: Option<&Path>) -> String {
    match on_way {
        Some(on_way) => format!("{}, which is on the way to it, is no folder", shown(on_way)),
        None => "it is no folder".to_owned(),
    }
}

fn closed(closed: Option<&ClosedFolder>) -> String {
    match closed {
        Some(closed) => closed.to_string(),
        None => "this user may not read it, and its permissions do not say why: a security module (AppArmor, SELinux) or its file server may \
                 forbid it"
            .to_owned(),
    }
}

/// What follows the fault.
fn cure(error: &ShareError) -> String {
    let ShareError { path, origin, fault } = error;
    let needs_this = origin.is_in_use();
    match fault {
        ShareFault::Missing | ShareFault::NoFolder(_) | ShareFault::Kernels(_) | ShareFault::Links(_)
            if needs_this =>
        {
            match (origin, fault) {
                (ShareOrigin::Received, _) => "; both hosts need it at the same path: mount it there".into(),
                (_, ShareFault::NoFolder(on_way)) => {
                    let file = shell_word(on_way.as_ref().unwrap_or(path));
                    format!(
                        "; move that away, as with `mv {file} {file}.old`, and put the folder back, or mount it again: the guest goes on \
                         with the files that were in it"
                    )
                }
                _ => "; put it back, or mount it again: the guest goes on with the files that were in it"
                    .into(),
            }
        }
        ShareFault::Missing => match origin {
            // A shell does not expand it in `--share=~/src`.
            ShareOrigin::Option(option) if path.starts_with("~") => {
                format!(
                    "; the shell has left `~` as it is: put a blank in place of `=` behind {option}, or write $HOME for it"
                )
            }
            _ => format!("; make it with `mkdir -p {}`, or name another", shell_word(path)),
        },
        ShareFault::NoFolder(None) => "; name a folder, such as the one that it is in".into(),
        ShareFault::Links(_) => "; mend one of them, or name the folder itself".into(),
        ShareFault::NoFolder(_) | ShareFault::Kernels(_) => "; name another".into(),
        ShareFault::Denied(_) if !needs_this => "; or name another folder".into(),
        ShareFault::Denied(_)
        | ShareFault::Colon(_)
        | ShareFault::NoOpenat2
        | ShareFault::NoProc
        | ShareFault::Host(_) => String::new(),
    }
}
