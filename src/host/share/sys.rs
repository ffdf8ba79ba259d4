//! System calls that no crate of ours wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use virtio::fs::{Answer, Errno, LockKind};

use super::errno;

/// Closes a copy of an open file, which is when some network file systems tell what became of the writes (close(2)).
pub(super) fn closed(file: impl AsFd) -> Answer<()> {
    let copy = rustix::io::fcntl_dupfd_cloexec(file, 0).map_err(errno)?;
    // SAFETY: the descriptor is nobody else's, and is closed once, whatever close(2) says.
    let closed = unsafe { libc::close(copy.into_raw_fd()) };
    if closed == 0 { Ok(()) } else { Err(Errno::new(io::Error::last_os_error().raw_os_error().unwrap_or(5))) }
}

/// Reads entries of an open folder from where it stands (getdents64(2)); how many bytes of `into` they take.
pub(super) fn entries(folder: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let fd = folder.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `into.len()` bytes into `into`, which is borrowed for the call.
    let got = unsafe { libc::syscall(libc::SYS_getdents64, fd, into.as_mut_ptr(), into.len()) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Takes or gives up a lock of an open file (F_OFD_SETLK), the last byte included; `i64::MAX` is the end of any file.
pub(super) fn lock(file: impl AsFd, kind: LockKind, start: u64, end: u64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, kind, start, end).map(drop)
}

/// What others hold in its way: kind, first and last byte (F_OFD_GETLK).
pub(super) fn conflict(
    file: impl AsFd,
    kind: LockKind,
    start: u64,
    end: u64,
) -> io::Result<Option<(LockKind, u64, u64)>> {
    let found = fcntl(file, libc::F_OFD_GETLK, kind, start, end)?;
    let kind = match libc::c_int::from(found.l_type) {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        _ => return Ok(None),
    };
    let start = u64::try_from(found.l_start).unwrap_or(0);
    let end = match u64::try_from(found.l_len) {
        Ok(len @ 1..) => start.saturating_add(len - 1),
        _ => TO_THE_END,
    };
    Ok(Some((kind, start, end)))
}

/// The last byte of the longest file.
const TO_THE_END: u64 = i64::MAX.cast_unsigned();

fn fcntl(
    file: impl AsFd,
    command: libc::c_int,
    kind: LockKind,
    start: u64,
    end: u64,
) -> io::Result<libc::flock> {
    let kind = match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::None => libc::F_UNLCK,
    };
    let narrow = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // A length of 0 goes to the end, however far that is.
    let len = if end >= TO_THE_END { 0 } else { (end + 1).saturating_sub(start) };
    // SAFETY: an all-zero flock is a valid object.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind.try_into().map_err(narrow)?;
    lock.l_whence = libc::SEEK_SET.try_into().map_err(narrow)?;
    (lock.l_start, lock.l_len) = (start.try_into().map_err(narrow)?, len.try_into().map_err(narrow)?);
    // SAFETY: `lock` is a whole flock of our own, borrowed for the call.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) } == 0 {
        Ok(lock)
    } else {
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EACCES) => {
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
            error => Err(error),
        }
    }
}
