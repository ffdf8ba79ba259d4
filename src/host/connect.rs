//! Connecting to a Unix socket within a time limit, which std does not offer: the listener may be stopped.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::socket_address::{SocketAddress, SocketKind, connect_now, socket};

/// Pause between attempts while the backlog is full.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Connects to the socket at `path`; [`ErrorKind::TimedOut`] if its backlog stays full until `until`.
pub(crate) fn connect(path: &Path, until: Instant) -> io::Result<UnixStream> {
    connect_to(&SocketAddress::at(path)?, until)
}

/// The same for an abstract name (unix(7)).
pub(crate) fn connect_abstract(name: &[u8], until: Instant) -> io::Result<UnixStream> {
    connect_to(&SocketAddress::abstract_name(name)?, until)
}

fn connect_to(address: &SocketAddress, until: Instant) -> io::Result<UnixStream> {
    let socket = socket(SocketKind::Stream)?;
    loop {
        match connect_now(&socket, address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // EAGAIN: its backlog is full (unix(7)); no event reports free space.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= until {
                    return Err(ErrorKind::TimedOut.into());
                }
                thread::sleep(RETRY_DELAY);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_listener_that_takes_nobody_is_waited_for_until_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert_eq!(connect(&path, Instant::now()).unwrap_err().kind(), ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: takes and gives numbers. A shorter backlog than std's.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
        let mut taken = Vec::new();
        let begin = Instant::now();
        let error = loop {
            match connect(&path, Instant::now() + SHORT) {
                Ok(stream) => taken.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), taken.len()), (ErrorKind::TimedOut, 2));
        assert!(begin.elapsed() >= SHORT);
        // The backlog drains during the wait; the connection then works.
        let waiting = thread::spawn(move || connect(&path, Instant::now() + LONG));
        for mut stream in taken {
            stream.write_all(b"early").unwrap();
            let (mut other, _) = listener.accept().unwrap();
            other.read_exact(&mut [0; 5]).unwrap();
        }
        let mut stream = waiting.join().unwrap().unwrap();
        let (mut other, _) = listener.accept().unwrap();
        let late = thread::spawn(move || {
            thread::sleep(SHORT);
            other.write_all(b"late").unwrap();
        });
        stream.read_exact(&mut [0; 4]).unwrap();
        late.join().unwrap();
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_an_error() {
        let long = "x".repeat(108);
        assert_eq!(connect(Path::new(&long), Instant::now()).unwrap_err().kind(), ErrorKind::InvalidInput);
        let fits = "x".repeat(107);
        assert_eq!(connect(Path::new(&fits), Instant::now()).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
