//! The interface between the block device, which handles requests, and the host's part, which does I/O on files.

use std::io;
use std::os::fd::RawFd;

use crate::memory::{Memory, Segment};
use crate::poll::{Poller, Token};

/// Names an operation to its submitter. Small numbers: an engine keeps a table by them.
pub type Tag = u16;

/// Bytes of the disk; inside of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What to do with an [`Extent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// From the disk into guest memory.
    Read,
    /// From guest memory to the disk.
    Write,
    /// Everything that was completed before is on stable storage when this one completes. The extent is ignored.
    Flush,
    /// The contents are not needed any more: give the space back.
    Discard,
    /// The extent reads as zeros afterwards.
    WriteZeroes {
        /// The space may be given back.
        unmap: bool,
    },
}

impl Operation {
    /// Whether it works on the disk's space and moves no data of the guest's.
    pub(super) fn is_on_space(self) -> bool {
        matches!(self, Operation::Discard | Operation::WriteZeroes { .. })
    }
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Completion {
    /// Of which one.
    pub tag: Tag,
    /// All of the extent was served, or what the host said. [`io::ErrorKind::Unsupported`] is an operation that the
    /// host does not know.
    pub result: io::Result<()>,
}

/// Does input and output, and is what the disk's thread waits in: requests, doorbells and completions meet in one
/// system call where the host can do that.
///
/// Operations may complete in any order. The engine keeps guest memory mapped while any is in flight, and dropping it
/// waits for them.
pub trait Engine: Poller {
    /// From now on operations work on `memory`, and [`Poller::wait`] reports `done` when any has ended. Nothing is in
    /// flight.
    fn attach(&mut self, done: Token, memory: &Memory);

    /// Begins an operation. `segments` are where data goes or comes from, `extent.len` bytes together; none for operations
    /// that move no data. `tag` is of no other operation in flight. An engine may wait with telling the host until
    /// [`Poller::wait`], so that one call takes many.
    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]);

    /// The next operation that has ended, if any has.
    fn completed(&mut self) -> Option<Completion>;

    /// Waits until every operation has ended; other events stay for the next [`Poller::wait`].
    ///
    /// # Errors
    /// The host refused to wait.
    fn drain(&mut self) -> io::Result<()>;

    /// The next [`Poller::wait`] with a limit need not come back before so many operations have ended. `false`: it will.
    fn gather(&mut self, operations: usize) -> bool {
        let _ = operations;
        false
    }

    /// Takes it upon itself to write 1 to an eventfd, in the next call to the host ([`Poller::wait`] or
    /// [`Poller::unwatch`]) at the latest; the caller keeps it open until then. `false`: it does not.
    fn signal(&mut self, event: RawFd) -> bool {
        let _ = event;
        false
    }
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    fn attach(&mut self, done: Token, memory: &Memory) {
        (**self).attach(done, memory);
    }
    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        (**self).submit(tag, operation, extent, segments);
    }
    fn completed(&mut self) -> Option<Completion> {
        (**self).completed()
    }
    fn drain(&mut self) -> io::Result<()> {
        (**self).drain()
    }
    fn gather(&mut self, operations: usize) -> bool {
        (**self).gather(operations)
    }
    fn signal(&mut self, event: RawFd) -> bool {
        (**self).signal(event)
    }
}
