//! The engine for hosts without io_uring: positioned calls on the disk's thread, done when they are submitted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use virtio::block::{Completion, Engine, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Epoll, Interest, Poller, Token};

use super::file::{DiskFile, mode};
use super::transfer::Transfer;

/// See the module.
#[derive(Debug)]
pub(super) struct SyncEngine {
    file: Arc<DiskFile>,
    poller: Epoll,
    memory: Option<Memory>,
    done: Token,
    completed: VecDeque<Completion>,
    transfer: Transfer,
}

impl SyncEngine {
    pub(super) fn new(file: Arc<DiskFile>) -> io::Result<Self> {
        Ok(SyncEngine {
            file,
            poller: Epoll::new()?,
            memory: None,
            done: 0,
            completed: VecDeque::new(),
            transfer: Transfer::default(),
        })
    }

    fn run(&mut self, operation: Operation, extent: Extent, segments: &[Segment]) -> io::Result<()> {
        match operation {
            Operation::Read | Operation::Write => {
                let memory = self.memory.as_ref().ok_or(io::ErrorKind::NotConnected)?;
                self.transfer.load(memory, segments, extent)?;
                self.transfer(operation)
            }
            Operation::Flush => {
                // SAFETY: a call on an open descriptor, without memory.
                checked(|| unsafe { libc::fdatasync(self.file.fd()) })
            }
            Operation::Discard if self.file.discards_by_ioctl() => self.file.discard_device(extent),
            Operation::Discard => self.space(mode::HOLE, extent),
            Operation::WriteZeroes { unmap } => {
                match self.space(if unmap { mode::HOLE } else { mode::ZERO }, extent) {
                    Err(error) if self.file.cannot_zero(&error) => {
                        self.transfer.zeros(extent);
                        self.transfer(Operation::Write)
                    }
                    result => result,
                }
            }
        }
    }

    fn space(&self, mode: i32, extent: Extent) -> io::Result<()> {
        let offset = i64::try_from(extent.offset).map_err(io::Error::other)?;
        let len = i64::try_from(extent.len).map_err(io::Error::other)?;
        // SAFETY: a call on an open descriptor, without memory.
        checked(|| unsafe { libc::fallocate(self.file.fd(), mode, offset, len) })
    }

    /// Moves all of the transfer: the host may stop anywhere.
    fn transfer(&mut self, operation: Operation) -> io::Result<()> {
        while self.transfer.rest().len > 0 {
            let pieces = self.transfer.pieces();
            let count = i32::try_from(pieces.len()).map_err(io::Error::other)?;
            let offset = i64::try_from(self.transfer.rest().offset).map_err(io::Error::other)?;
            let fd = self.file.fd_for(&self.transfer);
            // SAFETY: the pieces are guest memory, which `self.memory` keeps mapped and nobody has references into, or for
            // writing zeros; their list lives through the call.
            let moved = unsafe {
                match operation {
                    Operation::Read => libc::preadv(fd, pieces.as_ptr(), count, offset),
                    _ => libc::pwritev(fd, pieces.as_ptr(), count, offset),
                }
            };
            match u64::try_from(moved) {
                // The file became shorter than it was when it was opened.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => self.transfer.advance(moved),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if self.file.was_direct(&error) && self.transfer.fall_back() => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

/// Calls until no signal comes between.
fn checked(mut call: impl FnMut() -> i32) -> io::Result<()> {
    loop {
        if call() >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Engine for SyncEngine {
    fn attach(&mut self, done: Token, memory: &Memory) {
        self.done = done;
        self.memory = Some(memory.clone());
        self.completed.clear();
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        let result = self.run(operation, extent, segments);
        self.completed.push_back(Completion { tag, result });
    }

    fn completed(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn drain(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Poller for SyncEngine {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poller.watch(fd, token, interest)
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.poller.unwatch(fd, token)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        if self.completed.is_empty() {
            return self.poller.wait(limit, ready);
        }
        ready.push(self.done);
        self.poller.wait(Some(Duration::ZERO), ready)
    }
}
