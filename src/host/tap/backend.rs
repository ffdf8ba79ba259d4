//! One boot's use of a TAP. Each frame passes between the TAP and guest memory in one system call, without a
//! copy.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};

use super::interface::{DEFAULT_MTU, IFF_UP};
use super::names::Credentials;
use super::{Tap, TapError, TapWarning, sys};
use crate::host::iovecs::IoVecs;

/// The TAP for the network device of one boot. The machine keeps the [`Tap`]; one backend is used at a time.
#[derive(Debug)]
pub(crate) struct TapBackend {
    tap: Arc<Tap>,
    mtu: u16,
    warning: Option<TapWarning>,
    iovecs: IoVecs,
}

impl TapBackend {
    /// Sets the TAP up for a boot: settings and frames of the boot before are removed.
    ///
    /// # Errors
    /// The interface was removed, or the host refuses an operation.
    pub(crate) fn new(tap: Arc<Tap>) -> Result<Self, TapError> {
        tap.reset().map_err(|source| match source.raw_os_error() {
            // The interface of its files was removed.
            Some(libc::EBADFD) => {
                TapError::Removed { name: tap.name.clone(), to: Credentials::current().ip_owner_argument() }
            }
            _ => TapError::Host { name: tap.name.clone(), doing: "set it up", source },
        })?;
        // An interface that was moved to another network namespace is not visible, and still works.
        let link = tap.link.read();
        let down = link.as_ref().is_some_and(|link| link.flags & IFF_UP == 0);
        let warning = down.then(|| TapWarning::Down { name: tap.name.clone() });
        let mtu = link.and_then(|link| link.mtu).and_then(|mtu| u16::try_from(mtu).ok());
        Ok(TapBackend { mtu: mtu.unwrap_or(DEFAULT_MTU), warning, iovecs: IoVecs::default(), tap })
    }

    /// The same, and the guest is told of packets of this size at most.
    pub(crate) fn with_mtu(self, mtu: Option<u16>) -> Self {
        TapBackend { mtu: mtu.unwrap_or(self.mtu), ..self }
    }

    /// A warning for the user.
    pub(crate) fn warning(&self) -> Option<&TapWarning> {
        self.warning.as_ref()
    }
}

impl NetBackend for TapBackend {
    fn pairs(&self) -> u16 {
        u16::try_from(self.tap.queues.len()).unwrap_or(u16::MAX)
    }

    fn offloads(&self) -> Offloads {
        self.tap.offloads
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        sys::set_offloads(self.tap.queue(0)?, offloads)
    }

    fn enable(&mut self, pairs: u16) -> io::Result<()> {
        self.tap.enable(pairs.into())
    }

    fn fd(&self, pair: u16) -> Option<RawFd> {
        self.tap.raw(pair.into()).ok()
    }

    fn link_fd(&self) -> Option<RawFd> {
        Some(self.tap.link.fd())
    }

    fn link_is_up(&mut self) -> bool {
        let link = self.tap.link.read();
        link.is_some_and(|link| link.carrier && link.flags & IFF_UP != 0)
    }

    fn receive(
        &mut self,
        pair: u16,
        header: &mut [u8; HEADER_LEN],
        memory: &Memory,
        room: &[Segment],
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let queue = self.tap.queue(pair.into())?;
        let got = self.iovecs.read(queue, header, memory, room, spill)?;
        got.checked_sub(HEADER_LEN).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn send(
        &mut self,
        pair: u16,
        header: &[u8; HEADER_LEN],
        memory: &Memory,
        frame: &[Segment],
    ) -> io::Result<()> {
        self.iovecs.write(self.tap.queue(pair.into())?, header, memory, frame)?;
        Ok(())
    }
}
