//! A folder of the host that a guest mounts: the files behind [`virtio::fs`].
//!
//! Nothing outside of the folder is reachable. A name of the guest is one component without `/` and is never `..`; it is looked
//! up in the descriptor of its folder and no link is followed, by the host's kernel neither in the last place. Where several names are walked at
//! once, or a file is opened, openat2(2) gets RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. A second machine
//! that moves folders at the same time changes nothing of that. File systems that are mounted in the folder are shared too, but those
//! that are the kernel's own ([`mounts`]).
//!
//! What is known of a file is its name below its folder and its identity. Folders have a descriptor while they are in a bounded
//! cache, open files have one; any other is found again by its names, and must be the same file then.

mod attributes;
mod changes;
mod error;
mod files;
mod folders;
mod handles;
mod known;
mod listing;
mod locks;
mod mounts;
mod nodes;
mod open_files;
mod owners;
mod shared_folder;
mod space;
mod state;
mod sys;
mod table;
#[cfg(test)]
mod tests;
mod xattrs;

use std::sync::Arc;

use virtio::fs::{Answer, Errno, FileSystem};

pub use error::{ShareError, ShareFault};
pub(crate) use known::Known;
pub(crate) use shared_folder::SharedFolder;

use super::iovecs::IoVecs;
use handles::Handles;
use listing::Entries;
use locks::Locks;
use nodes::Nodes;

/// The files of one boot.
#[derive(Debug)]
struct Share {
    folder: Arc<SharedFolder>,
    nodes: Nodes,
    handles: Handles,
    entries: Entries,
    locks: Locks,
    vecs: IoVecs,
    /// The guest writes whole pages, which it reads before.
    collects_writes: bool,
}

impl SharedFolder {
    /// The file system for a boot, whose shares know so much together.
    pub(crate) fn file_system(self: &Arc<Self>, known: Arc<Known>) -> Box<dyn FileSystem> {
        Box::new(Share::new(self.clone(), known))
    }
}

/// The files of a folder as a guest has them. For the fuzzer.
///
/// # Errors
/// The folder cannot be shared.
#[doc(hidden)]
pub fn share_for_fuzzer(spec: &crate::spec::ShareSpec) -> Result<Box<dyn FileSystem>, Box<ShareError>> {
    Ok(SharedFolder::open(spec, 1)?.file_system(Arc::default()))
}

impl Share {
    fn new(folder: Arc<SharedFolder>, known: Arc<Known>) -> Self {
        Share {
            nodes: Nodes::new(&folder, known),
            handles: Handles::new(folder.limits.handles),
            entries: Entries::default(),
            locks: Locks::default(),
            vecs: IoVecs::default(),
            collects_writes: false,
            folder,
        }
    }

    /// One that knows nothing yet, in the same boot.
    fn anew(&self) -> Self {
        Self::new(self.folder.clone(), self.nodes.together.clone())
    }

    /// Refuses to open more than there may be.
    fn may_open(&self) -> Answer<()> {
        // A file with locks is open once more.
        if self.handles.len() + self.locks.files() < self.handles.most() { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Refuses what would change a share that is only read.
    fn may_write(&self) -> Answer<()> {
        if self.folder.options.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}

/// The host's error, for the guest.
fn errno(error: rustix::io::Errno) -> Errno {
    match Errno::new(error.raw_os_error()) {
        // This process has too many open files: none of the guest's doing.
        error if error == Errno::new(24) => Errno::NFILE,
        // The guest would not ask for anything of the kind again.
        Errno::NOSYS => Errno::NOTSUP,
        error => error,
    }
}
