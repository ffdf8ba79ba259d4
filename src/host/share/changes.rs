//! Changes of what the host knows of a file: size, permissions, times, and the owner where it is kept.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use virtio::fs::{Answer, Change, Errno, OpenMode, SetTime};

use super::attributes::{KIND, LINK, PRIVILEGES, SET_GROUP, stat_of};
use super::nodes::{ROOT, Slot};
use super::owners::Override;
use super::{Share, errno};
use crate::host::proc_path::proc_path;

impl Share {
    pub(super) fn set_mode(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>, mode: u32) -> Answer<()> {
        let identity = self.nodes.get(slot)?.identity;
        // A set-group-id folder of the host's stays one as long as the guest does not take that from it: it gives no rights.
        let passes_group = identity.is_folder()
            && mode & SET_GROUP != 0
            && u32::from(self.stat(slot)?.stx_mode) & SET_GROUP != 0;
        let kept = if passes_group { SET_GROUP } else { 0 };
        let mode = Mode::from_raw_mode(self.permissions(mode, identity.is_folder()) | kept);
        if let Some(open) = handle.cloned().or_else(|| self.any_open(slot)) {
            return rustix::fs::fchmod(open, mode).map_err(errno);
        }
        match slot {
            ROOT => rustix::fs::fchmod(&self.folder.root, mode).map_err(errno),
            _ if identity.kind == LINK => Err(Errno::NOTSUP),
            _ => {
                let (file, _) = self.known_file(slot)?;
                rustix::fs::chmod(proc_path(&file), mode).map_err(errno)
            }
        }
    }

    pub(super) fn set_size(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>, size: u64) -> Answer<()> {
        if let Some(open) = handle {
            return rustix::fs::ftruncate(open, size).map_err(errno);
        }
        let mode = OpenMode { write: true, ..OpenMode::default() };
        rustix::fs::ftruncate(self.open_node(slot, mode)?, size).map_err(errno)
    }

    pub(super) fn set_times(
        &mut self,
        slot: Slot,
        handle: Option<&Arc<OwnedFd>>,
        change: &Change,
    ) -> Answer<()> {
        let time = |time: Option<SetTime>| match time {
            None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            Some(SetTime::At(at)) => Timespec { tv_sec: at.seconds, tv_nsec: at.nanos.into() },
        };
        let times = Timestamps { last_access: time(change.atime), last_modification: time(change.mtime) };
        if let Some(open) = handle.cloned().or_else(|| self.any_open(slot)) {
            return rustix::fs::futimens(open, &times).map_err(errno);
        }
        let (folder, name) = match slot {
            ROOT => (self.folder.root.clone(), b".".as_slice().into()),
            _ => self.known_place(slot)?,
        };
        let name = OsStr::from_bytes(&name);
        rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
    }

    /// Owner and permissions where they are kept in an attribute.
    pub(super) fn set_override(&mut self, slot: Slot, change: &Change) -> Answer<()> {
        // What cannot be read is not written over.
        let before = self.kept(slot)?;
        let stat = self.stat(slot)?;
        let attr = self.folder.attr(&stat, before);
        let mode = change.mode.unwrap_or(attr.mode & !KIND);
        let keeps = !change.drops_privileges || change.mode.is_some();
        let owned = Override {
            uid: change.uid.unwrap_or(attr.uid),
            gid: change.gid.unwrap_or(attr.gid),
            mode: if keeps { mode } else { without_privileges(mode) },
        };
        if (owned.uid, owned.gid, owned.mode) == (attr.uid, attr.gid, attr.mode & !KIND) {
            return Ok(());
        }
        self.keep_override(slot, owned)
    }

    /// The bits that give a program of the guest its owner's rights go, as somebody else has changed it.
    pub(super) fn drop_privileges(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>) -> Answer<()> {
        if self.keeps_owners() {
            return self.set_override(slot, &Change { drops_privileges: true, ..Change::default() });
        } else if self.folder.user != 0 {
            // The host's kernel does it to whoever is not root.
            return Ok(());
        }
        let stat = match handle {
            Some(file) => stat_of(file).map_err(errno)?,
            None => self.stat(slot)?,
        };
        let mode = u32::from(stat.stx_mode);
        if without_privileges(mode) == mode { Ok(()) } else { self.set_mode(slot, handle, mode) }
    }
}

/// Set-group-id without permission to execute is no privilege (`S_ISGID` in inode(7)).
fn without_privileges(mode: u32) -> u32 {
    mode & !if mode & 0o010 == 0 { 0o4000 } else { PRIVILEGES }
}
