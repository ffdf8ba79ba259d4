//! Signals as messages: blocked everywhere, waited for in one thread. No handler, so nothing to get wrong in one.

use std::io;
use std::mem;

/// What somebody outside asks of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM, SIGINT, SIGHUP or SIGQUIT, by number: end the machine.
    End(libc::c_int),
    /// SIGCONT: the process was stopped and runs again; a shell may have changed the terminal meanwhile.
    Continued,
}

const SIGNALS: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGCONT];

/// The signals, blocked in the thread that made this and in all that it starts from then on.
#[derive(Debug)]
pub(crate) struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks the signals. Call it before any other thread exists.
    pub(crate) fn block() -> io::Result<Self> {
        // SAFETY: an all-zero sigset_t is a valid object; the calls below only write to it.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: `set` is valid for writing.
        unsafe { libc::sigemptyset(&mut set) };
        for signal in SIGNALS {
            // SAFETY: as above.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        // SAFETY: `set` is initialised; the previous mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(Signals { set }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for the next one.
    pub(crate) fn wait(&self) -> io::Result<Signal> {
        let mut signal = 0;
        // SAFETY: both pointers are valid for the call.
        match unsafe { libc::sigwait(&self.set, &mut signal) } {
            0 if signal == libc::SIGCONT => Ok(Signal::Continued),
            0 => Ok(Signal::End(signal)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
