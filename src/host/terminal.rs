//! The terminal on standard input: raw while this job is in the foreground, and its way back.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::stdio::{is_terminal, with_signal_blocked};

/// The terminal on standard input. It is raw while this process is in the foreground, and has its own mode again when the
/// process leaves the foreground, stops or ends; dropping this is an end.
#[derive(Debug, Default)]
pub(crate) struct Terminal {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The mode before it was raw for the first time, and the raw mode.
    modes: Option<(libc::termios, libc::termios)>,
    /// This process made it raw, and has not given it back.
    raw: bool,
    /// This process is about to stop.
    suspended: bool,
    /// It was given back, for good.
    restored: bool,
    /// Called when it becomes raw for the first time.
    announce: Option<fn()>,
}

impl Terminal {
    /// The terminal on standard input, not touched yet. `None` where there is none.
    pub(crate) fn standard() -> Option<Self> {
        is_terminal(libc::STDIN_FILENO).then(Terminal::default)
    }

    /// Makes the terminal raw in the foreground, and gives it back in the background. Says whether it is this job's.
    pub(crate) fn update(&self) -> io::Result<bool> {
        self.state().update()
    }

    /// The same after this process was stopped: a shell may have changed the mode meanwhile.
    pub(crate) fn resume(&self) -> io::Result<bool> {
        let mut state = self.state();
        state.suspended = false;
        if in_foreground() {
            state.raw = false;
        }
        state.update()
    }

    /// Gives the terminal back until [`Terminal::resume`].
    pub(crate) fn suspend(&self) {
        let mut state = self.state();
        state.suspended = true;
        state.restore_mode();
    }

    /// Has `announce` called when the terminal becomes raw for the first time, if it has not been until now: a job that was
    /// started in the background has come to the foreground.
    pub(crate) fn announce(&self, announce: fn()) {
        let mut state = self.state();
        state.announce = state.modes.is_none().then_some(announce);
    }

    /// Gives the terminal back now and for good, without waiting for the drop.
    pub(crate) fn restore(&self) {
        let mut state = self.state();
        state.restored = true;
        state.restore_mode();
    }

    pub(crate) fn is_raw(&self) -> bool {
        self.state().raw
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

impl State {
    fn update(&mut self) -> io::Result<bool> {
        if self.restored || self.suspended {
            return Ok(false);
        }
        if !in_foreground() {
            self.restore_mode();
            return Ok(false);
        }
        if !self.raw {
            let (_, raw) = self.modes()?;
            set(&raw)?;
            self.raw = true;
            if let Some(announce) = self.announce.take() {
                announce();
            }
        }
        Ok(true)
    }

    /// Both modes. The mode before is that of the first time: later a shell may give back what it found when this job stopped.
    fn modes(&mut self) -> io::Result<(libc::termios, libc::termios)> {
        if let Some(modes) = self.modes {
            return Ok(modes);
        }
        let before = get()?;
        let mut raw = before;
        // SAFETY: `raw` is a termios that the system filled.
        unsafe { libc::cfmakeraw(&mut raw) };
        self.modes = Some((before, raw));
        Ok((before, raw))
    }

    /// In the background only where the mode is still the one that was set here: else it is another job's.
    fn restore_mode(&mut self) {
        let Some((before, raw)) = self.modes.filter(|_| self.raw) else { return };
        self.raw = false;
        let is_raw_here = || {
            get().is_ok_and(|now| {
                [now.c_iflag, now.c_oflag, now.c_lflag] == [raw.c_iflag, raw.c_oflag, raw.c_lflag]
            })
        };
        if in_foreground() || is_raw_here() {
            // A terminal that has gone away needs no mode.
            let _ = set(&before);
        }
    }
}

/// Gives a shared terminal back on every way out, a panic among them. The threads that share it live as long as the process,
/// so that its own drop may never come.
pub(crate) struct RestoreGuard(pub(crate) Option<Arc<Terminal>>);

impl RestoreGuard {
    /// Leaves the terminal to another guard.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RestoreGuard {
    fn drop(&mut self) {
        if let Some(terminal) = &self.0 {
            terminal.restore();
        }
    }
}

fn get() -> io::Result<libc::termios> {
    // SAFETY: an all-zero termios is a valid object to be overwritten.
    let mut mode: libc::termios = unsafe { mem::zeroed() };
    // SAFETY: `mode` is valid for writing; the descriptor is only looked at.
    match unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut mode) } {
        0 => Ok(mode),
        _ => Err(io::Error::last_os_error()),
    }
}

/// At once, not after pending output: output may be stopped for ever by Ctrl-S. The foreground can be lost just before; the
/// process must not be stopped for that.
fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` is a valid termios for the length of the call.
    let set = || match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    with_signal_blocked(libc::SIGTTOU, set)
}

/// Whether this process may use the terminal on standard input: a job in the background that reads from it or
/// changes it is stopped by the terminal driver. A terminal that is not this session's own stops nobody.
pub(crate) fn in_foreground() -> bool {
    if !is_terminal(libc::STDIN_FILENO) {
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
        let shared = Terminal::standard().map(Arc::new);
        assert!(
            shared.as_ref().is_some_and(|terminal| terminal.update().unwrap()),
            "standard input is a terminal"
        );
        // As a session's threads do, which live as long as the process.
        mem::forget(shared.clone());
        let _terminal = RestoreGuard(shared);
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
