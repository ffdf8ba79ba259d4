//! The file system's operations on the host's files.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use devices::component::StateError;
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, SeekFrom, Statx};
use serde_json::Value;
use virtio::fs::{
    Answer, Attr, Caching, Caller, Change, Entry, Errno, FileSystem, Handle, Listing, Lock, LockKind, Name,
    New, Node, OpenMode, Rename, Seek, SetXattr, Space, Usage, Work, WriteAt,
};
use virtio::memory::{Memory, Segment};

use super::attributes::{LINK, SET_GROUP, stat_at, stat_of};
use super::folders::gone;
use super::nodes::{Found, Slot};
use super::owners::Override;
use super::{Share, errno, space, sys};
use crate::host::proc_path::proc_path;

/// Longest text of a link that the host can have, and one more.
const LINK_TEXT: usize = 4096;

impl Share {
    /// One more entry of a node for the guest.
    pub(super) fn entry(&mut self, slot: Slot, stat: &Statx) -> Answer<Entry> {
        let owned = self.override_of(slot, stat);
        let attr = self.folder.attr(stat, owned);
        let file = self.nodes.get_mut(slot)?;
        file.lookups = file.lookups.saturating_add(1);
        let generation = u64::from(self.nodes.generation(slot));
        Ok(Entry { node: self.nodes.number(slot), generation, attr })
    }

    /// The attributes of a node as the host has them.
    fn attr_of(&mut self, slot: Slot) -> Answer<Attr> {
        let stat = self.stat(slot)?;
        let owned = self.override_of(slot, &stat);
        Ok(self.folder.attr(&stat, owned))
    }

    /// The entry of a name that was just made in `parent`: with an owner where they are kept, and permissions that it does not have
    /// yet.
    fn made(
        &mut self,
        parent: Slot,
        folder: &Arc<OwnedFd>,
        name: Name<'_>,
        with: Option<(Override, Option<u32>)>,
    ) -> Answer<Entry> {
        let mut stat = stat_at(folder, name.bytes()).map_err(errno)?;
        let slot = self.nodes.intern(parent, name.bytes(), self.folder.identify(&stat), Found::New)?;
        let done = with.map_or(Ok(()), |(owned, _)| self.keep_override(slot, owned)).and_then(|()| {
            if let Some((_, Some(mode))) = with {
                // Of a folder that had a set-group-id one to be made in, it is the host's.
                self.set_mode(slot, None, mode | u32::from(stat.stx_mode) & SET_GROUP)?;
                stat = self.stat(slot)?;
            }
            self.entry(slot, &stat)
        });
        done.inspect_err(|_| {
            self.nodes.drop_unused(slot);
            self.unmake(folder, name, &stat);
        })
    }

    /// Removes what was just made, as the guest hears that it was not, unless its name is another's by now.
    pub(super) fn unmake(&self, folder: &OwnedFd, name: Name<'_>, made: &Statx) {
        let is_it = |found: Statx| self.folder.identify(&found) == self.folder.identify(made);
        if stat_at(folder, name.bytes()).is_ok_and(is_it) {
            let is_folder = self.folder.identify(made).is_folder();
            let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = rustix::fs::unlinkat(folder, OsStr::from_bytes(name.bytes()), flags);
        }
    }

    /// Empties an open file.
    fn empty(&mut self, slot: Slot, handle: Handle, mode: OpenMode) -> Answer<()> {
        let file = self.handles.fd(handle)?;
        if mode.drops_privileges {
            self.drop_privileges(slot, Some(&file))?;
        }
        self.set_size(slot, mode.write.then_some(&file), 0)
    }

    /// Permissions on the host of something new. The bits that give rights on the host are left out, and with
    /// owners kept elsewhere the host's user can always use it.
    pub(super) fn permissions(&self, mode: u32, is_folder: bool) -> u32 {
        let own = match (self.keeps_owners(), is_folder) {
            (true, true) => 0o700,
            (true, false) => 0o600,
            (false, _) => 0,
        };
        mode & if is_folder { 0o1777 } else { 0o777 } | own
    }

    /// A name in the table follows one that was renamed on the host.
    fn follow(&mut self, folder: &Arc<OwnedFd>, parent: Slot, name: Name<'_>) {
        if let Ok(stat) = stat_at(folder, name.bytes())
            && let Some(slot) = self.nodes.find(self.folder.identify(&stat))
        {
            self.nodes.rename(slot, parent, name.bytes(), Found::of(&stat));
        }
    }
}

impl FileSystem for Share {
    fn caching(&self) -> Caching {
        self.folder.options.caching
    }

    fn has_locks(&self) -> bool {
        self.folder.options.has_locks
    }

    fn begin(&mut self, collects_writes: bool) {
        *self = Share { collects_writes, ..self.anew() };
    }

    fn lookup(&mut self, parent: Node, name: Name<'_>) -> Answer<Entry> {
        let parent = self.nodes.slot(parent)?;
        let folder = self.folder(parent)?;
        let stat = stat_at(folder, name.bytes()).map_err(errno)?;
        let slot = self.nodes.intern(parent, name.bytes(), self.folder.identify(&stat), Found::of(&stat))?;
        self.entry(slot, &stat)
    }

    fn forget(&mut self, node: Node, count: u64) {
        if let Ok(slot) = self.nodes.slot(node) {
            self.nodes.forget(slot, count);
        }
    }

    fn attr(&mut self, node: Node, handle: Option<Handle>) -> Answer<Attr> {
        let slot = self.nodes.slot(node)?;
        let Some(handle) = handle else { return self.attr_of(slot) };
        let stat = stat_of(self.handles.fd(handle)?).map_err(errno)?;
        let owned = self.override_of(slot, &stat);
        Ok(self.folder.attr(&stat, owned))
    }

    fn set_attr(&mut self, node: Node, handle: Option<Handle>, change: &Change) -> Answer<Attr> {
        self.may_write()?;
        let slot = self.nodes.slot(node)?;
        let handle = handle.map(|handle| self.handles.fd(handle)).transpose()?;
        if let Some(size) = change.size {
            self.set_size(slot, handle.as_ref(), size)?;
        }
        if let Some(mode) = change.mode {
            self.set_mode(slot, handle.as_ref(), mode)?;
        }
        // Without attributes for them, owners are taken note of by nobody: files are the host user's.
        if self.keeps_owners() && (change.mode.is_some() || change.uid.is_some() || change.gid.is_some()) {
            self.set_override(slot, change)?;
        } else if change.drops_privileges && change.mode.is_none() {
            self.drop_privileges(slot, handle.as_ref())?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            match self.set_times(slot, handle.as_ref(), change) {
                // A guest that collects writes says when it did so last before it closes: not everybody who may write may say that.
                Err(Errno::PERM) if self.collects_writes && handle.is_some() && change.atime.is_none() => {}
                set => set?,
            }
        }
        self.attr_of(slot)
    }

    fn read_link(&mut self, node: Node, text: &mut Vec<u8>) -> Answer<()> {
        let slot = self.nodes.slot(node)?;
        if self.nodes.get(slot)?.identity.kind != LINK {
            return Err(Errno::INVAL);
        }
        let (folder, name) = self.known_place(slot)?;
        let at = text.len();
        text.resize(at + LINK_TEXT, 0);
        let into = text.get_mut(at..).unwrap_or_default();
        let len =
            rustix::fs::readlinkat_raw(folder, OsStr::from_bytes(&name), into).map_err(
                |error| match error {
                    // It is no link any more.
                    rustix::io::Errno::INVAL => Errno::STALE,
                    error => gone(errno(error)),
                },
            )?;
        text.truncate(at + len);
        Ok(())
    }

    fn make(&mut self, parent: Node, name: Name<'_>, new: New<'_>, caller: Caller) -> Answer<Entry> {
        self.may_write()?;
        self.nodes.may_grow()?;
        let parent = self.nodes.slot(parent)?;
        let folder = self.folder(parent)?;
        let at = OsStr::from_bytes(name.bytes());
        let (mode, kind) = match new {
            New::File(mode) => (mode, FileType::RegularFile),
            New::Fifo(mode) => (mode, FileType::Fifo),
            New::Socket(mode) => (mode, FileType::Socket),
            New::Folder(mode) => (mode, FileType::Directory),
            New::Link(text) => {
                rustix::fs::symlinkat(OsStr::from_bytes(text), &folder, at).map_err(errno)?;
                return self.made(parent, &folder, name, None);
            }
        };
        let is_folder = kind == FileType::Directory;
        let given = self.permissions(mode, is_folder);
        let owned = self.owner_of_new(parent, caller, mode, is_folder);
        let raw = Mode::from_raw_mode(given);
        let made = if is_folder {
            rustix::fs::mkdirat(&folder, at, raw)
        } else {
            rustix::fs::mknodat(&folder, at, kind, raw, 0)
        };
        made.map_err(errno)?;
        // The guest's umask counts, not the host's.
        let mode = Some(mode).filter(|_| given & self.folder.umask != 0);
        self.made(parent, &folder, name, Some((owned, mode)))
    }

    fn remove(&mut self, parent: Node, name: Name<'_>, is_folder: bool) -> Answer<()> {
        self.may_write()?;
        let slot = self.nodes.slot(parent)?;
        let folder = self.folder(slot)?;
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(folder, OsStr::from_bytes(name.bytes()), flags).map_err(errno)
    }

    fn rename(&mut self, from: (Node, Name<'_>), to: (Node, Name<'_>), how: Rename) -> Answer<()> {
        self.may_write()?;
        self.nodes.may_rename(from.1.bytes(), to.1.bytes())?;
        let (old, new) = (self.nodes.slot(from.0)?, self.nodes.slot(to.0)?);
        let (old_folder, new_folder) = (self.folder(old)?, self.folder(new)?);
        let flags = match how {
            Rename::Replace => RenameFlags::empty(),
            Rename::Keep => RenameFlags::NOREPLACE,
            Rename::Exchange => RenameFlags::EXCHANGE,
        };
        let (old_name, new_name) = (OsStr::from_bytes(from.1.bytes()), OsStr::from_bytes(to.1.bytes()));
        rustix::fs::renameat_with(&old_folder, old_name, &new_folder, new_name, flags).map_err(errno)?;
        self.follow(&new_folder, new, to.1);
        if how == Rename::Exchange {
            self.follow(&old_folder, old, from.1);
        }
        Ok(())
    }

    fn link(&mut self, node: Node, parent: Node, name: Name<'_>) -> Answer<Entry> {
        self.may_write()?;
        let (of, parent) = (self.nodes.slot(node)?, self.nodes.slot(parent)?);
        let (file, _) = self.known_file(of)?;
        let folder = self.folder(parent)?;
        let (from, at) = (proc_path(&file), OsStr::from_bytes(name.bytes()));
        // The kernel's link to the descriptor is followed, and nothing behind it.
        rustix::fs::linkat(CWD, &from, &folder, at, AtFlags::SYMLINK_FOLLOW).map_err(errno)?;
        let stat = stat_of(&file).map_err(errno)?;
        self.nodes.rename(of, parent, name.bytes(), Found::of(&stat));
        self.entry(of, &stat)
    }

    fn open(&mut self, node: Node, mode: OpenMode) -> Answer<Handle> {
        if mode.write || mode.truncate {
            self.may_write()?;
        }
        self.may_open()?;
        let slot = self.nodes.slot(node)?;
        let file = self.open_node(slot, mode)?;
        let handle = self.opened(file, slot, mode, false)?;
        if mode.truncate {
            self.empty(slot, handle, mode).inspect_err(|_| self.release(handle))?;
        }
        Ok(handle)
    }

    fn create(
        &mut self,
        parent: Node,
        name: Name<'_>,
        permissions: u32,
        mode: OpenMode,
        caller: Caller,
    ) -> Answer<(Entry, Handle)> {
        self.may_write()?;
        self.may_open()?;
        self.nodes.may_grow()?;
        let parent = self.nodes.slot(parent)?;
        let folder = self.folder(parent)?;
        let given = self.permissions(permissions, false);
        let owned = self.owner_of_new(parent, caller, permissions, false);
        let (file, is_new) = self.make_or_open(&folder, name.bytes(), mode, given)?;
        if is_new && given & self.folder.umask != 0 {
            // It is there, and usable, whatever comes of this.
            let _ = rustix::fs::fchmod(&file, Mode::from_raw_mode(given));
        }
        let mut stat = stat_of(&file).map_err(errno)?;
        let found = if is_new { Found::New } else { Found::of(&stat) };
        let slot = self.nodes.intern(parent, name.bytes(), self.folder.identify(&stat), found)?;
        let handle = match self.opened(file, slot, mode, false) {
            Ok(handle) => handle,
            Err(error) => {
                self.nodes.drop_unused(slot);
                return Err(error);
            }
        };
        let done = if is_new {
            self.keep_override(slot, owned)
        } else if mode.truncate {
            let emptied = self.empty(slot, handle, mode).and_then(|()| self.handles.fd(handle));
            emptied.and_then(|file| stat_of(file).map_err(errno)).map(|after| stat = after)
        } else {
            Ok(())
        };
        let entry = done.and_then(|()| self.entry(slot, &stat));
        entry.map(|entry| (entry, handle)).inspect_err(|_| {
            self.release(handle);
            if is_new {
                self.unmake(&folder, name, &stat);
            }
        })
    }

    fn open_folder(&mut self, node: Node) -> Answer<Handle> {
        self.may_open()?;
        let slot = self.nodes.slot(node)?;
        let folder = self.open_for_listing(slot)?;
        self.opened(folder, slot, OpenMode { read: true, ..OpenMode::default() }, true)
    }

    fn list(&mut self, handle: Handle, offset: u64, into: &mut Listing<'_>) -> Answer<()> {
        if !self.handles.get(handle)?.is_folder {
            return Err(Errno::NOTDIR);
        }
        self.entries(handle, offset, into)
    }

    fn release(&mut self, handle: Handle) {
        let Ok((slot, open)) = self.handles.remove(handle) else { return };
        self.entries.forget(handle);
        if let Ok(file) = self.nodes.get_mut(open.node) {
            file.handles.retain(|own| *own != slot);
        }
        self.end_locks(open.node, handle);
        self.nodes.drop_unused(open.node);
    }

    fn read(&mut self, handle: Handle, offset: u64, memory: &Memory, into: &[Segment]) -> Answer<u64> {
        let file = self.handles.fd(handle)?;
        let read = retried(|| self.vecs.read_at(&file, memory, into, offset))?;
        Ok(read as u64)
    }

    fn write(
        &mut self,
        handle: Handle,
        at: WriteAt,
        memory: &Memory,
        from: &[Segment],
        drops_privileges: bool,
    ) -> Answer<u64> {
        let file = self.handles.fd(handle)?;
        if drops_privileges {
            let slot = self.handles.get(handle)?.node;
            self.drop_privileges(slot, Some(&file))?;
        }
        let written = retried(|| match at {
            WriteAt::Offset(offset) => self.vecs.write_at(&file, memory, from, offset),
            WriteAt::End => self.vecs.append(&file, memory, from),
        })?;
        Ok(written as u64)
    }

    fn sync(&mut self, handle: Handle, data_only: bool) -> Answer<Work> {
        let file = self.handles.fd(handle)?;
        Ok(Work::sync(move || {
            let done = if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
            done.map_err(errno)
        }))
    }

    fn sync_all(&mut self) -> Answer<Work> {
        // Whoever may not write has nothing to sync, and this is the host's whole file system.
        if self.folder.options.read_only {
            return Ok(Work::sync(|| Ok(())));
        }
        let root = self.folder.root.clone();
        Ok(Work::sync(move || rustix::fs::syncfs(root).map_err(errno)))
    }

    fn usage(&mut self) -> Answer<Usage> {
        let found = rustix::fs::fstatvfs(&self.folder.root).map_err(errno)?;
        Ok(Usage {
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
            block_size: u32::try_from(found.f_frsize).unwrap_or(4096),
        })
    }

    fn seek(&mut self, handle: Handle, offset: u64, to: Seek) -> Answer<u64> {
        let to = match to {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        let open = self.handles.get(handle)?;
        // Where a folder stands is its listing's.
        if open.is_folder {
            return Err(Errno::INVAL);
        }
        rustix::fs::seek(self.handles.fd(handle)?, to).map_err(errno)
    }

    fn allocate(&mut self, handle: Handle, offset: u64, len: u64, what: Space) -> Answer<Work> {
        Ok(space::allocation(self.handles.fd(handle)?, offset..offset.saturating_add(len), what))
    }

    fn copy(&mut self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Answer<Work> {
        let (source, target) = (self.handles.fd(from.0)?, self.handles.fd(to.0)?);
        Ok(space::copy((source, from.1), (target, to.1), len))
    }

    fn xattr(&mut self, node: Node, name: &[u8], value: &mut Vec<u8>) -> Answer<()> {
        self.get_attribute(node, name, value)
    }

    fn xattrs(&mut self, node: Node, names: &mut Vec<u8>) -> Answer<()> {
        self.list_attributes(node, names)
    }

    fn set_xattr(&mut self, node: Node, name: &[u8], value: &[u8], how: SetXattr) -> Answer<()> {
        self.may_write()?;
        self.set_attribute(node, name, value, how)
    }

    fn remove_xattr(&mut self, node: Node, name: &[u8]) -> Answer<()> {
        self.may_write()?;
        self.remove_attribute(node, name)
    }

    fn lock(&mut self, lock: &Lock) -> Answer<()> {
        if self.has_locks() { self.set_lock(lock) } else { Err(Errno::NOSYS) }
    }

    fn blockers(&self, lock: &Lock) -> Vec<u64> {
        self.lock_blockers(lock)
    }

    fn conflict(&mut self, lock: &Lock) -> Answer<Option<(LockKind, u64, u64)>> {
        if self.has_locks() { self.find_conflict(lock) } else { Err(Errno::NOSYS) }
    }

    fn closed(&mut self, handle: Handle, owner: u64) -> Answer<Option<Work>> {
        if self.has_locks() {
            self.close_owner(handle, owner)?;
        } else if !self.folder.tells_at_close {
            return Err(Errno::NOSYS);
        }
        if !self.folder.tells_at_close {
            return Ok(None);
        }
        let file = self.handles.fd(handle)?;
        Ok(Some(Work::sync(move || sys::closed(&file))))
    }

    fn reacquire_locks(&mut self, is_last: bool) -> usize {
        self.reacquire_locks(is_last)
    }

    fn save(&self) -> Result<Value, StateError> {
        self.saved()
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        self.loaded(state)
    }
}

/// A call that a signal may end.
fn retried(mut call: impl FnMut() -> io::Result<usize>) -> Answer<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Ok(result?),
        }
    }
}
