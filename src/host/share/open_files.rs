//! How files and folders are opened: by their names, or once more by the kernel's link to an open one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, Statx};
use virtio::fs::{Answer, Errno, Handle, LockKind, OpenMode};

use super::attributes::{FILE, KIND, stat_of};
use super::folders::open_beneath;
use super::handles::Open;
use super::nodes::Slot;
use super::owners::proc_path;
use super::{Share, errno};

/// How often a file is made or opened while another side removes and makes it.
const MOST_ATTEMPTS: usize = 8;

impl Share {
    /// The attributes of a descriptor, which must be of a file that the guest may use.
    fn usable_file(&self, file: &OwnedFd) -> Answer<Statx> {
        let stat = stat_of(file).map_err(errno)?;
        self.may_use(file, &stat)?;
        if u32::from(stat.stx_mode) & KIND == FILE { Ok(stat) } else { Err(Errno::STALE) }
    }

    /// Opens a name that nothing is known of but that it is there. What is no file is not opened at all, here and below, as that
    /// alone does something with a device or a FIFO.
    pub(super) fn open_found(&self, folder: &OwnedFd, name: &[u8], mode: OpenMode) -> Answer<OwnedFd> {
        let found = open_beneath(folder, name, OFlags::PATH, Mode::empty())?;
        self.usable_file(&found)?;
        self.opened_anew(&found, mode)
    }

    /// Makes a file, or opens the one that has its name; whether it is new.
    pub(super) fn make_or_open(
        &self,
        folder: &OwnedFd,
        name: &[u8],
        mode: OpenMode,
        permissions: u32,
    ) -> Answer<(OwnedFd, bool)> {
        // Another side may remove it between the two, and make it again.
        for _ in 0..MOST_ATTEMPTS {
            let flags = flags(self.with_reading(mode)) | OFlags::CREATE | OFlags::EXCL;
            match open_beneath(folder, name, flags, Mode::from_raw_mode(permissions)) {
                Err(Errno::EXIST) if !mode.exclusive => {}
                made => return Ok((made?, true)),
            }
            match self.open_found(folder, name, mode) {
                Err(Errno::NOENT) => {}
                found => return Ok((found?, false)),
            }
        }
        Err(Errno::NOENT)
    }

    /// Opens what a descriptor is of once more, by the kernel's link to it.
    fn opened_anew(&self, open: &OwnedFd, mode: OpenMode) -> Answer<OwnedFd> {
        let path = proc_path(open, None);
        // One that somebody of the host has a lease on is not waited for.
        let by = |mode| {
            rustix::fs::open(path.as_slice(), flags(mode) | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
                .map_err(errno)
        };
        let also_read = self.with_reading(mode);
        match by(also_read) {
            // The guest's user need not be allowed to.
            Err(Errno::ACCES) if also_read != mode => by(mode),
            file => file,
        }
    }

    /// A guest that collects writes reads what it writes to.
    fn with_reading(&self, mode: OpenMode) -> OpenMode {
        OpenMode { read: mode.read || self.collects_writes, ..mode }
    }

    /// A number for an open file or folder of `node`.
    pub(super) fn opened(
        &mut self,
        fd: OwnedFd,
        node: Slot,
        mode: OpenMode,
        is_folder: bool,
    ) -> Answer<Handle> {
        let flock = LockKind::None;
        let open = Open { fd: Some(Arc::new(fd)), node, mode, is_folder, flock, flock_is_pending: false };
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
        match self.known_file(slot) {
            Ok((file, _)) => self.opened_anew(&file, mode),
            Err(Errno::STALE) => self.open_again(slot, mode),
            Err(error) => Err(error),
        }
    }

    /// The same of one whose permissions have forbidden it since it was opened, or did from its start. Its owner lets itself for a moment.
    pub(super) fn open_as_owner(&mut self, slot: Slot, mode: OpenMode) -> Answer<OwnedFd> {
        let (file, stat) = self.known_file(slot)?;
        let permit = |bits: u32| {
            let mode = Mode::from_raw_mode(bits & 0o7777);
            rustix::fs::chmod(proc_path(&file, None).as_slice(), mode).map_err(errno)
        };
        let bits = u32::from(stat.stx_mode);
        // One that may read and write it already is kept from it by something else.
        if bits & KIND != FILE || bits & 0o600 == 0o600 {
            return Err(Errno::ACCES);
        }
        permit(bits | 0o600)?;
        let opened = self.opened_anew(&file, mode);
        permit(bits)?;
        opened
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
}

fn flags(mode: OpenMode) -> OFlags {
    let access = match (mode.read, mode.write) {
        (_, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (true, true) => OFlags::RDWR,
    };
    // Never O_APPEND: each write says by itself where it goes, and pages of a mapping have their places.
    access | if mode.sync { OFlags::SYNC } else { OFlags::empty() }
}
