//! What the library has to say while a machine runs, as lines on stderr and in the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use super::report;
use crate::host::stdio::Output;

/// Lines that may come at once, of warnings and of errors each.
const BURST: u32 = 100;
/// One more may come after so long: 8,640 a day at most. A guest that makes its devices complain shall not fill a disk.
const PACE: Duration = Duration::from_secs(10);

struct Logger {
    errors: Mutex<Ration>,
    warnings: Mutex<Ration>,
}

/// Says warnings and errors from now on; the rest is for debuggers of the library.
pub(super) fn install() {
    static LOGGER: Logger = Logger { errors: Mutex::new(Ration::FULL), warnings: Mutex::new(Ration::FULL) };
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
        let ration = if record.level() == Level::Error { &self.errors } else { &self.warnings };
        let left_out = ration.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let Some(left_out) = left_out else { return };
        let more = match left_out {
            0 => String::new(),
            n => format!(" ({n} messages before this one were left out)"),
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
        let pace = usize::try_from(100 / PACE.as_secs()).unwrap();
        assert!((100 + pace - 1..=100 + pace).contains(&said.len()), "{}", said.len());
        assert!(said[..100].iter().all(|left_out| *left_out == 0));
        assert_eq!((said[100], said[101]), (9_900, 9_999));
        // Silence makes good.
        let later = start + Duration::from_secs(100_000);
        assert_eq!((0..1000).filter(|_| ration.take(later).is_some()).count(), 100);
    }
}
