//! The file system device (virtio 1.3 §5.11): FUSE requests from its queues become calls of a [`FileSystem`].
//!
//! A request's fields are copied once and checked; only data of reads and writes stay in guest memory, which the file system
//! gets as segments. Requests are served one after the other, in the order of their queues; calls that may take long are made by
//! other threads meanwhile. A request that waits for a lock is kept aside and asked again.

mod body;
mod errno;
mod filesystem;
mod later;
mod listing;
mod opcode;
mod serve;
mod session;
mod wire;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use devices::component::{State, StateError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use errno::Errno;
pub use filesystem::{
    Answer, Attr, Caching, Caller, Change, Entry, FileSystem, Handle, Lock, LockKind, Name, New, Node,
    OpenMode, Rename, Seek, SetTime, SetXattr, Space, Time, Usage, Work, WriteAt,
};
pub use listing::{Listing, UNKNOWN_INO};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceInfo, TIMER};
use crate::memory::Memory;
use crate::poll::{Epoll, Interest, Token};
use crate::queue::{Chain, Queue, QueueFault};
use later::{Later, Request};
use serve::{Buffers, Outcome, Server, TRANSFER};
use session::Session;
use wire::{Fields, Header, IN_HEADER, OUT_HEADER};

/// Requests that are not to wait behind others: forgotten nodes and interrupts (§5.11.2).
const HIGH_PRIORITY: u16 = 0;
/// All others.
const REQUESTS: u16 = 1;
/// Room for a request of 1 MiB in pages of 4 KiB, and for many small ones.
const QUEUE_SIZE: NonZeroU16 = NonZeroU16::new(1024).unwrap();
/// Longest `tag` (§5.11.4).
pub const MOST_TAG: usize = 36;
/// Most bytes of a request but for data to write: an attribute's value of 64 KiB and its name.
const MOST_REQUEST: usize = 72 << 10;
/// Requests of a queue in a turn, and how long they may take, between which the worker obeys commands.
const TURN: u32 = 256;
const TURN_TIME: Duration = Duration::from_millis(10);
/// Answers that the driver is told of together, at most.
const BATCH: u32 = 16;
/// How long the driver is not told that the high-priority queue's requests are done: nobody waits for them, and a guest that
/// removes a tree forgets each file in a request of its own.
const COLLECTED: Duration = Duration::from_millis(5);
/// How often a lock that others of the host hold is asked for again.
const RETRY: Duration = Duration::from_millis(50);
/// How long locks that others have when a machine goes on are asked for.
const REACQUIRE_TIME: Duration = Duration::from_secs(10);
/// Most requests that wait for locks; the driver needs descriptors for what would end their waiting.
const MOST_WAITING: usize = 256;
/// Calls have ended that other threads make.
const ENDED: Token = 0;
const KIND: &str = "virtio-fs";
const VERSION: u16 = 1;

/// A request that waits for a lock.
#[derive(Debug)]
struct Waiting {
    request: Request,
    lock: Lock,
}

/// One that is back in its ring's memory while the device rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parked {
    queue: u16,
    head: u16,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FsState {
    session: Session,
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    waiting: VecDeque<Parked>,
    files: Value,
}

/// The device.
#[derive(Debug)]
pub struct Fs {
    name: String,
    config: Arc<ConfigSpace>,
    server: Server,
    /// The request at hand.
    request: Vec<u8>,
    waiting: Vec<Waiting>,
    /// Who makes calls that may take long, once there was one.
    later: Option<Later>,
    parked: VecDeque<Parked>,
    /// A state was loaded, and the device has not gone on yet.
    is_loaded: bool,
    /// Until when locks of that state are asked for that others have.
    reacquires: Option<Instant>,
    /// [`COLLECTED`], but for a test.
    collected: Duration,
}

impl Fs {
    /// A device that log lines call `name`, which the guest mounts by `tag`: its first [`MOST_TAG`] bytes.
    pub fn new(name: impl Into<String>, tag: &str, fs: Box<dyn FileSystem>) -> Self {
        let mut config = vec![0; MOST_TAG];
        for (to, from) in config.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        wire::u32(&mut config, 1);
        Fs {
            name: name.into(),
            config: Arc::new(ConfigSpace::new(config)),
            server: Server::new(fs),
            request: Vec::new(),
            waiting: Vec::new(),
            later: None,
            parked: VecDeque::new(),
            is_loaded: false,
            reacquires: None,
            collected: COLLECTED,
        }
    }

    fn drain(&mut self, index: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let (mut left, mut unsaid, begun) = (TURN, 0, Instant::now());
        loop {
            let Some(queue) = cx.queue(index) else { return Ok(()) };
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                } else if index == HIGH_PRIORITY && left < TURN {
                    // The timer's turn finds nothing more, and tells of all; so does the worker when the device is to rest.
                    cx.wake_by(Instant::now() + self.collected);
                    return Ok(());
                }
                return queue.notify();
            };
            self.take(chain, cx, index)?;
            if self.server.frees_locks {
                self.retry_locks(cx)?;
            }
            let Some(queue) = cx.queue(index) else { return Ok(()) };
            (left, unsaid) = (left - 1, unsaid + 1);
            if left == 0 || begun.elapsed() >= TURN_TIME {
                queue.notify()?;
                cx.wake_at(Some(Instant::now()));
                return Ok(());
            }
            if unsaid == BATCH && index != HIGH_PRIORITY {
                queue.notify()?;
                unsaid = 0;
            }
        }
    }

    /// Serves one request, and completes it unless it waits.
    fn take(&mut self, chain: Chain, cx: &mut Context<'_, Epoll>, index: u16) -> Result<(), QueueFault> {
        let Some(queue) = cx.queue(index) else { return Ok(()) };
        let mut header = [0; IN_HEADER];
        let mut reader = chain.reader(queue.memory());
        let header = match reader.read(&mut header) {
            IN_HEADER => Header::parse(&header).ok(),
            _ => None,
        };
        let Some(header) = header else {
            log::debug!("{}: a request is shorter than its header", self.name);
            queue.counters().errors.add_one();
            return queue.complete(chain);
        };
        // The data of a write stay where they are.
        let most = if header.opcode == opcode::WRITE { TRANSFER } else { MOST_REQUEST };
        let rest = usize::try_from(reader.left()).unwrap_or(usize::MAX);
        self.request.resize(rest.min(most), 0);
        reader.read(&mut self.request);
        let is_whole = u64::from(header.len) == chain.readable_len();
        let outcome = if !is_whole {
            Err(Errno::INVAL)
        } else if rest > most && header.opcode != opcode::WRITE {
            Err(Errno::TOO_BIG)
        } else {
            let buffers =
                Buffers { memory: queue.memory(), readable: chain.readable(), writable: chain.writable() };
            self.server.serve(&header, Fields(&self.request), buffers)
        };
        let outcome = match outcome {
            Ok(Outcome::Waits(_)) if self.waiting.len() >= MOST_WAITING => Err(Errno::NOLCK),
            // Such as two that have what the other one asks for: nothing would ever end their waiting.
            Ok(Outcome::Waits(lock)) if self.is_deadlock(&lock) => Err(Errno::DEADLK),
            outcome => outcome,
        };
        match outcome {
            Ok(Outcome::Waits(lock)) => {
                let request = Request { queue: index, unique: header.unique, chain, says_count: false };
                self.waiting.push(Waiting { request, lock });
                cx.wake_by(Instant::now() + RETRY);
                Ok(())
            }
            Ok(Outcome::Later { work, says_count }) => {
                self.hand_over(Request { queue: index, unique: header.unique, chain, says_count }, work, cx)
            }
            Ok(Outcome::Interrupts(unique)) => {
                queue.complete(chain)?;
                self.interrupt(unique, cx)
            }
            _ if opcode::is_silent(header.opcode) => queue.complete(chain),
            outcome => self.answer(queue, chain, header.unique, outcome),
        }
    }

    /// Writes the answer of a request and completes it.
    fn answer(
        &self,
        queue: &mut Queue,
        mut chain: Chain,
        unique: u64,
        outcome: Answer<Outcome>,
    ) -> Result<(), QueueFault> {
        let counters = queue.counters();
        counters.bytes_in.add(self.server.moved.0);
        counters.bytes_out.add(self.server.moved.1);
        let memory: Memory = queue.memory().clone();
        let mut writer = chain.writer(&memory);
        let room = usize::try_from(writer.left()).unwrap_or(usize::MAX);
        let (error, data, out): (i32, u64, &[u8]) = match outcome {
            Ok(Outcome::Data(data)) => (0, data, &[]),
            Ok(_) if OUT_HEADER + self.server.out.len() <= room => (0, 0, &self.server.out),
            Ok(_) => (Errno::RANGE.raw(), 0, &[]),
            Err(error) => {
                // What a driver asks once to learn that it need not ask is none.
                if error == Errno::IO || error == Errno::INVAL {
                    counters.errors.add_one();
                }
                (error.raw(), 0, &[])
            }
        };
        if room < OUT_HEADER {
            log::debug!("{}: a request has no room for its answer", self.name);
            counters.errors.add_one();
            return queue.complete(chain);
        }
        let len = OUT_HEADER as u64 + data + out.len() as u64;
        let mut header = [0; OUT_HEADER];
        let fields = u32::try_from(len)
            .unwrap_or(u32::MAX)
            .to_le_bytes()
            .into_iter()
            .chain((-error).to_le_bytes())
            .chain(unique.to_le_bytes());
        header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        writer.write(&header);
        writer.write(out);
        writer.advance(data);
        queue.complete(chain)
    }

    /// Whether its owner waits for itself in the end, over others who wait. A lock on a whole file may (flock(2)).
    fn is_deadlock(&self, lock: &Lock) -> bool {
        let blockers = |lock: &Lock| if lock.is_flock { Vec::new() } else { self.server.fs.blockers(lock) };
        let mut owners = blockers(lock);
        let mut at = 0;
        while let Some(owner) = owners.get(at).copied() {
            if owner == lock.owner {
                return true;
            }
            for waiting in self.waiting.iter().filter(|waiting| waiting.lock.owner == owner) {
                let more = blockers(&waiting.lock);
                let new: Vec<u64> = more.into_iter().filter(|owner| !owners.contains(owner)).collect();
                owners.extend(new);
            }
            at += 1;
        }
        false
    }

    /// Gives a call to another thread, or makes it here if the host has none left.
    fn hand_over(
        &mut self,
        request: Request,
        work: Work,
        cx: &mut Context<'_, Epoll>,
    ) -> Result<(), QueueFault> {
        if self.later.is_none() {
            let made = Later::new(&self.name)
                .and_then(|later| cx.watch(later.event(), ENDED, Interest::Read).map(|()| later));
            self.later = made.inspect_err(|error| log::warn!("{}: {error}", self.name)).ok();
        }
        let refused = match &mut self.later {
            Some(later) => later.submit(request, work).err(),
            None => Some((request, work)),
        };
        let Some((request, work)) = refused else { return Ok(()) };
        let result = work.run(&AtomicBool::new(false));
        self.end(request, result, cx)
    }

    /// Ends the waiting of request `unique`. A call that is being made goes on.
    fn interrupt(&mut self, unique: u64, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let at = self.waiting.iter().position(|waiting| waiting.request.unique == unique);
        let request = match at {
            Some(at) => Some(self.waiting.swap_remove(at).request),
            None => self.later.as_mut().and_then(|later| later.cancel(unique)),
        };
        request.map_or(Ok(()), |request| self.end(request, Err(Errno::INTR), cx))
    }

    /// Answers a request that was kept aside.
    fn end(
        &mut self,
        request: Request,
        result: Answer<u64>,
        cx: &mut Context<'_, Epoll>,
    ) -> Result<(), QueueFault> {
        let Request { queue, unique, chain, says_count } = request;
        self.server.out.clear();
        self.server.moved = (0, 0);
        if let (true, Ok(count)) = (says_count, result) {
            wire::u64(&mut self.server.out, count);
        }
        // The queue may have broken meanwhile: its driver waits for a reset then.
        let Some(queue) = cx.queue(queue) else { return Ok(()) };
        self.answer(queue, chain, unique, result.map(|_| Outcome::Answered))?;
        queue.notify()
    }

    /// Answers requests whose calls have ended.
    fn end_later(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let mut all = Ok(());
        while let Some((request, result)) = self.later.as_mut().and_then(Later::ended) {
            all = self.end(request, result, cx).and(all);
        }
        all
    }

    /// Asks again for locks that requests wait for, in the order in which they came.
    fn retry_locks(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        self.server.frees_locks = false;
        let mut result = Ok(());
        for waiting in std::mem::take(&mut self.waiting) {
            match self.server.fs.lock(&waiting.lock) {
                Err(Errno::AGAIN) => self.waiting.push(waiting),
                locked => result = self.end(waiting.request, locked.map(|()| 0), cx).and(result),
            }
        }
        if !self.waiting.is_empty() {
            cx.wake_by(Instant::now() + RETRY);
        }
        result
    }

    /// Asks for the locks of the state again.
    fn reacquire_locks(&mut self, cx: &mut Context<'_, Epoll>) {
        let Some(until) = self.reacquires else { return };
        let is_last = Instant::now() >= until;
        let left = self.server.fs.reacquire_locks(is_last);
        if left > 0 && is_last {
            log::warn!(
                "{}: {left} locks that the guest had on files of the share could not be taken again: other programs have them, or the files \
                 are gone; start the guest's programs again that use these files",
                self.name
            );
        }
        if left > 0 && !is_last {
            cx.wake_by(Instant::now() + RETRY);
        } else {
            self.reacquires = None;
        }
    }

    /// Puts a request back where it came from, to be read again.
    fn park(&mut self, Request { queue, chain, .. }: Request, cx: &mut Context<'_, Epoll>) {
        if let Some(of) = cx.queue(queue) {
            self.parked.push_back(Parked { queue, head: of.set_aside(chain) });
        }
    }

    /// Takes up what rested with the device, before anything else. It is read anew: the guest's memory is what it has.
    fn take_up(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        while let Some(Parked { queue, head }) = self.parked.pop_front() {
            let Some(of) = cx.queue(queue) else { continue };
            let chain = of.take_up(head)?;
            self.take(chain, cx, queue)?;
        }
        Ok(())
    }

    /// Serves `queues`. After a fault in one queue the others go on in the next turn.
    fn turn(&mut self, queues: &[u16], cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let result = queues.iter().try_for_each(|queue| self.drain(*queue, cx));
        if result.is_err() {
            cx.wake_at(Some(Instant::now()));
        }
        result
    }
}

impl Device for Fs {
    type Poller = Epoll;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: DeviceKind::FileSystem,
            name: self.name.clone(),
            features: 0,
            queues: vec![QUEUE_SIZE; 2],
            config: self.config.clone(),
        }
    }

    fn start(&mut self, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        if let Some(later) = &self.later {
            cx.watch(later.event(), ENDED, Interest::Read)?;
        }
        if std::mem::take(&mut self.is_loaded) {
            self.reacquires = Some(Instant::now() + REACQUIRE_TIME);
        }
        self.reacquire_locks(cx);
        if !self.parked.is_empty() {
            cx.wake_by(Instant::now());
        }
        Ok(())
    }

    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        self.take_up(cx)?;
        self.turn(&[queue], cx)
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        self.take_up(cx)?;
        if token == ENDED {
            return self.end_later(cx);
        } else if token != TIMER {
            return Ok(());
        }
        self.reacquire_locks(cx);
        self.server.frees_locks = !self.waiting.is_empty();
        let retried = if self.server.frees_locks { self.retry_locks(cx) } else { Ok(()) };
        self.turn(&[HIGH_PRIORITY, REQUESTS], cx).and(retried)
    }

    /// What waits goes back where it came from.
    fn stop(&mut self, cx: &mut Context<'_, Epoll>) {
        for Waiting { request, .. } in std::mem::take(&mut self.waiting) {
            self.park(request, cx);
        }
        for (request, answer) in self.later.as_mut().map(Later::stop).unwrap_or_default() {
            let Some(answer) = answer else {
                self.park(request, cx);
                continue;
            };
            if let Err(fault) = self.end(request, answer, cx) {
                log::debug!("{}: {fault} while it stopped", self.name);
            }
        }
    }

    fn reset(&mut self) {
        self.parked.clear();
        self.reacquires = None;
        self.later.iter_mut().for_each(Later::forget);
        self.server.end_session();
    }

    fn save(&self) -> Result<State, StateError> {
        let files = self.server.fs.save()?;
        let state = FsState { session: self.server.session, waiting: self.parked.clone(), files };
        State::new(KIND, VERSION, &state)
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let FsState { session, waiting, files } = state.open(KIND, VERSION)?;
        let fits = |parked: &Parked| parked.queue <= REQUESTS && parked.head < QUEUE_SIZE.get();
        if waiting.len() > 2 * usize::from(QUEUE_SIZE.get()) || !waiting.iter().all(fits) {
            return Err(StateError::damaged(KIND, "requests wait that no queue can have"));
        }
        self.server.fs.load(&files)?;
        (self.server.session, self.parked, self.is_loaded) = (session, waiting, true);
        Ok(())
    }
}
