//! What the library has to say while a machine runs, as lines on stderr and in the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use super::report;
use crate::host::stdio::Output;

/// Lines that may come at once from one place of the code.
const BURST: u32 = 20;
/// One more may come after so long: 1,440 a day at most. A guest that makes its devices complain shall not fill a disk.
const PACE: Duration = Duration::from_secs(60);

/// The place of the code that says something stands for its kind: a kind that comes without end does not keep the others from
/// being heard.
type CallSite = (&'static str, u32);

#[derive(Debug)]
struct Logger {
    rations: Mutex<BTreeMap<CallSite, Ration>>,
}

impl Logger {
    const fn new() -> Self {
        Logger { rations: Mutex::new(BTreeMap::new()) }
    }

    /// Whether `place` may say a line, and how many of its lines before could not be said.
    fn take(&self, place: CallSite, now: Instant) -> Option<u64> {
        let mut rations = self.rations.lock().unwrap_or_else(PoisonError::into_inner);
        rations.entry(place).or_insert(Ration::FULL).take(now)
    }
}

/// Says warnings and errors from now on; the rest is for debuggers of the library.
pub(super) fn install() {
    static LOGGER: Logger = Logger::new();
    // Fails where somebody has installed a logger before: then that one is meant.
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
        let place = (record.file_static().unwrap_or_default(), record.line().unwrap_or_default());
        let Some(left_out) = self.take(place, Instant::now()) else { return };
        let more = match left_out {
            0 => String::new(),
            n => format!(" ({n} like this before it were left out)"),
        };
        // A terminal may be in raw mode, where a line starts only where it is told to.
        let end = if Output::error().is_terminal() { "\r\n" } else { "\n" };
        report::say_as(record.level(), &format_args!("minivmm: {}{more}{end}", record.args()));
    }

    fn flush(&self) {}
}

/// How much may still be said.
#[derive(Debug)]
struct Ration {
    left: u32,
    /// When the ration began to grow again; `None` while it is full.
    growing: Option<Instant>,
    left_out: u64,
}

impl Ration {
    const FULL: Ration = Ration { left: BURST, growing: None, left_out: 0 };

    /// Whether a line may be said, and how many before it could not.
    fn take(&mut self, now: Instant) -> Option<u64> {
        while let Some(next) = self.growing.map(|since| since + PACE).filter(|next| *next <= now) {
            self.left += 1;
            self.growing = (self.left < BURST).then_some(next);
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        };
        self.left = left;
        self.growing.get_or_insert(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_makes_noise_is_heard_at_first_and_then_now_and_then() {
        let (mut ration, start) = (Ration::FULL, Instant::now());
        // A thousand a second, for 100 s.
        let said: Vec<u64> =
            (0..100_000).filter_map(|ms| ration.take(start + Duration::from_millis(ms))).collect();
        assert_eq!((said.len(), &said[..20]), (21, &[0; 20][..]));
        assert_eq!(said[20], 60_000 - 20);
        // Silence makes good.
        let later = start + Duration::from_secs(100_000);
        assert_eq!((0..1000).filter(|_| ration.take(later).is_some()).count(), 20);
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
