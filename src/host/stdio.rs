//! Standard input, output and error as they were inherited: blocking or not, a terminal or not, in the
//! foreground or not, full or closed. Nothing else in the command reads or writes descriptors 0, 1 and 2.
//!
//! The open file descriptions are shared with other processes (a shell, the other end of a pipeline), so
//! their flags are never changed: with O_NONBLOCK, EAGAIN means to poll and continue.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use super::terminal::{Terminal, in_foreground};

/// Poll interval of a job in the background for coming to the foreground: shells send no signal for that to a
/// running job.
const BACKGROUND_TICK: Duration = Duration::from_millis(200);
/// Poll interval of a job in the foreground for losing it: the terminal can be taken away without a signal.
const FOREGROUND_TICK: Duration = Duration::from_secs(1);
/// Pause where poll reports room and the write still fails.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// Standard output or standard error. A write blocks until there is room, whatever the flags of the
/// descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Output(RawFd);

impl Output {
    /// Standard output.
    pub(crate) fn standard() -> Self {
        Output(libc::STDOUT_FILENO)
    }

    /// Standard error.
    pub(crate) fn error() -> Self {
        Output(libc::STDERR_FILENO)
    }

    pub(crate) fn is_terminal(self) -> bool {
        is_terminal(self.0)
    }

    /// An error if the descriptor was closed when the process began; Rust's runtime has opened /dev/null in
    /// its place.
    pub(crate) fn open(self) -> io::Result<()> {
        match u32::try_from(self.0).map(|bit| CLOSED.load(Ordering::Relaxed) >> bit & 1) {
            Ok(0) => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }
}

impl AsRawFd for Output {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut full = 0;
        loop {
            // SAFETY: the pointer and the length are those of `bytes`.
            let count = unsafe { libc::write(self.0, bytes.as_ptr().cast(), bytes.len()) };
            if let Ok(count) = usize::try_from(count) {
                return Ok(count);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => {
                    if full > 0 {
                        thread::sleep(RETRY_DELAY);
                    }
                    full += 1;
                    poll(self.0, libc::POLLOUT, None)?;
                }
                _ => return Err(error),
            }
        }
    }

    /// There is no buffer.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard input. A read blocks until there are bytes, whatever the flags of the descriptor. If it is this
/// session's terminal, a read also waits for the foreground, so that a job in the background is not stopped.
#[derive(Debug)]
pub(crate) struct Input {
    is_terminal: bool,
    /// The terminal to put into raw mode in the foreground; `None` leaves its mode alone.
    raw: Option<Arc<Terminal>>,
}

impl Input {
    /// Standard input, whose mode is left alone.
    pub(crate) fn standard() -> Self {
        Input { is_terminal: is_terminal(libc::STDIN_FILENO), raw: None }
    }

    /// Standard input, whose terminal is in raw mode while this job is in the foreground.
    pub(crate) fn raw(terminal: Option<Arc<Terminal>>) -> Self {
        Input { raw: terminal, ..Input::standard() }
    }

    /// Whether this job is in the foreground.
    fn is_foreground(&self) -> bool {
        self.raw.as_ref().map_or_else(in_foreground, |terminal| terminal.update().unwrap_or(true))
    }

    /// Waits until this job is in the foreground and the terminal has input.
    fn wait_for_input(&self) -> io::Result<()> {
        loop {
            if !self.is_foreground() {
                thread::sleep(BACKGROUND_TICK);
            } else if poll(libc::STDIN_FILENO, libc::POLLIN, Some(FOREGROUND_TICK))? && self.is_foreground() {
                return Ok(());
            }
        }
    }
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.is_terminal {
                self.wait_for_input()?;
            }
            let mut take = || {
                // SAFETY: the pointer and the length are those of `bytes`.
                let count = unsafe { libc::read(libc::STDIN_FILENO, bytes.as_mut_ptr().cast(), bytes.len()) };
                usize::try_from(count).map_err(|_| io::Error::last_os_error())
            };
            // If the foreground was lost in between, an error is better than stopping all threads.
            let read = if self.is_terminal { with_signal_blocked(libc::SIGTTIN, take) } else { take() };
            let error = match read {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => drop(poll(libc::STDIN_FILENO, libc::POLLIN, None)?),
                Some(libc::EIO) if self.is_terminal && !in_foreground() => {}
                // Not open for reading, as nohup leaves it: treat it as empty.
                Some(libc::EBADF) => return Ok(0),
                _ => return Err(error),
            }
        }
    }
}

/// Calls `work` with a signal blocked in this thread: the terminal driver then lets a job in the background
/// change the terminal's mode, and refuses its reads, instead of stopping the process.
pub(super) fn with_signal_blocked<T>(signal: libc::c_int, work: impl FnOnce() -> T) -> T {
    // SAFETY: all-zero signal sets are valid objects to be overwritten.
    let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both sets are valid for writing; the mask is that of this thread only.
    let blocked = unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before)
    };
    let result = work();
    if blocked == 0 {
        // SAFETY: `before` was filled by the call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    }
    result
}

/// Whether the descriptor is ready or at its end; false at `limit`.
fn poll(fd: RawFd, events: libc::c_short, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    let mut wanted = libc::pollfd { fd, events, revents: 0 };
    loop {
        // SAFETY: one entry, valid for reading and writing.
        match unsafe { libc::poll(&mut wanted, 1, limit) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            count => return Ok(count > 0),
        }
    }
}

/// Whether a descriptor is a terminal.
pub(crate) fn is_terminal(fd: RawFd) -> bool {
    // SAFETY: takes a number.
    unsafe { libc::isatty(fd) == 1 }
}

/// Bit n is set if descriptor n was closed when the process began.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Records closed descriptors before Rust's runtime opens /dev/null in their place.
extern "C" fn record_closed_streams() {
    for fd in 0..3 {
        // SAFETY: takes numbers and changes nothing.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
        }
    }
}

// SAFETY: the C library calls the functions of this section once each, before main; this one does not need
// Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_CLOSED_STREAMS: extern "C" fn() = record_closed_streams;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn output_that_never_waits_is_waited_for() {
        let (here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let text = vec![b'x'; 1 << 20];
        let sent = text.clone();
        let writer = thread::spawn(move || {
            let mut output = Output(here.as_raw_fd());
            output.write_all(&sent).unwrap();
            // SAFETY: takes numbers, of a descriptor of this test.
            let flags = unsafe { libc::fcntl(here.as_raw_fd(), libc::F_GETFL) };
            assert_ne!(flags & libc::O_NONBLOCK, 0, "the flag is its owner's");
        });
        let mut heard = Vec::new();
        there.read_to_end(&mut heard).unwrap();
        writer.join().unwrap();
        assert_eq!(heard, text);
    }

    #[test]
    fn output_that_cannot_be_written_is_an_error() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let error = Output(full.as_raw_fd()).write_all(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let (here, there) = UnixStream::pair().unwrap();
        drop(there);
        let error = Output(here.as_raw_fd()).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
