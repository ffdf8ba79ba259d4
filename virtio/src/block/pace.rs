//! Coalescing of completions for a busy disk: wait for one, or for several at a time.
//!
//! Requests queue in a busy disk. A completion that waits a little here costs nothing then, and several are taken, reported
//! and replaced for the price of one. The limit is measured: a request that is alone takes the disk's own time; the rest of
//! what others take is queueing, and we use a part of that. So a disk that does many requests as fast as one is never
//! delayed.

use std::time::Duration;

/// In flight, from which on waiting for several is worth it.
const FROM: usize = 4;
/// Part of those in flight to wait for, and part of the time that they queue to do it in.
const COUNT_PART: usize = 4;
const TIME_PART: u32 = 4;
/// Shorter waits, of fast disks, do not pay for their timer.
const SHORTEST: Duration = Duration::from_micros(50);
/// Not longer than this: commands wait as well.
const LONGEST: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What a request takes that is alone, on average.
    alone: Option<Duration>,
    /// What one takes.
    usual: Duration,
    /// Nothing has ended since the last hold: no other before something does.
    held: bool,
}

impl Pace {
    /// A request ended after `took`; it began when none other was in flight, or not.
    pub(super) fn ended(&mut self, took: Duration, alone: bool) {
        self.held = false;
        self.usual = mean(self.usual, took);
        if alone {
            self.alone = Some(self.alone.map_or(took, |before| mean(before, took)));
        }
    }

    /// How many completions to wait for when so many requests are in flight, and how long; `None`: for the first.
    pub(super) fn hold(&mut self, in_flight: usize) -> Option<(usize, Duration)> {
        let queueing = self.usual.saturating_sub(self.alone?);
        let limit = (queueing / TIME_PART).min(LONGEST);
        let worth_it = in_flight >= FROM && limit >= SHORTEST && !self.held;
        self.held |= worth_it;
        worth_it.then_some((in_flight / COUNT_PART, limit))
    }
}

/// The mean of about the last eight.
fn mean(before: Duration, new: Duration) -> Duration {
    (before * 7 + new.min(Duration::from_secs(60))) / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn pace(alone: u32, usual: u32) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.ended(US * alone, true);
        }
        for _ in 0..100 {
            pace.ended(US * usual, false);
        }
        pace
    }

    #[test]
    fn a_disk_where_requests_queue_is_waited_for_a_part_of_that() {
        let (count, limit) = pace(100, 900).hold(32).unwrap();
        assert_eq!(count, 8);
        assert!((190 * US..=200 * US).contains(&limit), "{limit:?}");
    }

    #[test]
    fn a_disk_that_does_many_as_fast_as_one_is_not_held_up() {
        assert_eq!(pace(100, 90).hold(32), None);
        assert_eq!(pace(80, 250).hold(32), None);
    }

    #[test]
    fn nothing_is_held_up_twice_while_nothing_ends() {
        let mut pace = pace(100, 900);
        assert!(pace.hold(32).is_some());
        assert_eq!(pace.hold(32), None);
        pace.ended(900 * US, false);
        assert!(pace.hold(32).is_some());
    }

    #[test]
    fn few_requests_are_not_held_up() {
        assert_eq!(pace(100, 900).hold(FROM - 1), None);
    }

    #[test]
    fn nothing_is_held_up_before_anything_is_known() {
        assert_eq!(Pace::default().hold(256), None);
    }

    #[test]
    fn a_disk_that_hangs_does_not_hold_up_commands() {
        let mut pace = pace(100, 900);
        pace.ended(Duration::MAX, true);
        pace.ended(Duration::MAX, false);
        assert_eq!(pace.hold(8).unwrap().1, LONGEST);
    }
}
