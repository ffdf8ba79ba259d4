//! How long work on an image says how far it is, and how a caller ends it.

use std::ops::ControlFlow;

/// Follows long work: a progress bar, or a caller that may give up.
pub trait Progress {
    /// `done` of `total` bytes are done. The work calls this after each piece of a few MiB; with [`ControlFlow::Break`] it ends with
    /// `ImageError::Interrupted`.
    fn at(&mut self, done: u64, total: u64) -> ControlFlow<()>;
}

/// Follows nothing and never gives up.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn at(&mut self, _done: u64, _total: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: FnMut(u64, u64) -> ControlFlow<()>> Progress for F {
    fn at(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        self(done, total)
    }
}
