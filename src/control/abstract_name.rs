//! A machine's name in the kernel, beside its files: an abstract Unix socket (unix(7)) that is bound as long
//! as the machine's process lives. Unmounting, cleaning or removing a file system does not affect it.
//!
//! The socket answers nothing: an abstract socket has no permissions, so every process of the network
//! namespace may connect, also from containers that use the host's network. The kernel supplies the
//! information: pid and user of the listening process. A process of another user is ignored. Each network
//! namespace has its own abstract sockets; in another namespace only the files count.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::host::connect::connect_abstract;
use crate::host::lock::user;
use crate::host::peer::Peer;
use crate::spec::MachineName;

/// Limit for connecting to a listener whose backlog is full.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// A name that this process has bound.
#[derive(Debug)]
pub(super) struct AbstractName(UnixListener);

/// The process that has bound a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// No process.
    None,
    /// A process of this user, with its pid if it has one in this PID namespace.
    OwnUser(Option<u32>),
    /// A process of another user, which is ignored.
    OtherUser,
}

impl AbstractName {
    /// Binds the name for this folder; `None` if another process has bound it. See [`holder`].
    pub(super) fn take(folder: &Path, name: &MachineName) -> io::Result<Option<Self>> {
        let address = SocketAddr::from_abstract_name(address(folder, name.as_str()))?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Some(AbstractName(listener)))
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Closes all pending connections. `false` if the host has no descriptor left for that: the listener
    /// stays readable then.
    pub(super) fn drain(&self) -> bool {
        // At most one backlog per call.
        for _ in 0..64 {
            match self.0.accept().map_err(|error| error.kind()) {
                Ok(_) | Err(ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(ErrorKind::WouldBlock) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

/// The process that has bound this name for this folder.
pub(super) fn holder(folder: &Path, name: &MachineName) -> Holder {
    let stream = match connect_abstract(&address(folder, name.as_str()), Instant::now() + CONNECT_LIMIT) {
        Ok(stream) => stream,
        // A process listens, and the kernel cannot say which one.
        Err(error) if error.kind() == ErrorKind::TimedOut => return Holder::OtherUser,
        Err(_) => return Holder::None,
    };
    match Peer::of(&stream) {
        Ok(peer) if peer.user == user() => Holder::OwnUser(peer.pid),
        _ => Holder::OtherUser,
    }
}

/// The names that are bound for this folder, from /proc/net/unix. Empty where /proc is not mounted.
pub(super) fn names(folder: &Path) -> Vec<MachineName> {
    let Ok(table) = fs::read("/proc/net/unix") else { return Vec::new() };
    let wanted = [b"@".as_slice(), &address(folder, "")].concat();
    let lines = table.split(|byte| *byte == b'\n');
    let names = lines.filter_map(|line| {
        let address = line.split(|byte| *byte == b' ').next_back()?;
        std::str::from_utf8(address.strip_prefix(wanted.as_slice())?).ok()?.parse().ok()
    });
    let mut names: Vec<_> = names.collect();
    // A pending connection is listed under the same name.
    names.sort();
    names.dedup();
    names
}

/// An abstract name has at most 107 bytes: 10 digits, 16 digits and a name of 63 fit.
fn address(folder: &Path, name: &str) -> Vec<u8> {
    format!("minivmm/{}/{:016x}/{name}", user(), fnv1a(folder.as_os_str().as_bytes())).into_bytes()
}

/// FNV-1a: distinguishes folders, and is the same in every version of minivmm.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_processs_without_any_file() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("was never made");
        let name: MachineName = "n".repeat(MachineName::MAX).parse().unwrap();
        assert_eq!(holder(&gone, &name), Holder::None);
        let abstract_name = AbstractName::take(&gone, &name).unwrap().unwrap();
        assert!(AbstractName::take(&gone, &name).unwrap().is_none());
        assert!(
            AbstractName::take(folder.path(), &name).unwrap().is_some(),
            "another folder's name is another one"
        );
        for _ in 0..100 {
            assert_eq!(holder(&gone, &name), Holder::OwnUser(Some(std::process::id())));
        }
        assert_eq!(names(&gone), std::slice::from_ref(&name));
        assert!(abstract_name.drain());
        drop(abstract_name);
        assert_eq!(holder(&gone, &name), Holder::None);
        assert!(names(&gone).is_empty());
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
