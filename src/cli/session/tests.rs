//! The terminal comes back, whatever happens.

use super::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

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
    let mut mode: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `mode` is valid for writing.
    assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut mode) }, 0);
    mode.c_lflag
}

/// The other process of the next test: does as [`run`] does, and breaks down where [`run`] waits for the machine.
#[test]
fn breaks_down_with_the_terminal_raw() {
    if std::env::var_os(BREAK_DOWN).is_none() {
        return;
    }
    let shared = Arc::new(RawTerminal::take().unwrap());
    assert!(shared.is_some(), "standard input is a terminal");
    // As the session's threads do, which live as long as the process.
    std::mem::forget(shared.clone());
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
        .args(["--exact", "cli::session::tests::breaks_down_with_the_terminal_raw", "--nocapture"])
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
