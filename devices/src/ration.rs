//! Limits how often one kind of warning is logged. A guest, or a host that fails all day, can cause some of them without end.
//! Each kind has a limit of its own, so that none suppresses another:
//! `if let Some(left_out) = ration.take() { log::warn!("...{left_out}") }`.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines before it becomes slower.
const FIRST: u32 = 4;
/// The time between two later ones.
const PAUSE: Duration = Duration::from_secs(60);

/// The ration of one kind of warning of one device.
#[derive(Debug, Default)]
pub struct Ration(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    said: u32,
    left_out: u64,
    last: Option<Instant>,
}

/// Number of warnings that were suppressed before one that is logged; shown at the end of that line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(u64);

impl Ration {
    /// Whether the warning is to be logged now.
    pub fn take(&self) -> Option<LeftOut> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Option<LeftOut> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due =
            count.said < FIRST || count.last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if !is_due {
            count.left_out = count.left_out.saturating_add(1);
            return None;
        }
        count.said = count.said.saturating_add(1);
        count.last = Some(now);
        Some(LeftOut(std::mem::take(&mut count.left_out)))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more like this were not logged)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_heard_at_first_and_then_in_a_while_with_its_count() {
        let (ration, now) = (Ration::default(), Instant::now());
        let said = (0..1000).filter_map(|_| ration.take_at(now)).collect::<Vec<_>>();
        assert_eq!(said, [LeftOut(0); 4]);
        let later = ration.take_at(now + PAUSE).unwrap();
        assert_eq!(later.to_string(), " (996 more like this were not logged)");
        assert_eq!(ration.take_at(now + PAUSE), None);
        assert_eq!(ration.take_at(now + 2 * PAUSE), Some(LeftOut(1)));
    }

    #[test]
    fn a_flood_of_one_kind_leaves_the_others_their_lines() {
        let (flood, other) = (Ration::default(), Ration::default());
        assert_eq!((0..1000).filter_map(|_| flood.take()).count(), 4);
        assert_eq!(other.take(), Some(LeftOut(0)));
        assert_eq!(LeftOut(0).to_string(), "");
    }
}
