//! The run itself: what happens to the machine and its command, until something ends it.
//!
//! The main thread decides, and never waits for anything without a limit: others start the machine, carry its bytes and hear
//! signals.

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use super::args::RunArgs;
use super::error::RunError;
use super::ports::{News, Ports, READ_PORTS, spawn, to_guest};
use super::start::{Start, Started};
use super::verdict::{Over, lost};
use crate::cli::exit::Status;
use crate::cli::report;
use crate::cli::session::{LAST, until_given_up};
use crate::control::Ending;
use crate::host::signals::{Signal, Signals};
use crate::spec::Spec;

/// How long what is left of the output may take to leave once the machine has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long a machine that is about to run may take to, so that it is ended in good order when it is not wanted any more.
const ABOUT: Duration = Duration::from_secs(1);
/// How long the last words may take: what holds standard error may be output that nobody reads.
const WORDS: Duration = Duration::from_secs(2);
/// Where nothing has a limit.
const LONG: Duration = Duration::from_secs(3600);
/// Lines of the console that are shown.
const LINES: usize = 15;

/// Runs the machine until the command has ended, or something else has.
pub(super) fn run(args: &RunArgs, spec: Spec) -> Result<Status, RunError> {
    // Before any thread exists, so that all of them have the signals blocked.
    let refused = |what| move |source| RunError::Host { what, source };
    let signals = Signals::block().map_err(refused("to block signals"))?;
    report::hurry();
    let token = token().map_err(refused("random bytes"))?;
    let (sender, news) = mpsc::channel();
    let ports = Ports::new();
    spawn("signals", &sender, move |news| hear(&signals, &news)).map_err(refused("a thread"))?;
    ports.listen(&token, &sender).map_err(refused("a thread"))?;
    let start = Start { args: args.clone(), spec, streams: ports.streams(), token };
    spawn("start", &sender, move |news| {
        let started = start.start(&news);
        let _ = news.send(News::Started(Box::new(started)));
    })
    .map_err(refused("a thread"))?;
    let mut run = Run::new(args, ports, sender);
    let over = run.follow(&news)?;
    Ok(run.end(&over, &news))
}

/// What no command writes by chance.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The first signal ends the run; another, or time, leaves what does not end then.
fn hear(signals: &Signals, news: &Sender<News>) {
    let number = loop {
        match signals.wait(None) {
            Ok(Some(Signal::End(number))) => break number,
            Ok(_) => {}
            Err(_) => return,
        }
    };
    let _ = news.send(News::Signal(number));
    until_given_up(signals);
    say(LEFT.into());
    std::process::exit(128 + number);
}

const LEFT: &str = "minivmm: the machine has not ended yet, and is left to the kernel\n";

/// Says something, and does not wait for it for ever.
fn say(text: String) {
    let (told, said) = mpsc::channel::<()>();
    let speak = move || {
        report::say(&text);
        drop(told);
    };
    if thread::spawn(Role::Cli, "says", speak).is_ok() {
        let _ = said.recv_timeout(WORDS);
    }
}

/// What is known of a run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) args: &'a RunArgs,
    ports: Ports,
    sender: Sender<News>,
    begin: Instant,
    /// When the machine began to start.
    boots: Option<Instant>,
    started: Option<Started>,
    pub(super) up: bool,
    pub(super) ended: Option<u8>,
    complete: [bool; 2],
    closed: usize,
    /// What the host did not take of the output.
    pub(super) lost: Option<String>,
}

impl<'a> Run<'a> {
    pub(super) fn new(args: &'a RunArgs, ports: Ports, sender: Sender<News>) -> Self {
        Run {
            args,
            ports,
            sender,
            begin: Instant::now(),
            boots: None,
            started: None,
            up: false,
            ended: None,
            complete: [false; 2],
            closed: 0,
            lost: None,
        }
    }

    /// Follows the run until it is over.
    fn follow(&mut self, news: &Receiver<News>) -> Result<Over, RunError> {
        loop {
            let limit = self.args.limit().and_then(|limit| self.begin.checked_add(limit));
            let boot = self.boots.filter(|_| !self.up).and_then(|at| at.checked_add(self.args.boot_limit()));
            let now = Instant::now();
            if limit.is_some_and(|at| at <= now) {
                return Ok(Over::Limit);
            }
            if boot.is_some_and(|at| at <= now) {
                return Ok(Over::BootLimit);
            }
            let soonest = [limit, boot].into_iter().flatten().min();
            // Beyond the limit is what comes next.
            let Ok(said) = news.recv_timeout(soonest.map_or(LONG, |at| at - now)) else { continue };
            if let Some(over) = self.note(said)? {
                return Ok(over);
            }
        }
    }

    pub(super) fn note(&mut self, said: News) -> Result<Option<Over>, RunError> {
        match said {
            News::Boots => self.boots = Some(Instant::now()),
            News::Started(started) => {
                let started = (*started)?;
                to_guest(self.args, &started.machine, &self.ports, &self.sender)
                    .map_err(|source| RunError::Host { what: "a thread", source })?;
                self.started = Some(started);
            }
            News::Up => self.up = true,
            News::Ended(status) => self.ended = self.ended.or(Some(status)),
            News::Complete(index, now) => {
                if let Some(complete) = self.complete.get_mut(index) {
                    *complete = now;
                }
            }
            News::Lost(index, error) => {
                self.lost.get_or_insert(lost(index, &error));
                return Ok(Some(Over::Lost));
            }
            News::Closed => self.closed += 1,
            News::MachineEnded => return Ok(Some(Over::Machine)),
            News::Signal(number) => return Ok(Some(Over::Signal(number))),
        }
        Ok(self.done().map(Over::Done))
    }

    /// What the command ended with, if all its output is out.
    pub(super) fn done(&self) -> Option<u8> {
        self.ended.filter(|_| self.complete == [true; 2])
    }

    /// Ends the machine, and says how the run ended.
    fn end(mut self, over: &Over, news: &Receiver<News>) -> Status {
        self.await_start(news);
        let exit = self.started.as_ref().and_then(|Started { machine, .. }| {
            machine.kill();
            machine.wait_for(LAST)
        });
        self.ports.close();
        self.drain(news);
        let (text, status) = self.verdict(over, exit.as_deref());
        if let Some(text) = &text {
            let mut words = format!("minivmm: {text}\n");
            // A guest that is shown has said it already.
            if !self.args.verbose && over.is_the_guests() {
                words.push_str(&self.last_words());
            }
            say(words);
        }
        if let Some(Started { machine, control }) = self.started {
            let text = text.unwrap_or_else(|| format!("its command ended with status {}", status.code()));
            if let Some(control) = control {
                control.finish(Ending { status: status.code(), text });
            }
            if exit.is_none() {
                say(LEFT.into());
                // It would be waited for; the kernel ends it with this process.
                std::mem::forget(machine);
            }
        }
        status
    }

    /// Takes the machine that is just coming. One that is not is still being made, and is left to the kernel.
    fn await_start(&mut self, news: &Receiver<News>) {
        let deadline = Instant::now() + ABOUT;
        while self.started.is_none() {
            match news.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // It shall not run: there is nobody to feed it, or to hear of its end.
                Ok(News::Started(started)) => match *started {
                    Ok(started) => self.started = Some(started),
                    Err(_) => return,
                },
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits until everything that came before the machine's end is out.
    fn drain(&mut self, news: &Receiver<News>) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.closed < READ_PORTS {
            let left = deadline.saturating_duration_since(Instant::now());
            match news.recv_timeout(left) {
                Ok(News::MachineEnded | News::Signal(_)) => {}
                Ok(said) => drop(self.note(said)),
                Err(_) => return,
            }
        }
    }

    /// What the console said last.
    fn last_words(&self) -> String {
        let said = self.started.as_ref().map(|Started { machine, .. }| machine.console().last_lines(LINES));
        let lines: String =
            said.iter().flat_map(|said| said.lines()).map(|line| format!("  | {line}\n")).collect();
        match lines.is_empty() {
            true => "minivmm: the console said nothing\n".to_owned(),
            false => format!("minivmm: the console said last:\n{lines}"),
        }
    }
}
