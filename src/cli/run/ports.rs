//! The threads that copy the bytes of a run's ports and report events to the session.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use devices::console::ByteQueue;
use devices::thread::{self, Role};

use super::error::RunError;
use super::events::GuestSender;
use super::out::Unpacked;
use super::output::TokenFilter;
use super::start::Started;
use super::tar::TarError;
use super::terminal;
use crate::host::ready::wait_for_hangup;
use crate::host::stdio::{Input, Output};
use crate::machine::commands::{CommandPorts, InitLines, READER_CLOSED, Said};
use crate::machine::{Machine, SaveError};

/// An event of a run.
#[derive(Debug)]
pub(super) enum RunEvent {
    /// The machine is about to start.
    Starting,
    /// It runs, or could not be started.
    Started(Box<Result<Started, RunError>>),
    /// Init waits for the command.
    Ready,
    /// The machine that waits was saved, or could not be.
    Saved(Result<(), SaveError>),
    /// Init took so long until it was ready.
    Init(Duration),
    /// The guest is about to run.
    Running(Instant),
    /// Init starts the command.
    Up,
    /// The guest does not have the directory for the command.
    NoDirectory,
    /// The command has exited with this status.
    CommandExited(u8),
    /// Whether this stream now ends with the token.
    StreamComplete(usize, bool),
    /// The host could not write this stream.
    OutputFailed(usize, io::Error),
    /// The host could not read the command's input.
    InputFailed(io::Error),
    /// A port has reached its end.
    Closed,
    /// The machine has ended: the one of this attempt.
    MachineEnded(u32),
    /// The guest's tar has ended with this status.
    Packed(u8),
    /// The files of the command are here, or not.
    Files(Box<Result<Unpacked, TarError>>),
    /// The terminal may have another size.
    Resized,
    /// A signal to end the run.
    Signal(libc::c_int),
    /// Ctrl-] `q`.
    Quit,
}

/// How long a guest may go on to send what nobody reads any more. Its init ends the command's output as soon as it hears that the reader has
/// left; one that takes no notice would hold a processor, and the caller's pipeline, for ever.
const READER_GRACE: Duration = Duration::from_secs(5);
/// The most of it that passes between two pieces of such output: a guest that was paused, or this process that was stopped, has sent nothing
/// meanwhile, and has the rest of its time afterwards.
const MOST_SILENCE: Duration = Duration::from_secs(1);

/// The time that a guest has gone on to send to a reader that has left.
#[derive(Debug)]
struct SentInVain {
    last: Instant,
    sum: Duration,
}

impl SentInVain {
    /// Output was sent in vain at this moment. How long that went on by now.
    fn more(&mut self, now: Instant) -> Duration {
        let silence = now.saturating_duration_since(self.last);
        self.last = now;
        self.sum += silence.min(MOST_SILENCE);
        self.sum
    }
}

/// Number of ports whose end is awaited, beside those of a terminal and of files.
pub(super) const READ_PORTS: usize = 3;

/// Starts the threads that read from the guest.
pub(super) fn listen(
    ports: &CommandPorts,
    token: &str,
    events: &Sender<RunEvent>,
    guest: &GuestSender,
) -> io::Result<()> {
    let (run, said) = (ports.run.clone(), guest.clone());
    spawn("run", events, move |events| read_init_lines(&run, &said, &events))?;
    copy_stream(ports, 0, Output::standard(), token, (events, guest))?;
    copy_stream(ports, 1, Output::error(), token, (events, guest))?;
    ports.terminal.as_ref().map_or(Ok(()), |[_, shown]| terminal::show(shown, events))
}

/// Starts the threads that copy a stream and watch its reader.
fn copy_stream(
    ports: &CommandPorts,
    index: usize,
    to: Output,
    token: &str,
    (events, guest): (&Sender<RunEvent>, &GuestSender),
) -> io::Result<()> {
    let (Some(from), Some(reader_closed)) =
        (ports.output.get(index).cloned(), ports.reader_closed.get(index).cloned())
    else {
        return Ok(());
    };
    let (token, seen, guest) = (token.to_owned(), reader_closed.clone(), guest.clone());
    spawn("output", events, move |events| {
        let to = TokenFilter::new(CommandOutput(to), &token);
        copy_output(index, &from, to, &reader_closed, (&events, &guest), READER_GRACE)
    })?;
    // At once, as on the host: the command's next write fails.
    spawn("reader", events, move |_| {
        if wait_for_hangup(&to).is_ok() {
            seen.try_push(READER_CLOSED);
        }
    })
}

/// Where the command's output goes.
#[derive(Debug)]
pub(super) struct CommandOutput(pub(super) Output);

impl Write for CommandOutput {
    /// Standard output that was closed at the start (`>&-`) takes nothing, as for any program. What is said to a closed standard error is
    /// silenced, as by any shell: few programs take notice there.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == Output::standard() {
            self.0.open()?;
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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

/// Starts the thread that waits for the end of a machine, the `attempt`th of this run.
pub(super) fn watch_end(machine: &Machine, attempt: u32, events: &Sender<RunEvent>) -> io::Result<()> {
    let machine_events = machine.events();
    spawn("events", events, move |events| {
        machine_events.for_each(drop);
        let _ = events.send(RunEvent::MachineEnded(attempt));
    })
}

/// Starts the thread for the command's input.
pub(super) fn pass_stdin(ports: &CommandPorts, events: &Sender<RunEvent>) -> io::Result<()> {
    let input = ports.input.clone();
    spawn("stdin", events, move |events| copy_stdin(Input::standard(), &input, &events))
}

/// Copies a stream. Output that the host cannot write is discarded: the command must not wait for it. A guest that goes on to send it for `grace`
/// after the reader has left ends the run, as the signal of such a write would end a program.
fn copy_output<W: Write>(
    index: usize,
    from: &ByteQueue,
    mut to: TokenFilter<W>,
    reader_closed: &ByteQueue,
    (events, guest): (&Sender<RunEvent>, &GuestSender),
    grace: Duration,
) {
    // Says whether the reader has left.
    let report = |failure: Option<io::Error>| match failure {
        // A reader closes its end of a pipe when it has seen enough.
        Some(error) if error.kind() == ErrorKind::BrokenPipe => {
            reader_closed.try_push(READER_CLOSED);
            true
        }
        Some(error) => {
            let _ = events.send(RunEvent::OutputFailed(index, error));
            false
        }
        None => false,
    };
    let mut left = None;
    let mut bytes = vec![0; 64 << 10];
    let mut complete = false;
    loop {
        let count = from.pop(&mut bytes);
        let Some(batch) = bytes.get(..count).filter(|batch| !batch.is_empty()) else { break };
        let now = to.push(batch);
        if report(to.failure()) {
            left = Some(SentInVain { last: Instant::now(), sum: Duration::ZERO });
        }
        if to.has_discarded() && left.as_mut().is_some_and(|left| left.more(Instant::now()) >= grace) {
            left = None;
            let _ = events.send(RunEvent::Signal(libc::SIGPIPE));
        }
        if now != complete {
            complete = now;
            guest.send(RunEvent::StreamComplete(index, complete));
        }
    }
    to.finish();
    report(to.failure());
    let _ = events.send(RunEvent::Closed);
}

/// Reads lines from init.
pub(super) fn read_init_lines(from: &ByteQueue, guest: &GuestSender, events: &Sender<RunEvent>) {
    let (mut bytes, mut lines) = ([0; 256], InitLines::default());
    loop {
        let count = from.pop(&mut bytes);
        if count == 0 {
            break;
        }
        lines.push(bytes.get(..count).unwrap_or_default(), |said| {
            guest.send(match said {
                Said::Ready => RunEvent::Ready,
                Said::Up => RunEvent::Up,
                Said::NoDirectory => RunEvent::NoDirectory,
                Said::Packed(status) => RunEvent::Packed(status),
                Said::Init(took) => RunEvent::Init(took),
                Said::Exited(status) => RunEvent::CommandExited(status),
            });
        });
    }
    let _ = events.send(RunEvent::Closed);
}

/// Copies standard input to the command, to its end. An input that is cut short has no end: the command would take a part for all of it.
fn copy_stdin(mut input: impl Read, to: &ByteQueue, events: &Sender<RunEvent>) {
    let mut bytes = [0; 16 << 10];
    loop {
        match input.read(&mut bytes) {
            Ok(0) => return to.close(),
            Ok(count) if to.push(bytes.get(..count).unwrap_or_default()).is_ok() => {}
            Ok(_) => return,
            Err(error) => return drop(events.send(RunEvent::InputFailed(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::events::channel;
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);

    #[test]
    fn input_that_fails_is_no_end_of_it() {
        struct Fails(usize);
        impl Read for Fails {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
                bytes.fill(b'x');
                Ok(2)
            }
        }
        let ((sender, _, events), queue) = (channel(), ByteQueue::new(64));
        copy_stdin(Fails(3), &queue, &sender);
        let failed = events.next(Duration::ZERO);
        assert!(matches!(failed, Some(RunEvent::InputFailed(_))), "{failed:?}");
        assert_eq!(queue.pop(&mut [0; 64]), 6);
        // It can still be written to: the command sees no end.
        queue.push(b"x").unwrap();
        copy_stdin(io::empty(), &queue, &sender);
        queue.push(b"x").unwrap_err();
    }

    /// The events for output whose writer fails with this error, and what the guest is told. It comes in these pieces, each when the one before was
    /// taken.
    fn carried(error: i32, pieces: &'static [&[u8]], grace: Duration) -> (Vec<RunEvent>, usize) {
        struct Fails(i32);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(self.0))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let [from, reader_closed] = [64, READER_CLOSED.len()].map(|room| Arc::new(ByteQueue::new(room)));
        let (sender, guest, events) = channel();
        let to = TokenFilter::new(Fails(error), "-token");
        let (output, told) = (from.clone(), reader_closed.clone());
        spawn("output", &sender, move |events| copy_output(1, &output, to, &told, (&events, &guest), grace))
            .unwrap();
        for piece in pieces {
            from.push(piece).unwrap();
            assert!(from.wait_drained(FOR_EVER));
        }
        from.close();
        drop(sender);
        let events = std::iter::from_fn(|| events.next(FOR_EVER)).collect();
        (events, reader_closed.try_pop(&mut [0; 8]))
    }

    #[test]
    fn guest_hears_of_a_reader_that_left_and_the_host_of_any_other_failure() {
        let all: &[&[u8]] = &[b"output", b"more", b"and more-token"];
        let (events, told) = carried(libc::EPIPE, all, FOR_EVER);
        assert!(matches!(events[..], [RunEvent::StreamComplete(1, true), RunEvent::Closed]), "{events:?}");
        assert_eq!(told, READER_CLOSED.len());
        let (events, told) = carried(libc::ENOSPC, all, Duration::ZERO);
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
    fn time_without_output_is_hardly_any_of_that_in_which_it_is_sent_in_vain() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut left = SentInVain { last: begin, sum: Duration::ZERO };
        // At once when the reader leaves, and the next after an hour of a pause.
        assert_eq!(left.more(begin), Duration::ZERO);
        assert!(left.more(at(3600)) < READER_GRACE);
        let sums: Vec<_> = (3601..3606).map(|second| left.more(at(second)) >= READER_GRACE).collect();
        assert_eq!(sums, [false, false, false, true, true]);
        // No clock of the host goes back; should it seem to, nothing is taken away.
        assert!(left.more(begin) >= READER_GRACE);
    }

    #[test]
    fn guest_that_goes_on_after_its_reader_has_left_is_ended_and_one_that_ends_is_not() {
        const SIGPIPE: libc::c_int = libc::SIGPIPE;
        let (events, _) = carried(libc::EPIPE, &[b"output", b"more", b"and more"], Duration::ZERO);
        assert!(matches!(events[..], [RunEvent::Signal(SIGPIPE), RunEvent::Closed]), "{events:?}");
        // The end of a command that says no more is none of its output.
        let (events, _) = carried(libc::EPIPE, &[b"output", b"-to", b"ken"], Duration::ZERO);
        assert!(matches!(events[..], [RunEvent::StreamComplete(1, true), RunEvent::Closed]), "{events:?}");
    }
}
