//! The last that the guest said, for any number of readers who come when they like and never hold it up.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How much is kept.
pub(super) const KEPT: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::machine) struct Scrollback {
    said: Mutex<Said>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    kept: VecDeque<u8>,
    /// Bytes said in all; the last of `kept` is the last of them.
    end: u64,
    over: bool,
}

impl Said {
    fn begin(&self) -> u64 {
        self.end.saturating_sub(self.kept.len() as u64)
    }
}

/// What a reader finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// So many bytes, after so many that were lost because nobody took them in time.
    Bytes { count: usize, missed: u64 },
    /// Nothing came in time.
    Nothing,
    /// Nothing will ever come.
    End,
}

impl Scrollback {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut said = self.lock();
        said.kept.extend(bytes);
        let excess = said.kept.len().saturating_sub(KEPT);
        said.kept.drain(..excess);
        said.end = said.end.saturating_add(bytes.len() as u64);
        drop(said);
        self.came.notify_all();
    }

    /// Nothing more will be said.
    pub(super) fn close(&self) {
        self.lock().over = true;
        self.came.notify_all();
    }

    /// Takes what is kept from place `at` on, which moves behind it; waits for the first byte until `deadline`, or as long
    /// as it takes.
    pub(super) fn read(&self, at: &mut u64, into: &mut [u8], deadline: Option<Instant>) -> Found {
        let mut said = self.lock();
        while *at >= said.end {
            if said.over {
                return Found::End;
            }
            said = match deadline.map(|time| time.checked_duration_since(Instant::now())) {
                None => self.came.wait(said).unwrap_or_else(PoisonError::into_inner),
                Some(Some(left)) => {
                    self.came.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(None) => return Found::Nothing,
            };
        }
        let missed = said.begin().saturating_sub(*at);
        *at += missed;
        let skip = usize::try_from(*at - said.begin()).unwrap_or(usize::MAX);
        let count = into.len().min(said.kept.len().saturating_sub(skip));
        for (to, from) in into.iter_mut().zip(said.kept.range(skip..skip + count)) {
            *to = *from;
        }
        *at += count as u64;
        Found::Bytes { count, missed }
    }

    /// Bytes said so far.
    pub(super) fn end(&self) -> u64 {
        self.lock().end
    }

    /// The last `most` bytes that were said.
    pub(super) fn tail(&self, most: usize) -> Vec<u8> {
        let said = self.lock();
        said.kept.range(said.kept.len().saturating_sub(most)..).copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_gets_all_that_is_kept_and_all_that_comes() {
        let scrollback = Scrollback::default();
        scrollback.push(b"one ");
        let (mut first, mut second, mut into) = (0, 0, [0; 16]);
        let four = Found::Bytes { count: 4, missed: 0 };
        assert_eq!(scrollback.read(&mut first, &mut into, None), four);
        scrollback.push(b"two ");
        assert_eq!(scrollback.read(&mut first, &mut into, None), four);
        assert_eq!(scrollback.read(&mut second, &mut into, None), Found::Bytes { count: 8, missed: 0 });
        assert_eq!(&into[..8], b"one two ");
        assert_eq!(scrollback.read(&mut first, &mut into, Some(Instant::now())), Found::Nothing);
        scrollback.close();
        assert_eq!(scrollback.read(&mut first, &mut into, None), Found::End);
        assert_eq!(scrollback.tail(4), b"two ");
    }

    #[test]
    fn a_reader_that_is_late_is_told_how_much_it_missed() {
        let scrollback = Scrollback::default();
        scrollback.push(&[b'x'; KEPT]);
        scrollback.push(b"last");
        let (mut at, mut into) = (0, vec![0; 2 * KEPT]);
        assert_eq!(scrollback.read(&mut at, &mut into, None), Found::Bytes { count: KEPT, missed: 4 });
        assert_eq!(&into[KEPT - 4..KEPT], b"last");
    }
}
