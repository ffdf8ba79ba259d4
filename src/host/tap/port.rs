//! A TAP as a port of a virtual switch: frames of this process's own memory, each behind its virtio header.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::RawFd;

use virtio::net::{HEADER_LEN, Offloads};

use super::interface::IFF_UP;
use super::{Tap, TapError, TapWarning, sys};

/// Most parts of a frame, with its header.
const PARTS: usize = 8;

/// See the module. Dropping it restores the interface's defaults.
#[derive(Debug)]
pub(crate) struct TapPort(Tap);

impl TapPort {
    /// Opens the TAP called `name`, whose user gives frames with `offloads` and takes such ones.
    ///
    /// # Errors
    /// [`TapError`], with its cure.
    pub(crate) fn open(name: &str, offloads: Offloads) -> Result<Self, TapError> {
        let tap = Tap::open(name, 1)?;
        let ready = tap.reset().and_then(|()| sys::set_offloads(tap.queue(0)?, tap.offloads & offloads));
        ready.map_err(|source| TapError::Host { name: name.to_owned(), doing: "set it up", source })?;
        Ok(TapPort(tap))
    }

    /// What the host takes.
    pub(crate) fn offloads(&self) -> Offloads {
        self.0.offloads
    }

    /// A warning for the user.
    pub(crate) fn warning(&self) -> Option<TapWarning> {
        let down = self.0.link.read().is_some_and(|link| link.flags & IFF_UP == 0);
        down.then(|| TapWarning::Down { name: self.0.name.clone() })
    }

    pub(crate) fn fd(&self) -> io::Result<RawFd> {
        self.0.raw(0)
    }

    /// Reads a frame behind its header; `None` if there is none.
    ///
    /// # Errors
    /// The interface was removed, or the host refuses.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut queue = self.0.queue(0)?;
        loop {
            match queue.read(into) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // A frame that the driver cannot describe in a header; it is removed, too.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                // The interface is down.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a frame. False if the host does not take it.
    pub(crate) fn send(&self, header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> bool {
        let mut slices = [IoSlice::new(&[]); PARTS];
        let all = std::iter::once(header.as_slice()).chain(parts.iter().copied());
        for (slice, part) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(part);
        }
        let used = slices.get(..=parts.len());
        match (used, self.0.queue(0)) {
            (Some(slices), Ok(mut queue)) => queue.write_vectored(slices).is_ok(),
            _ => false,
        }
    }
}
