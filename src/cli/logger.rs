//! Messages of the library while a machine runs, as lines on stderr and in the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use super::report;
use crate::host::stdio::Output;

/// Lines of one call site that may follow each other at once.
const BURST: u32 = 20;
/// One more line is allowed after this interval: at most 1,440 a day. A guest that provokes errors in its
/// devices must not fill a disk.
const REFILL_INTERVAL: Duration = Duration::from_secs(60);

/// The kind of a message is its call site: a flood of one kind leaves the others their lines.
type CallSite = (&'static str, u32);

#[derive(Debug)]
struct Logger {
    limits: Mutex<BTreeMap<CallSite, RateLimit>>,
}

impl Logger {
    const fn new() -> Self {
        Logger { limits: Mutex::new(BTreeMap::new()) }
    }

    /// Whether a call site may log a line, and how many of its lines were suppressed before.
    fn take(&self, call_site: CallSite, now: Instant) -> Option<u64> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.entry(call_site).or_insert(RateLimit::FULL).take(now)
    }
}

/// Prints warnings and errors from now on; the other levels are for debugging the library.
pub(super) fn install() {
    static LOGGER: Logger = Logger::new();
    // Fails if another logger is installed, which is then used.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let call_site = (record.file_static().unwrap_or_default(), record.line().unwrap_or_default());
        let Some(suppressed) = self.take(call_site, Instant::now()) else { return };
        let more = match suppressed {
            0 => String::new(),
            n => format!(" ({n} like this before it were left out)"),
        };
        // In raw mode a newline needs a carriage return.
        let end = if Output::error().is_terminal() { "\r\n" } else { "\n" };
        report::message_at(record.level(), &format_args!("minivmm: {}{more}{end}", record.args()));
    }

    fn flush(&self) {}
}

/// A token bucket.
#[derive(Debug)]
struct RateLimit {
    tokens: u32,
    /// When the bucket began to refill; `None` while it is full.
    refilling_since: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    const FULL: RateLimit = RateLimit { tokens: BURST, refilling_since: None, suppressed: 0 };

    /// Takes a token; returns how many lines were suppressed before, or `None` if the bucket is empty.
    fn take(&mut self, now: Instant) -> Option<u64> {
        while let Some(next) =
            self.refilling_since.map(|since| since + REFILL_INTERVAL).filter(|next| *next <= now)
        {
            self.tokens += 1;
            self.refilling_since = (self.tokens < BURST).then_some(next);
        }
        let Some(tokens) = self.tokens.checked_sub(1) else {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        };
        self.tokens = tokens;
        self.refilling_since.get_or_insert(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_makes_noise_is_heard_at_first_and_then_now_and_then() {
        let (mut limit, start) = (RateLimit::FULL, Instant::now());
        // A thousand per second, for 100 s.
        let said: Vec<u64> =
            (0..100_000).filter_map(|ms| limit.take(start + Duration::from_millis(ms))).collect();
        assert_eq!((said.len(), &said[..20]), (21, &[0; 20][..]));
        assert_eq!(said[20], 60_000 - 20);
        // The bucket refills.
        let later = start + Duration::from_secs(100_000);
        assert_eq!((0..1000).filter(|_| limit.take(later).is_some()).count(), 20);
    }

    #[test]
    fn a_flood_of_one_kind_leaves_every_other_kind_its_lines() {
        let (logger, now) = (Logger::new(), Instant::now());
        assert_eq!((0..1000).filter(|_| logger.take(("power.rs", 7), now).is_some()).count(), 20);
        for other in [("power.rs", 8), ("pvpanic.rs", 7)] {
            assert_eq!(logger.take(other, now), Some(0));
        }
    }
}
