//! The engine for hosts without io_uring: positioned calls on the disk's thread, executed at submission.
//! Flushes, discards and zeroing, which may take long, have threads of their own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use virtio::block::{Completion, Engine, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Epoll, Interest, Poller, Token};

use super::file::DiskFile;
use super::helper::{self, HELPER_EVENT, Helper};
use super::mover::Mover;
use super::transfer::Transfer;

/// See the module.
#[derive(Debug)]
pub(super) struct SyncEngine {
    /// A raw disk is one file; an image has a file for each layer, the top one first.
    files: Vec<Arc<DiskFile>>,
    poller: Epoll,
    memory: Option<Memory>,
    done: Token,
    completed: VecDeque<Completion>,
    transfer: Transfer,
    /// For discards and zeroing, and for flushes. Without a helper they run on the disk's thread.
    space: Option<Helper>,
    flush: Option<Helper>,
}

impl SyncEngine {
    pub(super) fn new(
        files: Vec<Arc<DiskFile>>,
        space: Option<Helper>,
        flush: Option<Helper>,
    ) -> io::Result<Self> {
        let mut poller = Epoll::new()?;
        for helper in space.iter().chain(&flush) {
            poller.watch(helper.event(), HELPER_EVENT, Interest::Read)?;
        }
        Ok(SyncEngine {
            files,
            poller,
            space,
            flush,
            memory: None,
            done: 0,
            completed: VecDeque::new(),
            transfer: Transfer::default(),
        })
    }

    fn run(
        &mut self,
        file: usize,
        operation: Operation,
        extent: Extent,
        segments: &[Segment],
    ) -> io::Result<()> {
        let file = self.files.get(file).ok_or(io::ErrorKind::InvalidInput)?;
        match operation {
            Operation::Read | Operation::Write => {
                let memory = self.memory.as_ref().ok_or(io::ErrorKind::NotConnected)?;
                self.transfer.load(memory, segments, extent)?;
                self.transfer.run(file, operation)
            }
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => {
                helper::run(file, operation, extent)
            }
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
        let helper = match operation {
            Operation::Read | Operation::Write => None,
            Operation::Flush => self.flush.as_mut(),
            Operation::Discard | Operation::WriteZeroes { .. } => self.space.as_mut(),
        };
        if let Some(helper) = helper {
            return helper.submit(tag, (operation, extent));
        }
        self.submit_to(0, tag, operation, extent, segments);
    }

    fn completed(&mut self) -> Option<Completion> {
        let own = self.completed.pop_front();
        let mut helpers = self.space.iter_mut().chain(&mut self.flush);
        own.or_else(|| helpers.find_map(Helper::completed))
    }

    fn drain(&mut self) -> io::Result<()> {
        self.space.iter().chain(&self.flush).for_each(Helper::drain);
        Ok(())
    }
}

impl Mover for SyncEngine {
    fn submit_to(
        &mut self,
        file: usize,
        tag: Tag,
        operation: Operation,
        extent: Extent,
        segments: &[Segment],
    ) {
        let result = self.run(file, operation, extent, segments);
        self.completed.push_back(Completion { tag, result });
    }

    fn flushes(&self) -> bool {
        false
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
        let limit = if self.completed.is_empty() { limit } else { Some(Duration::ZERO) };
        self.poller.wait(limit, ready)?;
        let events = ready.len();
        ready.retain(|token| *token != HELPER_EVENT);
        if !self.completed.is_empty() || ready.len() < events {
            ready.push(self.done);
        }
        Ok(())
    }
}
