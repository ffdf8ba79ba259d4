//! A log of what is written to a disk while it is copied: which blocks a guest has written, discarded or zeroed.
//!
//! A block is in the log when its operation has ended, whatever came of it, and not when it begins. Who copies takes the log first and
//! reads then: what lands behind the read ends behind it as well, and is in the log for the next time. A mark at the beginning could be
//! taken before the bytes have landed, which would be lost.
//!
//! Engines know at any time what they have in flight, so that the log can be switched on amid of it. While it is off they pay for that, a
//! word or two in a table, and for one look at a flag when an operation ends: no call to the host, and no memory.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use virtio::block::{AnyEngine, Completion, Engine, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Interest, Poller, Token};

use super::block_set::{BlockSet, SharedBlockSet};

/// The log of a drive, which its engines write to while somebody reads it.
#[derive(Debug, Default)]
pub(super) struct WriteLog {
    is_on: AtomicBool,
    written: RwLock<Option<Arc<SharedBlockSet>>>,
}

impl WriteLog {
    /// Begins one of a disk of `len` bytes, in place of the one before.
    pub(super) fn begin(self: &Arc<Self>, len: u64) -> LogReader {
        let written = Arc::new(SharedBlockSet::new(len));
        self.set(Some(written.clone()));
        LogReader { log: self.clone(), written }
    }

    fn set(&self, written: Option<Arc<SharedBlockSet>>) {
        let is_on = written.is_some();
        *self.written.write().unwrap_or_else(PoisonError::into_inner) = written;
        self.is_on.store(is_on, Ordering::SeqCst);
    }

    /// An operation on these bytes has ended.
    fn ended(&self, extent: Extent) {
        if self.is_on.load(Ordering::SeqCst)
            && let Some(written) = &*self.written.read().unwrap_or_else(PoisonError::into_inner)
        {
            written.add(extent);
        }
    }

    fn is_of(&self, reader: &Arc<SharedBlockSet>) -> bool {
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        written.as_ref().is_some_and(|own| Arc::ptr_eq(own, reader))
    }
}

/// Who reads a log: dropped, it is switched off.
#[derive(Debug)]
pub(super) struct LogReader {
    log: Arc<WriteLog>,
    written: Arc<SharedBlockSet>,
}

impl LogReader {
    /// Moves what was written since the last call to `to`.
    pub(super) fn take_to(&self, to: &mut BlockSet) {
        self.written.take_to(to);
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        if self.log.is_of(&self.written) {
            self.log.set(None);
        }
    }
}

/// An engine of a disk with a log.
#[derive(Debug)]
pub(super) struct LoggedEngine {
    engine: AnyEngine,
    log: Arc<WriteLog>,
    /// What is in flight and changes the disk, by tag.
    in_flight: Vec<Option<Extent>>,
}

impl LoggedEngine {
    pub(super) fn new(engine: AnyEngine, log: Arc<WriteLog>) -> Self {
        LoggedEngine { engine, log, in_flight: Vec::new() }
    }

    /// All that was in flight has ended, whether its submitter hears of it or not.
    fn all_ended(&mut self) {
        self.in_flight.iter().flatten().for_each(|extent| self.log.ended(*extent));
    }
}

impl Engine for LoggedEngine {
    fn attach(&mut self, done: Token, memory: &Memory) {
        self.all_ended();
        self.in_flight.fill(None);
        self.engine.attach(done, memory);
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        let changed = match operation {
            Operation::Read | Operation::Flush => None,
            Operation::Write | Operation::Discard | Operation::WriteZeroes { .. } => Some(extent),
        };
        let index = usize::from(tag);
        // Once for each tag: they are small.
        if index >= self.in_flight.len() {
            self.in_flight.resize(index + 1, None);
        }
        if let Some(own) = self.in_flight.get_mut(index) {
            *own = changed;
        }
        self.engine.submit(tag, operation, extent, segments);
    }

    fn completed(&mut self) -> Option<Completion> {
        let completion = self.engine.completed()?;
        if let Some(extent) = self.in_flight.get_mut(usize::from(completion.tag)).and_then(Option::take) {
            self.log.ended(extent);
        }
        Some(completion)
    }

    fn drain(&mut self) -> io::Result<()> {
        let drained = self.engine.drain();
        self.all_ended();
        drained
    }

    fn gather(&mut self, operations: usize) -> bool {
        self.engine.gather(operations)
    }

    fn signal(&mut self, event: RawFd) -> bool {
        self.engine.signal(event)
    }
}

impl Poller for LoggedEngine {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.engine.watch(fd, token, interest)
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.engine.unwatch(fd, token)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        self.engine.wait(limit, ready)
    }
}
