//! The engine on io_uring: doorbells, submissions and completions go through one system call.
//!
//! The ring itself polls doorbells, so there is one place to wait. Everything that was submitted between two
//! waits goes to the kernel with the second one, which returns with the completions.
//!
//! The kernel writes into guest memory while an operation is in flight: [`UringEngine`] holds that memory,
//! counts the operations in flight, and does not end before they complete.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use virtio::block::{Completion, Engine, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Interest, Poller, Token};

use super::file::DiskFile;
use super::flight::{Flight, Step};
use super::helper::{HELPER_EVENT, Helper};
use super::mover::Mover;
use super::ring;

/// The kind of a completion, in the high half of its user data.
const OPERATION: u64 = 0;
const WATCH: u64 = 1;
const IGNORED: u64 = 2;
const SIGNAL: u64 = 3;

/// The value that is written to an eventfd.
static ONE: u64 = 1;

#[cfg(test)]
thread_local! {
    /// How often this thread has waited.
    pub(super) static ENTERED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// See the module.
pub(super) struct UringEngine {
    ring: IoUring,
    /// A raw disk is one file; an image has a file for each layer, the top one first.
    files: Vec<Arc<DiskFile>>,
    memory: Option<Memory>,
    done: Token,
    /// Indexed by tag.
    flights: Vec<Flight>,
    in_flight: usize,
    completed: VecDeque<Completion>,
    watches: Vec<Watch>,
    next_watch: u32,
    /// Doorbells that rang and are not yet reported.
    ready_watches: Vec<Token>,
    /// Entries for which the ring had no room.
    backlog: VecDeque<Entry>,
    /// Number of events that the next wait with a limit waits for.
    gather: usize,
    /// For discards, which io_uring has no operation for.
    space: Option<Helper>,
}

impl std::fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringEngine").field("files", &self.files).field("in_flight", &self.in_flight).finish()
    }
}

#[derive(Debug)]
struct Watch {
    id: u32,
    fd: RawFd,
    token: Token,
    interest: Interest,
}

impl UringEngine {
    /// # Errors
    /// This host has no io_uring, or not all features that are needed.
    pub(super) fn new(files: Vec<Arc<DiskFile>>) -> io::Result<Self> {
        Ok(UringEngine {
            ring: ring::new()?,
            space: None,
            files,
            memory: None,
            done: 0,
            flights: Vec::new(),
            in_flight: 0,
            completed: VecDeque::new(),
            watches: Vec::new(),
            next_watch: 0,
            ready_watches: Vec::new(),
            backlog: VecDeque::new(),
            gather: 1,
        })
    }

    /// Executes a block device's discards on `space` from now on.
    pub(super) fn discard_on(&mut self, space: Helper) -> io::Result<()> {
        self.watch(space.event(), HELPER_EVENT, Interest::Read)?;
        self.space = Some(space);
        Ok(())
    }

    /// Submits the rest of a flight.
    fn submit_flight(&mut self, tag: Tag) {
        let Some(flight) = self.flights.get(usize::from(tag)) else { return };
        let Some(file) = self.files.get(flight.file) else { return };
        if let Some(entry) = flight.entry(file) {
            self.push(entry.user_data(user_data(OPERATION, tag.into())));
        }
    }

    fn push(&mut self, entry: Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    /// Whether the ring had room. Descriptors in `entry` stay open, and the memory that it points to stays
    /// valid, as stated below.
    fn try_push(&mut self, entry: &Entry) -> bool {
        if self.ring.submission().is_full() {
            // A busy kernel reports that again at the next wait, where it is retried.
            let _ = self.ring.submit();
        }
        // SAFETY: descriptors in it are of `self.files`, or watched and signalled ones that the caller keeps open. Its pointers
        // are to `ONE`, or to a flight's list and what that lists: guest memory, which `self.memory` keeps mapped, or zeros to
        // be written. The list is not changed and `self` not dropped before the operation has completed (`Drop`).
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Submits everything and waits for a completion, for `limit` at most.
    fn enter(&mut self, limit: Option<Duration>) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        #[cfg(test)]
        ENTERED.set(ENTERED.get() + 1);
        let result = match limit {
            None => self.ring.submit_and_wait(1),
            Some(limit) => {
                let limit = Timespec::from(limit);
                let count = std::mem::replace(&mut self.gather, 1);
                self.ring.submitter().submit_with_args(count, &SubmitArgs::new().timespec(&limit))
            }
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // Timeout, a signal, or completions have to be reaped first.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Takes the kernel's completions, and then those of the discard thread, whose event is one of them.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            let (kind, id) = (entry.user_data() >> 32, entry.user_data() & u64::from(u32::MAX));
            match kind {
                OPERATION => {
                    if let Ok(tag) = Tag::try_from(id) {
                        self.on_completion(tag, entry.result());
                    }
                }
                WATCH => self.on_watch_event(id, cqueue::more(entry.flags())),
                // Only failures have a completion.
                SIGNAL => log::error!(
                    "an interrupt of a disk could not be raised: {}",
                    io::Error::from_raw_os_error(entry.result().saturating_neg())
                ),
                _ => {}
            }
        }
        let ended = std::iter::from_fn(|| self.space.as_mut()?.completed());
        self.completed.extend(ended);
    }

    fn on_watch_event(&mut self, id: u64, more: bool) {
        let Some(watch) = self.watches.iter().find(|watch| u64::from(watch.id) == id) else { return };
        // The event of the discard thread is served here; one of other threads must end the wait, even if it comes just before.
        let is_own = watch.token == HELPER_EVENT && self.space.is_some();
        if !is_own && !self.ready_watches.contains(&watch.token) {
            self.ready_watches.push(watch.token);
        }
        if !more {
            let entry = poll(watch);
            self.push(entry);
        }
    }

    fn on_completion(&mut self, tag: Tag, result: i32) {
        let Some(flight) = self.flights.get_mut(usize::from(tag)) else { return };
        let Some(file) = self.files.get(flight.file) else { return };
        let moved = match u64::try_from(result) {
            Ok(moved) => Ok(moved),
            Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
        };
        let result = match (flight.step, moved) {
            (Step::Idle, _) => return,
            (Step::Read, Ok(0)) if file.padded => {
                flight.transfer.fill_zeros();
                Ok(())
            }
            (Step::Read | Step::Write, Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            (Step::Read | Step::Write, Ok(moved)) => {
                flight.transfer.advance(moved);
                if flight.transfer.rest().len > 0 {
                    return self.submit_flight(tag);
                }
                Ok(())
            }
            (_, Ok(_)) => Ok(()),
            (Step::Zero { .. }, Err(error)) if file.is_zeroing_unsupported(&error) => {
                flight.transfer.zeros(flight.extent);
                flight.step = Step::Write;
                // The kernel would copy all of it at once on this thread, and the disk's other requests wait.
                flight.may_block = true;
                return self.submit_flight(tag);
            }
            (Step::Read | Step::Write, Err(error))
                if file.is_direct_error(&error) && flight.transfer.fall_back_to_buffered() =>
            {
                return self.submit_flight(tag);
            }
            (_, Err(error)) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) if !flight.may_block => {
                    flight.may_block = true;
                    return self.submit_flight(tag);
                }
                _ if flight.step == Step::Flush => Err(diskimage::flush_failed(error)),
                _ => Err(error),
            },
        };
        flight.step = Step::Idle;
        self.in_flight -= 1;
        self.completed.push_back(Completion { tag, result });
    }

    /// Prepares a flight; `Err` if it fails before its submission.
    fn prepare(
        &mut self,
        file: usize,
        tag: Tag,
        step: Step,
        extent: Extent,
        segments: &[Segment],
    ) -> io::Result<()> {
        let index = usize::from(tag);
        if self.flights.len() <= index {
            self.flights.resize_with(index + 1, Flight::default);
        }
        let flight = self.flights.get_mut(index).ok_or(io::ErrorKind::InvalidInput)?;
        if flight.step != Step::Idle {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if matches!(step, Step::Read | Step::Write) {
            let memory = self.memory.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            flight.transfer.load(memory, segments, extent)?;
        }
        (flight.file, flight.step, flight.extent, flight.may_block) = (file, step, extent, false);
        Ok(())
    }
}

fn user_data(kind: u64, id: u32) -> u64 {
    kind << 32 | u64::from(id)
}

fn poll(watch: &Watch) -> Entry {
    let events = match watch.interest {
        Interest::Read => libc::POLLIN,
        Interest::Both => libc::POLLIN | libc::POLLOUT,
    };
    let events = u32::try_from(events).unwrap_or(0);
    opcode::PollAdd::new(Fd(watch.fd), events).multi(true).build().user_data(user_data(WATCH, watch.id))
}

impl Engine for UringEngine {
    fn attach(&mut self, done: Token, memory: &Memory) {
        self.done = done;
        // Nothing is in flight, so the old memory is unused.
        self.memory = Some(memory.clone());
        self.completed.clear();
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        self.submit_to(0, tag, operation, extent, segments);
    }

    fn completed(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn drain(&mut self) -> io::Result<()> {
        self.reap();
        while self.in_flight > 0 {
            self.enter(None)?;
            self.reap();
        }
        self.space.iter().for_each(Helper::drain);
        self.reap();
        Ok(())
    }

    fn gather(&mut self, operations: usize) -> bool {
        // Events of other kinds count too, and may wait for the limit.
        self.gather = operations.clamp(1, self.in_flight.max(1));
        true
    }

    fn signal(&mut self, event: RawFd) -> bool {
        // A completion of a success would end the next wait; kernels before 5.17 cannot suppress it.
        if !self.ring.params().is_feature_skip_cqe_on_success() || !self.backlog.is_empty() {
            return false;
        }
        let entry = opcode::Write::new(Fd(event), (&raw const ONE).cast(), 8).build();
        self.try_push(&entry.flags(Flags::SKIP_SUCCESS).user_data(user_data(SIGNAL, 0)))
    }
}

impl Mover for UringEngine {
    fn submit_to(
        &mut self,
        file: usize,
        tag: Tag,
        operation: Operation,
        extent: Extent,
        segments: &[Segment],
    ) {
        let Some(to) = self.files.get(file) else {
            let result = Err(io::ErrorKind::InvalidInput.into());
            return self.completed.push_back(Completion { tag, result });
        };
        let step = match operation {
            Operation::Read => Step::Read,
            Operation::Write => Step::Write,
            Operation::Flush => Step::Flush,
            Operation::Discard if to.discards_by_ioctl() => {
                if let Some(space) = &mut self.space {
                    return space.submit(tag, (operation, extent));
                }
                let result = to.discard_device(extent);
                return self.completed.push_back(Completion { tag, result });
            }
            Operation::Discard => Step::Hole,
            Operation::WriteZeroes { unmap } => Step::Zero { unmap },
        };
        match self.prepare(file, tag, step, extent, segments) {
            Ok(()) => {
                self.in_flight += 1;
                self.submit_flight(tag);
            }
            Err(error) => self.completed.push_back(Completion { tag, result: Err(error) }),
        }
    }
}

impl Poller for UringEngine {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let id = self.next_watch;
        self.next_watch = self.next_watch.wrapping_add(1);
        let watch = Watch { id, fd, token, interest };
        let entry = poll(&watch);
        self.watches.push(watch);
        self.push(entry);
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let is_it = |watch: &Watch| watch.fd == fd && watch.token == token;
        let at = self.watches.iter().position(is_it).ok_or(io::ErrorKind::NotFound)?;
        let watch = self.watches.swap_remove(at);
        let remove = opcode::PollRemove::new(user_data(WATCH, watch.id)).build();
        self.push(remove.user_data(user_data(IGNORED, 0)));
        // An entry that is submitted later would name a descriptor that may be closed by then.
        self.ring.submit().map(drop)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        self.reap();
        let idle = self.ready_watches.is_empty() && self.completed.is_empty();
        if idle {
            self.enter(limit)?;
            self.reap();
        } else if !self.ring.submission().is_empty() || !self.backlog.is_empty() {
            self.enter(Some(Duration::ZERO))?;
            self.reap();
        }
        ready.append(&mut self.ready_watches);
        if !self.completed.is_empty() {
            ready.push(self.done);
        }
        Ok(())
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        if let Err(error) = self.drain() {
            // The kernel may still write into guest memory, so that must never be unmapped.
            log::error!("requests of a disk do not end: {error}");
            std::mem::forget((self.memory.take(), std::mem::take(&mut self.flights), self.files.clone()));
        }
    }
}
