//! A TAP interface of the host as the link of a virtio-net device.
//!
//! An existing, persistent TAP is opened by its owner, without a capability. MTU, address, UP and everything
//! else that needs one is left as it is; an error or warning names the command that changes it.
//!
//! The kernel's rules for an unprivileged TUNSETIFF on a persistent TAP (drivers/net/tun.c, `tun_set_iff`;
//! checked by the tests here): the kind (TAP) and IFF_MULTI_QUEUE must match the existing TAP, so they are
//! copied from it; all other flags are chosen by the attaching file and replace earlier ones. So
//! IFF_VNET_HDR, and with it checksum and segmentation offload, is available on *every* TAP, however it was
//! created, and packet information (IFF_NO_PI) can always be turned off.
//!
//! A machine opens its TAP once and keeps it for all its boots: closing the last queue drops the carrier,
//! which restarts spanning tree on a bridge and lets another process take the TAP. Each boot uses it through
//! a [`TapBackend`] of its own.
//!
//! Header size, byte order and offloads belong to the interface and outlive the file: they are set for each
//! boot, as the guest or process before may have changed them, and reset at the end, as the next process may
//! rely on the defaults. IFF_VNET_HDR stays set: the next process sets its own flags anyway, and resetting it
//! would make the TAP busy for a moment after it seemed free.

mod backend;
mod error;
mod holder;
mod interface;
mod link;
mod names;
mod netlink;
mod offload;
#[cfg(feature = "cli")]
mod port;
mod sys;
#[cfg(test)]
mod tests;

pub(crate) use backend::TapBackend;
pub use error::TapError;
pub use holder::TapHolder;
pub(crate) use names::user as user_name;
#[cfg(feature = "cli")]
pub(crate) use port::TapPort;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use super::lock_soon::free_soon;
use interface::Interface;
use link::LinkWatch;

/// Maximum number of queues (`MAX_TAP_QUEUES` in drivers/net/tun.c).
const MAX_QUEUES: u16 = 256;

/// The host's interfaces, perhaps those of another network namespace.
const SYS_CLASS_NET: &str = "/sys/class/net";

/// An open TAP of a machine. Dropping it restores the interface's defaults.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    /// One open file per queue.
    queues: Vec<File>,
    /// Number of attached queues, from the first on.
    enabled: Mutex<usize>,
    /// Offloads that the host supports.
    offloads: virtio::net::Offloads,
    link: LinkWatch,
}

/// A problem that does not prevent the start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TapWarning {
    /// The interface is not up: no frame passes.
    #[error(
        "{name} is down, so the guest's network card has no link; bring it up: sudo ip link set {name} up"
    )]
    Down {
        /// The interface.
        name: String,
    },
}

impl Tap {
    /// Opens the TAP called `name` with as many queues as it can have, at most `wanted`. One queue is
    /// attached.
    ///
    /// # Errors
    /// [`TapError`], with its cure.
    pub(crate) fn open(name: &str, wanted: u16) -> Result<Self, TapError> {
        let interface = Interface::find(name)?;
        let host = |doing| move |source| TapError::Host { name: name.to_owned(), doing, source };
        let link = LinkWatch::new(interface.index()).map_err(host("watch its link"))?;
        let first = sys::open_tun()?;
        attach(&first, &interface)?;
        let mut queues = vec![first];
        if interface.multi_queue() {
            let alone = || Ok(interface.queues_in_use() <= 1);
            if !free_soon(alone, || interface.patience()).unwrap_or(false) {
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

    /// Restores the state after opening: our header, no offloads, one queue, and no frames from before.
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

    /// Attaches the first `count` queues and detaches the others: the host distributes flows over attached
    /// queues.
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

/// Attaches `file` to `interface` as a queue. A queue that this process has closed just now may be busy for a moment: a program that any
/// thread starts has a copy of it until it runs.
fn attach(file: &File, interface: &Interface) -> Result<(), TapError> {
    let mut is_persistent = false;
    let attempt = || match sys::attach(file, interface.name(), interface.multi_queue()) {
        Ok(persistent) => {
            is_persistent = persistent;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error),
    };
    match free_soon(attempt, || interface.patience()) {
        Ok(true) if is_persistent => Ok(()),
        // The TAP was removed, and TUNSETIFF of a privileged process has made a new one, which is removed on
        // close.
        Ok(true) => Err(interface.other_namespace()),
        Ok(false) => Err(interface.busy(Some(file))),
        Err(error) => Err(interface.refused(error)),
    }
}

/// Opens more queues up to `wanted`, each detached until it is enabled.
fn add_queues(queues: &mut Vec<File>, interface: &Interface, wanted: u16) -> Result<(), TapError> {
    while queues.len() < usize::from(wanted) {
        let more = sys::open_tun()?;
        match sys::attach(&more, interface.name(), true) {
            Ok(_) => {}
            // The TAP was made with fewer queues; use those.
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
