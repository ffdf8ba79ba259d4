//! Requests, and the parts that they are cut into.

use std::io;

use virtio::block::{Extent, Operation, Tag};
use virtio::memory::Segment;

use super::disk::InPlace;

/// Most parts in flight; requests beyond wait. A hostile image may have every sector elsewhere.
const MOST: u16 = 1024;

/// A request in flight.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// `None` while its tag is free.
    pub(super) operation: Option<Operation>,
    pub(super) extent: Extent,
    pub(super) segments: Vec<Segment>,
    /// Where on the disk its next part begins.
    pub(super) next: u64,
    /// Parts in flight.
    pub(super) parts: usize,
    /// What the first part that failed met.
    pub(super) error: Option<io::Error>,
}

impl Request {
    pub(super) fn end(&self) -> u64 {
        self.extent.offset.saturating_add(self.extent.len)
    }

    /// It fails, and begins no more parts.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.error.get_or_insert(error);
        self.next = self.end();
    }
}

/// The parts in flight, by the tags that engines know them by.
#[derive(Debug, Default)]
pub(super) struct Parts {
    owners: Vec<Tag>,
    /// Held while a part is in flight, by its tag.
    in_place: Vec<Option<InPlace>>,
    free: Vec<Tag>,
}

impl Parts {
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.owners.len() < usize::from(MOST)
    }

    /// A part of the request `owner`; `None` if there is no room.
    pub(super) fn take(&mut self, owner: Tag) -> Option<Tag> {
        if let Some(part) = self.free.pop() {
            *self.owners.get_mut(usize::from(part))? = owner;
            return Some(part);
        }
        let part = Tag::try_from(self.owners.len()).ok().filter(|part| *part < MOST)?;
        self.owners.push(owner);
        self.in_place.push(None);
        Some(part)
    }

    /// The part is a write to clusters that have their place.
    pub(super) fn hold(&mut self, part: Tag, in_place: InPlace) {
        if let Some(held) = self.in_place.get_mut(usize::from(part)) {
            *held = Some(in_place);
        }
    }

    /// The request that a part is of.
    pub(super) fn owner(&self, part: Tag) -> Option<Tag> {
        self.owners.get(usize::from(part)).copied()
    }

    /// The part has ended.
    pub(super) fn release(&mut self, part: Tag) {
        if let Some(held) = self.in_place.get_mut(usize::from(part)) {
            *held = None;
        }
        self.free.push(part);
    }
}
