//! Frames on their way to the writer: bounded in bytes, and nobody waits for room.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::pcapng::{self, Direction};

/// Most bytes that wait or are being written.
pub(super) const LIMIT: usize = 4 << 20;

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
    closed: bool,
}

/// What [`Queue::take`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Blocks to write.
    Blocks,
    /// The end, with the frames that were seen and those of them that were lost.
    End { seen: u64, lost: u64 },
}

impl Queue {
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
        if state.waiting.len() + state.taken + pcapng::packet_len(len) > LIMIT {
            state.lost += 1;
            return;
        }
        let was_empty = state.waiting.is_empty();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        pcapng::packet(&mut state.waiting, direction, time, len, fill);
        drop(state);
        if was_empty {
            self.changed.notify_one();
        }
    }

    /// Waits for blocks and exchanges them for `buffer`, which was written.
    pub(super) fn take(&self, buffer: &mut Vec<u8>) -> Taken {
        buffer.clear();
        let mut state = self.state();
        state.taken = 0;
        while state.waiting.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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
