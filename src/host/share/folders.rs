//! Descriptors of folders, a bounded number of them: one that is gone is opened again by its names.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, Statx};
use virtio::fs::{Answer, Errno};

use super::attributes::{Identity, stat_at, stat_of};
use super::errno;
use super::nodes::{ROOT, Slot};
use super::{Share, SharedFolder};

/// Longest path for one call: `PATH_MAX` less its zero.
const LONGEST_PATH: usize = 4095;

/// Opens beneath `folder`, without following any link. EAGAIN is the kernel's word for a race with a rename.
pub(super) fn open_beneath(folder: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> Answer<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut left = 8;
    loop {
        left -= 1;
        match rustix::fs::openat2(&folder, OsStr::from_bytes(path), flags, mode, resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if left > 0 => {}
            // A link where there was none, or a way out of the folder.
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => return Err(Errno::STALE),
            result => return result.map_err(errno),
        }
    }
}

/// The error for a file that is known: its name is another file's now or nobody's, and Linux looks it up again.
pub(super) fn gone(error: Errno) -> Errno {
    match error {
        Errno::NOENT | Errno::NOTDIR => Errno::STALE,
        error => error,
    }
}

impl Share {
    /// The descriptor of a folder, for the names in it.
    pub(super) fn folder(&mut self, slot: Slot) -> Answer<Arc<OwnedFd>> {
        if slot == ROOT {
            return Ok(self.folder.root.clone());
        }
        let file = self.nodes.get_mut(slot)?;
        if let Some(open) = &file.folder {
            let open = open.clone();
            file.is_recent = true;
            return Ok(open);
        }
        if !file.identity.is_folder() {
            return Err(Errno::NOTDIR);
        }
        let identity = file.identity;
        let names = self.nodes.names(slot)?;
        let opened = match walk(&self.folder, &names) {
            // The cache may have what the process lacks.
            Err(Errno::NFILE) if self.nodes.close_folders(1) => walk(&self.folder, &self.nodes.names(slot)?),
            opened => opened,
        };
        let opened = opened.map_err(gone)?;
        self.known_stat(&opened, identity)?;
        let opened = Arc::new(opened);
        self.nodes.keep_open(slot, opened.clone());
        Ok(opened)
    }

    /// The folder that a file lies in, and the file's name in it. The root has none.
    pub(super) fn place(&mut self, slot: Slot) -> Answer<(Arc<OwnedFd>, Box<[u8]>)> {
        if slot == ROOT {
            return Err(Errno::INVAL);
        }
        let file = self.nodes.get(slot)?;
        let (parent, name) = (file.parent, file.name.clone());
        Ok((self.folder(parent)?, name))
    }

    /// A descriptor of a file that has its name still, for the kernel's link to it alone (O_PATH), and its attributes. Of a link it
    /// is the link's.
    pub(super) fn known_file(&mut self, slot: Slot) -> Answer<(OwnedFd, Statx)> {
        let identity = self.nodes.get(slot)?.identity;
        let (folder, name) = self.place(slot)?;
        let file = open_beneath(&folder, &name, OFlags::PATH, Mode::empty()).map_err(gone)?;
        let stat = self.known_stat(&file, identity)?;
        Ok((file, stat))
    }

    /// The attributes of what was opened by a name, which must be the file that had it, and one that the guest may use.
    fn known_stat(&self, opened: &OwnedFd, identity: Identity) -> Answer<Statx> {
        let stat = stat_of(opened).map_err(errno)?;
        if self.folder.identify(&stat) != identity {
            return Err(Errno::STALE);
        }
        self.may_use(opened, &stat)?;
        Ok(stat)
    }

    /// Where a file has its name still.
    pub(super) fn known_place(&mut self, slot: Slot) -> Answer<(Arc<OwnedFd>, Box<[u8]>)> {
        let identity = self.nodes.get(slot)?.identity;
        let (folder, name) = self.place(slot)?;
        let stat = stat_at(&folder, &name).map_err(errno).map_err(gone)?;
        if self.folder.identify(&stat) == identity { Ok((folder, name)) } else { Err(Errno::STALE) }
    }

    /// What the host says of a file that is known: of the one at its name if that is still the same, or of an open one.
    pub(super) fn stat(&mut self, slot: Slot) -> Answer<Statx> {
        let file = self.nodes.get(slot)?;
        let identity = file.identity;
        if slot == ROOT {
            return stat_of(&self.folder.root).map_err(errno);
        }
        if let Some(folder) = &file.folder {
            return stat_of(folder).map_err(errno);
        }
        let found = match self.place(slot) {
            Ok((folder, name)) => stat_at(folder, &name).map_err(errno),
            Err(error) => Err(error),
        };
        match found {
            Ok(stat) if self.folder.identify(&stat) == identity => Ok(stat),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => {
                let open = self.any_open(slot).ok_or(Errno::STALE)?;
                stat_of(open).map_err(errno)
            }
            Err(error) => Err(error),
        }
    }

    /// The descriptor of a file that the guest has open.
    pub(super) fn any_open(&self, slot: Slot) -> Option<Arc<OwnedFd>> {
        let handles = &self.nodes.get(slot).ok()?.handles;
        handles.iter().rev().find_map(|handle| self.handles.at(*handle)?.fd.clone())
    }
}

/// Opens the folder at `names`; no link is followed in any of them.
fn walk(folder: &SharedFolder, names: &[&[u8]]) -> Answer<OwnedFd> {
    let (mut at, mut path): (Option<OwnedFd>, Vec<u8>) = (None, Vec::new());
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut open = |path: &mut Vec<u8>| -> Answer<()> {
        let base = at.as_ref().map_or(folder.root.as_fd(), AsFd::as_fd);
        let next = open_beneath(base, path, flags, Mode::empty())?;
        path.clear();
        at = Some(next);
        Ok(())
    };
    for name in names {
        if path.len() + 1 + name.len() > LONGEST_PATH {
            open(&mut path)?;
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(*name);
    }
    open(&mut path)?;
    at.ok_or(Errno::STALE)
}

impl super::nodes::Nodes {
    /// Keeps a folder's descriptor, and closes that of another if there are too many.
    fn keep_open(&mut self, slot: Slot, folder: Arc<OwnedFd>) {
        while self.open.len() >= self.most_open {
            self.close_folders(1);
        }
        if let Ok(file) = self.get_mut(slot) {
            (file.folder, file.is_recent) = (Some(folder), true);
            self.open.push_back(slot);
        }
    }

    /// Closes so many folders that were not used for long; false if there are none.
    pub(super) fn close_folders(&mut self, count: usize) -> bool {
        let mut closed = 0;
        // Each is passed once at most: the second time it is not recent.
        while closed < count {
            let Some(slot) = self.open.pop_front() else { break };
            let Ok(file) = self.get_mut(slot) else { continue };
            if std::mem::replace(&mut file.is_recent, false) {
                self.open.push_back(slot);
            } else {
                file.folder = None;
                closed += 1;
            }
        }
        closed > 0
    }
}
