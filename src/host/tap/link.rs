//! What the kernel says of the interface now, and a socket that says when to look again.
//!
//! A routing socket reports changes of any interface; what it reports is not read, it only makes the interface be asked for
//! again, by a socket that is kept open, so that a sandboxed process can go on.

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
    /// Watches the interface of this index. Needs no capability.
    pub(super) fn new(index: u32) -> io::Result<Self> {
        Ok(LinkWatch { requests: Netlink::open(false)?, notifications: Netlink::open(true)?, index })
    }

    /// Becomes readable when the interface may have changed.
    pub(super) fn fd(&self) -> RawFd {
        self.notifications.fd()
    }

    /// Looks at the interface, and empties the socket first, so that no change after the look is missed. `None`: it is gone.
    pub(super) fn read(&self) -> Option<Link> {
        self.notifications.drain();
        self.requests.by_index(self.index).ok().flatten()
    }
}
