//! What a worker thread waits on.

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll as SysEpoll, EpollEvent, EventSet};

/// Names a watched source of events.
pub type Token = u32;

/// What to watch a file descriptor for. Events come at edges: after one, read (or write) until it would block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Read,
    /// There is something to read, or room to write.
    Both,
}

/// Waits for file descriptors.
///
/// Edge-triggered, so that an eventfd needs no system call to be read: its counter just grows.
pub trait Poller: Debug + Send {
    /// From now on [`Poller::wait`] reports `token` whenever `fd` becomes ready. The caller keeps `fd` open.
    ///
    /// # Errors
    /// The host refused.
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()>;

    /// Ends what [`Poller::watch`] began. An event that was seen already may still be reported.
    ///
    /// # Errors
    /// The host refused.
    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()>;

    /// Waits until something is ready, or for `limit`, and appends what is to `ready`.
    ///
    /// # Errors
    /// The host refused. A signal is no error: nothing is ready then.
    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()>;
}

impl<P: Poller + ?Sized> Poller for Box<P> {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        (**self).watch(fd, token, interest)
    }
    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        (**self).unwatch(fd, token)
    }
    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        (**self).wait(limit, ready)
    }
}

/// Most events taken from the host at once.
const BATCH: usize = 32;

/// A [`Poller`] on epoll.
pub struct Epoll {
    epoll: SysEpoll,
    events: [EpollEvent; BATCH],
}

impl Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoll").finish_non_exhaustive()
    }
}

impl Epoll {
    /// One that watches nothing.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Epoll { epoll: SysEpoll::new()?, events: [EpollEvent::default(); BATCH] })
    }
}

impl Poller for Epoll {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let events = EventSet::EDGE_TRIGGERED
            | match interest {
                Interest::Read => EventSet::IN,
                Interest::Both => EventSet::IN | EventSet::OUT,
            };
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token.into()))
    }

    fn unwatch(&mut self, fd: RawFd, _token: Token) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        // Rounded up: waking before the time would make the caller wait again.
        let limit =
            limit.map_or(-1, |limit| i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let count = match self.epoll.wait(limit, &mut self.events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in self.events.iter().take(count) {
            ready.extend(Token::try_from(event.data()));
        }
        Ok(())
    }
}
