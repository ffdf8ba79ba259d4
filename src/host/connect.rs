//! Connecting to a Unix socket within a time limit, which std does not offer: the listener may be stopped.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between attempts while the backlog is full.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Connects to the socket at `path`; [`ErrorKind::TimedOut`] if its backlog stays full until `until`.
pub(crate) fn connect(path: &Path, until: Instant) -> io::Result<UnixStream> {
    connect_to(&address(path)?, until)
}

/// The same for an abstract name (unix(7)).
pub(crate) fn connect_abstract(name: &[u8], until: Instant) -> io::Result<UnixStream> {
    let (mut address, _) = address(Path::new(""))?;
    if name.len() >= address.sun_path.len() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the name of the socket is too long"));
    }
    // The first byte stays zero; there is no terminating one.
    for (into, byte) in address.sun_path.iter_mut().skip(1).zip(name) {
        *into = libc::c_char::from_ne_bytes([*byte]);
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    connect_to(&(address, libc::socklen_t::try_from(length).map_err(io::Error::other)?), until)
}

fn connect_to(
    (address, length): &(libc::sockaddr_un, libc::socklen_t),
    until: Instant,
) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes and gives numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    loop {
        // SAFETY: `address` is valid for reading `length` bytes.
        let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const *address).cast(), *length) };
        if done == 0 {
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false)?;
            return Ok(stream);
        }
        match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::Interrupted => {}
            // EAGAIN: its backlog is full (unix(7)); no event reports free space.
            error if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= until {
                    return Err(ErrorKind::TimedOut.into());
                }
                thread::sleep(RETRY_DELAY);
            }
            error => return Err(error),
        }
    }
}

/// `path` as a sockaddr_un (unix(7)), and its length.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: an all-zero sockaddr_un is a valid object.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let bytes = path.as_os_str().as_bytes();
    // One byte stays zero as the terminator.
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path of the socket is too long"));
    }
    for (into, byte) in address.sun_path.iter_mut().zip(bytes) {
        *into = libc::c_char::from_ne_bytes([*byte]);
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    let length = libc::socklen_t::try_from(length).map_err(io::Error::other)?;
    Ok((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
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
