//! A machine's name in the kernel, beside its files: an abstract Unix socket (unix(7)) that is bound as long as the machine's
//! process lives. No file system that is unmounted, cleaned or removed takes it away.
//!
//! It answers nothing: an abstract socket has no permissions, so that every process of the network namespace may connect,
//! containers with the host's network too. What it says is in the kernel's own words: the process and the user that listen.
//! One of another user is ignored. Network namespaces have abstract sockets of their own; there the files alone count.

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

/// How long a listener without room for another connection is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// A name that is ours.
#[derive(Debug)]
pub(super) struct Guard(UnixListener);

/// Who has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody.
    None,
    /// A machine of this user's, in this process if that has a number here.
    Ours(Option<u32>),
    /// Another user's process, which is nothing to go by.
    Stranger,
}

impl Guard {
    /// Takes the name in this folder; `None` if another process has it. See [`holder`].
    pub(super) fn take(folder: &Path, name: &MachineName) -> io::Result<Option<Self>> {
        let address = SocketAddr::from_abstract_name(address(folder, name.as_str()))?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Some(Guard(listener)))
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Lets everybody go who has connected: they have seen what there is to see. `false`: the host has no descriptor left for
    /// that, and says at once again that they are there.
    pub(super) fn let_go(&self) -> bool {
        // As many as one look at the socket may leave there.
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

/// Who has this name in this folder.
pub(super) fn holder(folder: &Path, name: &MachineName) -> Holder {
    let stream = match connect_abstract(&address(folder, name.as_str()), Instant::now() + PATIENCE) {
        Ok(stream) => stream,
        // Someone is there, and cannot be asked.
        Err(error) if error.kind() == ErrorKind::TimedOut => return Holder::Stranger,
        Err(_) => return Holder::None,
    };
    match Peer::of(&stream) {
        Ok(peer) if peer.user == user() => Holder::Ours(peer.pid),
        _ => Holder::Stranger,
    }
}

/// The names in this folder that some process has, as the kernel lists them. None where /proc is not mounted.
pub(super) fn names(folder: &Path) -> Vec<MachineName> {
    let Ok(table) = fs::read("/proc/net/unix") else { return Vec::new() };
    let wanted = [b"@".as_slice(), &address(folder, "")].concat();
    let lines = table.split(|byte| *byte == b'\n');
    let names = lines.filter_map(|line| {
        let address = line.split(|byte| *byte == b' ').next_back()?;
        std::str::from_utf8(address.strip_prefix(wanted.as_slice())?).ok()?.parse().ok()
    });
    let mut names: Vec<_> = names.collect();
    // A connection that nobody has accepted yet has the same name.
    names.sort();
    names.dedup();
    names
}

/// An abstract name has 107 bytes at most: 10 digits, 16 digits and the name's 63 fit.
fn address(folder: &Path, name: &str) -> Vec<u8> {
    format!("minivmm/{}/{:016x}/{name}", user(), fold(folder.as_os_str().as_bytes())).into_bytes()
}

/// FNV-1a: tells folders apart, and is the same in every version of minivmm.
fn fold(bytes: &[u8]) -> u64 {
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
        let guard = Guard::take(&gone, &name).unwrap().unwrap();
        assert!(Guard::take(&gone, &name).unwrap().is_none());
        assert!(Guard::take(folder.path(), &name).unwrap().is_some(), "another folder's name is another one");
        for _ in 0..100 {
            assert_eq!(holder(&gone, &name), Holder::Ours(Some(std::process::id())));
        }
        assert_eq!(names(&gone), std::slice::from_ref(&name));
        assert!(guard.let_go());
        drop(guard);
        assert_eq!(holder(&gone, &name), Holder::None);
        assert!(names(&gone).is_empty());
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fold(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
