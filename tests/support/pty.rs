//! The minivmm command on a terminal of its own, as for a person.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "terminals are a C interface")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::vmm::{Heard, LIMIT, Launch, Owned, count, send_signal, wait};

/// Both ends of a new terminal.
pub(crate) fn open() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both numbers are written; no name, mode or size is asked for.
    let result = unsafe {
        libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), std::ptr::null())
    };
    assert_eq!(result, 0);
    // SAFETY: openpty returned two new descriptors that nothing else owns.
    let ends = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    // No child shall inherit them but as its standard input and output.
    for end in [&ends.0, &ends.1] {
        // SAFETY: changes a flag of a descriptor of ours.
        assert_eq!(unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
    }
    ends
}

/// The mode of a terminal, in words that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    flags: [libc::tcflag_t; 4],
    keys: [libc::cc_t; libc::NCCS],
}

impl Mode {
    /// Neither lines nor signals nor echo nor changed line ends.
    pub(crate) fn is_raw(&self) -> bool {
        let [input, output, _, local] = self.flags;
        local & (libc::ICANON | libc::ISIG | libc::ECHO) == 0
            && output & libc::OPOST == 0
            && input & (libc::ICRNL | libc::IXON) == 0
    }
}

fn termios(fd: RawFd) -> libc::termios {
    // SAFETY: an all-zero termios is a valid object to be overwritten.
    let mut mode = unsafe { std::mem::zeroed() };
    // SAFETY: `mode` is valid for writing.
    assert_eq!(unsafe { libc::tcgetattr(fd, &mut mode) }, 0);
    mode
}

pub(crate) fn mode(fd: &OwnedFd) -> Mode {
    let mode = termios(fd.as_raw_fd());
    Mode { flags: [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag], keys: mode.c_cc }
}

/// Starts `command` as the leader of a session on the terminal `slave`.
pub(crate) fn spawn_on(command: &mut Command, slave: &OwnedFd) -> Owned {
    let end = || Stdio::from(slave.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    // SAFETY: between fork and exec only system calls.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Owned::start(command)
}

/// A program on its terminal, running.
#[derive(Debug)]
pub(crate) struct OnTerminal {
    child: Owned,
    master: File,
    slave: OwnedFd,
    pub(crate) heard: Heard,
    listener: JoinHandle<()>,
    before: Mode,
    _folder: Arc<tempfile::TempDir>,
}

/// Its exit status.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) text: String,
    pub(crate) status: ExitStatus,
    /// The terminal is as it was before the program started.
    pub(crate) restored: bool,
}

impl Left {
    #[track_caller]
    pub(crate) fn is(&self, status: i32) -> &Self {
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        assert!(self.restored, "the terminal was not given back: {self:?}");
        self
    }

    /// The same of the guest, whose words the program's messages may part.
    #[track_caller]
    pub(crate) fn guest_said(&self, word: &str) -> &Self {
        let parts: Vec<_> = self.text.split("\r\nminivmm: ").collect();
        let (first, others) = parts.split_first().unwrap();
        let others = others.iter().map(|part| part.split_once("\r\n").map_or("", |(_, guest)| guest));
        let text: String = [*first].into_iter().chain(others).collect();
        assert!(text.contains(word), "no {word:?} in {text:?} of {self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn said(&self, word: &str) -> &Self {
        assert!(self.text.contains(word), "no {word:?} in {self:?}");
        self
    }
}

impl OnTerminal {
    /// Starts the command of `launch` on a terminal.
    pub(crate) fn start(mut launch: Launch) -> Self {
        let folder = launch.folder.clone();
        Self::command(launch.command(), folder)
    }

    pub(crate) fn command(command: &mut Command, folder: Arc<tempfile::TempDir>) -> Self {
        Self::spawned(command, folder, spawn_on)
    }

    /// On a terminal that is only its standard streams.
    pub(crate) fn beside(mut command: Command, folder: Arc<tempfile::TempDir>) -> Self {
        Self::spawned(&mut command, folder, |command, slave| {
            let end = || Stdio::from(slave.try_clone().unwrap());
            Owned::start(command.stdin(end()).stdout(end()).stderr(end()))
        })
    }

    fn spawned(
        command: &mut Command,
        folder: Arc<tempfile::TempDir>,
        spawn: impl FnOnce(&mut Command, &OwnedFd) -> Owned,
    ) -> Self {
        let (master, slave) = open();
        let before = mode(&slave);
        let child = spawn(command, &slave);
        let master = File::from(master);
        let (heard, listener) = Heard::listen(master.try_clone().unwrap());
        OnTerminal { child, master, slave, heard, listener, before, _folder: folder }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn mode(&self) -> Mode {
        mode(&self.slave)
    }

    /// Waits for raw mode: earlier input is handled by the terminal itself.
    #[track_caller]
    pub(crate) fn until_raw(&self) {
        self.until("the terminal is raw", |terminal| terminal.mode().is_raw());
    }

    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !reached(self) {
            assert!(Instant::now() < deadline, "it never came that {what}: {:?}", self.heard.text());
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    pub(crate) fn expect(&self, word: &str, times: usize) {
        let seen = self.heard.wait(|heard| count(heard, word) >= times);
        assert!(seen, "no {word:?} (times {times}) came: {:?}", self.heard.text());
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).unwrap();
    }

    /// Another size of the window.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: a terminal of ours; `size` is valid for reading.
        assert_eq!(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }

    pub(crate) fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    /// Puts the terminal into another mode, as a shell does.
    pub(crate) fn make_sane(&self) {
        let mut mode = termios(self.slave.as_raw_fd());
        mode.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        // SAFETY: a terminal of ours, a mode that the system filled.
        assert_eq!(unsafe { libc::tcsetattr(self.slave.as_raw_fd(), libc::TCSANOW, &mode) }, 0);
    }

    pub(crate) fn end(mut self) -> Left {
        let heard = self.heard.clone();
        let status = wait(&mut self.child, || heard.text());
        let restored = self.mode() == self.before;
        // The listener sees the end when the terminal's last user has closed it.
        drop(self.slave);
        self.listener.join().unwrap();
        Left { text: self.heard.text(), status, restored }
    }
}
