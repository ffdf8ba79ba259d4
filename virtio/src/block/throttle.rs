//! Limits on what a disk does in a second: two token buckets, one for operations and one for bytes, for all threads of the disk.
//!
//! A request that the buckets do not admit stays in its ring, and its thread wakes up when they admit the next one. What a
//! request costs is known when it is taken off the ring; so one may begin whenever nothing is owed, and what it takes beyond
//! the level is owed then. That keeps the rate for requests of any size.
//!
//! A thread that has to wait gets a place: a time from which on it may begin one request whatever is owed. So none of several
//! threads takes all that there is, and each request is paid for all the same.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What may come at once after a rest: what is due in this time.
const BURST: Duration = Duration::from_millis(100);
/// The shortest wait. What the limits admit meanwhile comes together behind it, instead of waking the thread for each.
const SHORTEST: Duration = Duration::from_millis(1);

/// How much a disk may do in a second; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Requests: reads, writes, flushes, discards and zeroing.
    pub iops: Option<NonZeroU64>,
    /// Bytes that are read and written, together.
    pub bps: Option<NonZeroU64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// A look at a disk without limits takes no lock.
    is_on: AtomicBool,
    buckets: Mutex<Buckets>,
}

/// A thread's place.
#[derive(Debug, Default)]
pub(super) struct Place(Option<Instant>);

/// Whether the next request may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Now,
    /// Then, and not before.
    At {
        time: Instant,
        /// It was admitted at once so far.
        is_new: bool,
    },
}

#[derive(Debug, Default)]
struct Buckets {
    limits: DiskLimits,
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Throttle {
    pub(super) fn new(limits: DiskLimits, now: Instant) -> Self {
        let throttle = Throttle::default();
        throttle.set(limits, now);
        throttle
    }

    /// From now on these are the limits; nothing is owed. The same limits again change nothing.
    pub(super) fn set(&self, limits: DiskLimits, now: Instant) {
        let mut buckets = self.lock();
        if buckets.limits == limits {
            return;
        }
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket { rate, due: now });
        *buckets = Buckets { limits, operations: bucket(limits.iops), bytes: bucket(limits.bps) };
        self.is_on.store(limits != DiskLimits::default(), Ordering::Relaxed);
    }

    /// Whether there are limits.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Whether the thread that has `place` may begin a request.
    pub(super) fn admit(&self, place: &mut Place, now: Instant) -> Admission {
        if !self.is_on() {
            return Admission::Now;
        }
        if let Some(time) = place.0 {
            return if time <= now { Admission::Now } else { Admission::At { time, is_new: false } };
        }
        let buckets = self.lock();
        let open = buckets.operations.iter().chain(&buckets.bytes).map(Bucket::open_at).max();
        match open.filter(|open| *open > now) {
            None => Admission::Now,
            Some(open) => {
                let time = open.max(now + SHORTEST);
                place.0 = Some(time);
                Admission::At { time, is_new: true }
            }
        }
    }

    /// A request of so many bytes has begun. It uses up the place.
    pub(super) fn charge(&self, place: &mut Place, bytes: u64, now: Instant) {
        if !self.is_on() {
            return;
        }
        place.0 = None;
        let mut buckets = self.lock();
        buckets.operations.iter_mut().for_each(|bucket| bucket.take(1, now));
        buckets.bytes.iter_mut().for_each(|bucket| bucket.take(bytes, now));
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bucket of [`BURST`], as the time at which it will be full.
#[derive(Debug)]
struct Bucket {
    /// Units a second.
    rate: NonZeroU64,
    /// What was taken so far is paid for then.
    due: Instant,
}

impl Bucket {
    /// When there is something in it.
    fn open_at(&self) -> Instant {
        self.due.checked_sub(BURST).unwrap_or(self.due)
    }

    fn take(&mut self, units: u64, now: Instant) {
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.rate.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.due.max(now);
        self.due = from.checked_add(cost).unwrap_or(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn limits(iops: u64, bps: u64) -> DiskLimits {
        DiskLimits { iops: NonZeroU64::new(iops), bps: NonZeroU64::new(bps) }
    }

    /// Threads that always have a request of so many bytes, each woken at its place; how many each begins until `until`, and
    /// how often it woke.
    fn run(
        throttle: &Throttle,
        begin: Instant,
        until: Duration,
        bytes: u64,
        threads: usize,
    ) -> Vec<(u64, u64)> {
        let mut done = vec![(0, 0); threads];
        let mut places: Vec<_> = (0..threads).map(|_| (Place::default(), begin)).collect();
        loop {
            // The first of those that wake next: the order that starves most.
            let next = (0..threads).min_by_key(|thread| places[*thread].1).unwrap();
            let now = places[next].1;
            if now >= begin + until {
                return done;
            }
            done[next].1 += 1;
            let place = &mut places[next];
            loop {
                match throttle.admit(&mut place.0, now) {
                    Admission::Now => {
                        throttle.charge(&mut place.0, bytes, now);
                        done[next].0 += 1;
                    }
                    Admission::At { time, .. } => {
                        assert!(time > now, "no busy loop");
                        place.1 = time;
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn operations_and_bytes_keep_their_rates_and_a_burst_is_a_tenth_of_a_second() {
        let begin = Instant::now();
        for (set, bytes, expected) in [
            (limits(500, 0), 4096, 500),
            (limits(0, 4096 * 300), 4096, 300),
            (limits(500, 4096 * 300), 4096, 300),
            (limits(200, 4096 * 300), 4096, 200),
            (limits(100_000, 0), 512, 100_000),
            (limits(3, 0), 0, 3),
            // Much larger than the burst.
            (limits(0, 1 << 20), 1 << 20, 1),
        ] {
            let throttle = Throttle::new(set, begin);
            let burst = run(&throttle, begin, MS / 2, bytes, 1)[0].0;
            assert!(burst >= 1 && burst <= expected / 10 + 1, "{set:?}: {burst} at once");
            let throttle = Throttle::new(set, begin);
            let (done, woken) = run(&throttle, begin, 10 * SECOND, bytes, 1)[0];
            assert!(
                (10 * expected..=10 * expected + burst + 1).contains(&done),
                "{set:?}: {done} in ten seconds"
            );
            assert!(woken <= 10_001, "{set:?}: woken {woken} times");
        }
    }

    #[test]
    fn no_thread_takes_what_is_for_all_and_together_they_keep_the_rate() {
        let begin = Instant::now();
        for (set, bytes) in [(limits(500, 0), 4096), (limits(0, 500 * 4096), 4096), (limits(20_000, 0), 512)]
        {
            let throttle = Throttle::new(set, begin);
            let done = run(&throttle, begin, 10 * SECOND, bytes, 4);
            let sum: u64 = done.iter().map(|(done, _)| done).sum();
            let rate = set.iops.map_or(500, NonZeroU64::get);
            assert!((10 * rate..=10 * rate + rate / 10 + 8).contains(&sum), "{set:?}: {done:?}");
            assert!(done.iter().all(|(done, _)| *done >= 1000), "{set:?}: {done:?}");
        }
    }

    #[test]
    fn new_limits_forgive_what_is_owed_and_none_admit_everything() {
        let begin = Instant::now();
        let throttle = Throttle::new(limits(0, 1), begin);
        let mut place = Place::default();
        assert_eq!(throttle.admit(&mut place, begin), Admission::Now);
        throttle.charge(&mut place, u64::MAX, begin);
        assert!(
            matches!(throttle.admit(&mut place, begin), Admission::At { time, is_new: true } if time > begin + SECOND)
        );
        // Another thread tells the same.
        throttle.set(limits(0, 1), begin);
        assert!(matches!(throttle.admit(&mut Place::default(), begin), Admission::At { .. }));
        throttle.set(limits(1, 0), begin);
        assert_eq!(throttle.admit(&mut Place::default(), begin), Admission::Now);
        throttle.charge(&mut Place::default(), 0, begin);
        throttle.set(DiskLimits::default(), begin);
        for _ in 0..1000 {
            assert_eq!(throttle.admit(&mut Place::default(), begin), Admission::Now);
            throttle.charge(&mut Place::default(), u64::MAX, begin);
        }
    }

    #[test]
    fn a_place_is_for_one_request_and_is_kept_until_there_is_one() {
        let begin = Instant::now();
        let throttle = Throttle::new(limits(1, 0), begin);
        let (mut one, mut other) = (Place::default(), Place::default());
        throttle.charge(&mut one, 0, begin);
        let Admission::At { time, is_new: true } = throttle.admit(&mut one, begin) else {
            panic!("one a second")
        };
        assert_eq!(time, begin + SECOND - BURST);
        assert_eq!(throttle.admit(&mut one, begin + MS), Admission::At { time, is_new: false });
        assert!(matches!(throttle.admit(&mut other, begin), Admission::At { .. }));
        throttle.charge(&mut other, 0, time);
        for _ in 0..2 {
            assert_eq!(throttle.admit(&mut one, time), Admission::Now);
        }
        throttle.charge(&mut one, 0, time);
        // Three were begun, for which three seconds are due.
        let later = throttle.admit(&mut one, time);
        assert_eq!(later, Admission::At { time: begin + 3 * SECOND - BURST, is_new: true });
    }
}
