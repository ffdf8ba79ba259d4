//! A file system in memory, and the driver's side of FUSE, for tests and fuzz targets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::component::StateError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_memory::Bytes;

use super::filesystem::{
    Answer, Attr, Caching, Caller, Change, Entry, FileSystem, Handle, Lock, LockKind, Name, New, Node,
    OpenMode, Rename, Seek, SetXattr, Space, Usage, Work, WriteAt,
};
use super::{Errno, Listing, wire};
use crate::memory::{Memory, Segment, total};

/// Most files, and most bytes of one.
const MOST_FILES: usize = 4096;
const MOST_BYTES: u64 = 1 << 20;

#[derive(Debug, Default, Clone)]
struct File {
    mode: u32,
    data: Vec<u8>,
    names: BTreeMap<Vec<u8>, u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: u64,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<u64, File>,
    next: u64,
    /// Locks: file, owner, kind.
    locks: Vec<(u64, u64, LockKind)>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    handles: BTreeMap<u64, u64>,
    next: u64,
}

/// How slow the medium is, and how bad.
#[derive(Debug, Default)]
struct Medium {
    /// Calls of [`Work`] wait while it is set.
    is_held: Mutex<bool>,
    changed: Condvar,
    /// What it says to the next sync.
    lost: Mutex<Option<Errno>>,
}

impl Medium {
    /// Waits until it is not held, or until `stops`: false then.
    fn wait(&self, stops: &AtomicBool) -> bool {
        let mut is_held = self.is_held.lock().unwrap_or_else(PoisonError::into_inner);
        while *is_held {
            if stops.load(Ordering::Relaxed) {
                return false;
            }
            let waited = self.changed.wait_timeout(is_held, Duration::from_millis(1));
            is_held = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// The file system. Clones are the same files, each with its own open ones.
#[derive(Debug, Clone)]
pub struct MemoryFs {
    medium: Arc<Medium>,
    tree: Arc<Mutex<Tree>>,
    open: Open,
    caching: Caching,
}

impl MemoryFs {
    /// An empty one.
    pub fn new(caching: Caching) -> Self {
        let root = File { mode: 0o040_755, ..File::default() };
        let tree = Tree { files: [(1, root)].into(), next: 2, locks: Vec::new() };
        MemoryFs { medium: Arc::default(), tree: Arc::new(Mutex::new(tree)), open: Open::default(), caching }
    }

    /// Entries that the guest has of all files but the root.
    pub fn lookups(&self) -> u64 {
        self.tree().files.iter().filter(|(node, _)| **node != 1).map(|(_, file)| file.lookups).sum()
    }

    /// Its open files.
    pub fn open_files(&self) -> usize {
        self.open.handles.len()
    }

    /// Somebody else than the guest takes a lock on all files, or gives it up.
    pub fn lock_all(&self, locked: bool) {
        let mut tree = self.tree();
        tree.locks.retain(|(_, owner, _)| *owner != u64::MAX);
        if locked {
            let all: Vec<u64> = tree.files.keys().copied().collect();
            tree.locks.extend(all.iter().map(|file| (*file, u64::MAX, LockKind::Write)));
        }
    }

    /// While `is_held`, calls that may take long do.
    pub fn hold(&self, is_held: bool) {
        *self.medium.is_held.lock().unwrap_or_else(PoisonError::into_inner) = is_held;
        self.medium.changed.notify_all();
    }

    /// Data are lost, of which the next sync is told, and no other.
    pub fn lose(&self, error: Errno) {
        *self.medium.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn sync_work(&self) -> Work {
        let medium = self.medium.clone();
        Work::sync(move || {
            medium.wait(&AtomicBool::new(false));
            medium.lost.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
        })
    }

    fn change_work(&self) -> Work {
        let medium = self.medium.clone();
        Work::change(move |stops| if medium.wait(stops) { Ok(0) } else { Err(Errno::INTR) })
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, handle: Handle) -> Answer<u64> {
        self.open.handles.get(&handle.0).copied().ok_or(Errno::BADF)
    }

    fn open_node(&mut self, node: u64) -> Handle {
        self.open.next += 1;
        self.open.handles.insert(self.open.next, node);
        Handle(self.open.next)
    }
}

impl Tree {
    fn get(&mut self, node: u64) -> Answer<&mut File> {
        self.files.get_mut(&node).ok_or(Errno::STALE)
    }

    fn find(&mut self, parent: Node, name: Name<'_>) -> Answer<u64> {
        self.get(parent.0)?.names.get(name.bytes()).copied().ok_or(Errno::NOENT)
    }

    fn attr(&mut self, node: u64) -> Answer<Attr> {
        let file = self.get(node)?;
        let size = file.data.len() as u64;
        Ok(Attr { ino: node, size, mode: file.mode, nlink: 1, block_size: 4096, ..Attr::default() })
    }

    fn entry(&mut self, node: u64) -> Answer<Entry> {
        self.get(node)?.lookups += 1;
        Ok(Entry { node: Node(node), generation: 0, attr: self.attr(node)? })
    }

    fn make(&mut self, parent: Node, name: Name<'_>, mode: u32, data: &[u8]) -> Answer<u64> {
        if self.find(parent, name).is_ok() {
            return Err(Errno::EXIST);
        }
        if self.get(parent.0)?.mode & 0o170_000 != 0o040_000 {
            return Err(Errno::NOTDIR);
        }
        if self.files.len() >= MOST_FILES {
            return Err(Errno::new(28));
        }
        let node = self.next;
        self.next += 1;
        self.files.insert(node, File { mode, data: data.to_vec(), ..File::default() });
        self.get(parent.0)?.names.insert(name.bytes().to_vec(), node);
        Ok(node)
    }
}

impl FileSystem for MemoryFs {
    fn caching(&self) -> Caching {
        self.caching
    }

    fn has_locks(&self) -> bool {
        true
    }

    fn begin(&mut self, _: bool) {
        self.open = Open::default();
        let mut tree = self.tree();
        tree.files.values_mut().for_each(|file| file.lookups = 0);
        tree.locks.clear();
    }

    fn lookup(&mut self, parent: Node, name: Name<'_>) -> Answer<Entry> {
        let mut tree = self.tree();
        let node = tree.find(parent, name)?;
        tree.entry(node)
    }

    fn forget(&mut self, node: Node, count: u64) {
        if let Ok(file) = self.tree().get(node.0) {
            file.lookups = file.lookups.saturating_sub(count);
        }
    }

    fn attr(&mut self, node: Node, _: Option<Handle>) -> Answer<Attr> {
        self.tree().attr(node.0)
    }

    fn set_attr(&mut self, node: Node, _: Option<Handle>, change: &Change) -> Answer<Attr> {
        let mut tree = self.tree();
        let file = tree.get(node.0)?;
        if let Some(size) = change.size {
            let size = usize::try_from(size.min(MOST_BYTES)).unwrap_or(0);
            file.data.resize(size, 0);
        }
        if let Some(mode) = change.mode {
            file.mode = file.mode & 0o170_000 | mode;
        }
        tree.attr(node.0)
    }

    fn read_link(&mut self, node: Node, text: &mut Vec<u8>) -> Answer<()> {
        text.extend(&self.tree().get(node.0)?.data);
        Ok(())
    }

    fn make(&mut self, parent: Node, name: Name<'_>, new: New<'_>, _: Caller) -> Answer<Entry> {
        let (mode, data) = match new {
            New::File(mode) => (0o100_000 | mode, [].as_slice()),
            New::Fifo(mode) => (0o010_000 | mode, [].as_slice()),
            New::Socket(mode) => (0o140_000 | mode, [].as_slice()),
            New::Folder(mode) => (0o040_000 | mode, [].as_slice()),
            New::Link(text) => (0o120_777, text),
        };
        let mut tree = self.tree();
        let node = tree.make(parent, name, mode, data)?;
        tree.entry(node)
    }

    fn remove(&mut self, parent: Node, name: Name<'_>, _: bool) -> Answer<()> {
        let mut tree = self.tree();
        tree.find(parent, name)?;
        tree.get(parent.0)?.names.remove(name.bytes());
        Ok(())
    }

    fn rename(&mut self, from: (Node, Name<'_>), to: (Node, Name<'_>), how: Rename) -> Answer<()> {
        let mut tree = self.tree();
        let node = tree.find(from.0, from.1)?;
        if how == Rename::Keep && tree.find(to.0, to.1).is_ok() {
            return Err(Errno::EXIST);
        }
        tree.get(to.0.0)?.names.insert(to.1.bytes().to_vec(), node);
        tree.get(from.0.0)?.names.remove(from.1.bytes());
        Ok(())
    }

    fn link(&mut self, node: Node, parent: Node, name: Name<'_>) -> Answer<Entry> {
        let mut tree = self.tree();
        let entry = tree.entry(node.0)?;
        tree.get(parent.0)?.names.insert(name.bytes().to_vec(), node.0);
        Ok(entry)
    }

    fn open(&mut self, node: Node, _: OpenMode) -> Answer<Handle> {
        self.tree().get(node.0)?;
        Ok(self.open_node(node.0))
    }

    fn create(
        &mut self,
        parent: Node,
        name: Name<'_>,
        permissions: u32,
        _: OpenMode,
        caller: Caller,
    ) -> Answer<(Entry, Handle)> {
        let entry = match self.make(parent, name, New::File(permissions), caller) {
            Err(Errno::EXIST) => self.lookup(parent, name)?,
            entry => entry?,
        };
        Ok((entry, self.open_node(entry.node.0)))
    }

    fn open_folder(&mut self, node: Node) -> Answer<Handle> {
        self.open(node, OpenMode::default())
    }

    fn list(&mut self, handle: Handle, offset: u64, into: &mut Listing<'_>) -> Answer<()> {
        let node = self.node(handle)?;
        let mut tree = self.tree();
        let names: Vec<_> = tree.get(node)?.names.iter().map(|(name, node)| (name.clone(), *node)).collect();
        for (at, (name, node)) in (1..).zip(names).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if !into.has_room(name.len()) {
                break;
            }
            let entry = if into.with_attributes() { Some(tree.entry(node)?) } else { None };
            let mode = tree.get(node)?.mode;
            into.push(entry.as_ref(), node, mode, at, &name);
        }
        Ok(())
    }

    fn release(&mut self, handle: Handle) {
        self.open.handles.remove(&handle.0);
    }

    fn read(&mut self, handle: Handle, offset: u64, memory: &Memory, into: &[Segment]) -> Answer<u64> {
        let node = self.node(handle)?;
        let mut tree = self.tree();
        let data = &tree.get(node)?.data;
        let mut rest = usize::try_from(offset).ok().and_then(|offset| data.get(offset..)).unwrap_or_default();
        let mut read = 0;
        for segment in into {
            let (now, later) =
                rest.split_at(rest.len().min(usize::try_from(segment.len).unwrap_or(usize::MAX)));
            memory.write_slice(now, segment.address).map_err(|_| Errno::IO)?;
            (rest, read) = (later, read + now.len() as u64);
        }
        Ok(read)
    }

    fn write(
        &mut self,
        handle: Handle,
        at: WriteAt,
        memory: &Memory,
        from: &[Segment],
        _: bool,
    ) -> Answer<u64> {
        let node = self.node(handle)?;
        let len = total(from);
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => self.tree().get(node)?.data.len() as u64,
        };
        if offset.checked_add(len).is_none_or(|end| end > MOST_BYTES) {
            return Err(Errno::FBIG);
        }
        let mut tree = self.tree();
        let data = &mut tree.get(node)?.data;
        let mut at = usize::try_from(offset).unwrap_or(0);
        for segment in from {
            let end = at + usize::try_from(segment.len).unwrap_or(0);
            data.resize(data.len().max(end), 0);
            let into = data.get_mut(at..end).unwrap_or_default();
            memory.read_slice(into, segment.address).map_err(|_| Errno::IO)?;
            at = end;
        }
        Ok(len)
    }

    fn sync(&mut self, handle: Handle, _: bool) -> Answer<Work> {
        self.node(handle).map(|_| self.sync_work())
    }

    fn sync_all(&mut self) -> Answer<Work> {
        Ok(self.sync_work())
    }

    fn usage(&mut self) -> Answer<Usage> {
        Ok(Usage { blocks: 7, block_size: 4096, ..Usage::default() })
    }

    fn seek(&mut self, handle: Handle, offset: u64, to: Seek) -> Answer<u64> {
        let node = self.node(handle)?;
        let len = self.tree().get(node)?.data.len() as u64;
        if offset >= len { Err(Errno::new(6)) } else { Ok(if to == Seek::Data { offset } else { len }) }
    }

    fn allocate(&mut self, handle: Handle, _: u64, _: u64, _: Space) -> Answer<Work> {
        self.node(handle).map(|_| self.change_work())
    }

    fn copy(&mut self, from: (Handle, u64), to: (Handle, u64), _: u64) -> Answer<Work> {
        self.node(from.0)?;
        self.node(to.0).map(|_| self.change_work())
    }

    fn xattr(&mut self, node: Node, name: &[u8], value: &mut Vec<u8>) -> Answer<()> {
        value.extend(self.tree().get(node.0)?.xattrs.get(name).ok_or(Errno::NODATA)?);
        Ok(())
    }

    fn xattrs(&mut self, node: Node, names: &mut Vec<u8>) -> Answer<()> {
        for name in self.tree().get(node.0)?.xattrs.keys() {
            names.extend(name);
            names.push(0);
        }
        Ok(())
    }

    fn set_xattr(&mut self, node: Node, name: &[u8], value: &[u8], _: SetXattr) -> Answer<()> {
        let mut tree = self.tree();
        let xattrs = &mut tree.get(node.0)?.xattrs;
        if xattrs.len() < 16 {
            xattrs.insert(name.to_vec(), value.to_vec());
        }
        Ok(())
    }

    fn remove_xattr(&mut self, node: Node, name: &[u8]) -> Answer<()> {
        self.tree().get(node.0)?.xattrs.remove(name).map(|_| ()).ok_or(Errno::NODATA)
    }

    fn lock(&mut self, lock: &Lock) -> Answer<()> {
        let node = self.node(lock.handle)?;
        if lock.kind != LockKind::None && self.conflict(lock)?.is_some() {
            return Err(Errno::AGAIN);
        }
        let mut tree = self.tree();
        tree.locks.retain(|(file, owner, _)| (*file, *owner) != (node, lock.owner));
        if lock.kind != LockKind::None {
            tree.locks.push((node, lock.owner, lock.kind));
        }
        Ok(())
    }

    fn blockers(&self, lock: &Lock) -> Vec<u64> {
        let Ok(node) = self.node(lock.handle) else { return Vec::new() };
        let tree = self.tree();
        let others = tree.locks.iter().filter(|(file, owner, _)| *file == node && *owner != lock.owner);
        others.map(|(_, owner, _)| *owner).collect()
    }

    fn conflict(&mut self, lock: &Lock) -> Answer<Option<(LockKind, u64, u64)>> {
        let node = self.node(lock.handle)?;
        let clashes = |(file, owner, kind): &&(u64, u64, LockKind)| {
            *file == node
                && *owner != lock.owner
                && (*kind == LockKind::Write || lock.kind == LockKind::Write)
        };
        let end = i64::MAX.cast_unsigned();
        Ok(self.tree().locks.iter().find(clashes).map(|(_, _, kind)| (*kind, 0, end)))
    }

    fn closed(&mut self, handle: Handle, owner: u64) -> Answer<Option<Work>> {
        let node = self.node(handle)?;
        self.tree().locks.retain(|(file, of, _)| (*file, *of) != (node, owner));
        Ok(None)
    }

    fn save(&self) -> Result<Value, StateError> {
        serde_json::to_value(&self.open).map_err(|error| StateError::refused("memory-fs", error))
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        let open = Open::deserialize(state).map_err(|error| StateError::damaged("memory-fs", error))?;
        if open.next > u64::MAX / 2 {
            return Err(StateError::damaged("memory-fs", "no handle has such a number"));
        }
        self.open = open;
        Ok(())
    }
}

/// The bytes of a request: opcode, node, and what follows the header.
pub fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::u32(&mut bytes, u32::try_from(wire::IN_HEADER + body.len()).unwrap_or(u32::MAX));
    wire::u32(&mut bytes, opcode);
    wire::u64(&mut bytes, unique);
    wire::u64(&mut bytes, node);
    wire::zeros(&mut bytes, 16);
    bytes.extend(body);
    bytes
}

/// The body of a FUSE_INIT of protocol 7.`minor` with these flags.
pub fn init(minor: u32, flags: u32) -> Vec<u8> {
    let mut body = Vec::new();
    [7, minor, 1 << 17, flags].iter().for_each(|word| wire::u32(&mut body, *word));
    wire::zeros(&mut body, 48);
    body
}

/// What an open folder lists, by listings of `room` bytes each: for each entry where the listing goes on, and its name.
///
/// # Panics
/// A listing fails or does not end.
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on stops there")]
pub fn list(fs: &mut dyn FileSystem, handle: Handle, room: usize, plus: bool) -> Vec<(u64, Vec<u8>)> {
    list_from(fs, handle, 0, room, plus)
}

/// The same from `offset` on.
///
/// # Panics
/// As [`list`].
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on stops there")]
pub fn list_from(
    fs: &mut dyn FileSystem,
    handle: Handle,
    offset: u64,
    room: usize,
    plus: bool,
) -> Vec<(u64, Vec<u8>)> {
    let (mut all, mut offset) = (Vec::new(), offset);
    loop {
        let mut out = Vec::new();
        fs.list(handle, offset, &mut Listing::new(&mut out, room, Caching::Auto, plus)).unwrap();
        if out.is_empty() {
            return all;
        }
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            let dirent = &rest[if plus { wire::ENTRY } else { 0 }..];
            offset = u64::from_le_bytes(dirent[8..16].try_into().unwrap());
            let len = usize::try_from(u32::from_le_bytes(dirent[16..20].try_into().unwrap())).unwrap();
            all.push((offset, dirent[24..24 + len].to_vec()));
            rest = &dirent[(24 + len).next_multiple_of(8)..];
        }
    }
}
