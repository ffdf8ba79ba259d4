//! Changes of what the host knows of a file: size, permissions, times, and the owner where it is kept.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use virtio::fs::{Answer, Change, Errno, OpenMode, SetTime};

use super::attributes::{KIND, LINK, PRIVILEGES, stat_of};
use super::folders::open_beneath;
use super::nodes::{ROOT, Slot};
use super::owners::{Override, proc_path};
use super::{Share, errno};

impl Share {
    pub(super) fn set_mode(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>, mode: u32) -> Answer<()> {
        let identity = self.nodes.get(slot)?.identity;
        let mode = Mode::from_raw_mode(self.permissions(mode, identity.is_folder()));
        if let Some(open) = handle.cloned().or_else(|| self.any_open(slot)) {
            return rustix::fs::fchmod(open, mode).map_err(errno);
        }
        if identity.kind == LINK {
            return Err(Errno::NOTSUP);
        }
        // Whatever is at the name meanwhile: what is changed is what was looked at.
        let path = match self.place(slot) {
            Ok((folder, name)) => open_beneath(folder, &name, OFlags::PATH, Mode::empty())?,
            Err(_) => open_beneath(&self.folder.root, b".", OFlags::PATH, Mode::empty())?,
        };
        let stat = stat_of(&path).map_err(errno)?;
        if self.folder.identify(&stat) != identity {
            return Err(Errno::STALE);
        }
        self.may_use(&path, &stat)?;
        rustix::fs::chmod(proc_path(&path, None).as_slice(), mode).map_err(errno)
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
        let attr = self.attr_of(slot)?;
        let mode = change.mode.unwrap_or(attr.mode & !KIND);
        let keeps = !change.drops_privileges || change.mode.is_some();
        let owned = Override {
            uid: change.uid.unwrap_or(attr.uid),
            gid: change.gid.unwrap_or(attr.gid),
            mode: if keeps { mode } else { mode & !PRIVILEGES },
        };
        if (owned.uid, owned.gid, owned.mode) == (attr.uid, attr.gid, attr.mode & !KIND) {
            return Ok(());
        }
        self.keep_override(slot, owned)
    }
}
