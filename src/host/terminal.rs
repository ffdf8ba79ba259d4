//! The terminal on standard input: raw mode in the foreground, and its restoration.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio::console::TerminalSize;

use super::stdio::{is_terminal, with_signal_blocked};

/// The terminal on standard input. It is in raw mode while this process is in the foreground. Its own mode is
/// restored when the process leaves the foreground, stops or ends, and on drop.
#[derive(Debug, Default)]
pub(crate) struct Terminal {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The mode before raw mode was first set, and the raw mode.
    modes: Option<(libc::termios, libc::termios)>,
    /// This process has set raw mode, and not restored it.
    raw: bool,
    /// This process is about to stop.
    suspended: bool,
    /// Restored for good.
    restored: bool,
    /// Called when raw mode is first set.
    announce: Option<fn()>,
}

impl Terminal {
    /// The terminal on standard input, unchanged so far; `None` if there is none.
    pub(crate) fn standard() -> Option<Self> {
        is_terminal(libc::STDIN_FILENO).then(Terminal::default)
    }

    /// Sets raw mode in the foreground, and restores the mode in the background. Returns whether this job is
    /// in the foreground.
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

    /// Restores the mode until [`Terminal::resume`].
    pub(crate) fn suspend(&self) {
        let mut state = self.state();
        state.suspended = true;
        state.restore_mode();
    }

    /// Has `announce` called when raw mode is first set, unless it was set already: a job that was started in
    /// the background has come to the foreground.
    pub(crate) fn announce(&self, announce: fn()) {
        let mut state = self.state();
        state.announce = state.modes.is_none().then_some(announce);
    }

    /// Restores the mode for good, without waiting for the drop.
    pub(crate) fn restore(&self) {
        let mut state = self.state();
        state.restored = true;
        state.restore_mode();
    }

    /// Its size, if it says one.
    pub(crate) fn size(&self) -> Option<TerminalSize> {
        // SAFETY: an all-zero winsize is a valid object to be overwritten.
        let mut size: libc::winsize = unsafe { mem::zeroed() };
        // SAFETY: `size` is valid for writing; the descriptor is not changed.
        let asked = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, &mut size) };
        let (columns, rows) = (size.ws_col, size.ws_row);
        (asked == 0 && columns > 0 && rows > 0).then_some(TerminalSize { columns, rows })
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

    /// Both modes. The original mode is read once: later a shell may set the mode that it saw when this job
    /// stopped.
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

    /// In the background only if the mode is still our raw mode: otherwise another job has set it.
    fn restore_mode(&mut self) {
        let Some((before, raw)) = self.modes.filter(|_| self.raw) else { return };
        self.raw = false;
        let is_raw_here = || {
            get().is_ok_and(|now| {
                [now.c_iflag, now.c_oflag, now.c_lflag] == [raw.c_iflag, raw.c_oflag, raw.c_lflag]
            })
        };
        if in_foreground() || is_raw_here() {
            // A terminal that was closed needs no mode.
            let _ = set(&before);
        }
    }
}

/// Restores a shared terminal on every way out, including a panic. The threads that share it live as long as
/// the process, so its own drop may never run.
pub(crate) struct RestoreGuard(pub(crate) Option<Arc<Terminal>>);

impl RestoreGuard {
    /// Disarms this guard.
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
    // SAFETY: `mode` is valid for writing; the descriptor is not changed.
    match unsafe { libc::tcgetattr(libc::STDIN_FILENO, &mut mode) } {
        0 => Ok(mode),
        _ => Err(io::Error::last_os_error()),
    }
}

/// TCSANOW, without waiting for pending output, which Ctrl-S may stop for ever. The foreground may be lost
/// just before; the process must not be stopped for that.
fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` is a valid termios for the length of the call.
    let set = || match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    with_signal_blocked(libc::SIGTTOU, set)
}

/// Whether this process may use the terminal on standard input: the terminal driver stops a job in the
/// background that reads from it or changes it. The terminal of another session stops no process.
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

    /// Set for the process that panics on purpose.
    const BREAK_DOWN: &str = "MINIVMM_TEST_BREAK_DOWN";

    /// Both ends of a new terminal.
    #[allow(unsafe_code, reason = "openpty is a C interface")]
    fn terminal() -> (OwnedFd, OwnedFd) {
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: both numbers are written; no name, mode or size is asked for.
        assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) }, 0);
        // SAFETY: openpty returned two new descriptors that nothing else owns.
        unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
    }

    /// The local modes of a terminal: echo, canonical mode, signals.
    #[allow(unsafe_code, reason = "termios is a C interface")]
    fn mode(terminal: &OwnedFd) -> libc::tcflag_t {
        // SAFETY: an all-zero termios is a valid object to be overwritten.
        let mut mode: libc::termios = unsafe { mem::zeroed() };
        // SAFETY: `mode` is valid for writing.
        assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut mode) }, 0);
        mode.c_lflag
    }

    /// The child process of the next test: acts as a session, and panics where that waits for the machine.
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
        // The threads of a session live as long as the process.
        mem::forget(shared.clone());
        let _terminal = RestoreGuard(shared);
        print!("raw");
        io::stdout().flush().unwrap();
        // Continues when the test has checked the terminal.
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
        // Kept open: a terminal whose other end is closed has no mode.
        let mut keyboard = std::fs::File::from(master);
        keyboard.write_all(b"x").unwrap();
        assert!(!child.wait().unwrap().success(), "it panicked");
        assert_eq!(mode(&slave), before);
    }
}
