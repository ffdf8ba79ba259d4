//! How much a guest may ask for: a bucket of tokens that fills up again with time.

use std::time::{Duration, Instant};

/// Tokens it holds: the largest request, and some.
const CAPACITY: u64 = 128 << 10;
/// Tokens a second. A byte is one: 1 MiB/s keeps a host core busy for some thousandths of its time.
const RATE: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Bucket {
    tokens: u64,
    /// When it had that many.
    counted: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Bucket { tokens: CAPACITY, counted: now }
    }

    /// Takes `cost`, which is at most [`CAPACITY`], out of it, or returns when there will be enough.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.counted);
        let gained = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1_000_000;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(CAPACITY);
            self.counted = now;
        }
        match self.tokens.checked_sub(cost) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(now + Duration::from_micros((cost - self.tokens) * 1_000_000 / RATE + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert_eq!(bucket.take(CAPACITY, start), Ok(()));
        let when = bucket.take(RATE / 16, start).unwrap_err();
        assert!(when > start + Duration::from_millis(62) && when < start + Duration::from_millis(64));
        assert!(bucket.take(RATE / 16, start + Duration::from_millis(30)).is_err());
        assert_eq!(bucket.take(RATE / 16, when), Ok(()));
        assert!(bucket.take(1024, when).is_err());
    }

    #[test]
    fn an_idle_bucket_does_not_overflow() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let later = start + Duration::from_secs(1 << 30);
        assert_eq!(bucket.take(CAPACITY, later), Ok(()));
        assert!(bucket.take(1, later).is_err());
    }
}
