//! The ports of a run, and the threads that carry their bytes: what comes of it is news for the session.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::console::ByteQueue;
use devices::thread::{self, Role};

use super::args::RunArgs;
use super::error::RunError;
use super::output::UpToToken;
use super::start::Started;
use crate::host::ready::wait_for_hangup;
use crate::host::stdio::{Input, Output};
use crate::machine::Machine;
use crate::machine::run_resources::StreamPort;

/// Output that may wait for its reader before the command has to; memory is taken as bytes come.
const CAPACITY: usize = 1 << 20;
/// The longest line that is taken of what init says.
const LINE_MAX: usize = 256;
/// What init is told over the port of a stream that nobody reads any more.
const LEFT: &[u8] = b"\n";

/// What happens during a run.
#[derive(Debug)]
pub(super) enum News {
    /// The machine is about to.
    Boots,
    /// It runs, or could not be started.
    Started(Box<Result<Started, RunError>>),
    /// Init runs the command.
    Up,
    /// The command has ended like this.
    Ended(u8),
    /// This stream is complete, as far as is known.
    Complete(usize, bool),
    /// The host does not take it.
    Lost(usize, io::Error),
    /// Nothing comes from this port any more.
    Closed,
    /// The machine has ended.
    MachineEnded,
    /// Somebody wants an end.
    Signal(libc::c_int),
}

/// The ports between the guest and this process.
#[derive(Debug)]
pub(super) struct Ports {
    output: [Arc<ByteQueue>; 2],
    /// The other direction of each: whether its reader has left.
    left: [Arc<ByteQueue>; 2],
    run: Arc<ByteQueue>,
    input: Arc<ByteQueue>,
}

/// How many ports have something to close.
pub(super) const READ_PORTS: usize = 3;

impl Ports {
    pub(super) fn new() -> Self {
        let queue = || Arc::new(ByteQueue::new(CAPACITY));
        let left = || Arc::new(ByteQueue::new(LEFT.len()));
        Ports { output: [queue(), queue()], left: [left(), left()], run: queue(), input: queue() }
    }

    pub(super) fn streams(&self) -> Vec<StreamPort> {
        let ([out, err], [out_left, err_left]) = (&self.output, &self.left);
        // The other direction, for which there is no use.
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

    /// Nothing comes any more; what is in them is still taken.
    pub(super) fn close(&self) {
        self.output.iter().chain([&self.run, &self.input]).for_each(|queue| queue.close());
    }

    /// Starts whoever takes what comes from the guest.
    pub(super) fn listen(&self, token: &str, news: &Sender<News>) -> io::Result<()> {
        let run = self.run.clone();
        spawn("run", news, move |news| hear(&run, &news))?;
        self.carry(0, Output::standard(), token, news)?;
        self.carry(1, Output::error(), token, news)
    }

    /// Passes one of the streams on, and looks whether its reader is there.
    fn carry(&self, index: usize, to: Output, token: &str, news: &Sender<News>) -> io::Result<()> {
        let (Some(from), Some(left)) = (self.output.get(index).cloned(), self.left.get(index).cloned())
        else {
            return Ok(());
        };
        let (token, seen) = (token.to_owned(), left.clone());
        spawn("output", news, move |news| pass_on(index, &from, UpToToken::new(to, &token), &left, &news))?;
        // At the first moment, as on the host: its next write ends a command.
        spawn("reader", news, move |_| {
            if wait_for_hangup(&to).is_ok() {
                seen.try_push(LEFT);
            }
        })
    }
}

/// Starts a thread that may have news.
pub(super) fn spawn(
    name: &str,
    news: &Sender<News>,
    work: impl FnOnce(Sender<News>) + Send + 'static,
) -> io::Result<()> {
    let news = news.clone();
    thread::spawn(Role::Cli, name, move || work(news)).map(drop)
}

/// Starts whoever needs the machine: who hears of its end, and who feeds its command.
pub(super) fn to_guest(
    args: &RunArgs,
    machine: &Machine,
    ports: &Ports,
    news: &Sender<News>,
) -> io::Result<()> {
    let events = machine.events();
    spawn("events", news, move |news| {
        events.for_each(drop);
        let _ = news.send(News::MachineEnded);
    })?;
    let input = ports.input.clone();
    if args.stdin { spawn("stdin", news, move |_| feed(&input)) } else { Ok(()) }
}

/// Passes a stream on. What the host does not take is thrown away: the command must not wait for it.
fn pass_on<W: Write>(
    index: usize,
    from: &ByteQueue,
    mut to: UpToToken<W>,
    left: &ByteQueue,
    news: &Sender<News>,
) {
    let tell = |failure: Option<io::Error>| match failure {
        // Closing the other end of a pipe is a reader's way to say that it has seen enough.
        Some(error) if error.kind() == ErrorKind::BrokenPipe => drop(left.try_push(LEFT)),
        Some(error) => drop(news.send(News::Lost(index, error))),
        None => {}
    };
    let mut bytes = vec![0; 64 << 10];
    let mut complete = false;
    loop {
        let count = from.pop(&mut bytes);
        let Some(batch) = bytes.get(..count).filter(|batch| !batch.is_empty()) else { break };
        let now = to.take(batch);
        tell(to.failure());
        if now != complete {
            complete = now;
            let _ = news.send(News::Complete(index, complete));
        }
    }
    to.finish();
    tell(to.failure());
    let _ = news.send(News::Closed);
}

/// Hears what init says: lines, of which unknown ones say nothing.
fn hear(from: &ByteQueue, news: &Sender<News>) {
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
            if let Some(said) = understood(&line) {
                let _ = news.send(said);
            }
            line.clear();
        }
    }
    let _ = news.send(News::Closed);
}

fn understood(line: &[u8]) -> Option<News> {
    match std::str::from_utf8(line).ok()?.split_once(' ') {
        None => (line == b"up").then_some(News::Up),
        Some(("exit", status)) => status.parse().ok().map(News::Ended),
        Some(_) => None,
    }
}

/// Gives the command what comes on standard input, to its end.
fn feed(to: &ByteQueue) {
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

    /// What becomes of output whose writer fails like this.
    fn carried(error: i32) -> (Vec<News>, usize) {
        struct Fails(i32);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(self.0))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (from, left) = (ByteQueue::new(64), ByteQueue::new(LEFT.len()));
        from.push(b"output-token").unwrap();
        from.close();
        let (sender, news) = mpsc::channel();
        pass_on(1, &from, UpToToken::new(Fails(error), "-token"), &left, &sender);
        drop(sender);
        (news.iter().collect(), left.try_pop(&mut [0; 8]))
    }

    #[test]
    fn guest_hears_of_a_reader_that_left_and_the_host_of_any_other_failure() {
        let (news, told) = carried(libc::EPIPE);
        assert!(matches!(news[..], [News::Complete(1, true), News::Closed]), "{news:?}");
        assert_eq!(told, LEFT.len());
        let (news, told) = carried(libc::ENOSPC);
        assert!(matches!(news[..], [News::Lost(1, _), News::Complete(1, true), News::Closed]), "{news:?}");
        assert_eq!(told, 0);
    }

    #[test]
    fn lines_of_init_are_understood_and_others_are_not() {
        let queue = ByteQueue::new(1 << 16);
        queue.push(b"up\nexit 7\nexit 300\nexit\nup now\n\xff\n").unwrap();
        queue.push(&[b'x'; 5000]).unwrap();
        queue.push(b"\nexit 0\nexit 9").unwrap();
        queue.close();
        let (sender, news) = mpsc::channel();
        hear(&queue, &sender);
        drop(sender);
        let said: Vec<_> = news.iter().collect();
        assert!(matches!(said[..], [News::Up, News::Ended(7), News::Ended(0), News::Closed]), "{said:?}");
    }
}
