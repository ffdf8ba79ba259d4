//! A connection with deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::host::ready::{is_hung_up, is_readable};

/// A connection whose calls all have a deadline.
pub(super) trait Wire {
    /// Reads some bytes; 0 at the end of the stream; an error that [`is_timeout`] accepts after `until`.
    fn read(&mut self, into: &mut [u8], until: Instant) -> io::Result<usize>;
    /// Writes some of `bytes`; an error that [`is_timeout`] accepts if there is no room before `until`.
    fn write_some(&mut self, bytes: &[u8], until: Instant) -> io::Result<usize>;
    /// Writes all of `bytes`.
    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.write_some(rest, until)?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }
    /// Whether a read returns at once.
    fn is_readable(&self) -> bool;
    /// Closes the writing half.
    fn finish(&mut self);
    /// Whether the client has closed both directions. A client that has closed only its writing half still
    /// reads.
    fn is_closed(&self) -> bool;
    /// The same connection, for a second thread.
    fn shared_stream(&self) -> Option<&UnixStream>;
}

/// Whether the deadline has passed.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Time until the deadline; setsockopt refuses a timeout of zero.
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

    fn write_some(&mut self, bytes: &[u8], until: Instant) -> io::Result<usize> {
        loop {
            self.set_write_timeout(left(until)?)?;
            match Write::write(self, bytes) {
                Ok(0) if !bytes.is_empty() => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn is_readable(&self) -> bool {
        is_readable(*self, Duration::ZERO)
    }

    fn finish(&mut self) {
        // The client may have disconnected.
        let _ = self.shutdown(Shutdown::Write);
    }

    fn is_closed(&self) -> bool {
        is_hung_up(*self)
    }

    fn shared_stream(&self) -> Option<&UnixStream> {
        Some(self)
    }
}
