//! Another process, held by a descriptor so that its number cannot become another one's meanwhile (pidfd_open(2)).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::ready::is_readable;

/// A process.
#[derive(Debug)]
pub(crate) struct Target(OwnedFd);

impl Target {
    /// The process of this number.
    ///
    /// # Errors
    /// There is none, or the kernel is older than 5.3.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: a new descriptor, which nobody else has.
        Ok(Target(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends it a signal. One that has ended already is no error.
    pub(crate) fn signal(&self, number: libc::c_int) -> io::Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: takes numbers and no siginfo, with which the kernel makes that of kill(2).
        let done =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), number, no_info, 0) };
        match io::Error::last_os_error() {
            error if done != 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it has ended, or does within `limit`.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        is_readable(&self.0, limit)
    }
}

/// Whether a process is stopped: by SIGSTOP or by its terminal. Only /proc says so of a process that is no child of ours;
/// without it the answer is no.
pub(crate) fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The name of the program may have any byte in it, a parenthesis too.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_stopped_process_is_known_as_such_and_ended_by_its_descriptor() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let target = Target::open(child.id()).unwrap();
        assert!(!is_stopped(child.id()));
        target.signal(libc::SIGSTOP).unwrap();
        while !is_stopped(child.id()) {
            thread::yield_now();
        }
        assert!(!target.ends_within(Duration::ZERO));
        target.signal(libc::SIGKILL).unwrap();
        assert!(target.ends_within(Duration::from_secs(20)));
        child.wait().unwrap();
        target.signal(libc::SIGKILL).unwrap();
        assert!(Target::open(child.id()).is_err());
    }
}
