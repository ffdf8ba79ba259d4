//! Host errors in the log: each of the first, then a line in a while, since a guest tries again all day.

use std::io;
use std::time::{Duration, Instant};

use super::engine::{Extent, Operation};

const PAUSE: Duration = Duration::from_secs(5);
/// Lines before it becomes slower.
const FIRST: u32 = 4;

#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    lines: u32,
    silent: u32,
    last: Option<Instant>,
}

impl ErrorLog {
    /// The host could not do `operation` on `extent` of disk `name`; the guest hears of it too.
    pub(super) fn failed(&mut self, name: &str, operation: Operation, extent: Extent, error: &io::Error) {
        if !self.is_due(Instant::now()) {
            return;
        }
        let what = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush its file",
            Operation::Discard => "discard",
            Operation::WriteZeroes { .. } => "zero",
        };
        let Extent { offset, len } = extent;
        let place = if len > 0 { format!(" {len} bytes at {offset}") } else { String::new() };
        let more = match std::mem::take(&mut self.silent) {
            0 => String::new(),
            silent => format!(" ({silent} more errors were not logged)"),
        };
        log::error!("{name}: the host could not {what}{place}: {error}; the guest gets an I/O error{more}");
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.lines < FIRST || self.last.is_none_or(|last| now.duration_since(last) >= PAUSE);
        if due {
            self.lines = self.lines.saturating_add(1);
            self.last = Some(now);
        } else {
            self.silent = self.silent.saturating_add(1);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_all_day_does_not_fill_the_log() {
        let mut log = ErrorLog::default();
        let now = Instant::now();
        assert_eq!((0..1000).filter(|_| log.is_due(now)).count(), 4);
        assert!(log.is_due(now + PAUSE));
        assert!(!log.is_due(now + PAUSE));
    }
}
