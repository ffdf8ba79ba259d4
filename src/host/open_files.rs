//! How many files this process may have open (RLIMIT_NOFILE).

use std::error::Error;
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
/// As the host says it.
pub(crate) fn have_room_for(more: usize) -> io::Result<()> {
    if limit() >= PLENTY.saturating_add(more) {
        return Ok(());
    }
    // That many are made, and closed: cheaper than to count, and right where numbers are used out of order.
    let made: io::Result<Vec<_>> = (0..more).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect();
    made.map(drop)
}

/// A limit that this process has reached, and one with which it has room for `more`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) now: usize,
    pub(crate) enough: usize,
}

/// The limit that was too low, once the host has refused something so (EMFILE).
pub(crate) fn too_low(more: usize) -> Limits {
    let now = limit();
    // What has failed may have been closed by now, or there is no descriptor to look with: then all of them are in use.
    let open = fs::read_dir("/proc/self/fd").map_or(now, Iterator::count);
    enough(now, open, more)
}

/// In steps of 64: the number is a proposal, not a measure.
fn enough(now: usize, open: usize, more: usize) -> Limits {
    let enough = open.saturating_add(more).max(now.saturating_add(1));
    Limits { now, enough: enough.checked_next_multiple_of(64).unwrap_or(enough) }
}

/// Whether `error` or one of its causes is that of a process with as many files open as it may have. Errors of the crates below are known by
/// their text, as std makes it.
pub(crate) fn is_to_blame(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.to_string().contains("(os error 24)") {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_that_is_proposed_has_room_and_is_above_that_of_now() {
        assert_eq!(enough(40, 31, 90), Limits { now: 40, enough: 128 });
        assert_eq!(enough(256, 10, 20).enough, 320, "more was needed than was thought");
        assert_eq!(enough(usize::MAX, usize::MAX, 1).enough, usize::MAX);
        assert!(limit() >= 64);
        have_room_for(4).unwrap();
    }

    #[test]
    fn only_the_limit_of_the_process_is_to_blame_for_its_error() {
        let of = |code| io::Error::other(io::Error::from_raw_os_error(code));
        assert!(is_to_blame(&of(libc::EMFILE)));
        assert!(!is_to_blame(&of(libc::ENFILE)) && !is_to_blame(&of(libc::ENOMEM)));
    }
}
