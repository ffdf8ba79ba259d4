//! The terminal in raw mode, and its way back.

use std::io::{self, IsTerminal};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The terminal on standard input in raw mode; dropping this gives it back as it was.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: libc::termios,
    raw: libc::termios,
    /// It was given back, for good.
    returned: Mutex<bool>,
}

impl RawTerminal {
    /// Takes the terminal on standard input. `None` where there is none.
    pub(crate) fn take() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        // SAFETY: an all-zero termios is a valid object to be overwritten.
        let mut before: libc::termios = unsafe { mem::zeroed() };
        // SAFETY: `before` is valid for writing; the descriptor is only looked at.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut raw = before;
        // SAFETY: `raw` is a termios that the system filled.
        unsafe { libc::cfmakeraw(&mut raw) };
        let terminal = RawTerminal { before, raw, returned: Mutex::new(false) };
        terminal.set_raw()?;
        Ok(Some(terminal))
    }

    /// Gives the terminal back now and for good, without waiting for the drop.
    pub(crate) fn restore(&self) {
        let mut returned = self.returned();
        *returned = true;
        // A terminal that has gone away needs no mode.
        let _ = set(&self.before);
    }

    /// Raw mode again, after a shell had the terminal while this process was stopped. Not once it was given back, also where
    /// another thread does that at the same time.
    pub(crate) fn set_raw(&self) -> io::Result<()> {
        let returned = self.returned();
        if *returned { Ok(()) } else { set(&self.raw) }
    }

    fn returned(&self) -> MutexGuard<'_, bool> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Gives a shared terminal back on every way out, a panic among them. The threads that share it live as long as the process,
/// so that its own drop may never come.
pub(crate) struct GiveBack(pub(crate) Arc<Option<RawTerminal>>);

impl Drop for GiveBack {
    fn drop(&mut self) {
        if let Some(terminal) = &*self.0 {
            terminal.restore();
        }
    }
}

/// At once, not after pending output: output may be stopped for ever by Ctrl-S.
fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` is a valid termios for the length of the call.
    match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process may use the terminal on standard input: a job in the background that reads from it or
/// changes it is stopped by the terminal driver. One that is not our session's own terminal stops nobody.
pub(crate) fn in_foreground() -> bool {
    if !io::stdin().is_terminal() {
        return true;
    }
    // SAFETY: both calls take and return plain numbers.
    let (there, here) = unsafe { (libc::tcgetpgrp(libc::STDIN_FILENO), libc::getpgrp()) };
    there == -1 || there == here
}
