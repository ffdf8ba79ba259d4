//! All that happened to a folder, in its order, and what of it is left after a power cut at any point.
//!
//! A medium holds what a sync covers that was completed before the cut: changes that were completed before that sync began. Each
//! sector that later changes touch has any one of the states in between; sizes and names as well. That is less than any
//! file system promises, and reorders more than any device does.

use std::collections::BTreeMap;

use tiny_guest::plan::Chance;

use super::wire::ROOT;

pub(crate) const SECTOR: usize = 512;

/// A change of a file's content, or of the folder's names.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Write {
        offset: usize,
        data: Vec<u8>,
    },
    Zero {
        offset: usize,
        len: usize,
    },
    /// A new size: what is added reads as zeros.
    Size(usize),
    Name {
        name: Vec<u8>,
        node: u64,
    },
    NoName(Vec<u8>),
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Of a node; the folder for names.
    Change(u64, Change),
    /// All completed changes of a node, at its end.
    Sync(u64),
    /// A sync of a node that fails: its completed changes are in the page cache for ever, and not on the medium.
    Lost(u64),
    /// The event at this place is completed.
    Done(usize),
}

/// Names and contents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folder {
    pub(crate) names: BTreeMap<Vec<u8>, u64>,
    pub(crate) files: BTreeMap<u64, Vec<u8>>,
}

impl Folder {
    pub(crate) fn file(&self, name: &str) -> Option<&Vec<u8>> {
        self.files.get(self.names.get(name.as_bytes())?)
    }

    pub(crate) fn add(&mut self, name: &str, content: Vec<u8>) {
        let node = ROOT + 1 + self.files.len() as u64;
        self.names.insert(name.into(), node);
        self.files.insert(node, content);
    }

    /// Makes a change, all of it.
    pub(crate) fn apply(&mut self, node: u64, change: &Change) {
        match change {
            Change::Name { name, node } => drop(self.names.insert(name.clone(), *node)),
            Change::NoName(name) => drop(self.names.remove(name)),
            Change::Rename { from, to } => {
                if let Some(node) = self.names.remove(from) {
                    self.names.insert(to.clone(), node);
                }
            }
            Change::Size(size) => self.files.entry(node).or_default().resize(*size, 0),
            _ => apply(self.files.entry(node).or_default(), change, |_| true),
        }
    }
}

/// Changes the sectors of `file` that are chosen.
fn apply(file: &mut Vec<u8>, change: &Change, chosen: impl Fn(usize) -> bool) {
    let (offset, len, data) = match change {
        Change::Write { offset, data } => (*offset, data.len(), Some(data)),
        Change::Zero { offset, len } => (*offset, *len, None),
        Change::Size(size) => (*size, file.len().saturating_sub(*size), None),
        _ => return,
    };
    let end = offset + len;
    if let Change::Write { .. } = change
        && file.len() < end
    {
        file.resize(end, 0);
    }
    let mut at = offset;
    while at < end.min(file.len()) {
        let next = ((at / SECTOR + 1) * SECTOR).min(end).min(file.len());
        if chosen(at / SECTOR) {
            match data {
                Some(data) => file[at..next].copy_from_slice(&data[at - offset..next - offset]),
                None => file[at..next].fill(0),
            }
        }
        at = next;
    }
}

/// How a cut chooses from what was not synced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    Everything,
    Nothing,
    /// Half of the changes, or of their sectors.
    Changes,
    Sectors,
    /// All but one change, or one change alone.
    One,
    AllButOne,
}

impl Loss {
    pub(crate) const ALL: [Loss; 6] =
        [Loss::Everything, Loss::One, Loss::Changes, Loss::AllButOne, Loss::Sectors, Loss::Nothing];
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Recording {
    pub(crate) before: Folder,
    pub(crate) events: Vec<Event>,
}

/// A change that has begun before the cut.
struct Begun<'a> {
    node: u64,
    change: &'a Change,
    durable: bool,
    /// Chosen, though it is not durable.
    lucky: bool,
}

impl Recording {
    /// What has begun before event `at`, and whether it is durable.
    fn begun(&self, at: usize) -> BTreeMap<usize, Begun<'_>> {
        let mut begun = BTreeMap::new();
        // Completed changes that are not durable, of each node; what each sync that is under way covers.
        let mut done: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut syncs: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, event) in self.events[..at].iter().enumerate() {
            match event {
                Event::Change(node, change) => {
                    begun.insert(place, Begun { node: *node, change, durable: false, lucky: false });
                }
                Event::Sync(node) => {
                    syncs.insert(place, done.get(node).cloned().unwrap_or_default());
                }
                Event::Lost(node) => drop(done.remove(node)),
                Event::Done(place) => match self.events[*place] {
                    Event::Change(node, _) => done.entry(node).or_default().push(*place),
                    Event::Sync(node) => {
                        let covered = syncs.remove(place).unwrap_or_default();
                        covered.iter().for_each(|place| begun.get_mut(place).unwrap().durable = true);
                        done.entry(node).or_default().retain(|place| !begun[place].durable);
                    }
                    Event::Lost(_) | Event::Done(_) => {}
                },
            }
        }
        begun
    }

    /// The folder after a power cut before event `at`, and how many changes may have been lost.
    pub(crate) fn cut(&self, at: usize, loss: Loss, chance: &mut Chance) -> (Folder, usize) {
        let mut begun = self.begun(at);
        let pending: Vec<usize> =
            begun.iter().filter(|(_, begun)| !begun.durable).map(|(place, _)| *place).collect();
        let one = pending.get(usize::try_from(chance.below(pending.len().max(1) as u64)).unwrap());
        for place in &pending {
            begun.get_mut(place).unwrap().lucky = match loss {
                Loss::Everything => false,
                Loss::Nothing | Loss::Sectors => true,
                Loss::Changes => chance.below(2) == 0,
                Loss::One => Some(place) == one,
                Loss::AllButOne => Some(place) != one,
            };
        }
        let mut folder = self.before.clone();
        // Names change one after the other, as in a journal.
        let names = |begun: &&Begun<'_>| begun.node == ROOT;
        let all: Vec<_> = begun.values().filter(names).collect();
        let kept = all.iter().rposition(|begun| begun.durable || begun.lucky).map_or(0, |last| last + 1);
        all[..kept].iter().for_each(|begun| folder.apply(ROOT, begun.change));
        let nodes: Vec<u64> = folder.names.values().copied().collect();
        for node in nodes {
            let changes: Vec<_> = begun.values().filter(|begun| begun.node == node).collect();
            let file = folder.files.entry(node).or_default();
            replay(file, &changes, matches!(loss, Loss::Sectors), chance);
        }
        (folder, pending.len())
    }
}

/// Makes the changes of a file, of which each sector has those up to the last one that is durable or lucky there. `torn`: luck is
/// a sector's, not the change's.
fn replay(file: &mut Vec<u8>, changes: &[&Begun<'_>], torn: bool, chance: &mut Chance) {
    let most = changes.iter().map(|begun| match begun.change {
        Change::Write { offset, data } => offset + data.len(),
        Change::Size(size) => *size,
        _ => 0,
    });
    let most = most.max().unwrap_or(0).max(file.len());
    let mut last = vec![None; most.div_ceil(SECTOR)];
    let (mut size, mut now) = (file.len(), file.len());
    for (number, begun) in changes.iter().enumerate() {
        let (from, to) = match begun.change {
            Change::Write { offset, data } => (*offset, offset + data.len()),
            Change::Zero { offset, len } => (*offset, (offset + len).min(now)),
            Change::Size(size) => (*size, now.max(*size)),
            _ => continue,
        };
        let coin = |chance: &mut Chance| !torn || chance.below(2) == 0;
        let before = now;
        now = match begun.change {
            Change::Write { .. } => now.max(to),
            Change::Size(size) => *size,
            _ => now,
        };
        if now != before && (begun.durable || begun.lucky && coin(chance)) {
            size = now;
        }
        for sector in last.iter_mut().take(to.div_ceil(SECTOR)).skip(from / SECTOR) {
            if begun.durable || begun.lucky && coin(chance) {
                *sector = Some(number);
            }
        }
    }
    for (number, begun) in changes.iter().enumerate() {
        apply(file, begun.change, |sector| last.get(sector).is_some_and(|last| *last >= Some(number)));
    }
    file.resize(size, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: usize, byte: u8) -> Event {
        Event::Change(2, Change::Write { offset, data: vec![byte; SECTOR] })
    }

    fn recording(events: Vec<Event>) -> Recording {
        let mut before = Folder::default();
        before.add("disk", vec![0; 2 * SECTOR]);
        Recording { before, events }
    }

    fn first_bytes(recording: &Recording, at: usize, loss: Loss) -> [u8; 2] {
        let (folder, _) = recording.cut(at, loss, &mut Chance(1));
        let disk = folder.file("disk").unwrap();
        [disk[0], disk[SECTOR]]
    }

    #[test]
    fn a_sync_keeps_what_was_completed_before_it_began() {
        let events = vec![
            write(0, 1),
            Event::Done(0),
            write(SECTOR, 2),
            Event::Sync(2),
            Event::Done(2),
            Event::Done(3),
        ];
        let recording = recording(events);
        assert_eq!(first_bytes(&recording, 5, Loss::Everything), [0, 0], "the sync is under way");
        assert_eq!(first_bytes(&recording, 6, Loss::Everything), [1, 0]);
        assert_eq!(first_bytes(&recording, 6, Loss::Nothing), [1, 2]);
    }

    #[test]
    fn what_a_sync_that_failed_should_have_kept_is_lost_for_good() {
        let mut events = vec![write(0, 1), Event::Done(0), Event::Lost(2), write(SECTOR, 2), Event::Done(3)];
        events.extend([Event::Sync(2), Event::Done(5)]);
        assert_eq!(first_bytes(&recording(events), 7, Loss::Everything), [0, 2]);
    }

    #[test]
    fn what_is_durable_is_not_undone_by_what_came_before_it() {
        let late = vec![write(0, 1), write(0, 2), Event::Done(1), Event::Sync(2), Event::Done(3)];
        let recording = recording(late);
        for loss in Loss::ALL {
            assert_eq!(first_bytes(&recording, 5, loss), [2, 0], "{loss:?}");
        }
    }

    #[test]
    fn a_name_is_durable_when_its_folder_is_synced() {
        let name = Change::Name { name: b"new".into(), node: 3 };
        let write = Event::Change(3, Change::Write { offset: 0, data: vec![1; 700] });
        let mut events = vec![Event::Change(ROOT, name), Event::Done(0), write, Event::Done(2)];
        events.extend([Event::Sync(3), Event::Done(4), Event::Sync(ROOT), Event::Done(6)]);
        let recording = recording(events);
        let new = |at| recording.cut(at, Loss::Everything, &mut Chance(1)).0.file("new").cloned();
        assert_eq!(new(6), None);
        assert_eq!(new(8), Some(vec![1; 700]));
    }
}
