//! The two descriptors that a worker watches in place of a socket that comes and goes: one for frames, one for the link.
//!
//! The worker watches both at edges, and an epoll reports each event of what is in it as an edge of its own. So nobody takes
//! events out of them: what has happened shows in the next call on the sockets.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// An epoll that others watch.
#[derive(Debug)]
pub(super) struct Group(Epoll);

impl Group {
    pub(super) fn new() -> io::Result<Self> {
        Epoll::new().map(Group)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Adds `fd`, which leaves when it is closed.
    pub(super) fn add(&self, fd: &impl AsRawFd, events: EventSet) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, 0))
    }

    /// Adds `fd`, or changes what it is watched for.
    pub(super) fn watch(&self, fd: &impl AsRawFd, events: EventSet) -> io::Result<()> {
        match self.add(fd, events) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.change(fd, events),
            added => added,
        }
    }

    pub(super) fn change(&self, fd: &impl AsRawFd, events: EventSet) -> io::Result<()> {
        self.0.ctl(ControlOperation::Modify, fd.as_raw_fd(), EpollEvent::new(events, 0))
    }
}

/// What a socket is watched for: only what its user waits for, since another event would wake the worker for nothing, and
/// without end where the socket is full and the guest has no buffers.
#[derive(Debug)]
pub(super) struct Interest {
    /// All was read: the guest waits for the next frame.
    drained: bool,
    /// The socket was full: the guest waits for room.
    blocked: bool,
    set: EventSet,
}

impl Interest {
    /// That of a socket that is added to a group.
    pub(super) const FIRST: EventSet = EventSet::IN;

    /// Nobody knows yet whether the guest has buffers.
    pub(super) fn new() -> Self {
        Interest { drained: false, blocked: false, set: Self::FIRST }
    }

    /// Not all was read perhaps; a read that would block comes later.
    pub(super) fn reading(&mut self) {
        self.drained = false;
    }

    /// A read would block.
    pub(super) fn drained(&mut self, group: &Group, fd: &impl AsRawFd) {
        self.drained = true;
        self.update(group, fd);
    }

    /// A write would block, or did not.
    pub(super) fn blocked(&mut self, blocked: bool, group: &Group, fd: &impl AsRawFd) {
        if blocked || self.blocked {
            self.blocked = blocked;
            self.update(group, fd);
        }
    }

    /// Ends events that nobody waits for, before the group is watched anew.
    pub(super) fn trim(&mut self, group: &Group, fd: &impl AsRawFd) {
        self.update(group, fd);
    }

    fn update(&mut self, group: &Group, fd: &impl AsRawFd) {
        let mut set = if self.drained { EventSet::IN } else { EventSet::empty() };
        set.set(EventSet::OUT, self.blocked);
        // Where the host refuses, the events of before go on.
        if set != self.set && group.change(fd, set).is_ok() {
            self.set = set;
        }
    }
}

/// Readable when the link may have changed: rung by hand, or by a timer, or by what is added.
#[derive(Debug)]
pub(super) struct LinkWatch {
    group: Group,
    bell: EventFd,
    timer: TimerFd,
    due: Option<Instant>,
}

impl LinkWatch {
    pub(super) fn new() -> io::Result<Self> {
        let (group, bell) = (Group::new()?, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let timer = TimerFd::new()?;
        group.add(&bell, EventSet::IN)?;
        group.add(&timer, EventSet::IN)?;
        Ok(LinkWatch { group, bell, timer, due: None })
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Has the device look at the link.
    pub(super) fn ring(&self) {
        // A counter that is full rings as well.
        let _ = self.bell.write(1);
    }

    /// What rang is dealt with from here on.
    pub(super) fn hush(&self) {
        // It may not have rung.
        let _ = self.bell.read();
    }

    /// Has the device look at the link after `pause`.
    pub(super) fn ring_after(&mut self, pause: Duration) {
        self.due = Instant::now().checked_add(pause);
        if let Err(error) = self.timer.reset(pause, None) {
            log::error!("a timer of a network socket cannot be set: {error}");
        }
    }

    /// Whether no attempt has to wait, and none is waited for any more.
    pub(super) fn is_due(&mut self) -> bool {
        if self.due.is_some_and(|due| Instant::now() < due) {
            return false;
        }
        if self.due.take().is_some() {
            // Otherwise the expired timer stays readable.
            let _ = self.timer.clear();
        }
        true
    }
}
