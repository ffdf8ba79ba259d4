//! A log of what is written to a disk while it is copied: which blocks a guest has written, discarded or zeroed.
//!
//! A block is logged when its operation completes, whether it succeeded or not, and not when it is submitted. The copier empties the log
//! before it reads, so a write that completes after the read is in the next round. A block that was logged at submission could be taken
//! from the log before its bytes have landed, and they would be lost.
//!
//! Engines know at any time what they have in flight, so the log can be switched on while requests are. While it is off, it costs them a
//! word or two in a table for each request, and a look at a flag when one completes: no call to the host, and no memory.

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
pub(super) struct DiskWriteLog {
    /// Whether there is one, for engines to look at without the lock. Stored with it held for writing.
    is_on: AtomicBool,
    written: RwLock<Option<Arc<SharedBlockSet>>>,
}

impl DiskWriteLog {
    /// Begins one of a disk of `len` bytes, in place of the one before.
    pub(super) fn begin(self: &Arc<Self>, len: u64) -> LogReader {
        let written = Arc::new(SharedBlockSet::new(len));
        let mut own = self.written.write().unwrap_or_else(PoisonError::into_inner);
        *own = Some(written.clone());
        self.is_on.store(true, Ordering::SeqCst);
        drop(own);
        LogReader { log: self.clone(), written }
    }

    /// Ends that of a reader, unless another one has begun since.
    fn end(&self, reader: &Arc<SharedBlockSet>) {
        let mut own = self.written.write().unwrap_or_else(PoisonError::into_inner);
        if own.as_ref().is_some_and(|own| Arc::ptr_eq(own, reader)) {
            *own = None;
            self.is_on.store(false, Ordering::SeqCst);
        }
    }

    /// An operation on these bytes has ended.
    fn ended(&self, extent: Extent) {
        if self.is_on.load(Ordering::SeqCst)
            && let Some(written) = &*self.written.read().unwrap_or_else(PoisonError::into_inner)
        {
            written.add(extent);
        }
    }
}

/// Who reads a log: dropped, it is switched off.
#[derive(Debug)]
pub(super) struct LogReader {
    log: Arc<DiskWriteLog>,
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
        self.log.end(&self.written);
    }
}

/// An engine of a disk with a log.
#[derive(Debug)]
pub(super) struct LoggedEngine {
    engine: AnyEngine,
    log: Arc<DiskWriteLog>,
    /// What is in flight and changes the disk, by tag.
    in_flight: Vec<Option<Extent>>,
}

impl LoggedEngine {
    pub(super) fn new(engine: AnyEngine, log: Arc<DiskWriteLog>) -> Self {
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

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use std::collections::VecDeque;
    use std::ops::Range;
    use std::sync::Mutex;

    use super::*;

    const B: u64 = 64 << 10;
    const LEN: u64 = 64 * B;

    /// An engine whose operations end when a test says so, as they are told in.
    #[derive(Debug, Default)]
    struct Slow(Arc<Mutex<VecDeque<Completion>>>);

    impl Engine for Slow {
        fn attach(&mut self, _: Token, _: &Memory) {}
        fn submit(&mut self, _: Tag, _: Operation, _: Extent, _: &[Segment]) {}
        fn completed(&mut self) -> Option<Completion> {
            self.0.lock().unwrap().pop_front()
        }
        fn drain(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Poller for Slow {
        fn watch(&mut self, _: RawFd, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }
        fn unwatch(&mut self, _: RawFd, _: Token) -> io::Result<()> {
            Ok(())
        }
        fn wait(&mut self, _: Option<Duration>, _: &mut Vec<Token>) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        log: Arc<DiskWriteLog>,
        engine: LoggedEngine,
        ends: Arc<Mutex<VecDeque<Completion>>>,
    }

    impl Rig {
        fn new() -> Self {
            let (log, ends) = (Arc::new(DiskWriteLog::default()), Arc::default());
            let engine = LoggedEngine::new(Box::new(Slow(Arc::clone(&ends))), log.clone());
            Rig { log, engine, ends }
        }

        fn begin(&mut self, tag: Tag, operation: Operation, block: u64) {
            self.engine.submit(tag, operation, Extent { offset: block * B + 512, len: 512 }, &[]);
        }

        /// The host ends one, and the device hears of it.
        fn end(&mut self, tag: Tag, result: io::Result<()>) {
            self.ends.lock().unwrap().push_back(Completion { tag, result });
            assert_eq!(self.engine.completed().unwrap().tag, tag);
            assert!(self.engine.completed().is_none());
        }
    }

    /// The blocks that a reader has.
    fn taken(reader: &LogReader) -> Vec<Range<u64>> {
        let mut set = BlockSet::new(LEN);
        reader.take_to(&mut set);
        set.ranges().map(|range| range.start / B..range.end / B).collect()
    }

    #[test]
    fn block_is_in_the_log_when_its_operation_has_ended_and_not_before() {
        let mut rig = Rig::new();
        let reader = rig.log.begin(LEN);
        rig.begin(1, Operation::Write, 5);
        // Who copies it now has the old bytes, and may not lose the new ones, which land later.
        assert_eq!(taken(&reader), []);
        rig.end(1, Ok(()));
        assert_eq!(taken(&reader), [5..6]);
        assert_eq!(taken(&reader), []);
        rig.begin(1, Operation::Discard, 7);
        rig.begin(2, Operation::WriteZeroes { unmap: false }, 9);
        rig.begin(3, Operation::Read, 11);
        rig.begin(4, Operation::Flush, 13);
        (1..5).for_each(|tag| rig.end(tag, Ok(())));
        assert_eq!(taken(&reader), [7..8, 9..10]);
        // Half of it may have landed.
        rig.begin(3, Operation::Write, 15);
        rig.end(3, Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(taken(&reader), [15..16]);
    }

    #[test]
    fn what_is_in_flight_when_the_log_is_switched_on_is_in_it() {
        let mut rig = Rig::new();
        rig.begin(0, Operation::Write, 1);
        rig.end(0, Ok(()));
        rig.begin(0, Operation::Write, 2);
        rig.begin(9, Operation::Write, 3);
        let reader = rig.log.begin(LEN);
        assert_eq!(taken(&reader), []);
        rig.end(0, Ok(()));
        rig.end(9, Ok(()));
        assert_eq!(taken(&reader), [2..4]);
        // A tag that is free has nothing in flight.
        rig.ends.lock().unwrap().push_back(Completion { tag: 0, result: Ok(()) });
        rig.engine.completed().unwrap();
        assert_eq!(taken(&reader), []);
        // Off, and on again for somebody else.
        drop(reader);
        rig.begin(0, Operation::Write, 4);
        rig.end(0, Ok(()));
        let (first, second) = (rig.log.begin(LEN), rig.log.begin(LEN));
        drop(first);
        rig.begin(0, Operation::Write, 6);
        rig.end(0, Ok(()));
        assert_eq!(taken(&second), [6..7]);
    }

    #[test]
    fn device_that_drains_or_begins_anew_leaves_nothing_out() {
        let mut rig = Rig::new();
        let reader = rig.log.begin(LEN);
        rig.begin(1, Operation::Write, 5);
        rig.engine.drain().unwrap();
        assert_eq!(taken(&reader), [5..6]);
        rig.begin(2, Operation::Write, 7);
        let (memory, _) = virtio::testing::memory(1 << 20);
        rig.engine.attach(0, &memory);
        assert_eq!(taken(&reader), [5..6, 7..8]);
        rig.engine.attach(0, &memory);
        assert_eq!(taken(&reader), []);
    }

    #[test]
    fn requests_take_no_memory_while_the_log_is_off() {
        let mut rig = Rig::new();
        rig.begin(99, Operation::Write, 0);
        rig.end(99, Ok(()));
        let before = (rig.engine.in_flight.as_ptr(), rig.engine.in_flight.capacity());
        for round in 0..10_000u16 {
            rig.begin(round % 100, Operation::Write, u64::from(round) % 64);
            rig.end(round % 100, Ok(()));
        }
        assert_eq!((rig.engine.in_flight.as_ptr(), rig.engine.in_flight.capacity()), before);
        assert!(rig.log.written.read().unwrap().is_none());
    }
}
