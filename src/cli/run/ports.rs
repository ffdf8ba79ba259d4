//! The ports of a run, and the threads that copy their bytes and report events to the session.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::console::ByteQueue;
use devices::thread::{self, Role};

use super::args::RunArgs;
use super::error::RunError;
use super::output::TokenFilter;
use super::start::Started;
use crate::host::ready::wait_for_hangup;
use crate::host::stdio::{Input, Output};
use crate::machine::Machine;
use crate::machine::run_resources::StreamPort;

/// Size of an output buffer; when it is full the command waits. Memory is allocated as bytes come.
const CAPACITY: usize = 1 << 20;
/// Maximum length of a line from init.
const LINE_MAX: usize = 256;
/// Sent to init over the port of a stream whose reader has closed it.
const READER_CLOSED: &[u8] = b"\n";

/// An event of a run.
#[derive(Debug)]
pub(super) enum RunEvent {
    /// The machine is about to start.
    Starting,
    /// It runs, or could not be started.
    Started(Box<Result<Started, RunError>>),
    /// Init starts the command.
    Up,
    /// The command has exited with this status.
    CommandExited(u8),
    /// Whether this stream now ends with the token.
    StreamComplete(usize, bool),
    /// The host could not write this stream.
    OutputFailed(usize, io::Error),
    /// A port has reached its end.
    Closed,
    /// The machine has ended.
    MachineEnded,
    /// A signal to end the run.
    Signal(libc::c_int),
}

/// The ports between the guest and this process.
#[derive(Debug)]
pub(super) struct Ports {
    output: [Arc<ByteQueue>; 2],
    /// The opposite direction of each: tells the guest that the reader has closed the stream.
    reader_closed: [Arc<ByteQueue>; 2],
    run: Arc<ByteQueue>,
    input: Arc<ByteQueue>,
}

/// Number of ports whose end is awaited.
pub(super) const READ_PORTS: usize = 3;

impl Ports {
    pub(super) fn new() -> Self {
        let queue = || Arc::new(ByteQueue::new(CAPACITY));
        let reader_closed = || Arc::new(ByteQueue::new(READER_CLOSED.len()));
        Ports {
            output: [queue(), queue()],
            reader_closed: [reader_closed(), reader_closed()],
            run: queue(),
            input: queue(),
        }
    }

    pub(super) fn streams(&self) -> Vec<StreamPort> {
        let ([out, err], [out_left, err_left]) = (&self.output, &self.reader_closed);
        // The unused direction of a port.
        let unused = Arc::new(ByteQueue::new(1));
        let port = |name, input: &Arc<ByteQueue>, output: &Arc<ByteQueue>| StreamPort {
            name,
            input: input.clone(),
            output: output.clone(),
        };
        vec![
            port("minivmm.out", out_left, out),
            port("minivmm.err", err_left, err),
            port("minivmm.run", &unused, &self.run),
            port("minivmm.in", &self.input, &Arc::new(ByteQueue::new(1))),
        ]
    }

    /// Closes the ports; buffered bytes are still read.
    pub(super) fn close(&self) {
        self.output.iter().chain([&self.run, &self.input]).for_each(|queue| queue.close());
    }

    /// Starts the threads that read from the guest.
    pub(super) fn listen(&self, token: &str, events: &Sender<RunEvent>) -> io::Result<()> {
        let run = self.run.clone();
        spawn("run", events, move |events| read_init_lines(&run, &events))?;
        self.copy_stream(0, Output::standard(), token, events)?;
        self.copy_stream(1, Output::error(), token, events)
    }

    /// Starts the threads that copy a stream and watch its reader.
    fn copy_stream(
        &self,
        index: usize,
        to: Output,
        token: &str,
        events: &Sender<RunEvent>,
    ) -> io::Result<()> {
        let (Some(from), Some(reader_closed)) =
            (self.output.get(index).cloned(), self.reader_closed.get(index).cloned())
        else {
            return Ok(());
        };
        let (token, seen) = (token.to_owned(), reader_closed.clone());
        spawn("output", events, move |events| {
            copy_output(index, &from, TokenFilter::new(to, &token), &reader_closed, &events)
        })?;
        // At once, as on the host: the command's next write fails.
        spawn("reader", events, move |_| {
            if wait_for_hangup(&to).is_ok() {
                seen.try_push(READER_CLOSED);
            }
        })
    }
}

/// Starts a thread that may send events.
pub(super) fn spawn(
    name: &str,
    events: &Sender<RunEvent>,
    work: impl FnOnce(Sender<RunEvent>) + Send + 'static,
) -> io::Result<()> {
    let events = events.clone();
    thread::spawn(Role::Cli, name, move || work(events)).map(drop)
}

/// Starts the threads that need the machine: one for its end, one for the command's input.
pub(super) fn start_guest_threads(
    args: &RunArgs,
    machine: &Machine,
    ports: &Ports,
    events: &Sender<RunEvent>,
) -> io::Result<()> {
    let machine_events = machine.events();
    spawn("events", events, move |events| {
        machine_events.for_each(drop);
        let _ = events.send(RunEvent::MachineEnded);
    })?;
    let input = ports.input.clone();
    if args.stdin { spawn("stdin", events, move |_| copy_stdin(&input)) } else { Ok(()) }
}

/// Copies a stream. Output that the host cannot write is discarded: the command must not wait for it.
fn copy_output<W: Write>(
    index: usize,
    from: &ByteQueue,
    mut to: TokenFilter<W>,
    reader_closed: &ByteQueue,
    events: &Sender<RunEvent>,
) {
    let report = |failure: Option<io::Error>| match failure {
        // A reader closes its end of a pipe when it has seen enough.
        Some(error) if error.kind() == ErrorKind::BrokenPipe => drop(reader_closed.try_push(READER_CLOSED)),
        Some(error) => drop(events.send(RunEvent::OutputFailed(index, error))),
        None => {}
    };
    let mut bytes = vec![0; 64 << 10];
    let mut complete = false;
    loop {
        let count = from.pop(&mut bytes);
        let Some(batch) = bytes.get(..count).filter(|batch| !batch.is_empty()) else { break };
        let now = to.push(batch);
        report(to.failure());
        if now != complete {
            complete = now;
            let _ = events.send(RunEvent::StreamComplete(index, complete));
        }
    }
    to.finish();
    report(to.failure());
    let _ = events.send(RunEvent::Closed);
}

/// Reads lines from init; unknown ones are ignored.
fn read_init_lines(from: &ByteQueue, events: &Sender<RunEvent>) {
    let mut bytes = [0; LINE_MAX];
    let mut line = Vec::new();
    loop {
        let count = from.pop(&mut bytes);
        if count == 0 {
            break;
        }
        for &byte in bytes.get(..count).unwrap_or_default() {
            if byte != b'\n' {
                if line.len() < LINE_MAX {
                    line.push(byte);
                }
                continue;
            }
            if let Some(event) = parse_init_line(&line) {
                let _ = events.send(event);
            }
            line.clear();
        }
    }
    let _ = events.send(RunEvent::Closed);
}

fn parse_init_line(line: &[u8]) -> Option<RunEvent> {
    match std::str::from_utf8(line).ok()?.split_once(' ') {
        None => (line == b"up").then_some(RunEvent::Up),
        Some(("exit", status)) => status.parse().ok().map(RunEvent::CommandExited),
        Some(_) => None,
    }
}

/// Copies standard input to the command, to its end.
fn copy_stdin(to: &ByteQueue) {
    let (mut input, mut bytes) = (Input::standard(), [0; 16 << 10]);
    while let Ok(count @ 1..) = input.read(&mut bytes) {
        if to.push(bytes.get(..count).unwrap_or_default()).is_err() {
            break;
        }
    }
    to.close();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// The events for output whose writer fails with this error.
    fn carried(error: i32) -> (Vec<RunEvent>, usize) {
        struct Fails(i32);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(self.0))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (from, reader_closed) = (ByteQueue::new(64), ByteQueue::new(READER_CLOSED.len()));
        from.push(b"output-token").unwrap();
        from.close();
        let (sender, events) = mpsc::channel();
        copy_output(1, &from, TokenFilter::new(Fails(error), "-token"), &reader_closed, &sender);
        drop(sender);
        (events.iter().collect(), reader_closed.try_pop(&mut [0; 8]))
    }

    #[test]
    fn guest_hears_of_a_reader_that_left_and_the_host_of_any_other_failure() {
        let (events, told) = carried(libc::EPIPE);
        assert!(matches!(events[..], [RunEvent::StreamComplete(1, true), RunEvent::Closed]), "{events:?}");
        assert_eq!(told, READER_CLOSED.len());
        let (events, told) = carried(libc::ENOSPC);
        assert!(
            matches!(
                events[..],
                [RunEvent::OutputFailed(1, _), RunEvent::StreamComplete(1, true), RunEvent::Closed]
            ),
            "{events:?}"
        );
        assert_eq!(told, 0);
    }

    #[test]
    fn lines_of_init_are_understood_and_others_are_not() {
        let queue = ByteQueue::new(1 << 16);
        queue.push(b"up\nexit 7\nexit 300\nexit\nup now\n\xff\n").unwrap();
        queue.push(&[b'x'; 5000]).unwrap();
        queue.push(b"\nexit 0\nexit 9").unwrap();
        queue.close();
        let (sender, events) = mpsc::channel();
        read_init_lines(&queue, &sender);
        drop(sender);
        let event: Vec<_> = events.iter().collect();
        assert!(
            matches!(
                event[..],
                [RunEvent::Up, RunEvent::CommandExited(7), RunEvent::CommandExited(0), RunEvent::Closed]
            ),
            "{event:?}"
        );
    }
}
