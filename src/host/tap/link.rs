//! The interface's current state, and a socket that reports changes.
//!
//! A routing socket reports changes of any interface. Its messages are not parsed: each only triggers a new
//! query, on a socket that is kept open so that a sandboxed process can go on.

use std::io;
use std::os::fd::RawFd;

use super::netlink::{Link, Netlink};

/// Watches one interface.
#[derive(Debug)]
pub(super) struct LinkWatch {
    requests: Netlink,
    notifications: Netlink,
    index: u32,
}

impl LinkWatch {
    /// Watches the interface with this index. Needs no capability.
    pub(super) fn new(index: u32) -> io::Result<Self> {
        Ok(LinkWatch { requests: Netlink::open(false)?, notifications: Netlink::open(true)?, index })
    }

    /// Becomes readable when the interface may have changed.
    pub(super) fn fd(&self) -> RawFd {
        self.notifications.fd()
    }

    /// Queries the interface. Drains the notifications first, so that no later change is missed. `None` if it
    /// was removed.
    pub(super) fn read(&self) -> Option<Link> {
        self.notifications.drain();
        self.requests.by_index(self.index).ok().flatten()
    }
}
