//! This terminal as a wire to a process in the lab: raw while it lasts, as it was on every way out but a signal's.

use crate::{LabError, Process, Status};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal, Read, Write};
use std::thread;
use std::time::Duration;

/// A terminal in raw mode.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self, LabError> {
        let failed = |e: rustix::io::Errno| LabError::io("cannot switch this terminal to raw mode")(e.into());
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Whether a person sits at both ends.
#[must_use]
pub fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Carries bytes between this program's standard streams and the lab's process until that ends.
pub fn connect(process: &mut Process, tty: bool) -> Result<Status, LabError> {
    let _raw = if tty { Some(Raw::new()?) } else { None };
    let input = process.input();
    // Nobody joins this thread: a read of standard input cannot be interrupted.
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = io::stdin().read(&mut buffer) {
            if input.send(buffer.get(..len).unwrap_or_default()).is_err() {
                return;
            }
        }
        drop(input.close());
    });
    loop {
        let news = process.news(Duration::from_secs(3600));
        let (mut out, mut err) = (io::stdout(), io::stderr());
        let written =
            out.write_all(&news.stdout).and_then(|()| out.flush()).and_then(|()| err.write_all(&news.stderr));
        written.map_err(LabError::io("cannot write to standard output"))?;
        if news.ended {
            return process.wait(Duration::ZERO).map(|out| out.status);
        }
    }
}
