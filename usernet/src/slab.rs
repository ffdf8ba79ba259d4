//! A table whose slots are used again, each use with another generation.

/// A use of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// The slot.
    pub(crate) slot: u32,
    /// Which use of it, modulo 2^24.
    pub(crate) generation: u32,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    /// Entries in it.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The place that the next entry will have.
    pub(crate) fn next(&self) -> Place {
        let slot = self.free.last().copied().unwrap_or(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        let generation = self.slots.get(slot as usize).map_or(0, |(generation, _)| *generation);
        Place { slot, generation }
    }

    /// Puts an entry into [`Slab::next`].
    pub(crate) fn insert(&mut self, value: T) -> Place {
        let place = self.next();
        self.free.pop();
        match self.slots.get_mut(place.slot as usize) {
            Some((_, entry)) => *entry = Some(value),
            None => self.slots.push((0, Some(value))),
        }
        place
    }

    /// The entry, if this use of its slot is not over.
    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        let (generation, entry) = self.slots.get(place.slot as usize)?;
        entry.as_ref().filter(|_| *generation == place.generation)
    }

    /// As [`Slab::get`].
    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        let (generation, entry) = self.slots.get_mut(place.slot as usize)?;
        entry.as_mut().filter(|_| *generation == place.generation)
    }

    /// Takes the entry out.
    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let (generation, entry) = self.slots.get_mut(place.slot as usize)?;
        if *generation != place.generation {
            return None;
        }
        let value = entry.take()?;
        *generation = (*generation + 1) & 0xff_ffff;
        self.free.push(place.slot);
        Some(value)
    }

    /// All entries, to be changed.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|(_, entry)| entry.as_mut())
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        (0u32..).zip(&self.slots).filter_map(|(slot, (generation, entry))| {
            Some((Place { slot, generation: *generation }, entry.as_ref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_an_entry_that_is_gone_names_no_other() {
        let mut slab = Slab::new();
        assert_eq!(slab.next(), slab.insert('a'));
        let first = slab.iter().next().unwrap().0;
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.next();
        assert_eq!(second, slab.insert('b'));
        assert_eq!((second.slot, slab.len()), (first.slot, 1));
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
    }
}
