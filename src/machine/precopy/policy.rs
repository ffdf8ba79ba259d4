//! What a copy of a running machine goes by: numbers in, decisions out. Knows no machine.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Pause that a copy of memory allows itself if nothing else was asked for.
const DOWNTIME: Duration = Duration::from_millis(300);
/// Rounds after which a copy does not come closer to its end.
const MOST_ROUNDS: u32 = 30;
/// Rounds in a row that leave hardly less than the best one before.
const MOST_STALLED: u32 = 3;
/// Bytes in a second, before any were sent: little, so that a copy does not pause for too much.
const FIRST_RATE: u64 = 64 << 20;
/// A rate that was measured with fewer bytes says what a buffer takes, and not the way behind it.
const SAMPLE: u64 = 1 << 20;

/// How memory is copied while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyLimits {
    /// The machine is paused when the rest of its memory and disks can be copied in this time; 300 ms unless set.
    pub downtime: Duration,
    /// Most bytes in a second while it runs; `None` is as fast as it goes.
    pub bandwidth: Option<u64>,
    /// What comes of a guest that writes its memory faster than it is copied.
    pub otherwise: Otherwise,
}

/// What comes of a guest that writes its memory faster than it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Otherwise {
    /// It is paused for longer.
    Pause,
    /// It runs on, and the copy has failed.
    GiveUp,
}

impl Default for CopyLimits {
    fn default() -> Self {
        CopyLimits { downtime: DOWNTIME, bandwidth: None, otherwise: Otherwise::Pause }
    }
}

/// How far a copy of a machine's memory is, and of the disks that are copied while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CopyProgress {
    /// 1 for all of it, then one more for what was written meanwhile.
    pub round: u32,
    /// Bytes that were copied, those that are copied again included and zeros left out.
    pub sent: u64,
    /// Bytes that this round looks at, holes of disks left out.
    pub total: u64,
    /// Those of them that it has still to look at.
    pub left: u64,
    /// Bytes in a second, as measured last.
    pub rate: u64,
}

/// What a copy has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CopyReport {
    /// Rounds, the last one while the machine was paused.
    pub rounds: u32,
    /// Bytes that were copied, of memory and of disks.
    pub sent: u64,
    /// Those of them that were copied while the machine was paused.
    #[serde(default)]
    pub paused_sent: u64,
    /// Milliseconds from the first byte to the machine's going on.
    pub total_ms: u64,
    /// Milliseconds for which it was paused.
    pub paused_ms: u64,
}

/// What follows a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Again,
    Pause,
    GiveUp,
}

/// Whether rounds come closer to an end.
#[derive(Debug)]
pub(super) struct Convergence {
    limits: CopyLimits,
    rounds: u32,
    least: u64,
    stalled: u32,
}

impl Convergence {
    pub(super) fn new(limits: CopyLimits) -> Self {
        Convergence { limits, rounds: 0, least: u64::MAX, stalled: 0 }
    }

    /// After a round that has left so many bytes.
    pub(super) fn after_round(&mut self, left: u64, rate: Rate) -> Verdict {
        self.rounds += 1;
        if rate.time_for(left) <= self.limits.downtime {
            return Verdict::Pause;
        }
        self.stalled = if left < self.least - self.least / 10 { 0 } else { self.stalled + 1 };
        self.least = self.least.min(left);
        match self.limits.otherwise {
            _ if self.rounds < MOST_ROUNDS && self.stalled < MOST_STALLED => Verdict::Again,
            Otherwise::Pause => Verdict::Pause,
            Otherwise::GiveUp => Verdict::GiveUp,
        }
    }
}

/// Bytes in a second, measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(u64);

impl Default for Rate {
    fn default() -> Self {
        Rate(FIRST_RATE)
    }
}

impl Rate {
    /// After `bytes` took this long.
    pub(super) fn measure(&mut self, bytes: u64, took: Duration) {
        if bytes >= SAMPLE {
            let rate = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
            self.0 = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        }
    }

    pub(super) fn bytes_per_second(self) -> u64 {
        self.0
    }

    fn time_for(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Keeps to a limit of bytes in a second.
#[derive(Debug)]
pub(super) struct Throttle {
    bandwidth: Option<u64>,
    /// When what was sent so far may have been sent.
    due: Instant,
}

impl Throttle {
    pub(super) fn new(bandwidth: Option<u64>, now: Instant) -> Self {
        Throttle { bandwidth, due: now }
    }

    /// How long to wait after `bytes` more.
    pub(super) fn delay(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(bandwidth) = self.bandwidth else { return Duration::ZERO };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Time in which nothing was sent is no credit.
        self.due = self.due.max(now).checked_add(cost).unwrap_or(self.due);
        self.due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(otherwise: Otherwise) -> CopyLimits {
        CopyLimits { downtime: Duration::from_millis(500), otherwise, ..CopyLimits::default() }
    }

    fn rate(bytes: u64) -> Rate {
        let mut rate = Rate::default();
        rate.measure(bytes, Duration::from_secs(1));
        rate
    }

    #[test]
    fn pause_comes_when_the_rest_fits_into_it() {
        let mut rounds = Convergence::new(limits(Otherwise::GiveUp));
        assert_eq!(rounds.after_round(51 * MIB, rate(100 * MIB)), Verdict::Again);
        assert_eq!(rounds.after_round(50 * MIB, rate(100 * MIB)), Verdict::Pause);
        // A faster way takes more.
        assert_eq!(rounds.after_round(100 * MIB, rate(200 * MIB)), Verdict::Pause);
        assert_eq!(rounds.after_round(0, rate(1)), Verdict::Pause);
    }

    #[test]
    fn guest_that_writes_faster_than_it_is_copied_ends_the_rounds() {
        for (otherwise, verdict) in [(Otherwise::Pause, Verdict::Pause), (Otherwise::GiveUp, Verdict::GiveUp)]
        {
            // As much each time, give or take some.
            let mut rounds = Convergence::new(limits(otherwise));
            let said: Vec<_> =
                [400, 401, 390, 395].map(|mib| rounds.after_round(mib * MIB, rate(100 * MIB))).into();
            assert_eq!(said, [Verdict::Again, Verdict::Again, Verdict::Again, verdict]);
            // Less each time, but never little: there is an end nevertheless.
            let mut rounds = Convergence::new(limits(otherwise));
            let mut left = u64::MAX / 2;
            let count = (1..).find(|_| {
                left -= left / 8;
                rounds.after_round(left, rate(MIB)) == verdict
            });
            assert_eq!(count, Some(MOST_ROUNDS));
            // A round that stalls once is forgiven.
            let mut rounds = Convergence::new(limits(otherwise));
            for mib in [800, 790, 780, 600, 590, 580, 400] {
                assert_eq!(rounds.after_round(mib * MIB, rate(100 * MIB)), Verdict::Again, "{mib}");
            }
        }
    }

    #[test]
    fn rate_is_that_of_enough_bytes_in_any_time() {
        let mut rate = Rate::default();
        rate.measure(SAMPLE - 1, Duration::from_nanos(1));
        assert_eq!(rate, Rate::default());
        rate.measure(u64::MAX, Duration::ZERO);
        assert_eq!((rate.bytes_per_second(), rate.time_for(u64::MAX)), (u64::MAX, Duration::from_secs(1)));
        rate.measure(SAMPLE, Duration::MAX);
        assert_eq!(rate.bytes_per_second(), 1);
        assert!(rate.time_for(u64::MAX) > Duration::from_secs(3600));
    }

    #[test]
    fn bandwidth_is_kept_and_rest_is_no_credit() {
        let begin = Instant::now();
        let mut free = Throttle::new(None, begin);
        assert_eq!(free.delay(u64::MAX, begin), Duration::ZERO);
        let mut throttle = Throttle::new(Some(100), begin);
        assert_eq!(throttle.delay(10, begin), Duration::from_millis(100));
        assert_eq!(throttle.delay(10, begin), Duration::from_millis(200));
        let later = begin + Duration::from_millis(150);
        assert_eq!(throttle.delay(10, later), Duration::from_millis(150));
        let later = begin + Duration::from_secs(60);
        assert_eq!(throttle.delay(10, later), Duration::from_millis(100));
        // Not forever for a limit of nothing.
        let _ = Throttle::new(Some(0), begin).delay(u64::MAX, begin);
    }
}
