//! Whether the interface has a link, and a file that says when to look again.
//!
//! A routing socket reports changes of any interface; what it reports is not read, it only makes the interface's
//! `carrier` be read again. That file is kept open, so that a sandboxed process can go on.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Watches one interface.
#[derive(Debug)]
pub(super) struct LinkWatch {
    carrier: File,
    events: OwnedFd,
    up: bool,
}

impl LinkWatch {
    /// Watches the interface whose folder in /sys/class/net is `interface`. Needs no capability.
    pub(super) fn new(interface: &Path) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes numbers and returns a descriptor or -1.
        let events = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if events < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above and nobody else has it.
        let events = unsafe { OwnedFd::from_raw_fd(events) };
        // SAFETY: an all-zero sockaddr_nl is valid: the kernel chooses the port.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).map_err(io::Error::other)?;
        address.nl_groups = u32::try_from(libc::RTMGRP_LINK).map_err(io::Error::other)?;
        let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        // SAFETY: `address` is a sockaddr_nl of `size` bytes that lives across the call.
        if unsafe { libc::bind(events.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut watch = LinkWatch { carrier: File::open(interface.join("carrier"))?, events, up: false };
        watch.refresh();
        Ok(watch)
    }

    /// Becomes readable when the link may have changed.
    pub(super) fn fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// Whether there was a link at the last look.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Looks again. An interface that is down or gone cannot say its carrier: it has none.
    pub(super) fn refresh(&mut self) {
        self.drain();
        let mut said = [0];
        self.up = self.carrier.read_at(&mut said, 0).is_ok_and(|len| len == 1) && said == *b"1";
    }

    /// Empties the socket; more events than it holds (ENOBUFS) are an event as well.
    fn drain(&self) {
        let mut nothing = [0u8; 16];
        loop {
            // SAFETY: `nothing` has room for what is asked; the rest of a message is cut off, which is meant.
            let got = unsafe {
                libc::recv(
                    self.events.as_raw_fd(),
                    nothing.as_mut_ptr().cast(),
                    nothing.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let again =
                matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOBUFS | libc::EINTR));
            if got < 0 && !again {
                return;
            }
        }
    }
}
