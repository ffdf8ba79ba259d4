//! How many files this process may have open (RLIMIT_NOFILE).

use std::fs;
use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The soft limit.
pub(crate) fn limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing one rlimit.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        _ => usize::MAX,
    }
}

/// A process with such a limit has enough: nothing is tried.
const PLENTY: usize = 4096;

/// Refuses what is going to need `more` descriptors later, if there is no room for them now.
///
/// # Errors
/// A sentence with the limit that suffices.
pub(crate) fn have_room_for(more: usize) -> io::Result<()> {
    let limit = limit();
    if limit >= PLENTY.saturating_add(more) {
        return Ok(());
    }
    // That many are made, and closed: cheaper than to count, and right where numbers are used out of order.
    let made: io::Result<Vec<_>> = (0..more).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect();
    let Err(source) = made else { return Ok(()) };
    // The folder itself is one of them. Without /proc the number stays unknown.
    match fs::read_dir("/proc/self/fd") {
        Ok(files) => Err(io::Error::other(sentence(limit, files.count().saturating_sub(1), more))),
        Err(_) => Err(source),
    }
}

fn sentence(limit: usize, open: usize, more: usize) -> String {
    let needed = open.saturating_add(more);
    format!(
        "this process has {open} files open, may have {limit}, and needs {more} more when the guest starts its devices; \
         raise the limit to {needed} or more, as with `ulimit -n 65536`, or LimitNOFILE= of a systemd unit"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_that_is_needed_is_named() {
        let said = sentence(40, 31, 10);
        assert!(said.contains("31 files open, may have 40, and needs 10 more"), "{said}");
        assert!(said.contains("to 41 or more, as with `ulimit -n"), "{said}");
        assert!(limit() >= 64);
        have_room_for(4).unwrap();
    }
}
