//! Frames on their way to the writer: bounded in bytes, and nobody waits for room.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pcapng::{self, Direction};

/// Most bytes that wait or are being written.
pub(crate) const MOST_WAITING: usize = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to write, or nothing will come any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole blocks.
    waiting: Vec<u8>,
    /// Bytes that the writer has taken and not written yet.
    taken: usize,
    /// Frames that were seen, and those of them that found no room.
    seen: u64,
    lost: u64,
    /// Frames that may still find room; `None`: any number.
    left: Option<u64>,
    closed: bool,
}

/// What [`Queue::take`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Blocks to write.
    Blocks,
    /// None within the limit.
    Nothing,
    /// The end, with the frames that were seen and those of them that were lost.
    End { seen: u64, lost: u64 },
}

impl Queue {
    /// One that closes behind so many frames.
    pub(super) fn with_most(frames: Option<u64>) -> Self {
        let state = State { left: frames, closed: frames == Some(0), ..State::default() };
        Queue { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame of `len` bytes, which `fill` appends, behind the others, or counts it as lost.
    pub(super) fn push(&self, direction: Direction, len: usize, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.seen += 1;
        if state.waiting.len() + state.taken + pcapng::packet_len(len) > MOST_WAITING {
            state.lost += 1;
            return;
        }
        let was_empty = state.waiting.is_empty();
        pcapng::packet(&mut state.waiting, direction, pcapng::now(), len, fill);
        if let Some(left) = &mut state.left {
            *left = left.saturating_sub(1);
            state.closed = *left == 0;
        }
        drop(state);
        if was_empty {
            self.changed.notify_one();
        }
    }

    /// Waits for blocks, for at most `limit`, and exchanges them for `buffer`, which was written.
    pub(super) fn take(&self, buffer: &mut Vec<u8>, limit: Option<Duration>) -> Taken {
        buffer.clear();
        let mut state = self.state();
        state.taken = 0;
        let waits = |state: &mut State| state.waiting.is_empty() && !state.closed;
        state = match limit {
            None => self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(state, limit, waits);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if waits(&mut state) {
            return Taken::Nothing;
        }
        if state.waiting.is_empty() {
            return Taken::End { seen: state.seen, lost: state.lost };
        }
        std::mem::swap(&mut state.waiting, buffer);
        state.taken = buffer.len();
        Taken::Blocks
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Frames that were seen, and those of them that were lost.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.seen, state.lost)
    }
}
