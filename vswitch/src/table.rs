//! The table of addresses: at which port a station of a VLAN is.
//!
//! The addresses of each port are a list from the oldest to the newest, so that ageing and eviction take the head of a list.
//! When the table is full, a port that has its share or more loses an address of its own for each new one; a port with less
//! takes one of the port with most.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::VlanId;
use crate::hash::Seed;
use crate::ports::PortId;

/// An address is made the newest of its port at most this often.
const TOUCH: Duration = Duration::from_secs(1);
/// How often, and how many at a time, addresses that are too old are removed.
const SWEEP: Duration = Duration::from_secs(1);
const SWEEP_MOST: usize = 256;

/// VLAN and MAC address in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(u64);

impl Key {
    pub(crate) fn new(vlan: VlanId, mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        Key(u64::from(vlan.get()) << 48 | u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    pub(crate) fn parts(self) -> (Option<VlanId>, [u8; 6]) {
        let [high, low, mac @ ..] = self.0.to_be_bytes();
        (VlanId::new(u16::from_be_bytes([high, low])), mac)
    }
}

/// What a frame's source was to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    /// Nothing new.
    Known,
    /// Its first frame. A port, this one or another, may have lost an address for it.
    New { evicted: Option<PortId> },
    /// It was at another port.
    Moved,
    /// It belongs to another port, which is secure.
    Refused,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    port: PortId,
    /// The port is secure: the address does not move away.
    pinned: bool,
    seen: Instant,
    older: Option<u32>,
    newer: Option<u32>,
}

/// The addresses of a port.
#[derive(Debug, Default)]
struct List {
    oldest: Option<u32>,
    newest: Option<u32>,
    len: usize,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    index: HashMap<Key, u32, Seed>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// By the slot of the port.
    lists: Vec<List>,
    most: usize,
    ageing: Duration,
    swept: Option<Instant>,
}

impl Table {
    /// An empty table for `most` addresses.
    pub(crate) fn new(most: usize, ageing: Duration) -> Self {
        Table {
            index: HashMap::with_hasher(Seed::random()),
            entries: Vec::new(),
            free: Vec::new(),
            lists: Vec::new(),
            most: most.max(1),
            ageing,
            swept: None,
        }
    }

    /// Where a station is.
    pub(crate) fn find(&self, key: Key, now: Instant) -> Option<PortId> {
        let entry = self.entry(*self.index.get(&key)?)?;
        self.is_young(entry, now).then_some(entry.port)
    }

    /// A frame of a station came from `port`, one of `ports`.
    pub(crate) fn learn(
        &mut self,
        key: Key,
        port: PortId,
        pinned: bool,
        ports: usize,
        now: Instant,
    ) -> Learned {
        self.sweep(now);
        let Some(at) = self.index.get(&key).copied() else {
            let evicted = if self.index.len() < self.most { None } else { self.evict(port, ports) };
            self.insert(key, port, pinned, now);
            return Learned::New { evicted };
        };
        let Some(entry) = self.entries.get(at as usize) else { return Learned::Refused };
        if entry.port == port {
            if now.saturating_duration_since(entry.seen) >= TOUCH {
                self.relink(at, port, pinned, now);
            }
            return Learned::Known;
        }
        let young = self.is_young(entry, now);
        if young && entry.pinned {
            return Learned::Refused;
        }
        self.relink(at, port, pinned, now);
        if young { Learned::Moved } else { Learned::New { evicted: None } }
    }

    /// Forgets the addresses of a port.
    pub(crate) fn flush(&mut self, port: PortId) {
        while let Some(at) = self.lists.get(port.slot as usize).and_then(|list| list.oldest) {
            self.remove(at);
        }
    }

    /// All addresses, with the time since their last frame.
    pub(crate) fn iter(&self, now: Instant) -> impl Iterator<Item = (Key, PortId, Duration)> {
        let entries = self.index.values().filter_map(|at| self.entry(*at));
        let young = entries.filter(move |entry| self.is_young(entry, now));
        young.map(move |entry| (entry.key, entry.port, now.saturating_duration_since(entry.seen)))
    }

    fn entry(&self, at: u32) -> Option<&Entry> {
        self.entries.get(at as usize)
    }

    fn is_young(&self, entry: &Entry, now: Instant) -> bool {
        now.saturating_duration_since(entry.seen) < self.ageing
    }

    fn list(&mut self, port: PortId) -> Option<&mut List> {
        let slot = port.slot as usize;
        if self.lists.len() <= slot {
            self.lists.resize_with(slot + 1, List::default);
        }
        self.lists.get_mut(slot)
    }

    /// Makes room for an address of `port`. Returns the port that lost one.
    fn evict(&mut self, port: PortId, ports: usize) -> Option<PortId> {
        let share = (self.most / ports.max(1)).max(1);
        let own = self.list(port)?;
        let at = if own.len >= share {
            own.oldest
        } else {
            self.lists.iter().max_by_key(|list| list.len).and_then(|list| list.oldest)
        }?;
        let loser = self.entry(at)?.port;
        self.remove(at);
        Some(loser)
    }

    fn insert(&mut self, key: Key, port: PortId, pinned: bool, now: Instant) {
        let entry = Entry { key, port, pinned, seen: now, older: None, newer: None };
        let at = match self.free.pop() {
            Some(at) => at,
            None => u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
        };
        match self.entries.get_mut(at as usize) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.index.insert(key, at);
        self.link(at, port);
    }

    fn remove(&mut self, at: u32) {
        self.unlink(at);
        if let Some(entry) = self.entries.get(at as usize) {
            self.index.remove(&entry.key);
            self.free.push(at);
        }
    }

    fn relink(&mut self, at: u32, port: PortId, pinned: bool, now: Instant) {
        self.unlink(at);
        if let Some(entry) = self.entries.get_mut(at as usize) {
            (entry.port, entry.pinned, entry.seen) = (port, pinned, now);
        }
        self.link(at, port);
    }

    /// Makes an entry the newest of a port.
    fn link(&mut self, at: u32, port: PortId) {
        let Some(list) = self.list(port) else { return };
        let older = list.newest.replace(at);
        list.oldest.get_or_insert(at);
        list.len += 1;
        if let Some(entry) = older.and_then(|older| self.entries.get_mut(older as usize)) {
            entry.newer = Some(at);
        }
        if let Some(entry) = self.entries.get_mut(at as usize) {
            (entry.older, entry.newer) = (older, None);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some(entry) = self.entry(at) else { return };
        let (port, older, newer) = (entry.port, entry.older, entry.newer);
        if let Some(entry) = older.and_then(|older| self.entries.get_mut(older as usize)) {
            entry.newer = newer;
        }
        if let Some(entry) = newer.and_then(|newer| self.entries.get_mut(newer as usize)) {
            entry.older = older;
        }
        let Some(list) = self.list(port) else { return };
        if list.oldest == Some(at) {
            list.oldest = newer;
        }
        if list.newest == Some(at) {
            list.newest = older;
        }
        list.len -= 1;
    }

    /// Removes addresses that are too old: a bounded number of them, and not each time.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        let mut left = SWEEP_MOST;
        for list in 0..self.lists.len() {
            while let Some(at) = self.lists.get(list).and_then(|list| list.oldest)
                && self.entry(at).is_some_and(|entry| !self.is_young(entry, now))
            {
                if left == 0 {
                    return;
                }
                left -= 1;
                self.remove(at);
            }
        }
    }
}
