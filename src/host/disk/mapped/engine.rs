//! The engine of an image: cuts requests at the ends of mappings, and has their parts done by an engine for files or by threads
//! that know the image.

mod contract;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use diskimage::HeldWrites;
use virtio::block::{AnyEngine, Completion, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment, cut};
use virtio::poll::{Interest, Token};
use virtio::worker::MakePoller;

use super::super::engine::EngineKind;
use super::super::helper::HELPER_EVENT;
use super::super::mover::Mover;
use super::super::sync::SyncEngine;
use super::super::transfer::Transfer;
use super::super::uring::UringEngine;
use super::change::Job;
use super::disk::{ImageDisk, InPlace, Place, Target};
use super::parts::{Parts, Request};
use super::threads::Threads;

/// A write to new clusters is cut into pieces of this size, so that others come between.
const MOST_NEW: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct MappedEngine<E: Mover> {
    disk: Arc<ImageDisk>,
    mover: E,
    threads: Threads,
    /// Outlives the threads, which move data as well.
    memory: Option<Memory>,
    done: Token,
    /// Indexed by tag.
    requests: Vec<Request>,
    in_flight: usize,
    parts: Parts,
    /// Requests that wait for room.
    starved: VecDeque<Tag>,
    completed: VecDeque<Completion>,
    segments: Vec<Segment>,
}

impl<E: Mover> MappedEngine<E> {
    fn new(disk: Arc<ImageDisk>, mut mover: E) -> io::Result<Self> {
        let threads = Threads::new(&disk)?;
        for thread in threads.all() {
            mover.watch(thread.event(), HELPER_EVENT, Interest::Read)?;
        }
        Ok(MappedEngine {
            disk,
            mover,
            threads,
            memory: None,
            // Until it is attached: no event of the worker's.
            done: HELPER_EVENT,
            requests: Vec::new(),
            in_flight: 0,
            parts: Parts::default(),
            starved: VecDeque::new(),
            completed: VecDeque::new(),
            segments: Vec::new(),
        })
    }

    /// Begins parts of a request until it has no more or there is no room. Ends it if all of them have ended.
    fn advance(&mut self, tag: Tag) {
        loop {
            let Some(request) = self.requests.get_mut(usize::from(tag)) else { return };
            let Some(operation) = request.operation else { return };
            let (at, end) = (request.next, request.end());
            if at >= end {
                if request.parts == 0 {
                    request.operation = None;
                    let result = request.error.take().map_or(Ok(()), Err);
                    self.in_flight -= 1;
                    self.completed.push_back(Completion { tag, result });
                }
                return;
            }
            if !self.parts.has_room() {
                return self.starved.push_back(tag);
            }
            let begun = match operation {
                Operation::Read => self.read(tag, at, end - at),
                Operation::Write => self.write(tag, at, end - at),
                _ => self
                    .begin(tag, Job::Space(operation, Extent { offset: at, len: end - at }))
                    .map(|()| end - at),
            };
            if let Some(request) = self.requests.get_mut(usize::from(tag)) {
                match begun {
                    Ok(bytes) => request.next = at.saturating_add(bytes),
                    Err(error) => request.fail(error),
                }
            }
        }
    }

    /// Begins to read the piece at `at`, and returns how many of `len` bytes it has.
    fn read(&mut self, tag: Tag, at: u64, len: u64) -> io::Result<u64> {
        let (place, len) = self.disk.source(at, len)?;
        match place {
            Place::File { file, offset } => {
                self.begin_move(tag, Operation::Read, file, at, Extent { offset, len }, None)?
            }
            Place::Zero => self.transfer(tag, at, len)?.fill_zeros(),
            Place::Packed => {
                let transfer = self.transfer(tag, at, len)?;
                self.begin(tag, Job::Read(Extent { offset: at, len }, transfer))?;
            }
        }
        Ok(len)
    }

    /// Begins to write the piece at `at`, and returns how many of `len` bytes it has.
    fn write(&mut self, tag: Tag, at: u64, len: u64) -> io::Result<u64> {
        let (target, len) = self.disk.target(at, len)?;
        if let Target::Own(offset) = target
            && let Some(in_place) = self.disk.begin_in_place()
        {
            self.begin_move(tag, Operation::Write, 0, at, Extent { offset, len }, Some(in_place))?;
            return Ok(len);
        }
        // Pieces end where clusters do.
        let len = len.min(MOST_NEW - at % MOST_NEW);
        let transfer = self.transfer(tag, at, len)?;
        self.begin(tag, Job::Write(Extent { offset: at, len }, transfer))?;
        Ok(len)
    }

    /// The guest's side of the piece at `at`.
    fn cut(&mut self, tag: Tag, at: u64, len: u64) {
        self.segments.clear();
        if let Some(request) = self.requests.get(usize::from(tag)) {
            cut(&request.segments, at.saturating_sub(request.extent.offset), len, &mut self.segments);
        }
    }

    fn transfer(&mut self, tag: Tag, at: u64, len: u64) -> io::Result<Transfer> {
        self.cut(tag, at, len);
        let memory = self.memory.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut transfer = Transfer::default();
        transfer.load(memory, &self.segments, Extent { offset: at, len })?;
        Ok(transfer)
    }

    /// Begins a part between guest memory and a file.
    fn begin_move(
        &mut self,
        tag: Tag,
        operation: Operation,
        file: usize,
        at: u64,
        extent: Extent,
        in_place: Option<InPlace>,
    ) -> io::Result<()> {
        self.cut(tag, at, extent.len);
        let part = self.part(tag)?;
        if let Some(in_place) = in_place {
            self.parts.hold(part, in_place);
        }
        self.mover.submit_to(file, part, operation, extent, &self.segments);
        Ok(())
    }

    /// Begins a part on a thread.
    fn begin(&mut self, tag: Tag, job: Job) -> io::Result<()> {
        let part = self.part(tag)?;
        match self.threads.of(&job) {
            Some(thread) => thread.submit(part, job),
            None => {
                self.end_part(part, Ok(()));
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
        }
        Ok(())
    }

    fn part(&mut self, tag: Tag) -> io::Result<Tag> {
        let part = self.parts.take(tag).ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(request) = self.requests.get_mut(usize::from(tag)) {
            request.parts += 1;
        }
        Ok(part)
    }

    /// Notes the end of a part, and returns whose it was.
    fn end_part(&mut self, part: Tag, result: io::Result<()>) -> Option<Tag> {
        let tag = self.parts.owner(part)?;
        self.parts.release(part);
        let request = self.requests.get_mut(usize::from(tag))?;
        request.parts = request.parts.saturating_sub(1);
        if let Err(error) = result {
            request.fail(error);
        }
        Some(tag)
    }

    /// Takes the parts that have ended, and goes on with their requests and those that waited.
    fn collect(&mut self) {
        loop {
            let moved = self.mover.completed();
            let is_moved = moved.is_some();
            let Some(Completion { tag: part, result }) = moved.or_else(|| self.threads.completed()) else {
                break;
            };
            let is_done = result.is_ok();
            let Some(tag) = self.end_part(part, result) else { continue };
            if is_moved && !is_done {
                self.note_failed_flush(tag);
            }
            if is_moved && is_done {
                self.doubt_flush(tag);
            }
            if self.is_at_end(tag) {
                self.advance(tag);
            }
        }
        for _ in 0..self.starved.len() {
            if !self.parts.has_room() {
                break;
            }
            if let Some(tag) = self.starved.pop_front() {
                self.advance(tag);
            }
        }
    }

    /// Commits have to know of an fdatasync that failed: what others wrote at the same time may be lost as well.
    fn note_failed_flush(&self, tag: Tag) {
        let request = self.requests.get(usize::from(tag));
        if request.is_some_and(|request| request.operation == Some(Operation::Flush))
            && let Some(held) = self.disk.held()
        {
            held.has_failed();
        }
    }

    /// Has a flush that was one fdatasync done again with the metadata, if a commit may have been given the error that was its own.
    fn doubt_flush(&mut self, tag: Tag) {
        let is_flush = |request: &Request| request.operation == Some(Operation::Flush);
        if self.requests.get(usize::from(tag)).is_some_and(is_flush)
            && self.disk.held().is_some_and(HeldWrites::may_have_failed)
            && let Err(error) = self.begin(tag, Job::Flush)
            && let Some(request) = self.requests.get_mut(usize::from(tag))
        {
            request.fail(error);
        }
    }

    /// Whether all parts of a request have begun; others wait in `starved`.
    fn is_at_end(&self, tag: Tag) -> bool {
        self.requests.get(usize::from(tag)).is_some_and(|request| request.next >= request.end())
    }

    /// Takes the request in; `Err` if it cannot be.
    fn accept(
        &mut self,
        tag: Tag,
        operation: Operation,
        extent: Extent,
        segments: &[Segment],
    ) -> io::Result<()> {
        let index = usize::from(tag);
        if self.requests.len() <= index {
            self.requests.resize_with(index + 1, Request::default);
        }
        let request = self.requests.get_mut(index).ok_or(io::ErrorKind::InvalidInput)?;
        if request.operation.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if matches!(operation, Operation::Read | Operation::Write) {
            let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
            if bytes != extent.len {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        (request.operation, request.extent, request.next) = (Some(operation), extent, extent.offset);
        (request.parts, request.error) = (0, None);
        request.segments.clear();
        request.segments.extend_from_slice(segments);
        self.in_flight += 1;
        Ok(())
    }

    /// Begins a flush: on a thread if there are metadata to be written, which take several steps.
    fn flush(&mut self, tag: Tag) -> io::Result<()> {
        if self.disk.is_read_only() || self.disk.is_temporary() {
            return Ok(());
        }
        if self.disk.is_changed() || !self.mover.flushes() {
            return self.begin(tag, Job::Flush);
        }
        let part = self.part(tag)?;
        self.mover.submit_to(0, part, Operation::Flush, Extent::default(), &[]);
        Ok(())
    }
}

/// Makes an engine for `disk`. Call it on the thread that uses it.
///
/// # Errors
/// The host has no file descriptor or thread left, or does not offer this engine.
pub(super) fn engine(disk: Arc<ImageDisk>, kind: EngineKind) -> io::Result<AnyEngine> {
    if kind != EngineKind::Sync {
        match UringEngine::new(disk.files().to_vec()) {
            Ok(mover) => return Ok(Box::new(MappedEngine::new(disk, mover)?)),
            Err(error) if kind == EngineKind::Uring => return Err(error),
            Err(error) => {
                log::info!("disks are served without io_uring, which this host does not give: {error}")
            }
        }
    }
    let mover = SyncEngine::new(disk.files().to_vec(), None, None)?;
    Ok(Box::new(MappedEngine::new(disk, mover)?))
}

impl ImageDisk {
    /// Makes an engine, as a closure for a worker to call on its thread.
    pub(crate) fn make_engine(self: Arc<Self>, kind: EngineKind) -> MakePoller<AnyEngine> {
        Box::new(move || engine(self, kind))
    }
}
