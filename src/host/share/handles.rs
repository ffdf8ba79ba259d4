//! Open files and folders of the guest, by a number: a slot and its generation.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio::fs::{Answer, Errno, Handle, LockKind, OpenMode};

use super::nodes::Slot;

/// An open file or folder.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// `None`: it was open when the machine was saved, and is gone.
    pub(super) fd: Option<Arc<OwnedFd>>,
    pub(super) node: Slot,
    pub(super) mode: OpenMode,
    pub(super) is_folder: bool,
    /// Its lock of flock(2).
    pub(super) flock: LockKind,
    /// The host has not granted it yet, after a restore.
    pub(super) flock_is_pending: bool,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    open: Option<Open>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Handles {
    places: Vec<Place>,
    free: Vec<Slot>,
    most: usize,
}

impl Handles {
    /// At most `most`.
    pub(super) fn new(most: usize) -> Self {
        Handles { places: Vec::new(), free: Vec::new(), most }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// A number for an open file.
    pub(super) fn add(&mut self, open: Open) -> Answer<(Slot, Handle)> {
        if self.len() >= self.most {
            return Err(Errno::NFILE);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.places.push(Place::default());
                Slot::try_from(self.places.len() - 1).map_err(|_| Errno::NFILE)?
            }
        };
        let place = usize::try_from(slot).ok().and_then(|at| self.places.get_mut(at)).ok_or(Errno::NFILE)?;
        place.open = Some(open);
        Ok((slot, Handle(u64::from(place.generation) << 32 | u64::from(slot))))
    }

    /// The open file of a number that the guest says.
    pub(super) fn get(&self, handle: Handle) -> Answer<&Open> {
        let (at, generation) = split(handle)?;
        let place = self.places.get(at).filter(|place| place.generation == generation);
        place.and_then(|place| place.open.as_ref()).ok_or(Errno::BADF)
    }

    /// Notes a lock of flock(2).
    pub(super) fn note_flock(&mut self, handle: Handle, kind: LockKind) {
        if let Ok((at, _)) = split(handle)
            && let Some(open) = self.places.get_mut(at).and_then(|place| place.open.as_mut())
        {
            (open.flock, open.flock_is_pending) = (kind, false);
        }
    }

    /// The host is to be asked for all locks of flock(2).
    pub(super) fn set_flocks_pending(&mut self) {
        for open in self.places.iter_mut().filter_map(|place| place.open.as_mut()) {
            open.flock_is_pending = open.flock != LockKind::None && open.fd.is_some();
        }
    }

    /// Has `lock` take those that are pending; how many are then, or, as `is_last`, are lost.
    pub(super) fn reacquire_flocks(
        &mut self,
        is_last: bool,
        lock: impl Fn(&Arc<OwnedFd>, LockKind) -> bool,
    ) -> usize {
        let mut left = 0;
        for open in self.places.iter_mut().filter_map(|place| place.open.as_mut()) {
            if !open.flock_is_pending {
                continue;
            }
            open.flock_is_pending = !open.fd.as_ref().is_some_and(|file| lock(file, open.flock));
            left += usize::from(open.flock_is_pending);
            if is_last && std::mem::take(&mut open.flock_is_pending) {
                open.flock = LockKind::None;
            }
        }
        left
    }

    /// The descriptor of one.
    pub(super) fn fd(&self, handle: Handle) -> Answer<Arc<OwnedFd>> {
        self.get(handle)?.fd.clone().ok_or(Errno::STALE)
    }

    pub(super) fn at(&self, slot: Slot) -> Option<&Open> {
        self.places.get(usize::try_from(slot).ok()?)?.open.as_ref()
    }

    /// Takes one out: its slot and what it was.
    pub(super) fn remove(&mut self, handle: Handle) -> Answer<(Slot, Open)> {
        let (at, generation) = split(handle)?;
        let place =
            self.places.get_mut(at).filter(|place| place.generation == generation).ok_or(Errno::BADF)?;
        let open = place.open.take().ok_or(Errno::BADF)?;
        place.generation = place.generation.wrapping_add(1);
        let slot = Slot::try_from(at).map_err(|_| Errno::BADF)?;
        self.free.push(slot);
        Ok((slot, open))
    }

    /// All, in the order of their slots, with their generations.
    pub(super) fn all(&self) -> impl Iterator<Item = (Slot, u32, &Open)> {
        let used = |(slot, place): (Slot, &'_ Place)| (slot, place.generation);
        (0..).zip(&self.places).filter_map(move |(slot, place)| {
            let (slot, generation) = used((slot, place));
            Some((slot, generation, place.open.as_ref()?))
        })
    }

    /// Puts back those that were saved, into a table that has none.
    pub(super) fn restore(&mut self, saved: Vec<(Slot, u32, Open)>) -> Result<(), &'static str> {
        let most = saved.iter().map(|(slot, ..)| *slot).max().map_or(0, |last| u64::from(last) + 1);
        // A process with a lower limit keeps those that there are; what it cannot open is gone.
        if most > 1 << 16 {
            return Err("it has more open files than a share can have");
        }
        self.places.resize_with(usize::try_from(most).unwrap_or(0), Place::default);
        for (slot, generation, open) in saved {
            let place = usize::try_from(slot).ok().and_then(|at| self.places.get_mut(at));
            let Some(place) = place.filter(|place| place.open.is_none()) else {
                return Err("two open files have one number");
            };
            (place.generation, place.open) = (generation, Some(open));
        }
        let free = (0..).zip(&self.places).filter(|(_, place)| place.open.is_none());
        self.free = free.map(|(slot, _)| slot).collect();
        Ok(())
    }
}

fn split(handle: Handle) -> Answer<(usize, u32)> {
    let at = usize::try_from(handle.0 & 0xffff_ffff).map_err(|_| Errno::BADF)?;
    Ok((at, u32::try_from(handle.0 >> 32).map_err(|_| Errno::BADF)?))
}
