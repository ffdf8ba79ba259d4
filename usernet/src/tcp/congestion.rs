//! How much is on its way to a guest behind a switch: its port has a queue that can be full, and may be slowed down (RFC 5681).
//! A guest of its own needs none of it: memory is its wire.

use super::ring::LARGEST;

/// The first window. All of it fits into the queue of a port that is not slowed down.
const FIRST: usize = 64 << 10;
/// Segments that are on their way at least.
const LEAST: usize = 4;

/// The window.
#[derive(Debug)]
pub(super) struct Congestion {
    window: usize,
    /// Above it the window grows by a segment in each round, not with each acknowledgement.
    threshold: usize,
    /// What came through since it grew by a segment (RFC 3465).
    credit: usize,
}

impl Congestion {
    pub(super) fn new() -> Self {
        Congestion { window: FIRST, threshold: LARGEST, credit: 0 }
    }

    /// Bytes that may be on their way.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// `acked` bytes of `flight` came through, in segments of `mss`.
    pub(super) fn acknowledged(&mut self, acked: usize, flight: usize, mss: usize) {
        // What was not used says nothing (RFC 7661).
        if flight + mss < self.window / 2 {
            return;
        }
        let more = if self.window < self.threshold {
            acked
        } else {
            self.credit += acked;
            let whole = self.credit >= self.window;
            self.credit -= if whole { self.window } else { 0 };
            if whole { mss } else { 0 }
        };
        self.window = (self.window + more).min(LARGEST);
    }

    /// Something of `flight` was lost.
    pub(super) fn lost(&mut self, flight: usize, mss: usize) {
        self.threshold = (flight.min(self.window) / 2).max(LEAST * mss);
        (self.window, self.credit) = (self.threshold, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_doubles_in_each_round_until_something_is_lost_and_then_grows_slowly() {
        let mut congestion = Congestion::new();
        let round = |congestion: &mut Congestion| {
            let window = congestion.window();
            (0..=window / 1000).for_each(|_| congestion.acknowledged(1000, window, 1000));
            congestion.window()
        };
        assert!(round(&mut congestion) > FIRST * 19 / 10);
        for _ in 0..10 {
            round(&mut congestion);
        }
        assert_eq!(congestion.window(), LARGEST);
        congestion.lost(1 << 20, 1000);
        assert_eq!(congestion.window(), 1 << 19);
        let after = round(&mut congestion);
        assert!(((1 << 19) + 900..=(1 << 19) + 1100).contains(&after), "{after}");
        congestion.acknowledged(1000, 1000, 1000);
        assert_eq!(congestion.window(), after, "a window that is not used does not grow");
        (0..100).for_each(|_| congestion.lost(0, 1000));
        assert_eq!(congestion.window(), LEAST * 1000);
    }
}
