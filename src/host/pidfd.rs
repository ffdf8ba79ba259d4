//! Another process by a pidfd, so that its pid cannot be reused meanwhile (pidfd_open(2)).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ready::is_readable;

/// A process.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// The process with this pid.
    ///
    /// # Errors
    /// It does not exist, or the kernel is older than 5.3.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let no_such = io::Error::from_raw_os_error(libc::ESRCH);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(no_such)?;
        Ok(PidFd(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends it a signal. A process that has ended is no error.
    pub(crate) fn signal(&self, number: libc::c_int) -> io::Result<()> {
        let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it ends within `limit`, or has ended.
    pub(crate) fn exits_within(&self, limit: Duration) -> bool {
        is_readable(&self.0, limit)
    }
}

/// Whether a process is stopped, by SIGSTOP or by its terminal. Only /proc reports that for a process that is
/// not a child; without it the answer is false.
pub(crate) fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The program's name may contain any byte, also a parenthesis.
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
        let target = PidFd::open(child.id()).unwrap();
        assert!(!is_stopped(child.id()));
        target.signal(libc::SIGSTOP).unwrap();
        while !is_stopped(child.id()) {
            thread::yield_now();
        }
        assert!(!target.exits_within(Duration::ZERO));
        target.signal(libc::SIGKILL).unwrap();
        assert!(target.exits_within(Duration::from_secs(20)));
        child.wait().unwrap();
        target.signal(libc::SIGKILL).unwrap();
        assert!(PidFd::open(child.id()).is_err());
    }
}
