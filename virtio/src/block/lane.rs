//! The lane of discards and zeroing: how many of them the engine has at once.
//!
//! The host may take seconds for one of them, and they move nothing through guest memory. So they are taken off their
//! queues as they come, and wait here, where no read or write waits behind them.

use std::collections::VecDeque;

use super::engine::Tag;

/// As many at once. The host does those of one file one after the other in any case, and each may hold one of the few
/// threads on which it also does other slow work: four on a host with one processor.
const AT_ONCE: usize = 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SpaceLane {
    running: usize,
    waiting: VecDeque<Tag>,
}

impl SpaceLane {
    /// Whether the request `tag` may go to the engine now; if not, [`SpaceLane::next`] gives it later.
    pub(super) fn enter(&mut self, tag: Tag) -> bool {
        let has_room = self.running < AT_ONCE;
        if has_room {
            self.running += 1;
        } else {
            self.waiting.push_back(tag);
        }
        has_room
    }

    /// A request has no more to do on space.
    pub(super) fn leave(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// The next that may go to the engine, if there is room.
    pub(super) fn next(&mut self) -> Option<Tag> {
        let tag = if self.running < AT_ONCE { self.waiting.pop_front() } else { None };
        self.running += usize::from(tag.is_some());
        tag
    }

    /// Takes out a waiting request for which `is_it` holds.
    pub(super) fn take(&mut self, mut is_it: impl FnMut(Tag) -> bool) -> Option<Tag> {
        let at = self.waiting.iter().position(|tag| is_it(*tag))?;
        self.waiting.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_beyond_the_room_go_in_the_order_they_came() {
        let mut lane = SpaceLane::default();
        assert_eq!([1, 2, 3, 4, 5].map(|tag| lane.enter(tag)), [true, true, false, false, false]);
        assert_eq!(lane.next(), None);
        lane.leave();
        assert_eq!((lane.next(), lane.next()), (Some(3), None));
        assert_eq!(lane.take(|tag| tag == 5), Some(5));
        lane.leave();
        lane.leave();
        assert_eq!((lane.next(), lane.next()), (Some(4), None));
    }
}
