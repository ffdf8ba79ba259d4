//! The process at the other end of a Unix socket, as the kernel reports it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The listening process of a connection (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its pid; `None` for a process of another PID namespace.
    pub pid: Option<u32>,
    /// Its effective user.
    pub user: u32,
}

impl Peer {
    /// The peer of this connection, as of its call of listen(2).
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&found)).map_err(io::Error::other)?;
        let into = (&raw mut found).cast();
        // SAFETY: `found` has room for the `length` bytes that the kernel may write.
        let done = unsafe {
            libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &mut length)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Peer { pid: u32::try_from(found.pid).ok().filter(|pid| *pid != 0), user: found.uid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_the_process_that_listens() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = Peer::of(&here).unwrap();
        assert_eq!(peer, Peer { pid: Some(std::process::id()), user: crate::host::lock::user() });
    }
}
