//! A stream whose other end may be silent for so long and no longer.
//!
//! It may be a pipe, a socket or a file that other processes have open, too, so that its flags are never changed: a wait comes before each
//! read and each write instead, and a write is as short as fits into what has any room.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A pipe that has room takes as much at once (`PIPE_BUF` of pipe(7)), and so does a socket.
const MOST: usize = 4096;

/// See the module. It is used in one direction.
#[derive(Debug)]
pub(crate) struct Patient<T> {
    stream: T,
    /// `None` for a file, which is never waited for.
    epoll: Option<Epoll>,
    limit: Duration,
}

impl<T: AsRawFd> Patient<T> {
    /// For reading.
    pub(crate) fn reader(stream: T, limit: Duration) -> io::Result<Self> {
        Self::new(stream, EventSet::IN, limit)
    }

    /// For writing.
    pub(crate) fn writer(stream: T, limit: Duration) -> io::Result<Self> {
        Self::new(stream, EventSet::OUT, limit)
    }

    fn new(stream: T, events: EventSet, limit: Duration) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let added = epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(events, 0));
        match added {
            Ok(()) => Ok(Patient { stream, epoll: Some(epoll), limit }),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Ok(Patient { stream, epoll: None, limit })
            }
            Err(error) => Err(error),
        }
    }

    fn wait(&self, what: &str) -> io::Result<()> {
        let Some(epoll) = &self.epoll else { return Ok(()) };
        let limit = i32::try_from(self.limit.as_millis()).unwrap_or(i32::MAX);
        loop {
            match epoll.wait(limit, &mut [EpollEvent::default()]) {
                Ok(0) => return Err(silent(what, self.limit)),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The error of an other end that `what`, such as "has said nothing", for `limit`.
pub(crate) fn silent(what: &str, limit: Duration) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("the other end {what} for {limit:?}"))
}

impl<T: AsRawFd + Read> Read for Patient<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait("has said nothing")?;
            match self.stream.read(buf) {
                // Whoever shares the stream was faster.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

impl<T: AsRawFd + Write> Write for Patient<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            self.wait("has taken nothing")?;
            match self.stream.write(buf.get(..MOST).unwrap_or(buf)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    /// Writes until it is not taken any more.
    fn fill(to: impl AsRawFd + Write) -> io::Error {
        let mut writer = Patient::writer(to, SHORT).unwrap();
        loop {
            if let Err(error) = writer.write_all(&[7; 100_000]) {
                return error;
            }
        }
    }

    #[test]
    fn a_silent_end_is_an_error_and_never_a_hang() {
        let (here, there) = UnixStream::pair().unwrap();
        let (from, to) = io::pipe().unwrap();
        for error in [
            Patient::reader(here.try_clone().unwrap(), SHORT).unwrap().read(&mut [0]).unwrap_err(),
            Patient::reader(from.try_clone().unwrap(), SHORT).unwrap().read(&mut [0]).unwrap_err(),
        ] {
            assert!(
                error.kind() == ErrorKind::TimedOut
                    && error.to_string().contains("has said nothing for 10ms")
            );
        }
        for error in [fill(here), fill(to)] {
            assert!(
                error.kind() == ErrorKind::TimedOut
                    && error.to_string().contains("has taken nothing for 10ms")
            );
        }
        drop((from, there));
    }

    #[test]
    fn everything_passes_as_it_is_taken_and_the_end_is_seen() {
        let (from, to) = io::pipe().unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let bytes = sent.clone();
        let writer =
            std::thread::spawn(move || Patient::writer(to, LONG).unwrap().write_all(&bytes).unwrap());
        let mut read = Vec::new();
        Patient::reader(from, LONG).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == sent);
        writer.join().unwrap();
        // A file is never waited for.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        Patient::writer(File::create(&path).unwrap(), SHORT).unwrap().write_all(&sent).unwrap();
        read.clear();
        Patient::reader(File::open(&path).unwrap(), SHORT).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == sent);
    }
}
