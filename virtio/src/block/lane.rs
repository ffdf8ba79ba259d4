//! The lane of discards and zeroing: how many of them the engine has at once.
//!
//! The host may take seconds for one of them, and they move nothing through guest memory. So they are taken off their
//! queues as they come, and wait here, where no read or write waits behind them. They take turns piece by piece, discards and
//! zeroing alternately: a file system that is being made does not wait for a whole disk to be discarded.

use std::collections::VecDeque;

use super::engine::{Operation, Tag};

/// As many at once. The host does those of one file one after the other in any case, and each may hold one of the few
/// threads on which it also does other slow work: four on a host with one processor.
const AT_ONCE: usize = 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SpaceLane {
    running: usize,
    discards: VecDeque<Tag>,
    zeroing: VecDeque<Tag>,
    /// The last turn was a discard's.
    discarded: bool,
}

impl SpaceLane {
    /// Whether the request `tag` may go to the engine now, with `operation`; if not, [`SpaceLane::next`] gives it later.
    pub(super) fn enter(&mut self, tag: Tag, operation: Operation) -> bool {
        let has_room = self.running < AT_ONCE;
        if has_room {
            self.running += 1;
        } else {
            self.waiting(operation).push_back(tag);
        }
        has_room
    }

    /// The request `tag` has done a piece, and comes to `operation`. Whether it may go on: not if others wait.
    pub(super) fn go_on(&mut self, tag: Tag, operation: Operation) -> bool {
        self.leave();
        if self.discards.is_empty() && self.zeroing.is_empty() {
            return self.enter(tag, operation);
        }
        self.waiting(operation).push_back(tag);
        false
    }

    /// A request has no more to do on space.
    pub(super) fn leave(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// The next that may go to the engine, if there is room.
    pub(super) fn next(&mut self) -> Option<Tag> {
        if self.running >= AT_ONCE {
            return None;
        }
        self.discarded = !self.discards.is_empty() && (self.zeroing.is_empty() || !self.discarded);
        let waiting = if self.discarded { &mut self.discards } else { &mut self.zeroing };
        let tag = waiting.pop_front()?;
        self.running += 1;
        Some(tag)
    }

    /// Takes out a waiting discard.
    pub(super) fn take_discard(&mut self) -> Option<Tag> {
        self.discards.pop_front()
    }

    fn waiting(&mut self, operation: Operation) -> &mut VecDeque<Tag> {
        if operation == Operation::Discard { &mut self.discards } else { &mut self.zeroing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISCARD: Operation = Operation::Discard;
    const ZEROES: Operation = Operation::WriteZeroes { unmap: false };

    #[test]
    fn requests_beyond_the_room_go_in_the_order_they_came() {
        let mut lane = SpaceLane::default();
        assert_eq!([1, 2, 3, 4, 5].map(|tag| lane.enter(tag, DISCARD)), [true, true, false, false, false]);
        assert_eq!(lane.next(), None);
        lane.leave();
        assert_eq!((lane.next(), lane.next()), (Some(3), None));
        assert_eq!(lane.take_discard(), Some(4));
        lane.leave();
        lane.leave();
        assert_eq!((lane.next(), lane.next()), (Some(5), None));
    }

    #[test]
    fn zeroing_waits_for_one_piece_of_a_discard_and_discards_for_one_of_zeroing() {
        let mut lane = SpaceLane::default();
        assert_eq!([1, 2, 3, 4].map(|tag| lane.enter(tag, DISCARD)), [true, true, false, false]);
        assert_eq!([5, 6].map(|tag| lane.enter(tag, ZEROES)), [false, false]);
        let mut turns = Vec::new();
        let mut running = 1;
        for _ in 0..9 {
            assert!(!lane.go_on(running, if running < 5 { DISCARD } else { ZEROES }));
            running = lane.next().unwrap();
            turns.push(running);
        }
        assert_eq!(turns, [3, 5, 4, 6, 1, 5, 3, 6, 4]);
        // One that is alone goes on by itself.
        let mut lane = SpaceLane::default();
        assert!(lane.enter(1, DISCARD) && lane.go_on(1, DISCARD));
        assert_eq!(lane.next(), None);
    }
}
