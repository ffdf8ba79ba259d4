//! What a device and its worker see of the engine.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio::block::{Completion, Engine, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Interest, Poller, Token};

use super::super::super::helper::{HELPER_EVENT, Helper};
use super::super::super::mover::Mover;
use super::MappedEngine;

impl<E: Mover> Engine for MappedEngine<E> {
    fn attach(&mut self, done: Token, memory: &Memory) {
        self.done = done;
        self.memory = Some(memory.clone());
        self.completed.clear();
        // Until there is a driver, `done` is no token of this engine's.
        self.mover.attach(HELPER_EVENT, memory);
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        let extent = if operation == Operation::Flush { Extent::default() } else { extent };
        if let Err(error) = self.accept(tag, operation, extent, segments) {
            return self.completed.push_back(Completion { tag, result: Err(error) });
        }
        if operation == Operation::Flush
            && let Err(error) = self.flush(tag)
            && let Some(request) = self.requests.get_mut(usize::from(tag))
        {
            request.fail(error);
        }
        self.advance(tag);
    }

    fn completed(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn drain(&mut self) -> io::Result<()> {
        self.disk.hurried.store(true, Ordering::Release);
        let result = loop {
            if let Err(error) = self.mover.drain() {
                break Err(error);
            }
            self.threads.all().for_each(Helper::drain);
            self.collect();
            if self.in_flight == 0 {
                break Ok(());
            }
        };
        self.disk.hurried.store(false, Ordering::Release);
        result
    }

    fn gather(&mut self, operations: usize) -> bool {
        self.mover.gather(operations)
    }

    fn signal(&mut self, event: RawFd) -> bool {
        self.mover.signal(event)
    }
}

impl<E: Mover> Poller for MappedEngine<E> {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.mover.watch(fd, token, interest)
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.mover.unwatch(fd, token)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        let limit = if self.completed.is_empty() { limit } else { Some(Duration::ZERO) };
        self.mover.wait(limit, ready)?;
        self.collect();
        // The mover reports the end of parts by it, and the threads do.
        ready.retain(|token| *token != HELPER_EVENT);
        if !self.completed.is_empty() {
            ready.push(self.done);
        }
        Ok(())
    }
}

impl<E: Mover> Drop for MappedEngine<E> {
    fn drop(&mut self) {
        if let Err(error) = self.drain() {
            // The mover, dropped next, keeps the memory of what it has in flight.
            log::error!("requests of a disk do not end: {error}");
        }
        if let Err(error) = self.disk.finish() {
            log::error!("the end of what was written to a disk is lost: {error}");
        }
    }
}
