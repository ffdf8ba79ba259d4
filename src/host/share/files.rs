//! The file system's operations on the host's files.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::component::StateError;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Statx, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::retry_on_intr;
use serde_json::Value;
use virtio::fs::{
    Answer, Attr, Caching, Caller, Change, Entry, Errno, FileSystem, Handle, Listing, Lock, LockKind, Name,
    New, Node, OpenMode, Rename, Seek, SetTime, SetXattr, Space, Usage, Work, WriteAt,
};
use virtio::memory::{Memory, Segment};

use super::attributes::{FILE, KIND, LINK, PRIVILEGES, stat_at, stat_of};
use super::folders::open_beneath;
use super::handles::Open;
use super::nodes::{ROOT, Slot};
use super::owners::{Override, is_users, proc_path};
use super::{Share, errno};

/// Longest text of a link that the host can have, and one more.
const LINK_TEXT: usize = 4096;
/// Most bytes of an attribute's value, and of the names of all (`XATTR_SIZE_MAX`).
const XATTR: usize = 64 << 10;
/// Bytes of a file that are allocated, freed or zeroed in one call, and bytes that are copied: what a pause waits for.
const ALLOCATED: u64 = 1 << 30;
const COPIED: u64 = 8 << 20;

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

    /// The entry of a name that was just made in `parent`.
    fn made(
        &mut self,
        parent: Slot,
        folder: &Arc<OwnedFd>,
        name: Name<'_>,
        owned: Option<Override>,
    ) -> Answer<Entry> {
        let stat = stat_at(folder, name.bytes()).map_err(errno)?;
        let slot = self.nodes.intern(parent, name.bytes(), self.folder.identify(&stat), true)?;
        if let Some(owned) = owned
            && self.keeps_owners()
            && let Err(error) = self.keep_override(slot, owned)
        {
            self.nodes.drop_unused(slot);
            return Err(error);
        }
        self.entry(slot, &stat)
    }

    /// Permissions on the host of something new. The bits that give rights on the host are left out, and with
    /// owners kept elsewhere the host's user can always use it.
    fn permissions(&self, mode: u32, is_folder: bool) -> u32 {
        let own = match (self.keeps_owners(), is_folder) {
            (true, true) => 0o700,
            (true, false) => 0o600,
            (false, _) => 0,
        };
        mode & if is_folder { 0o1777 } else { 0o777 } | own
    }

    /// Opens a name, which must be a file.
    fn open_file(&self, folder: &OwnedFd, name: &[u8], mode: OpenMode) -> Answer<(OwnedFd, Statx)> {
        // A FIFO would wait for its other end; the kind is looked at below.
        let flags = self.flags(mode) | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = open_beneath(folder, name, flags, Mode::empty())?;
        let stat = self.usable_file(&file)?;
        Ok((file, stat))
    }

    /// The attributes of a descriptor, which must be of a file that the guest may use.
    fn usable_file(&self, file: &OwnedFd) -> Answer<Statx> {
        let stat = stat_of(file).map_err(errno)?;
        self.may_use(file, &stat)?;
        if u32::from(stat.stx_mode) & KIND == FILE { Ok(stat) } else { Err(Errno::STALE) }
    }

    /// Opens a name that nothing is known of but that it is there. What is no file is not opened at all, as that alone does
    /// something with a device or a FIFO.
    fn open_found(&self, folder: &OwnedFd, name: &[u8], mode: OpenMode) -> Answer<OwnedFd> {
        let found = open_beneath(folder, name, OFlags::PATH, Mode::empty())?;
        self.usable_file(&found)?;
        self.opened_anew(&found, mode)
    }

    /// Opens what a descriptor is of once more, by the kernel's link to it.
    fn opened_anew(&self, open: &OwnedFd, mode: OpenMode) -> Answer<OwnedFd> {
        // One that somebody of the host has a lease on is not waited for.
        let flags = self.flags(mode) | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(proc_path(open, None).as_slice(), flags, Mode::empty()).map_err(errno)
    }

    fn flags(&self, mode: OpenMode) -> OFlags {
        let access = match (mode.read || self.collects_writes, mode.write) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        // Never O_APPEND: each write says by itself where it goes, and pages of a mapping have their places.
        access | if mode.sync { OFlags::SYNC } else { OFlags::empty() }
    }

    /// A number for an open file or folder of `node`.
    fn opened(&mut self, fd: OwnedFd, node: Slot, mode: OpenMode, is_folder: bool) -> Answer<Handle> {
        let open = Open { fd: Some(Arc::new(fd)), node, mode, is_folder, flock: LockKind::None };
        let (slot, handle) = self.handles.add(open)?;
        self.nodes.get_mut(node)?.handles.push(slot);
        Ok(handle)
    }

    /// Opens the file of a node anew.
    pub(super) fn open_node(&mut self, slot: Slot, mode: OpenMode) -> Answer<OwnedFd> {
        let identity = self.nodes.get(slot)?.identity;
        if identity.kind != FILE {
            return Err(if identity.is_folder() { Errno::ISDIR } else { Errno::ACCES });
        }
        let found = self.place(slot).and_then(|(folder, name)| self.open_file(&folder, &name, mode));
        match found {
            Ok((file, stat)) if self.folder.identify(&stat) == identity => Ok(file),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => self.open_again(slot, mode),
            Err(error) => Err(error),
        }
    }

    /// The same, but a guest that collects writes reads too, which its user need not be allowed to.
    pub(super) fn open_as_may_be(&mut self, slot: Slot, mode: OpenMode) -> Answer<OwnedFd> {
        match self.open_node(slot, mode) {
            Err(Errno::ACCES) if mode.write && !mode.read && self.collects_writes => {
                self.collects_writes = false;
                let file = self.open_node(slot, mode);
                self.collects_writes = true;
                file
            }
            file => file,
        }
    }

    /// Opens a file without a name that the guest has open, by the kernel's link to that open file.
    fn open_again(&self, slot: Slot, mode: OpenMode) -> Answer<OwnedFd> {
        let open = self.any_open(slot).ok_or(Errno::STALE)?;
        self.opened_anew(&open, mode)
            .map_err(|error| if error == Errno::NOENT { Errno::STALE } else { error })
    }

    /// Opens the folder of a node for listing.
    pub(super) fn open_for_listing(&mut self, slot: Slot) -> Answer<OwnedFd> {
        let folder = self.folder(slot)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        open_beneath(folder, b".", flags, Mode::empty())
    }

    fn set_mode(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>, mode: u32) -> Answer<()> {
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

    fn set_size(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>, size: u64) -> Answer<()> {
        if let Some(open) = handle {
            return rustix::fs::ftruncate(open, size).map_err(errno);
        }
        let mode = OpenMode { write: true, ..OpenMode::default() };
        rustix::fs::ftruncate(self.open_node(slot, mode)?, size).map_err(errno)
    }

    fn set_times(&mut self, slot: Slot, handle: Option<&Arc<OwnedFd>>, change: &Change) -> Answer<()> {
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
    fn set_override(&mut self, slot: Slot, change: &Change) -> Answer<()> {
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

    /// A name in the table follows one that was renamed on the host.
    fn follow(&mut self, folder: &Arc<OwnedFd>, parent: Slot, name: Name<'_>) {
        if let Ok(stat) = stat_at(folder, name.bytes())
            && let Some(slot) = self.nodes.find(self.folder.identify(&stat))
        {
            self.nodes.rename(slot, parent, name.bytes());
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
        *self = Share { collects_writes, ..Share::new(self.folder.clone()) };
    }

    fn lookup(&mut self, parent: Node, name: Name<'_>) -> Answer<Entry> {
        let parent = self.nodes.slot(parent)?;
        let folder = self.folder(parent)?;
        let stat = stat_at(folder, name.bytes()).map_err(errno)?;
        let slot = self.nodes.intern(parent, name.bytes(), self.folder.identify(&stat), false)?;
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
        if self.keeps_owners()
            && (change.mode.is_some()
                || change.uid.is_some()
                || change.gid.is_some()
                || change.drops_privileges)
        {
            self.set_override(slot, change)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            self.set_times(slot, handle.as_ref(), change)?;
        }
        self.attr_of(slot)
    }

    fn read_link(&mut self, node: Node, text: &mut Vec<u8>) -> Answer<()> {
        let slot = self.nodes.slot(node)?;
        if self.nodes.get(slot)?.identity.kind != LINK {
            return Err(Errno::INVAL);
        }
        let (folder, name) = self.place(slot)?;
        let at = text.len();
        text.resize(at + LINK_TEXT, 0);
        let into = text.get_mut(at..).unwrap_or_default();
        let len = rustix::fs::readlinkat_raw(folder, OsStr::from_bytes(&name), into).map_err(errno)?;
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
        let given = self.permissions(mode, kind == FileType::Directory);
        let raw = Mode::from_raw_mode(given);
        let made = if kind == FileType::Directory {
            rustix::fs::mkdirat(&folder, at, raw)
        } else {
            rustix::fs::mknodat(&folder, at, kind, raw, 0)
        };
        made.map_err(errno)?;
        let owned = Override { uid: caller.uid, gid: caller.gid, mode };
        let mut entry = self.made(parent, &folder, name, Some(owned))?;
        if given & self.folder.umask != 0 {
            // The guest's umask counts, not the host's.
            let slot = self.nodes.slot(entry.node)?;
            match self.set_mode(slot, None, mode).and_then(|()| self.attr_of(slot)) {
                Ok(attr) => entry.attr = attr,
                Err(error) => {
                    self.nodes.forget(slot, 1);
                    return Err(error);
                }
            }
        }
        Ok(entry)
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
        let identity = self.nodes.get(of)?.identity;
        let (from, old) = self.place(of).map_err(|_| Errno::PERM)?;
        let folder = self.folder(parent)?;
        let at = OsStr::from_bytes(name.bytes());
        rustix::fs::linkat(from, OsStr::from_bytes(&old), &folder, at, AtFlags::empty()).map_err(errno)?;
        let stat = stat_at(&folder, name.bytes()).map_err(errno)?;
        if self.folder.identify(&stat) != identity {
            // Another file had the name by then.
            let _ = rustix::fs::unlinkat(&folder, at, AtFlags::empty());
            return Err(Errno::STALE);
        }
        self.nodes.rename(of, parent, name.bytes());
        self.entry(of, &stat)
    }

    fn open(&mut self, node: Node, mode: OpenMode) -> Answer<Handle> {
        if mode.write || mode.truncate {
            self.may_write()?;
        }
        self.may_open()?;
        let slot = self.nodes.slot(node)?;
        let file = self.open_as_may_be(slot, mode)?;
        if mode.truncate {
            rustix::fs::ftruncate(&file, 0).map_err(errno)?;
        }
        self.opened(file, slot, mode, false)
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
        let flags = self.flags(mode) | OFlags::CREATE | OFlags::EXCL;
        let (file, is_new) = match open_beneath(&folder, name.bytes(), flags, Mode::from_raw_mode(given)) {
            Err(Errno::EXIST) if !mode.exclusive => (self.open_found(&folder, name.bytes(), mode)?, false),
            file => (file?, true),
        };
        if is_new && given & self.folder.umask != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(given)).map_err(errno)?;
        }
        if !is_new && mode.truncate {
            rustix::fs::ftruncate(&file, 0).map_err(errno)?;
        }
        let stat = stat_of(&file).map_err(errno)?;
        let slot = self.nodes.intern(parent, name.bytes(), self.folder.identify(&stat), is_new)?;
        let handle = match self.opened(file, slot, mode, false) {
            Ok(handle) => handle,
            Err(error) => {
                self.nodes.drop_unused(slot);
                return Err(error);
            }
        };
        if is_new && self.keeps_owners() {
            let owned = Override { uid: caller.uid, gid: caller.gid, mode: permissions };
            if let Err(error) = self.keep_override(slot, owned) {
                self.release(handle);
                return Err(error);
            }
        }
        Ok((self.entry(slot, &stat)?, handle))
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
        self.end_locks(open.node);
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
        let written = retried(|| match at {
            WriteAt::Offset(offset) => self.vecs.write_at(&file, memory, from, offset),
            WriteAt::End => self.vecs.append(&file, memory, from),
        })?;
        if drops_privileges && self.keeps_owners() {
            let slot = self.handles.get(handle)?.node;
            let change = Change { drops_privileges, ..Change::default() };
            self.set_override(slot, &change)?;
        }
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
        let kept = |keep: bool| if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        let flags = match what {
            Space::Allocate { keep_size } => kept(keep_size),
            Space::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Space::Zero { keep_size } => FallocateFlags::ZERO_RANGE | kept(keep_size),
        };
        let file = self.handles.fd(handle)?;
        Ok(Work::change(move |stops| in_parts(&file, flags, offset, len, stops)))
    }

    fn copy(&mut self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Answer<Work> {
        let (source, target) = (self.handles.fd(from.0)?, self.handles.fd(to.0)?);
        let (mut from, mut to) = (from.1, to.1);
        Ok(Work::change(move |stops| {
            let mut copied = 0;
            while copied < len && (copied == 0 || !stops.load(Ordering::Relaxed)) {
                let part = usize::try_from((len - copied).min(COPIED)).unwrap_or(0);
                let call =
                    || rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), part);
                match retry_on_intr(call) {
                    Ok(0) => break,
                    Ok(more) => copied += more as u64,
                    // The guest hears of the error when it goes on from there.
                    Err(_) if copied > 0 => break,
                    // The guest copies by reading and writing then.
                    Err(rustix::io::Errno::XDEV | rustix::io::Errno::NOSYS) => return Err(Errno::NOTSUP),
                    Err(error) => return Err(errno(error)),
                }
            }
            Ok(copied)
        }))
    }

    fn xattr(&mut self, node: Node, name: &[u8], value: &mut Vec<u8>) -> Answer<()> {
        if name == b"security.capability" {
            // Linux asks before writes: there are none, and nobody need ask the host.
            return Err(Errno::NODATA);
        }
        is_users(name)?;
        let slot = self.nodes.slot(node)?;
        let (path, follows, _fd) = self.xattr_path(slot)?;
        let at = value.len();
        value.resize(at + XATTR, 0);
        let into = value.get_mut(at..).unwrap_or_default();
        let len = if follows {
            rustix::fs::getxattr(path.as_slice(), name, into)
        } else {
            rustix::fs::lgetxattr(path.as_slice(), name, into)
        };
        value.truncate(at + len.map_err(errno)?);
        Ok(())
    }

    fn xattrs(&mut self, node: Node, names: &mut Vec<u8>) -> Answer<()> {
        let slot = self.nodes.slot(node)?;
        let (path, follows, _fd) = self.xattr_path(slot)?;
        let mut all = vec![0; XATTR];
        let len = if follows {
            rustix::fs::listxattr(path.as_slice(), all.as_mut_slice())
        } else {
            rustix::fs::llistxattr(path.as_slice(), all.as_mut_slice())
        };
        all.truncate(len.map_err(errno)?);
        let seen = all.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_users(name).is_ok());
        for name in seen {
            names.extend(name);
            names.push(0);
        }
        Ok(())
    }

    fn set_xattr(&mut self, node: Node, name: &[u8], value: &[u8], how: SetXattr) -> Answer<()> {
        is_users(name)?;
        self.may_write()?;
        let slot = self.nodes.slot(node)?;
        let (path, follows, _fd) = self.xattr_path(slot)?;
        let flags = match how {
            SetXattr::Any => XattrFlags::empty(),
            SetXattr::Create => XattrFlags::CREATE,
            SetXattr::Replace => XattrFlags::REPLACE,
        };
        let set = if follows {
            rustix::fs::setxattr(path.as_slice(), name, value, flags)
        } else {
            rustix::fs::lsetxattr(path.as_slice(), name, value, flags)
        };
        set.map_err(errno)
    }

    fn remove_xattr(&mut self, node: Node, name: &[u8]) -> Answer<()> {
        is_users(name)?;
        self.may_write()?;
        let slot = self.nodes.slot(node)?;
        let (path, follows, _fd) = self.xattr_path(slot)?;
        let removed = if follows {
            rustix::fs::removexattr(path.as_slice(), name)
        } else {
            rustix::fs::lremovexattr(path.as_slice(), name)
        };
        removed.map_err(errno)
    }

    fn lock(&mut self, lock: &Lock) -> Answer<()> {
        if self.has_locks() { self.set_lock(lock) } else { Err(Errno::NOSYS) }
    }

    fn conflict(&mut self, lock: &Lock) -> Answer<Option<(LockKind, u64, u64)>> {
        if self.has_locks() { self.find_conflict(lock) } else { Err(Errno::NOSYS) }
    }

    fn closed(&mut self, handle: Handle, owner: u64) -> Answer<()> {
        if self.has_locks() { self.close_owner(handle, owner) } else { Err(Errno::NOSYS) }
    }

    fn save(&self) -> Result<Value, StateError> {
        self.saved()
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        self.loaded(state)
    }
}

/// fallocate(2) a part at a time, so that it can be ended between two.
fn in_parts(file: &OwnedFd, flags: FallocateFlags, offset: u64, len: u64, stops: &AtomicBool) -> Answer<u64> {
    let mut done = 0;
    loop {
        let part = (len - done).min(ALLOCATED);
        retry_on_intr(|| rustix::fs::fallocate(file, flags, offset + done, part)).map_err(errno)?;
        done += part;
        if done == len {
            return Ok(0);
        } else if stops.load(Ordering::Relaxed) {
            return Err(Errno::INTR);
        }
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
