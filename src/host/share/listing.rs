//! What is in a folder. One buffer for the share has what the host said last of one open folder; another listing, or a step back,
//! asks the host anew.

use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use virtio::fs::{Answer, Entry, Handle, Listing, UNKNOWN_INO};

use super::attributes::stat_at;
use super::nodes::{Found, Slot};
use super::{Share, errno, sys};

/// Bytes that the host is asked for at once: some 1000 names.
const BUFFER: usize = 32 << 10;
/// Bytes of `struct linux_dirent64` in front of the name.
const HEAD: usize = 19;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Entries {
    of: Option<Handle>,
    bytes: Vec<u8>,
    /// What the host gave, and how much of it is used.
    end: usize,
    at: usize,
    /// Where the entry at `at` is, for the guest.
    offset: u64,
}

/// An entry as the host gave it.
#[derive(Debug)]
struct Dirent<'a> {
    ino: u64,
    /// Where the listing goes on behind it.
    next: u64,
    kind: u32,
    name: &'a [u8],
    len: usize,
}

impl<'a> Dirent<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ino = u64::from_ne_bytes(*bytes.first_chunk()?);
        let next = u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let len = usize::from(u16::from_ne_bytes(*bytes.get(16..)?.first_chunk()?));
        let kind = u32::from(*bytes.get(18)?) << 12;
        let name = bytes.get(HEAD..len)?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(Dirent { ino, next, kind, name, len })
    }
}

impl Entries {
    /// The folder was closed.
    pub(super) fn forget(&mut self, handle: Handle) {
        if self.of == Some(handle) {
            *self = Entries::default();
        }
    }

    /// Makes `at` the entry at `offset`; false behind the last one.
    fn fill(&mut self, handle: Handle, offset: u64, folder: &OwnedFd) -> Answer<bool> {
        if self.of != Some(handle) || self.offset != offset {
            rustix::fs::seek(folder, SeekFrom::Start(offset)).map_err(errno)?;
            (self.of, self.offset, self.at, self.end) = (Some(handle), offset, 0, 0);
        }
        if self.at >= self.end {
            self.bytes.resize(BUFFER, 0);
            (self.at, self.end) = (0, sys::entries(folder, &mut self.bytes)?);
        }
        Ok(self.at < self.end)
    }

    fn next(&self) -> Option<Dirent<'_>> {
        Dirent::parse(self.bytes.get(self.at..self.end)?)
    }
}

impl Share {
    pub(super) fn entries(&mut self, handle: Handle, offset: u64, into: &mut Listing<'_>) -> Answer<()> {
        let open = self.handles.get(handle)?;
        let parent = open.node;
        let folder = self.handles.fd(handle)?;
        let mut entries = std::mem::take(&mut self.entries);
        let mut at = offset;
        let mut list = || {
            while entries.fill(handle, at, &folder)? {
                let Some(dirent) = entries.next() else { break };
                if !into.has_room(dirent.name.len()) {
                    break;
                }
                let found = self.add(parent, &folder, &dirent, into);
                (at, entries.at) = (found, entries.at + dirent.len);
                entries.offset = at;
            }
            Ok(())
        };
        let result = list();
        self.entries = entries;
        // The guest hears of what there is so far, and of the error when it goes on from there.
        if at == offset { result } else { Ok(()) }
    }

    /// Adds an entry, and returns where the listing goes on.
    fn add(&mut self, parent: Slot, folder: &OwnedFd, dirent: &Dirent<'_>, into: &mut Listing<'_>) -> u64 {
        let Dirent { ino, next, kind, name, .. } = *dirent;
        // The folder above the share is not the guest's to know.
        if matches!(name, b"." | b"..") {
            into.push(None, UNKNOWN_INO, kind, next, name);
            return next;
        }
        let entry = if into.with_attributes() { self.entry_of(parent, folder, name) } else { None };
        let ino = entry.map_or(ino, |entry| entry.attr.ino);
        into.push(entry.as_ref(), ino, kind, next, name);
        next
    }

    /// What a name is, unless it is gone already.
    fn entry_of(&mut self, parent: Slot, folder: &OwnedFd, name: &[u8]) -> Option<Entry> {
        let stat = stat_at(folder, name).ok()?;
        let slot = self.nodes.intern(parent, name, self.folder.identify(&stat), Found::of(&stat)).ok()?;
        self.entry(slot, &stat).ok()
    }
}
