//! Signals as messages: blocked in every thread, and waited for in one. There is no signal handler.

use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A signal to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM, SIGINT, SIGHUP or SIGQUIT, by number: end the machine.
    End(libc::c_int),
    /// SIGTSTP: stop this process with [`stop`]. Only after [`Signals::block_terminal`].
    Stop,
    /// SIGCONT: the process was stopped and continues; a shell may have changed the terminal meanwhile.
    Continued,
    /// SIGWINCH: the terminal has another size. Only after [`Signals::block_terminal`].
    Resized,
}

/// Time per wait without a deadline.
const NO_DEADLINE: Duration = Duration::from_secs(3600);

const SIGNALS: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGCONT];

/// The signals, blocked in the thread that made this and in all threads that it starts afterwards.
#[derive(Debug)]
pub(crate) struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks the signals. Call it before any other thread exists.
    pub(crate) fn block() -> io::Result<Self> {
        Self::block_set(&SIGNALS)
    }

    /// Blocks those of a terminal as well, for a process that must restore the terminal before it stops, and follows its size.
    pub(crate) fn block_terminal() -> io::Result<Self> {
        let [a, b, c, d, e] = SIGNALS;
        Self::block_set(&[a, b, c, d, e, libc::SIGTSTP, libc::SIGWINCH])
    }

    fn block_set(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: an all-zero sigset_t is a valid object; the calls below only write to it.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: `set` is valid for writing.
        unsafe { libc::sigemptyset(&mut set) };
        for signal in signals.iter().copied().filter(|signal| !is_ignored(*signal)) {
            // SAFETY: as above.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        // SAFETY: `set` is initialised; the previous mask is not requested.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(Signals { set }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// A descriptor that can be read as long as there is a signal for [`Signals::wait`].
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: `set` is initialised, and only read.
        let descriptor = unsafe { libc::signalfd(-1, &self.set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above has made it, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    /// They act again on this thread as they do by themselves; one that has come meanwhile does so now.
    pub(crate) fn unblock(self) {
        // SAFETY: `set` is initialised; the previous mask is not requested. No call has a handler, so that nothing of this process is run by it.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.set, std::ptr::null_mut()) };
    }

    /// Waits for the next signal; `None` at the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<Signal>> {
        loop {
            let left = deadline.map_or(NO_DEADLINE, |at| at.saturating_duration_since(Instant::now()));
            let limit = libc::timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            // SAFETY: both pointers are valid for the call; siginfo is not requested.
            match unsafe { libc::sigtimedwait(&self.set, std::ptr::null_mut(), &limit) } {
                libc::SIGCONT => return Ok(Some(Signal::Continued)),
                libc::SIGTSTP => return Ok(Some(Signal::Stop)),
                libc::SIGWINCH => return Ok(Some(Signal::Resized)),
                signal if signal > 0 => return Ok(Some(Signal::End(signal))),
                _ => {}
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) if deadline.is_some_and(|at| at <= Instant::now()) => return Ok(None),
                Some(libc::EAGAIN | libc::EINTR) => {}
                _ => return Err(error),
            }
        }
    }
}

/// Stops this process as the default action of SIGTSTP does, and returns when it continues. The kernel does
/// not stop a process of an orphaned group.
pub(crate) fn stop() {
    // SAFETY: an all-zero sigset_t is a valid object to be overwritten.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is valid for writing; the signal is for this thread, which alone unblocks it for a
    // moment.
    unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTSTP);
        libc::raise(libc::SIGTSTP);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Turns the limit of `ulimit -f` into an error (EFBIG). By default the kernel kills the process, and with it
/// the machine. For the command only: a library leaves its process's signals alone.
pub(crate) fn ignore_file_limit() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Whether the parent set this signal to be ignored: nohup does so for SIGHUP, a shell for the Ctrl-C of its
/// background jobs. If it were blocked, it would be queued all the same.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid object to be overwritten.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing is set; `action` is valid for writing.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ready::is_readable;

    #[test]
    fn a_signal_comes_as_a_message_and_a_deadline_as_none() {
        let waits = std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.wait(Some(Instant::now() + Duration::from_millis(20))).unwrap(), None);
            // SAFETY: sends a signal to this thread alone, which has it blocked.
            unsafe { libc::raise(libc::SIGTERM) };
            assert!(is_readable(&signals.descriptor().unwrap(), Duration::from_secs(60)));
            assert_eq!(signals.wait(None).unwrap(), Some(Signal::End(libc::SIGTERM)));
            assert!(!is_readable(&signals.descriptor().unwrap(), Duration::ZERO));
            signals.unblock();
        });
        waits.join().unwrap();
    }
}
