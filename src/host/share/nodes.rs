//! The files that the guest knows: a table of names below folders.
//!
//! A node's number is a slot and the slot's generation, so that a number of the past, or one that was made up, is found out. A
//! node is there while the guest has entries of it, has it open, or knows something below it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Statx;
use virtio::fs::{Answer, Errno, Name, Node};

use super::attributes::Identity;
use super::known::{Known, MOST_NAMES, MOST_NODES};
use super::shared_folder::SharedFolder;

/// Deepest folder, from the shared one on. What the host's moves make of the table may be a circle.
const MOST_DEPTH: usize = 4096;

/// Index of a node's slot.
pub(super) type Slot = u32;

/// The shared folder itself; slot 0 is not used.
pub(super) const ROOT: Slot = 1;

/// A file, folder or link.
#[derive(Debug)]
pub(super) struct File {
    pub(super) parent: Slot,
    pub(super) name: Box<[u8]>,
    /// The name before that, of a file with several: one that a hard link leaves when the name above is another file's or nobody's.
    pub(super) other: Option<Box<OtherName>>,
    pub(super) identity: Identity,
    /// Entries that the guest has.
    pub(super) lookups: u64,
    /// Nodes whose parent it is.
    pub(super) children: u32,
    /// Its open files, in the order of opening.
    pub(super) handles: Vec<Slot>,
    /// Of a folder: its descriptor, while it is in the cache.
    pub(super) folder: Option<Arc<OwnedFd>>,
    /// It was used since the cache last looked.
    pub(super) is_recent: bool,
}

/// A name that is not counted in its folder: that may be forgotten meanwhile.
#[derive(Debug)]
pub(super) struct OtherName {
    folder: Node,
    name: Box<[u8]>,
}

/// What is known of a file besides its name when that is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It was just made, so what is known under its number is gone.
    New,
    /// It has no other name, or is a folder.
    Alone,
    /// It has other names, too.
    Linked,
}

impl Found {
    pub(super) fn of(stat: &Statx) -> Self {
        let is_linked = stat.stx_nlink > 1 && !Identity::of(stat).is_folder();
        if is_linked { Found::Linked } else { Found::Alone }
    }
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    file: Option<Box<File>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Nodes {
    places: Vec<Place>,
    free: Vec<Slot>,
    /// By device and number.
    known: HashMap<(u64, u64), Slot>,
    /// Folders with a descriptor, the one to go first in front.
    pub(super) open: std::collections::VecDeque<Slot>,
    /// Bytes of all names.
    names: usize,
    /// With those of the machine's other shares.
    pub(super) together: Arc<Known>,
    /// Most folders with a descriptor.
    pub(super) most_open: usize,
}

impl Nodes {
    pub(super) fn new(folder: &SharedFolder, together: Arc<Known>) -> Self {
        let mut nodes = Nodes {
            places: Vec::new(),
            free: Vec::new(),
            known: HashMap::new(),
            open: std::collections::VecDeque::new(),
            names: 0,
            together,
            most_open: folder.limits.folders,
        };
        nodes.places.push(Place::default());
        let root = File::new(ROOT, &[], folder.identity);
        nodes.places.push(Place { generation: 0, file: Some(Box::new(root)) });
        nodes.known.insert((folder.identity.device, folder.identity.ino), ROOT);
        nodes
    }

    /// Bytes of names as they are counted, and as they are.
    #[cfg(test)]
    pub(super) fn counted_names(&self) -> (usize, usize) {
        (self.names, self.all().map(|(_, file)| file.names_len()).sum())
    }

    /// How many there are besides the root.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len() - 2 - self.free.len()
    }

    /// Refuses to know more than there may be.
    pub(super) fn may_grow(&self) -> Answer<()> {
        if self.together.may_grow() { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Refuses a longer name if there is no room for it. A restored share may have more than it may have now.
    pub(super) fn may_rename(&self, before: &[u8], name: &[u8]) -> Answer<()> {
        let more = name.len().saturating_sub(before.len());
        if more == 0 || self.together.has_room_for(more) { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// The slot of a number that the guest says.
    pub(super) fn slot(&self, node: Node) -> Answer<Slot> {
        let slot = u32::try_from(node.0 & 0xffff_ffff).map_err(|_| Errno::STALE)?;
        let place = self.place(slot).ok_or(Errno::STALE)?;
        let is_it = u64::from(place.generation) == node.0 >> 32 && place.file.is_some();
        if is_it { Ok(slot) } else { Err(Errno::STALE) }
    }

    /// The number for the guest.
    pub(super) fn number(&self, slot: Slot) -> Node {
        let generation = self.place(slot).map_or(0, |place| place.generation);
        Node(u64::from(generation) << 32 | u64::from(slot))
    }

    pub(super) fn generation(&self, slot: Slot) -> u32 {
        self.place(slot).map_or(0, |place| place.generation)
    }

    pub(super) fn get(&self, slot: Slot) -> Answer<&File> {
        self.place(slot).and_then(|place| place.file.as_deref()).ok_or(Errno::STALE)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Answer<&mut File> {
        let place = usize::try_from(slot).ok().and_then(|at| self.places.get_mut(at));
        place.and_then(|place| place.file.as_deref_mut()).ok_or(Errno::STALE)
    }

    /// All in use, in the order of their slots.
    pub(super) fn all(&self) -> impl Iterator<Item = (Slot, &File)> {
        (0..).zip(&self.places).filter_map(|(slot, place)| Some((slot, place.file.as_deref()?)))
    }

    /// The node of a file that was found as `name` in `parent`: the one that is known by its identity, under its new name, or
    /// another one.
    pub(super) fn intern(
        &mut self,
        parent: Slot,
        name: &[u8],
        identity: Identity,
        found: Found,
    ) -> Answer<Slot> {
        let key = (identity.device, identity.ino);
        if let Some(slot) = self.known.get(&key).copied()
            && found != Found::New
            && self.get(slot)?.identity == identity
        {
            self.rename(slot, parent, name, found);
            return Ok(slot);
        }
        self.may_grow()?;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.places.push(Place::default());
                Slot::try_from(self.places.len() - 1).map_err(|_| Errno::NFILE)?
            }
        };
        self.put(slot, File::new(parent, name, identity));
        Ok(slot)
    }

    /// Puts a file into an empty slot.
    fn put(&mut self, slot: Slot, file: File) {
        let (parent, key) = (file.parent, (file.identity.device, file.identity.ino));
        self.count(file.name.len());
        if let Ok(parent) = self.get_mut(parent) {
            parent.children += 1;
        }
        if let Some(place) = usize::try_from(slot).ok().and_then(|at| self.places.get_mut(at)) {
            place.file = Some(Box::new(file));
        }
        self.known.insert(key, slot);
    }

    /// One more has a name of this length.
    fn count(&mut self, name: usize) {
        self.names += name;
        self.together.add(1, name);
    }

    /// A node has this name from now on.
    pub(super) fn rename(&mut self, slot: Slot, parent: Slot, name: &[u8], found: Found) {
        self.rename_from(None, slot, parent, name, found);
    }

    /// The same where another name of it is gone by that.
    pub(super) fn rename_from(
        &mut self,
        left: Option<(Slot, &[u8])>,
        slot: Slot,
        parent: Slot,
        name: &[u8],
        found: Found,
    ) {
        let Ok(file) = self.get(slot) else { return };
        // A folder that is mounted below itself: the host can do that, and names go on from the outer one.
        if slot == ROOT || slot == parent || (file.parent == parent && *file.name == *name) {
            return;
        }
        let before = file.names_len();
        // It has another name as long as that is not known to be gone, and there is room for it.
        let keeps_other = found == Found::Linked && self.together.has_room_for(name.len());
        let is_left = left == Some((file.parent, &*file.name));
        let after = match (keeps_other, is_left) {
            (false, _) => name.len(),
            (true, true) => name.len() + before - file.name.len(),
            (true, false) => name.len() + file.name.len(),
        };
        let more = after.saturating_sub(before);
        // Found under a longer name that there is no room for: the one before is as true as it was.
        if more > 0 && !self.together.has_room_for(more) {
            return;
        }
        let folder = self.number(file.parent);
        let Ok(file) = self.get_mut(slot) else { return };
        let last = std::mem::replace(&mut file.name, name.into());
        if !keeps_other {
            file.other = None;
        } else if !is_left {
            file.other = Some(Box::new(OtherName { folder, name: last }));
        }
        let old = std::mem::replace(&mut file.parent, parent);
        self.names = self.names + after - before;
        self.together.add(0, after);
        self.together.remove(0, before);
        if old != parent {
            if let Ok(parent) = self.get_mut(parent) {
                parent.children += 1;
            }
            self.lose_child(old);
        }
    }

    /// Has a file with several names go by the one before its last; whether it has one.
    pub(super) fn use_other_name(&mut self, slot: Slot) -> bool {
        let other = self.get(slot).ok().and_then(|file| file.other.as_ref());
        let Some((folder, name)) = other.map(|other| (other.folder, other.name.clone())) else {
            return false;
        };
        let Ok(folder) = self.slot(folder) else { return false };
        self.rename(slot, folder, &name, Found::Linked);
        true
    }

    /// The node that is known by its identity.
    pub(super) fn find(&self, identity: Identity) -> Option<Slot> {
        let slot = *self.known.get(&(identity.device, identity.ino))?;
        self.get(slot).is_ok_and(|file| file.identity == identity).then_some(slot)
    }

    /// The guest gives back `count` entries.
    pub(super) fn forget(&mut self, slot: Slot, count: u64) {
        if let Ok(file) = self.get_mut(slot) {
            file.lookups = file.lookups.saturating_sub(count);
            self.drop_unused(slot);
        }
    }

    fn lose_child(&mut self, slot: Slot) {
        if let Ok(file) = self.get_mut(slot) {
            file.children = file.children.saturating_sub(1);
            self.drop_unused(slot);
        }
    }

    /// Drops a node that nothing needs, and then its folders.
    pub(super) fn drop_unused(&mut self, slot: Slot) {
        let mut slot = slot;
        while slot != ROOT {
            let Ok(file) = self.get(slot) else { return };
            if file.lookups > 0 || file.children > 0 || !file.handles.is_empty() {
                return;
            }
            let (parent, key) = (file.parent, (file.identity.device, file.identity.ino));
            let (len, has_folder) = (file.names_len(), file.folder.is_some());
            self.names -= len;
            self.together.remove(1, len);
            if has_folder {
                self.open.retain(|open| *open != slot);
            }
            if self.known.get(&key) == Some(&slot) {
                self.known.remove(&key);
            }
            if let Some(place) = usize::try_from(slot).ok().and_then(|at| self.places.get_mut(at)) {
                place.file = None;
                place.generation = place.generation.wrapping_add(1);
            }
            self.free.push(slot);
            if let Ok(parent) = self.get_mut(parent) {
                parent.children = parent.children.saturating_sub(1);
            }
            slot = parent;
        }
    }

    /// The names from the root to a node.
    pub(super) fn names(&self, slot: Slot) -> Answer<Vec<&[u8]>> {
        let (mut names, mut at) = (Vec::new(), slot);
        while at != ROOT {
            if names.len() == MOST_DEPTH {
                return Err(Errno::STALE);
            }
            let file = self.get(at)?;
            names.push(&*file.name);
            at = file.parent;
        }
        names.reverse();
        Ok(names)
    }

    fn place(&self, slot: Slot) -> Option<&Place> {
        self.places.get(usize::try_from(slot).ok()?)
    }

    /// Puts back nodes that were saved, into a table that has none: slot, generation and file, in any order. The free slots between
    /// them keep no generation, and need none: no number of them is known.
    pub(super) fn restore(&mut self, saved: Vec<(Slot, u32, File)>) -> Result<(), &'static str> {
        let Some(last) = saved.iter().map(|(slot, ..)| *slot).max() else { return Ok(()) };
        let most = usize::try_from(last).unwrap_or(usize::MAX);
        // A table is as long as it was once: longer than what is in use, and not beyond measure.
        // One of several shares may have had more than is left for it now; what it has too many goes as the guest forgets.
        let names: usize = saved.iter().map(|(.., file)| file.name.len()).sum();
        if saved.len() > MOST_NODES || most > MOST_NODES + 2 || names > MOST_NAMES + Name::MAX {
            return Err("it has more files than a share knows");
        }
        self.places.resize_with(most + 1, Place::default);
        for (slot, generation, file) in saved {
            let place = usize::try_from(slot).ok().and_then(|at| self.places.get_mut(at));
            let Some(place) = place.filter(|place| slot > ROOT && place.file.is_none()) else {
                return Err("two files have one number");
            };
            place.generation = generation;
            // A number of the host's that was used again is that of the later file.
            let (key, born) = ((file.identity.device, file.identity.ino), file.identity.born);
            let known = self.known.get(&key).copied();
            let later = known.filter(|slot| self.get(*slot).is_ok_and(|file| file.identity.born > born));
            self.put(slot, file);
            if let Some(later) = later {
                self.known.insert(key, later);
            }
        }
        let mut children: HashMap<Slot, u32> = HashMap::new();
        for (_, file) in self.all().filter(|(slot, _)| *slot != ROOT) {
            if !self.get(file.parent).is_ok_and(|parent| parent.identity.is_folder()) {
                return Err("a file lies in no folder");
            }
            *children.entry(file.parent).or_default() += 1;
        }
        for at in 1..=last {
            match self.get_mut(at) {
                Ok(file) => file.children = children.get(&at).copied().unwrap_or(0),
                Err(_) => self.free.push(at),
            }
        }
        Ok(())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let known = self.places.iter().filter(|place| place.file.is_some()).count();
        // The root was not counted.
        self.together.remove(known.saturating_sub(1), self.names);
    }
}

impl File {
    /// Bytes of its names here.
    fn names_len(&self) -> usize {
        self.name.len() + self.other.as_ref().map_or(0, |other| other.name.len())
    }

    pub(super) fn new(parent: Slot, name: &[u8], identity: Identity) -> Self {
        File {
            parent,
            name: name.into(),
            other: None,
            identity,
            lookups: 0,
            children: 0,
            handles: Vec::new(),
            folder: None,
            is_recent: false,
        }
    }
}
