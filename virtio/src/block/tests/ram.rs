//! A disk in memory, whose completions come when the test says, last first.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::block::{Completion, Engine, Extent, Operation, Tag};
use crate::memory::{Memory, Segment};
use crate::poll::{Epoll, Interest, Poller, Token};

/// Reported by the poll when completions are let go.
const LET_GO: Token = Token::MAX;

/// The test's hand on a disk.
#[derive(Debug, Clone)]
pub(super) struct Hand {
    state: Arc<Mutex<State>>,
    bell: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct State {
    data: Vec<u8>,
    hold: bool,
    fail: Option<io::ErrorKind>,
    log: Vec<(Operation, Extent, usize)>,
}

impl Hand {
    pub(super) fn new(len: usize) -> Self {
        let data = (0..len).map(byte).collect();
        let state = Arc::new(Mutex::new(State { data, ..State::default() }));
        Hand { state, bell: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) }
    }

    /// From now on nothing completes, until [`Hand::let_go`].
    pub(super) fn hold(&self) {
        self.state.lock().unwrap().hold = true;
    }

    pub(super) fn let_go(&self) {
        self.state.lock().unwrap().hold = false;
        self.bell.write(1).unwrap();
    }

    /// From now on operations fail so, or do not.
    pub(super) fn fail(&self, kind: Option<io::ErrorKind>) {
        self.state.lock().unwrap().fail = kind;
    }

    /// What was asked for since the last call: operation, where, in how many segments.
    pub(super) fn log(&self) -> Vec<(Operation, Extent, usize)> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// How many operations were asked for since the last [`Hand::log`].
    pub(super) fn asked(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    pub(super) fn data(&self, offset: usize, len: usize) -> Vec<u8> {
        self.state.lock().unwrap().data[offset..offset + len].to_vec()
    }

    pub(super) fn engine(&self) -> Box<dyn Engine> {
        let mut poller = Epoll::new().unwrap();
        poller.watch(self.bell.as_raw_fd(), LET_GO, Interest::Read).unwrap();
        Box::new(Ram { hand: self.clone(), poller, memory: None, done: 0, pending: Vec::new() })
    }
}

/// What is at `at` in the beginning.
pub(super) fn byte(at: usize) -> u8 {
    (at / 512 + 7 * (at % 512)) as u8
}

#[derive(Debug)]
struct Ram {
    hand: Hand,
    poller: Epoll,
    memory: Option<Memory>,
    done: Token,
    pending: Vec<Completion>,
}

impl Engine for Ram {
    fn attach(&mut self, done: Token, memory: &Memory) {
        self.done = done;
        self.memory = Some(memory.clone());
        assert!(self.pending.is_empty(), "nothing is in flight");
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        let mut state = self.hand.state.lock().unwrap();
        state.log.push((operation, extent, segments.len()));
        assert!(self.pending.iter().all(|other| other.tag != tag), "a tag is used once at a time");
        if let Some(kind) = state.fail {
            return self.pending.push(Completion { tag, result: Err(kind.into()) });
        }
        let memory = self.memory.as_ref().unwrap();
        let start = extent.offset as usize;
        let mut part = &mut state.data[start..start + extent.len as usize];
        if matches!(operation, Operation::Discard | Operation::WriteZeroes { .. }) {
            part.fill(0);
        }
        for segment in segments {
            let (now, later) = part.split_at_mut(segment.len as usize);
            match operation {
                Operation::Read => memory.write_slice(now, segment.address).unwrap(),
                _ => memory.read_slice(now, segment.address).unwrap(),
            }
            part = later;
        }
        self.pending.push(Completion { tag, result: Ok(()) });
    }

    fn completed(&mut self) -> Option<Completion> {
        if self.hand.state.lock().unwrap().hold { None } else { self.pending.pop() }
    }

    fn drain(&mut self) -> io::Result<()> {
        while self.hand.state.lock().unwrap().hold {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn gather(&mut self, _: usize) -> bool {
        true
    }
}

impl Poller for Ram {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poller.watch(fd, token, interest)
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.poller.unwatch(fd, token)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        self.poller.wait(limit, ready)?;
        for token in ready.iter_mut().filter(|token| **token == LET_GO) {
            *token = self.done;
        }
        Ok(())
    }
}
