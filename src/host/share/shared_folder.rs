//! What a machine has of a shared folder from its start to its end: an open folder and how it is shared.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use diskimage::shell_word;
use rustix::fs::{Access, Mode, OFlags};
use virtio::fs::{Caching, Errno};

use super::attributes::{Identity, stat_of};
use super::error::{ShareError, ShareFault};
use super::folders::open_beneath;
use super::mounts::{Devtmpfs, is_kernels, keeps_births, tells_at_close};
use crate::host::file_system::magic;
use crate::host::lock::{group, user};
use crate::host::open_files;
use crate::host::proc_path::proc_path;
use crate::spec::{ShareCache, ShareLocks, ShareOwner, ShareSpec};

/// How it is shared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) read_only: bool,
    pub(super) caching: Caching,
    pub(super) owner: ShareOwner,
    /// Locks of the guest are the host's too.
    pub(super) has_locks: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SharedFolder {
    pub(super) root: Arc<OwnedFd>,
    pub(super) identity: Identity,
    pub(super) options: Options,
    /// User and group of this process, who own what the guest makes.
    pub(super) user: u32,
    pub(super) group: u32,
    /// Permissions that this process takes from new files.
    pub(super) umask: u32,
    /// Its file system knows for ever when a file was made.
    pub(super) keeps_births: bool,
    /// It tells at close(2) only what became of writes.
    pub(super) tells_at_close: bool,
    pub(super) devtmpfs: Devtmpfs,
    pub(super) limits: Limits,
    /// In a sentence.
    pub(super) name: String,
}

/// What a guest can use up at most, by one share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Files and folders that it has open.
    pub(super) handles: usize,
    /// Folders that are kept open for the names in them.
    pub(super) folders: usize,
}

impl Limits {
    /// Of one of `count` shares in a process that may have `files` open: half of these at most, and a good tenth for folders, so that the rest
    /// of the machine has what it needs.
    pub(super) fn of(count: usize, files: usize) -> Self {
        let count = count.max(1);
        Limits {
            // Those of all shares fit into the state of a saved machine.
            handles: (files / (2 * count).max(4)).clamp(8, (1 << 16) / count),
            folders: (files / (8 * count).max(16)).clamp(4, 512),
        }
    }
}

impl SharedFolder {
    /// Opens the folder of `spec`, one of `count` that its machine shares.
    ///
    /// # Errors
    /// [`ShareError`], with its cure.
    pub(crate) fn open(spec: &ShareSpec, count: usize) -> Result<Arc<Self>, Box<ShareError>> {
        let path = spec.path.as_path();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let told = |error: rustix::io::Errno| ShareError::new(spec, error.into());
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(told)?;
        // What every look-up goes by: a guest that hears ENOSYS never asks again.
        match open_beneath(&root, b".", OFlags::PATH, Mode::empty()) {
            Ok(_) => {}
            Err(Errno::NOTSUP | Errno::PERM) => return Err(ShareError::of(spec, ShareFault::NoOpenat2)),
            Err(error) => return Err(told(rustix::io::Errno::from_raw_os_error(error.raw()))),
        }
        if rustix::fs::access(proc_path(&root), Access::EXISTS).is_err() {
            return Err(ShareError::of(spec, ShareFault::NoProc));
        }
        let found = stat_of(&root).map_err(told)?;
        let magic = magic(&root).map_err(told)?;
        let devtmpfs = Devtmpfs::new();
        if is_kernels(magic, Identity::of(&found).device, &devtmpfs) {
            return Err(ShareError::of(spec, ShareFault::Kernels(shell_word(path))));
        }
        let caching = match spec.cache.unwrap_or_default() {
            ShareCache::Auto => Caching::Auto,
            ShareCache::Always => Caching::Always,
            ShareCache::Never => Caching::Never,
        };
        let options = Options {
            read_only: spec.read_only,
            caching,
            owner: spec.owner.unwrap_or_default(),
            has_locks: spec.locks == Some(ShareLocks::Host),
        };
        let mut folder = SharedFolder {
            identity: Identity::of(&found),
            root: Arc::new(root),
            options,
            user: user(),
            group: group(),
            umask: umask(),
            keeps_births: keeps_births(magic),
            tells_at_close: tells_at_close(magic),
            limits: Limits::of(count, open_files::limit()),
            devtmpfs,
            name: spec.origin.name(path),
        };
        // With the births that it goes by.
        folder.identity = folder.identify(&found);
        Ok(Arc::new(folder))
    }
}

/// The process's umask, which umask(2) tells only by changing it.
fn umask() -> u32 {
    let text = File::open("/proc/self/status").and_then(io::read_to_string).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
