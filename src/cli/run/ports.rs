//! The ports of a run, and the threads that carry their bytes: what comes of it is news for the session.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use devices::console::ByteQueue;

use super::args::RunArgs;
use super::output::UpToToken;
use crate::host::signals::{Signal, Signals};
use crate::machine::Machine;
use crate::machine::supplies::StreamPort;

/// Output that may wait for its reader before the command has to; memory is taken as bytes come.
const CAPACITY: usize = 1 << 20;
/// The longest line that is taken of what init says.
const LINE_MAX: usize = 256;
/// What happens during a run.
#[derive(Debug)]
pub(super) enum News {
    /// Init runs the command.
    Up,
    /// The command has ended like this.
    Ended(u8),
    /// This stream is complete, as far as is known.
    Complete(usize, bool),
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
    run: Arc<ByteQueue>,
    input: Arc<ByteQueue>,
}

/// How many ports have something to close.
pub(super) const READ_PORTS: usize = 3;

impl Ports {
    pub(super) fn new() -> Self {
        let queue = || Arc::new(ByteQueue::new(CAPACITY));
        Ports { output: [queue(), queue()], run: queue(), input: queue() }
    }

    pub(super) fn streams(&self) -> Vec<StreamPort> {
        let [out, err] = &self.output;
        // The other direction of each, for which there is no use.
        let unused = || Arc::new(ByteQueue::new(1));
        let from =
            |name, output: &Arc<ByteQueue>| StreamPort { name, input: unused(), output: output.clone() };
        vec![
            from("minivmm.out", out),
            from("minivmm.err", err),
            from("minivmm.run", &self.run),
            StreamPort { name: "minivmm.in", input: self.input.clone(), output: unused() },
        ]
    }

    /// Nothing comes any more; what is in them is still taken.
    pub(super) fn close(&self) {
        self.output.iter().chain([&self.run, &self.input]).for_each(|queue| queue.close());
    }
}

/// Starts whoever has news.
pub(super) fn listen(
    args: &RunArgs,
    machine: &Machine,
    ports: &Ports,
    signals: Signals,
    token: &str,
) -> io::Result<Receiver<News>> {
    let (sender, news) = mpsc::channel();
    let spawn = |name: &str, work: Box<dyn FnOnce(Sender<News>) + Send>| {
        let sender = sender.clone();
        thread::Builder::new().name(name.into()).spawn(move || work(sender)).map(drop)
    };
    let [out, err] = ports.output.clone();
    let (first, second) = (token.to_owned(), token.to_owned());
    spawn("stdout", Box::new(move |to| pass_on(0, &out, UpToToken::new(io::stdout(), &first), &to)))?;
    spawn("stderr", Box::new(move |to| pass_on(1, &err, UpToToken::new(io::stderr(), &second), &to)))?;
    let (run, input, events) = (ports.run.clone(), ports.input.clone(), machine.events());
    spawn("run", Box::new(move |to| hear(&run, &to)))?;
    spawn(
        "signals",
        Box::new(move |to| {
            while let Ok(signal) = signals.wait(None) {
                if let Some(Signal::End(number)) = signal {
                    let _ = to.send(News::Signal(number));
                }
            }
        }),
    )?;
    spawn(
        "events",
        Box::new(move |to| {
            events.for_each(drop);
            let _ = to.send(News::MachineEnded);
        }),
    )?;
    if args.stdin {
        spawn("stdin", Box::new(move |_| feed(&input)))?;
    }
    Ok(news)
}

/// Passes a stream on.
fn pass_on<W: Write>(index: usize, from: &ByteQueue, mut to: UpToToken<W>, news: &Sender<News>) {
    let mut bytes = vec![0; 64 << 10];
    let mut complete = false;
    loop {
        let count = from.pop(&mut bytes);
        let Some(batch) = bytes.get(..count).filter(|batch| !batch.is_empty()) else { break };
        let now = to.take(batch);
        if now != complete {
            complete = now;
            let _ = news.send(News::Complete(index, complete));
        }
    }
    to.finish();
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
    let mut bytes = [0; 16 << 10];
    loop {
        match io::stdin().lock().read(&mut bytes) {
            Ok(count @ 1..) if to.push(bytes.get(..count).unwrap_or_default()).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    to.close();
}

#[cfg(test)]
mod tests {
    use super::*;

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
