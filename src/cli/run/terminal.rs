//! The command's terminal: what is typed here goes to it, and what it shows comes here.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::console::ByteQueue;
use virtio::console::TerminalSize;

use super::args::RunArgs;
use super::error::RunError;
use super::ports::{CommandOutput, RunEvent, spawn};
use crate::cli::console_input::forward_input;
use crate::cli::menu::Choice;
use crate::cli::report;
use crate::cli::session::suspend;
use crate::host::ready::wait_for_hangup;
use crate::host::signals::{Signal, stop};
use crate::host::stdio::{Input, Output};
use crate::host::terminal::Terminal;
use crate::machine::commands::CommandPorts;

const KEYS: &str = "Ctrl-] q ends the run; Ctrl-] Ctrl-] sends Ctrl-] to the command";

/// The terminal on standard input, for a command that has one. It stays as it is until [`pass_keys`].
pub(super) fn of(args: &RunArgs) -> Result<Option<Arc<Terminal>>, RunError> {
    let terminal = Terminal::standard().filter(|_| args.tty).map(Arc::new);
    match terminal {
        None if args.tty && args.stdin => Err(RunError::NoTerminal),
        terminal => Ok(terminal),
    }
}

/// Its size for the command; `None` if nobody knows it.
pub(super) fn size(terminal: Option<&Arc<Terminal>>) -> Option<TerminalSize> {
    terminal.and_then(|terminal| terminal.size())
}

/// Does what a signal means for the terminal. One that is not raw is the shell's.
pub(super) fn heed(signal: Signal, terminal: Option<&Terminal>, events: &Sender<RunEvent>) {
    let raw = terminal.filter(|terminal| terminal.is_raw());
    match (signal, raw) {
        (Signal::Stop, Some(raw)) => suspend(Some(raw)),
        (Signal::Stop, None) => stop(),
        (Signal::Continued, Some(raw)) => drop(raw.resume()),
        (Signal::Continued | Signal::Resized | Signal::End(_), _) => {}
    }
    let _ = events.send(RunEvent::Resized);
}

/// Starts the threads that show what the command writes to its terminal.
pub(super) fn show(from: &Arc<ByteQueue>, events: &Sender<RunEvent>) -> io::Result<()> {
    let from = from.clone();
    spawn("output", events, move |events| {
        let mut bytes = vec![0; 64 << 10];
        let mut written = Ok(());
        loop {
            let count = from.pop(&mut bytes);
            let Some(batch) = bytes.get(..count).filter(|batch| !batch.is_empty()) else { break };
            if written.is_ok() {
                written = CommandOutput(Output::standard()).write_all(batch);
                report_failure(&written, &events);
            }
        }
        let _ = events.send(RunEvent::Closed);
    })?;
    spawn("reader", events, move |events| {
        if wait_for_hangup(&Output::standard()).is_ok() {
            let _ = events.send(RunEvent::Signal(libc::SIGPIPE));
        }
    })
}

fn report_failure(written: &io::Result<()>, events: &Sender<RunEvent>) {
    let Err(error) = written else { return };
    let event = match error.kind() {
        // Nobody reads any more. A terminal has no such end for its writer, so that the run ends.
        ErrorKind::BrokenPipe => RunEvent::Signal(libc::SIGPIPE),
        kind => {
            RunEvent::OutputFailed(0, error.raw_os_error().map_or(kind.into(), io::Error::from_raw_os_error))
        }
    };
    let _ = events.send(event);
}

/// Starts the thread that passes on what is typed, with the terminal in raw mode.
pub(super) fn pass_keys(
    ports: &CommandPorts,
    terminal: &Arc<Terminal>,
    events: &Sender<RunEvent>,
) -> io::Result<()> {
    let Some([keys, _]) = &ports.terminal else { return Ok(()) };
    let (keys, terminal) = (Keys(keys.clone()), terminal.clone());
    spawn("stdin", events, move |events| {
        let notice = |text: &str| report::notice(true, text);
        let choose = |choice| match choice {
            Choice::Quit => drop(events.send(RunEvent::Quit)),
            _ => notice(KEYS),
        };
        forward_input(Input::raw(Some(terminal)), true, keys, choose, notice);
    })
}

/// What is typed, on its way to the guest.
struct Keys(Arc<ByteQueue>);

impl Write for Keys {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(ErrorKind::BrokenPipe);
        self.0.push(bytes).map(|()| bytes.len()).map_err(gone)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
