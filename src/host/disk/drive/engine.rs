//! The engine of a removable drive: that of the disk in it, exchanged with the disk.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use devices::ration::Ration;
use virtio::block::{AnyEngine, Completion, Engine, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Interest, Poller, Token};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::engine::EngineKind;
use super::{Drive, Medium};

/// The token of a drive's bell in an engine; no device has it.
const BELL: Token = Token::MAX - 1;

/// See the module.
#[derive(Debug)]
pub(super) struct DriveEngine {
    kind: EngineKind,
    drive: Arc<Drive>,
    engine: AnyEngine,
    /// What the engine is for: dropped behind it.
    medium: Arc<Medium>,
    /// [`Drive::changes`] with this medium.
    changes: u64,
    bell: Arc<EventFd>,
    watches: Vec<(RawFd, Token, Interest)>,
    attached: Option<(Token, Memory)>,
    in_flight: usize,
    /// Asked of a disk that is out.
    refused: VecDeque<Completion>,
    ration: Ration,
}

impl DriveEngine {
    pub(super) fn new(drive: Arc<Drive>, kind: EngineKind) -> io::Result<Self> {
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        // Before the look at the medium, so that no change is missed.
        drive.bells.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&bell));
        let (medium, changes) = drive.present();
        let mut engine = medium.engine(kind)?;
        engine.watch(bell.as_raw_fd(), BELL, Interest::Read)?;
        Ok(DriveEngine {
            kind,
            drive,
            engine,
            medium,
            changes,
            bell,
            watches: Vec::new(),
            attached: None,
            in_flight: 0,
            refused: VecDeque::new(),
            ration: Ration::default(),
        })
    }

    fn is_current(&self) -> bool {
        self.drive.changes.load(Ordering::Acquire) == self.changes
    }

    /// Exchanges the engine if the disk was, unless requests to the disk before are in flight.
    fn follow(&mut self) {
        if self.is_current() || self.in_flight > 0 {
            return;
        }
        let (medium, changes) = self.drive.present();
        match self.engine_for(&medium) {
            Ok(engine) => {
                // Whatever the one before has still to tell the host goes out with this.
                let _ = self.engine.unwatch(self.bell.as_raw_fd(), BELL);
                self.engine = engine;
                (self.medium, self.changes) = (medium, changes);
            }
            // It is tried again with what happens next.
            Err(error) => {
                if let Some(left_out) = self.ration.take() {
                    log::error!("the host gives nothing to serve another disk with: {error}{left_out}");
                }
            }
        }
    }

    /// An engine that watches the same.
    fn engine_for(&self, medium: &Medium) -> io::Result<AnyEngine> {
        let mut engine = medium.engine(self.kind)?;
        engine.watch(self.bell.as_raw_fd(), BELL, Interest::Read)?;
        for (fd, token, interest) in &self.watches {
            engine.watch(*fd, *token, *interest)?;
        }
        if let Some((done, memory)) = &self.attached {
            engine.attach(*done, memory);
        }
        Ok(engine)
    }
}

impl Engine for DriveEngine {
    fn attach(&mut self, done: Token, memory: &Memory) {
        self.engine.attach(done, memory);
        self.attached = Some((done, memory.clone()));
        self.in_flight = 0;
        self.refused.clear();
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        self.follow();
        if !self.is_current() {
            let result = Err(io::Error::from_raw_os_error(libc::ENOMEDIUM));
            return self.refused.push_back(Completion { tag, result });
        }
        self.in_flight += 1;
        self.engine.submit(tag, operation, extent, segments);
    }

    fn completed(&mut self) -> Option<Completion> {
        if let Some(refused) = self.refused.pop_front() {
            return Some(refused);
        }
        let completion = self.engine.completed()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(completion)
    }

    fn drain(&mut self) -> io::Result<()> {
        self.engine.drain()
    }

    fn gather(&mut self, operations: usize) -> bool {
        self.engine.gather(operations)
    }

    fn signal(&mut self, event: RawFd) -> bool {
        self.engine.signal(event)
    }
}

impl Poller for DriveEngine {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.engine.watch(fd, token, interest)?;
        self.watches.push((fd, token, interest));
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.watches.retain(|(own, as_token, _)| (*own, *as_token) != (fd, token));
        self.engine.unwatch(fd, token)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        self.follow();
        let limit = if self.refused.is_empty() { limit } else { Some(Duration::ZERO) };
        self.engine.wait(limit, ready)?;
        ready.retain(|token| *token != BELL);
        if let Some((done, _)) = self.attached.as_ref().filter(|_| !self.refused.is_empty()) {
            ready.push(*done);
        }
        Ok(())
    }
}
