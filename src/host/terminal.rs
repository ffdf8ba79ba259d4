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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Read, Write};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    /// Set for the process that breaks down on purpose.
    const BREAK_DOWN: &str = "MINIVMM_TEST_BREAK_DOWN";

    /// Both ends of a new terminal.
    #[allow(unsafe_code, reason = "openpty is a C interface")]
    fn terminal() -> (OwnedFd, OwnedFd) {
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: both numbers are written; no name, mode or size is asked for.
        assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) }, 0);
        // SAFETY: openpty gave two new descriptors that nobody else has.
        unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
    }

    /// The local modes of a terminal: echo, lines, signals.
    #[allow(unsafe_code, reason = "termios is a C interface")]
    fn mode(terminal: &OwnedFd) -> libc::tcflag_t {
        // SAFETY: an all-zero termios is a valid object to be overwritten.
        let mut mode: libc::termios = unsafe { mem::zeroed() };
        // SAFETY: `mode` is valid for writing.
        assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut mode) }, 0);
        mode.c_lflag
    }

    /// The other process of the next test: does as a session does, and breaks down where that waits for the machine.
    #[test]
    fn breaks_down_with_the_terminal_raw() {
        if std::env::var_os(BREAK_DOWN).is_none() {
            return;
        }
        let shared = Arc::new(RawTerminal::take().unwrap());
        assert!(shared.is_some(), "standard input is a terminal");
        // As a session's threads do, which live as long as the process.
        mem::forget(shared.clone());
        let _terminal = GiveBack(shared);
        print!("raw");
        io::stdout().flush().unwrap();
        // Goes on when the test has looked at the terminal.
        io::stdin().read_exact(&mut [0]).unwrap();
        panic!("on purpose");
    }

    #[test]
    fn terminal_is_given_back_when_the_session_panics() {
        let (master, slave) = terminal();
        let before = mode(&slave);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::terminal::tests::breaks_down_with_the_terminal_raw", "--nocapture"])
            .env(BREAK_DOWN, "1")
            .stdin(slave.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let mut output = child.stdout.take().unwrap();
        while !said.ends_with(b"raw") {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            said.extend(byte);
        }
        let raw = mode(&slave);
        assert_eq!(raw & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
        assert_ne!(raw, before);
        // Kept open: a terminal whose other end is gone has no mode.
        let mut keyboard = std::fs::File::from(master);
        keyboard.write_all(b"x").unwrap();
        assert!(!child.wait().unwrap().success(), "it panicked");
        assert_eq!(mode(&slave), before);
    }
}
