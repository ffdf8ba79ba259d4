//! A table of ports whose slots are used again, each use with another generation.

use crate::ports::PortId;

/// The table.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }

    /// Entries in it.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> PortId {
        let slot = self.free.pop().unwrap_or(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        match self.slots.get_mut(slot as usize) {
            Some((generation, entry)) => {
                *entry = Some(value);
                PortId { slot, generation: *generation }
            }
            None => {
                self.slots.push((0, Some(value)));
                PortId { slot, generation: 0 }
            }
        }
    }

    pub(crate) fn get(&self, id: PortId) -> Option<&T> {
        let (generation, entry) = self.slots.get(id.slot as usize)?;
        entry.as_ref().filter(|_| *generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: PortId) -> Option<&mut T> {
        let (generation, entry) = self.slots.get_mut(id.slot as usize)?;
        entry.as_mut().filter(|_| *generation == id.generation)
    }

    pub(crate) fn remove(&mut self, id: PortId) -> Option<T> {
        let (generation, entry) = self.slots.get_mut(id.slot as usize)?;
        if *generation != id.generation {
            return None;
        }
        let value = entry.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PortId, &T)> {
        (0..).zip(&self.slots).filter_map(|(slot, (generation, entry))| {
            Some((PortId { slot, generation: *generation }, entry.as_ref()?))
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PortId, &mut T)> {
        (0..).zip(&mut self.slots).filter_map(|(slot, (generation, entry))| {
            Some((PortId { slot, generation: *generation }, entry.as_mut()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_port_that_is_gone_names_no_other() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!((second.slot, slots.len()), (first.slot, 1));
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&'b'));
        assert_eq!(slots.iter().count(), 1);
    }
}
