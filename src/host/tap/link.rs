//! Whether the interface has a link, and a socket that says when to look again.
//!
//! A routing socket reports changes of any interface; what it reports is not read, it only makes the interface be asked for
//! again, by a socket that is kept open, so that a sandboxed process can go on.

use std::io;
use std::os::fd::RawFd;

use super::netlink::Netlink;

/// Watches one interface.
#[derive(Debug)]
pub(super) struct LinkWatch {
    questions: Netlink,
    changes: Netlink,
    index: u32,
    up: bool,
}

impl LinkWatch {
    /// Watches the interface of this index. Needs no capability.
    pub(super) fn new(index: u32) -> io::Result<Self> {
        let (questions, changes) = (Netlink::open(false)?, Netlink::open(true)?);
        let mut watch = LinkWatch { questions, changes, index, up: false };
        watch.refresh();
        Ok(watch)
    }

    /// Becomes readable when the link may have changed.
    pub(super) fn fd(&self) -> RawFd {
        self.changes.fd()
    }

    /// Whether there was a link at the last look.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Looks again. An interface that is down or gone has no link.
    pub(super) fn refresh(&mut self) {
        self.changes.drain();
        let link = self.questions.by_index(self.index).ok().flatten();
        self.up = link.is_some_and(|link| link.carrier && link.flags & super::interface::IFF_UP != 0);
    }
}
