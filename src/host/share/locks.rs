//! Locks of the guest that are the host's too (`locks=host`).
//!
//! flock(2) belongs to an open file, and each open file of the guest is one here: the host's kernel does it all. fcntl(2) belongs to a
//! process, of which the host's kernel sees one. So the guest's owners are told apart here, and what all of them hold together is
//! held by one open file for each node, with locks that end with that (F_OFD_SETLK).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use virtio::fs::{Answer, Errno, Handle, Lock, LockKind, OpenMode};

use super::nodes::Slot;
use super::state::SavedLock;
use super::{Share, errno, sys};

/// Most ranges that are locked by fcntl(2) in a share.
const MOST_RANGES: usize = 1024;

/// A range that an owner has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    owner: u64,
    kind: LockKind,
    start: u64,
    /// The last byte.
    end: u64,
    /// By which open file it was taken last.
    handle: Handle,
    /// The host has not granted it yet, after a restore: the machine that it comes from may have it still.
    is_pending: bool,
}

impl Held {
    fn meets(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }

    /// What is left of it without a range: nothing, one piece or two.
    fn without(self, start: u64, end: u64) -> impl Iterator<Item = Held> {
        let before = start.checked_sub(1).filter(|last| self.start <= *last);
        let after = end.checked_add(1).filter(|first| *first <= self.end);
        let before = before.map(|last| Held { end: last.min(self.end), ..self });
        let after = after.map(|first| Held { start: first.max(self.start), ..self });
        before.into_iter().chain(after)
    }
}

/// The ranges of one file, and the open file that holds them.
#[derive(Debug)]
struct Ranges {
    file: Arc<OwnedFd>,
    held: Vec<Held>,
}

/// All locks of fcntl(2) in a share.
#[derive(Debug, Default)]
pub(super) struct Locks {
    files: HashMap<Slot, Ranges>,
    /// Some of them, or of flock(2)'s, are pending.
    are_pending: bool,
    /// Ranges of a state whose files are not there any more.
    lost: usize,
}

impl Locks {
    /// Files that are open for their locks.
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    fn count(&self) -> usize {
        self.files.values().map(|ranges| ranges.held.len()).sum()
    }

    /// All, in an order that depends on them alone.
    pub(super) fn saved(&self) -> Vec<SavedLock> {
        let of = |(node, ranges): (&Slot, &Ranges)| {
            let node = *node;
            let saved = |held: &Held| {
                let Held { owner, kind, start, end, handle, .. } = *held;
                SavedLock { node, owner, kind, start, end, handle }
            };
            ranges.held.iter().map(saved).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.files.iter().flat_map(of).collect();
        all.sort_by_key(|lock| (lock.node, lock.start, lock.owner));
        all
    }

    /// What other owners hold that is in the way.
    fn clashes(&self, node: Slot, lock: &Lock) -> impl Iterator<Item = &Held> {
        let held = self.files.get(&node).into_iter().flat_map(|ranges| &ranges.held);
        held.filter(move |held| {
            held.owner != lock.owner
                && held.meets(lock.start, lock.end)
                && (held.kind == LockKind::Write || lock.kind == LockKind::Write)
        })
    }
}

impl Share {
    pub(super) fn set_lock(&mut self, lock: &Lock) -> Answer<()> {
        // Before anybody new has what was somebody's.
        self.reacquire_locks(false);
        let (node, fd) = (self.handles.get(lock.handle)?.node, self.handles.fd(lock.handle)?);
        if lock.is_flock {
            let locked = flock(Some(&fd), lock.kind);
            // One that is made stronger is given up first, and may be lost.
            let kept = if locked.is_ok() { lock.kind } else { LockKind::None };
            self.handles.note_flock(lock.handle, kept);
            return locked;
        }
        if lock.kind == LockKind::None {
            return self.unlock(node, lock.owner, lock.start, lock.end);
        }
        if self.locks.clashes(node, lock).next().is_some() {
            return Err(Errno::AGAIN);
        }
        // What is cut in two becomes one more, and the new one.
        if self.locks.count() + 2 > MOST_RANGES {
            return Err(Errno::NOLCK);
        }
        let file = match self.locks.files.get(&node) {
            Some(ranges) => ranges.file.clone(),
            None => self.lock_file(node, lock.handle, lock.kind).unwrap_or(fd),
        };
        sys::lock(&file, lock.kind, lock.start, lock.end)?;
        let ranges = self.locks.files.entry(node).or_insert(Ranges { file, held: Vec::new() });
        ranges.cut(lock.owner, lock.start, lock.end);
        let Lock { handle, owner, kind, start, end, .. } = *lock;
        ranges.held.push(Held { owner, kind, start, end, handle, is_pending: false });
        Ok(())
    }

    /// Takes again what was saved, flock(2)'s of the open files too; what others have is pending.
    pub(super) fn restore_locks(&mut self, saved: Vec<SavedLock>) -> Result<(), &'static str> {
        let fits = |lock: &SavedLock| lock.start <= lock.end && i64::try_from(lock.end).is_ok();
        if saved.len() > MOST_RANGES || !saved.iter().all(fits) {
            return Err("a lock is none that a file can have");
        }
        for SavedLock { node, owner, kind, start, end, handle } in saved {
            if kind == LockKind::None || self.nodes.get(node).is_err() {
                return Err("a lock is on no file of the share");
            }
            let file = match self.locks.files.get(&node) {
                Some(ranges) => Some(ranges.file.clone()),
                None => self.lock_file(node, handle, kind),
            };
            let Some(file) = file else {
                self.locks.lost += 1;
                continue;
            };
            let ranges = self.locks.files.entry(node).or_insert(Ranges { file, held: Vec::new() });
            ranges.held.push(Held { owner, kind, start, end, handle, is_pending: true });
        }
        self.locks.are_pending = true;
        self.handles.set_flocks_pending();
        self.reacquire_locks(false);
        Ok(())
    }

    /// Asks the host for the locks that are pending; how many are then, or, as `is_last`, are lost.
    pub(super) fn reacquire_locks(&mut self, is_last: bool) -> usize {
        if !self.locks.are_pending {
            return 0;
        }
        let mut left = self.handles.reacquire_flocks(is_last, |file, kind| flock(Some(file), kind).is_ok());
        for ranges in self.locks.files.values_mut() {
            for held in ranges.held.iter_mut().filter(|held| held.is_pending) {
                held.is_pending = sys::lock(&ranges.file, held.kind, held.start, held.end).is_err();
                left += usize::from(held.is_pending);
            }
            ranges.held.retain(|held| !(held.is_pending && is_last));
        }
        let lost = if is_last || left == 0 { std::mem::take(&mut self.locks.lost) } else { 0 };
        self.locks.are_pending = left > 0 && !is_last;
        left + lost
    }

    /// Whose locks are in the way of `lock`.
    pub(super) fn lock_blockers(&self, lock: &Lock) -> Vec<u64> {
        let Ok(open) = self.handles.get(lock.handle) else { return Vec::new() };
        let mut owners: Vec<u64> = self.locks.clashes(open.node, lock).map(|held| held.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// What is in the way of `lock`: of the guest's own, else of others of the host.
    pub(super) fn find_conflict(&mut self, lock: &Lock) -> Answer<Option<(LockKind, u64, u64)>> {
        self.reacquire_locks(false);
        let (node, fd) = (self.handles.get(lock.handle)?.node, self.handles.fd(lock.handle)?);
        if let Some(held) = self.locks.clashes(node, lock).next() {
            return Ok(Some((held.kind, held.start, held.end)));
        }
        let file = self.locks.files.get(&node).map_or(fd, |ranges| ranges.file.clone());
        Ok(sys::conflict(&file, lock.kind, lock.start, lock.end)?)
    }

    /// A process of the guest has closed a file, and so gives up all that it holds on it.
    pub(super) fn close_owner(&mut self, handle: Handle, owner: u64) -> Answer<()> {
        let node = self.handles.get(handle)?.node;
        self.unlock(node, owner, 0, u64::MAX)
    }

    /// The open file `handle` of `node` is closed. What is left of locks that were taken by it are those that belong to it (F_OFD_SETLK): a
    /// process's end when the process closes it. Linux says nothing of them by itself.
    pub(super) fn end_locks(&mut self, node: Slot, handle: Handle) {
        let ranges = self.locks.files.get(&node).into_iter().flat_map(|ranges| &ranges.held);
        let of_it: Vec<Held> = ranges.filter(|held| held.handle == handle).copied().collect();
        for Held { owner, start, end, .. } in of_it {
            let _ = self.unlock(node, owner, start, end);
        }
        if self.nodes.get(node).is_ok_and(|file| file.handles.is_empty()) {
            self.locks.files.remove(&node);
        }
    }

    fn unlock(&mut self, node: Slot, owner: u64, start: u64, end: u64) -> Answer<()> {
        let Some(ranges) = self.locks.files.get_mut(&node) else { return Ok(()) };
        let mine = ranges.cut(owner, start, end);
        let mut result = Ok(());
        for piece in mine {
            // What others read-lock of it stays so; nobody else can have a write lock there.
            let mut free = vec![piece];
            let mut shared = Vec::new();
            for other in ranges.held.iter().filter(|other| other.owner != owner) {
                free = free.into_iter().flat_map(|piece| piece.without(other.start, other.end)).collect();
                if other.meets(piece.start, piece.end) && piece.kind == LockKind::Write {
                    shared.push((other.start.max(piece.start), other.end.min(piece.end)));
                }
            }
            for (start, end) in shared {
                result = sys::lock(&ranges.file, LockKind::Read, start, end).and(result);
            }
            for piece in free {
                result = sys::lock(&ranges.file, LockKind::None, piece.start, piece.end).and(result);
            }
        }
        if ranges.held.is_empty() {
            self.locks.files.remove(&node);
        }
        Ok(result?)
    }

    /// An open file for a node's locks: one that may both read and write, since each kind of lock needs one of them. `None`: the asker's own
    /// open file has to do.
    fn lock_file(&mut self, node: Slot, asker: Handle, kind: LockKind) -> Option<Arc<OwnedFd>> {
        self.may_open().ok()?;
        let both = OpenMode { read: true, write: true, ..OpenMode::default() };
        let read = OpenMode { write: false, ..both };
        if !self.folder.options.read_only
            && let Ok(file) = self.open_node(node, both)
        {
            return Some(Arc::new(file));
        }
        // Permissions may have changed since the asker opened it, or were of the new file only. A read lock may be made a write lock.
        let mode = self.handles.get(asker).ok()?.mode;
        if kind == LockKind::Write || mode.read && mode.write {
            return self.handles.fd(asker).ok();
        }
        self.open_node(node, read).ok().map(Arc::new)
    }
}

/// Takes or gives up the lock of an open file (flock(2)).
pub(super) fn flock(file: Option<&Arc<OwnedFd>>, kind: LockKind) -> Answer<()> {
    let operation = match kind {
        LockKind::Read => FlockOperation::NonBlockingLockShared,
        LockKind::Write => FlockOperation::NonBlockingLockExclusive,
        LockKind::None => FlockOperation::NonBlockingUnlock,
    };
    rustix::fs::flock(file.ok_or(Errno::STALE)?, operation).map_err(errno)
}

impl Ranges {
    /// Takes a range from what an owner holds; the pieces that it held of it.
    fn cut(&mut self, owner: u64, start: u64, end: u64) -> Vec<Held> {
        let is_cut = |held: &mut Held| held.owner == owner && held.meets(start, end);
        let cut: Vec<Held> = self.held.extract_if(.., is_cut).collect();
        self.held.extend(cut.iter().flat_map(|held| held.without(start, end)));
        cut.into_iter()
            .map(|held| Held { start: held.start.max(start), end: held.end.min(end), ..held })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_every_place() {
        let (handle, kind) = (Handle(0), LockKind::Read);
        let held = Held { owner: 1, kind, start: 10, end: 19, handle, is_pending: false };
        let left =
            |start, end| held.without(start, end).map(|left| (left.start, left.end)).collect::<Vec<_>>();
        assert_eq!(left(0, 9), [(10, 19)]);
        assert_eq!(left(20, u64::MAX), [(10, 19)]);
        assert_eq!(left(0, u64::MAX), []);
        assert_eq!(left(12, 14), [(10, 11), (15, 19)]);
        assert_eq!(left(0, 10), [(11, 19)]);
        assert_eq!(left(19, 19), [(10, 18)]);
    }
}
