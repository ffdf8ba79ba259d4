//! System calls that no crate of ours wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The effective group.
pub(super) fn group() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::getegid() }
}

/// How many files this process may have open: its soft limit.
pub(super) fn most_open_files() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole rlimit of our own, borrowed for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// Reads entries of an open folder from where it stands (getdents64(2)); how many bytes of `into` they take.
pub(super) fn entries(folder: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let fd = folder.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `into.len()` bytes into `into`, which is borrowed for the call.
    let got = unsafe { libc::syscall(libc::SYS_getdents64, fd, into.as_mut_ptr(), into.len()) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}
