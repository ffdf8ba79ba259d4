//! Locks on whole files that belong to the open file, so they end with it in any case.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::FlockOperation;

/// Kinds of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Several open files may hold it.
    Shared,
    /// One open file holds it.
    Exclusive,
}

/// Takes the lock for this open file; false if another one has it.
pub(crate) fn try_lock(file: &File, kind: Kind) -> io::Result<bool> {
    try_lock_range(file, kind, &(0..u64::MAX))
}

/// The same for a range of its bytes; one that ends behind what a file can have goes to the end of the file.
pub(crate) fn try_lock_range(file: &File, kind: Kind, range: &Range<u64>) -> io::Result<bool> {
    match fcntl_lock(file, libc::F_OFD_SETLK, kind, range) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the lock of a folder, which is another one than those of files (flock(2)); false if another open file has it.
pub(crate) fn try_lock_folder(folder: &File) -> io::Result<bool> {
    match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives the lock of this open file back.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, libc::F_UNLCK, &(0..u64::MAX)).map(drop)
}

/// Whether another open file has the lock. Does not take it, so that another process can at this moment.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let found = fcntl_lock(file, libc::F_OFD_GETLK, Kind::Exclusive, &(0..u64::MAX))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

/// The effective user, who owns files that this process makes.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The effective group, which owns them, too.
pub(crate) fn group() -> u32 {
    rustix::process::getegid().as_raw()
}

fn fcntl_lock(file: &File, command: libc::c_int, kind: Kind, range: &Range<u64>) -> io::Result<libc::flock> {
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    };
    fcntl(file, command, kind, range)
}

fn fcntl(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
    range: &Range<u64>,
) -> io::Result<libc::flock> {
    // SAFETY: an all-zero flock is valid: without a pid, as OFD locks require.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    lock.l_start = range.start.try_into().map_err(io::Error::other)?;
    // 0 is to the end.
    lock.l_len = i64::try_from(range.end).map_or(0, |end| end.saturating_sub(lock.l_start));
    // SAFETY: both commands read the flock during the call, and F_OFD_GETLK writes it.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
        Ok(lock)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The holder of a lock at the end of a sentence.
pub(crate) fn pid_clause(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(", as process {pid}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_one_open_files_and_ends_with_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        assert!(!is_locked(&second).unwrap());
        assert!(try_lock(&first, Kind::Exclusive).unwrap());
        assert!(is_locked(&second).unwrap() && !try_lock(&second, Kind::Exclusive).unwrap());
        drop(first);
        assert!(try_lock(&second, Kind::Exclusive).unwrap());
        // It can be given back by any descriptor of the open file.
        unlock(&second.try_clone().unwrap()).unwrap();
        assert!(try_lock(&open(), Kind::Exclusive).unwrap());
    }

    #[test]
    fn locks_of_ranges_meet_where_the_ranges_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert!(try_lock_range(&first, Kind::Exclusive, &(512..1024)).unwrap());
        assert!(!try_lock_range(&second, Kind::Exclusive, &(1023..u64::MAX)).unwrap());
        assert!(try_lock_range(&second, Kind::Exclusive, &(1024..u64::MAX)).unwrap());
        assert!(!try_lock(&third, Kind::Shared).unwrap());
    }
}
