//! A TAP interface of the host as the wire of a virtio-net device.
//!
//! An existing, persistent TAP is opened by whoever it belongs to, with no capability. MTU, address, UP and everything
//! else that needs one is left as it is; what must change is said, with the command that changes it.
//!
//! What the kernel asks of an unprivileged TUNSETIFF on a persistent TAP (drivers/net/tun.c, `tun_set_iff`; measured by
//! the tests here): the kind (TAP) and IFF_MULTI_QUEUE must be as the TAP was made, so they are mirrored from what
//! the kernel says of it; all other flags are the attaching file's choice and replace those of whoever was attached before. So
//! IFF_VNET_HDR, and with it checksum and segmentation offload, is had on *every* TAP, however it was created, and
//! packet information (IFF_NO_PI) never gets in the way.
//!
//! A machine opens its TAP once and keeps it for all its boots: closing the last queue drops the carrier, which restarts spanning tree
//! on a bridge and lets another process take the TAP. Each boot uses it through a [`TapBackend`] of its own.
//!
//! Header size, byte order and offloads are the interface's and outlive the file: they are set for each boot, because the guest
//! or the process before may have left anything, and set back at the end, because whoever comes next may look at
//! none of them. The flag IFF_VNET_HDR stays behind: the next to attach says what it wants anyway, and setting
//! it back would make the TAP busy for a moment after it seemed free.

mod backend;
mod error;
mod holder;
mod interface;
mod link;
mod names;
mod netlink;
mod offload;
mod sys;
#[cfg(test)]
mod tests;

pub(crate) use backend::TapBackend;
pub use error::TapError;
pub use holder::TapHolder;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use interface::Interface;
use link::LinkWatch;

/// Most queues that a TAP can have (`MAX_TAP_QUEUES` in drivers/net/tun.c).
const MAX_QUEUES: u16 = 256;

/// Where a host shows its interfaces, perhaps those of another network namespace.
const SYS_CLASS_NET: &str = "/sys/class/net";

/// An open TAP of a machine. Dropping it leaves the interface as one that was never used.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    /// One open file a queue.
    queues: Vec<File>,
    /// How many of the queues are attached, from the first on.
    enabled: Mutex<usize>,
    /// What the host can do.
    offloads: virtio::net::Offloads,
    link: LinkWatch,
}

/// Something that works, but not as its user will want it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TapWarning {
    /// The interface is not up: no frame passes until it is.
    #[error(
        "{name} is down, so the guest's network card has no link; bring it up: sudo ip link set {name} up"
    )]
    Down {
        /// The interface.
        name: String,
    },
}

impl Tap {
    /// Opens the TAP called `name` with as many queues as it can have, `wanted` at most. One queue is attached.
    ///
    /// # Errors
    /// Each a sentence on what stands in the way, and the command that mends it.
    pub(crate) fn open(name: &str, wanted: u16) -> Result<Self, TapError> {
        let interface = Interface::find(name)?;
        let host = |doing| move |source| TapError::Host { name: name.to_owned(), doing, source };
        let link = LinkWatch::new(interface.index()).map_err(host("watch its link"))?;
        let first = sys::open_tun()?;
        attach(&first, &interface)?;
        let mut queues = vec![first];
        if interface.multi_queue() {
            if interface.queues_in_use() > 1 {
                return Err(interface.busy(queues.first()));
            }
            add_queues(&mut queues, &interface, wanted.clamp(1, MAX_QUEUES))?;
        }
        let offloads = match queues.first() {
            Some(first) => sys::best_offloads(first),
            None => virtio::net::Offloads::empty(),
        };
        Ok(Tap { name: name.to_owned(), queues, enabled: Mutex::new(1), offloads, link })
    }

    /// Makes the TAP as it is after opening: our header, no offloads, one queue, and no frame that came for the guest before.
    fn reset(&self) -> io::Result<()> {
        let first = self.queue(0)?;
        sys::set_header(first)?;
        sys::set_offloads(first, virtio::net::Offloads::empty())?;
        // The kernel empties a queue that it detaches.
        self.enable(1)?;
        sys::drain(first);
        Ok(())
    }

    fn queue(&self, index: usize) -> io::Result<&File> {
        self.queues.get(index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn raw(&self, index: usize) -> io::Result<RawFd> {
        self.queue(index).map(AsRawFd::as_raw_fd)
    }

    /// Attaches the first `count` queues and detaches the others: the host spreads flows over what is attached.
    fn enable(&self, count: usize) -> io::Result<()> {
        if count == 0 || count > self.queues.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut enabled = self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        while *enabled < count {
            sys::set_queue(self.queue(*enabled)?, true)?;
            *enabled += 1;
        }
        while *enabled > count {
            sys::set_queue(self.queue(*enabled - 1)?, false)?;
            *enabled -= 1;
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(first) = self.queues.first() {
            sys::restore(first);
        }
    }
}

/// Makes `file` a queue of `interface`.
fn attach(file: &File, interface: &Interface) -> Result<(), TapError> {
    match sys::attach(file, interface.name(), interface.multi_queue()) {
        Ok(true) => Ok(()),
        // It was removed since, and a privileged process has made a new one, which is gone when closed.
        Ok(false) => Err(interface.other_namespace()),
        Err(error) => Err(interface.refused(error)),
    }
}

/// Opens more queues until there are `wanted`, each detached until it is enabled.
fn add_queues(queues: &mut Vec<File>, interface: &Interface, wanted: u16) -> Result<(), TapError> {
    while queues.len() < usize::from(wanted) {
        let more = sys::open_tun()?;
        match sys::attach(&more, interface.name(), true) {
            Ok(_) => {}
            // The TAP was made with fewer queues: what there is serves.
            Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => return Ok(()),
            Err(error) => return Err(interface.refused(error)),
        }
        let detached = sys::set_queue(&more, false);
        detached.map_err(|source| TapError::Host {
            name: interface.name().to_owned(),
            doing: "park a queue of it",
            source,
        })?;
        queues.push(more);
    }
    Ok(())
}
