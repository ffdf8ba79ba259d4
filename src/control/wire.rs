//! A connection with deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::host::ready::has_left;

/// A connection whose every call ends in time.
pub(super) trait Wire {
    /// Some bytes, none at the end; [`is_late`] for none until `until`.
    fn read(&mut self, into: &mut [u8], until: Instant) -> io::Result<usize>;
    /// All of `bytes`.
    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<()>;
    /// Nothing more will be written.
    fn finish(&mut self);
    /// Whether the client has closed both directions. A client that closed its writing half only still reads.
    fn has_left(&self) -> bool;
    /// The same connection, for a second thread.
    fn second(&self) -> Option<&UnixStream>;
}

/// The deadline has passed.
pub(super) fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// What is left until then; the host takes no timeout of nothing.
fn left(until: Instant) -> io::Result<Option<Duration>> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
}

impl Wire for &UnixStream {
    fn read(&mut self, into: &mut [u8], until: Instant) -> io::Result<usize> {
        loop {
            self.set_read_timeout(left(until)?)?;
            match Read::read(self, into) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.set_write_timeout(left(until)?)?;
            match Write::write(self, rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        // The client may have gone.
        let _ = self.shutdown(Shutdown::Write);
    }

    fn has_left(&self) -> bool {
        has_left(*self)
    }

    fn second(&self) -> Option<&UnixStream> {
        Some(self)
    }
}
