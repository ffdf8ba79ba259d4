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
//! Header size, byte order and offloads are the interface's and outlive the file: they are set at each opening, because
//! whoever was there before may have left anything, and set back at the end, because whoever comes next may look at
//! none of them. The flag IFF_VNET_HDR stays behind: the next to attach says what it wants anyway, and setting
//! it back would make the TAP busy for a moment after it seemed free.

mod error;
mod holder;
mod interface;
mod link;
mod names;
mod netlink;
mod offload;
mod queue;
mod sys;
#[cfg(test)]
mod tests;

pub use error::TapError;
pub use holder::TapHolder;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use interface::Interface;
use link::LinkWatch;

/// Most queues that a TAP can have (`MAX_TAP_QUEUES` in drivers/net/tun.c).
const MOST_QUEUES: u16 = 256;

/// Where a host shows its interfaces, perhaps those of another network namespace.
const SYS_CLASS_NET: &str = "/sys/class/net";

/// An open TAP. Dropping it leaves the interface as one that was never used.
#[derive(Debug)]
pub(crate) struct Tap {
    /// One open file a queue; only the first `enabled` are attached.
    queues: Vec<File>,
    enabled: usize,
    offloads: virtio::net::Offloads,
    mtu: u16,
    /// What a user should know and need not mend.
    warning: Option<TapWarning>,
    link: LinkWatch,
    calls: queue::Calls,
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
    /// Opens the TAP called `name` with as many queues as it can have, `wanted` at most. One queue is enabled.
    ///
    /// # Errors
    /// Each a sentence on what stands in the way, and the command that mends it.
    pub(crate) fn open(name: &str, wanted: u16) -> Result<Self, TapError> {
        let interface = Interface::find(name)?;
        let host = |doing| move |source| TapError::Host { name: name.to_owned(), doing, source };
        // Before the state is read, so that no change after it is missed.
        let mut link = LinkWatch::new(interface.index()).map_err(host("watch its link"))?;
        let first = sys::open_tun()?;
        attach(&first, &interface)?;
        let mut queues = vec![first];
        if interface.multi_queue() {
            if interface.queues_in_use() > 1 {
                return Err(interface.busy(queues.first()));
            }
            add_queues(&mut queues, &interface, wanted.clamp(1, MOST_QUEUES))?;
        }
        let offloads = match queues.first() {
            Some(first) => sys::prepare(first).map_err(host("set it up"))?,
            None => virtio::net::Offloads::empty(),
        };
        let warning = (!interface.is_up()).then(|| TapWarning::Down { name: name.to_owned() });
        link.refresh();
        let mtu = interface.mtu();
        Ok(Tap { queues, enabled: 1, offloads, mtu, warning, link, calls: queue::Calls::default() })
    }

    /// What a user should know about it.
    pub(crate) fn warning(&self) -> Option<&TapWarning> {
        self.warning.as_ref()
    }

    fn queue(&self, index: usize) -> io::Result<&File> {
        self.queues.get(index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn raw(&self, index: usize) -> io::Result<RawFd> {
        self.queue(index).map(AsRawFd::as_raw_fd)
    }

    /// Attaches the first `count` queues and detaches the others: the host spreads flows over what is attached.
    fn enable(&mut self, count: usize) -> io::Result<()> {
        if count == 0 || count > self.queues.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        while self.enabled < count {
            sys::set_queue(self.queue(self.enabled)?, true)?;
            self.enabled += 1;
        }
        while self.enabled > count {
            sys::set_queue(self.queue(self.enabled - 1)?, false)?;
            self.enabled -= 1;
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(first) = self.queues.first() {
            sys::leave(first);
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
