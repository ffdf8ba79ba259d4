//! The run itself: handles the events of the machine and its command until one ends the run.
//!
//! The main thread decides, and never blocks without a limit: other threads start the machine, copy its bytes
//! and wait for signals.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use super::args::RunArgs;
use super::environment;
use super::error::RunError;
use super::events::{Events, channel};
use super::out::{self, OutFolder, Unpacked};
use super::ports::{READ_PORTS, RunEvent, listen, pass_stdin, spawn, watch_end};
use super::start::{RunStart, Started, Way};
use super::tar::TarError;
use super::terminal;
use super::times::Times;
use super::verdict::{RunEnd, advice, output_error};
use super::volume;
use super::warm::say_saved;
use crate::cli::exit::Status;
use crate::cli::report;
use crate::cli::session::{END_LIMIT, wait_until_abandoned};
use crate::control::Ending;
use crate::host::signals::{Signal, Signals};
use crate::host::terminal::{RestoreGuard, Terminal};
use crate::machine::commands::{self, CommandPorts, MorePorts, Task};
use crate::spec::Spec;

/// How long the rest of the output may take once the machine has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait for a machine that is starting, so that it can be ended in order.
const START_LIMIT: Duration = Duration::from_secs(1);
/// Limit for the final message: the reader of standard error may be blocked.
const MESSAGE_LIMIT: Duration = Duration::from_secs(2);
/// For waits without a limit.
const NO_LIMIT: Duration = Duration::from_secs(3600);
/// Lines of the console that are shown.
const CONSOLE_LINES: usize = 15;

/// Runs the machine until the command has exited, or another event ends the run.
pub(super) fn run(args: &RunArgs, spec: Spec) -> Result<Status, RunError> {
    // Before any thread exists, so that all of them have the signals blocked.
    let refused = |what| move |source| RunError::Host { what, source };
    let signals = if args.tty { Signals::block_terminal() } else { Signals::block() };
    let signals = signals.map_err(refused("to block signals"))?;
    let terminal = terminal::of(args)?;
    // On every way out.
    let _restored = RestoreGuard(terminal.clone());
    report::limit_stderr_waits();
    let token = commands::token().map_err(refused("random bytes"))?;
    let (sender, guest, events) = channel();
    let out = args.out.as_deref().map(|out| {
        volume::refuse_out(args, &spec, out)?;
        OutFolder::create(out)
    });
    let out = out.transpose()?;
    let ports =
        CommandPorts::with(MorePorts { input: args.has_input(), files: out.is_some(), terminal: args.tty });
    let own = terminal.clone();
    spawn("signals", &sender, move |events| forward_signal(&signals, own.as_deref(), &events))
        .map_err(refused("a thread"))?;
    listen(&ports, &token, &sender, &guest).map_err(refused("a thread"))?;
    if let (Some(files), Some(folder)) = (&ports.files, out) {
        out::receive(files, folder, &sender).map_err(refused("a thread"))?;
    }
    let start = RunStart { args: args.clone(), spec, streams: ports.streams(), anew: false };
    let mut run = Run::new(args, ports, sender, token);
    run.terminal = terminal;
    run.again = Some(start.clone());
    run.start(start)?;
    let end = run.wait(&events)?;
    Ok(run.finish(end, &events))
}

/// The first signal ends the run. After another one, or the limit, the process exits without waiting for the
/// machine.
fn forward_signal(signals: &Signals, terminal: Option<&Terminal>, events: &Sender<RunEvent>) {
    let number = loop {
        match signals.wait(None) {
            Ok(Some(Signal::End(number))) => break number,
            Ok(Some(other)) => terminal::heed(other, terminal, events),
            Ok(None) => {}
            Err(_) => return,
        }
    };
    let _ = events.send(RunEvent::Signal(number));
    wait_until_abandoned(signals);
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    print_within_limit(ABANDONED.into());
    std::process::exit(128 + number);
}

const ABANDONED: &str = "minivmm: the machine has not ended yet, and is left to the kernel\n";

/// Prints a message, within a limit.
fn print_within_limit(text: String) {
    let (done_sender, done) = mpsc::channel::<()>();
    let print = move || {
        report::message(&text);
        drop(done_sender);
    };
    if thread::spawn(Role::Cli, "says", print).is_ok() {
        let _ = done.recv_timeout(MESSAGE_LIMIT);
    }
}

fn no_thread(source: io::Error) -> RunError {
    RunError::Host { what: "a thread", source }
}

/// The state of a run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) args: &'a RunArgs,
    ports: CommandPorts,
    sender: Sender<RunEvent>,
    token: String,
    /// That of the command.
    terminal: Option<Arc<Terminal>>,
    begin: Instant,
    times: Times,
    /// When the machine began to start, or went on to do so.
    boots: Option<Instant>,
    started: Option<Started>,
    /// Counts the machines of this run.
    attempt: u32,
    /// For one that boots instead of a warm one that did not go on.
    again: Option<RunStart>,
    /// Init waits for the command.
    ready: bool,
    pub(super) up: bool,
    pub(super) ended: Option<u8>,
    complete: [bool; 2],
    /// Init has sent the files that it has left.
    packed: bool,
    /// Those files.
    files: Option<Result<Unpacked, TarError>>,
    closed: usize,
    /// The error of writing the output, if any.
    pub(super) output_error: Option<String>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        args: &'a RunArgs,
        ports: CommandPorts,
        sender: Sender<RunEvent>,
        token: String,
    ) -> Self {
        Run {
            args,
            ports,
            sender,
            token,
            terminal: None,
            begin: Instant::now(),
            times: Times::default(),
            boots: None,
            started: None,
            attempt: 0,
            again: None,
            ready: false,
            up: false,
            ended: None,
            complete: [false; 2],
            packed: false,
            files: None,
            closed: 0,
            output_error: None,
        }
    }

    /// Has another thread start a machine.
    fn start(&self, start: RunStart) -> Result<(), RunError> {
        spawn("start", &self.sender, move |events| {
            let started = start.start(&events);
            let _ = events.send(RunEvent::Started(Box::new(started)));
        })
        .map_err(|source| RunError::Host { what: "a thread", source })
    }

    /// Handles events until the run ends.
    fn wait(&mut self, events: &Events) -> Result<RunEnd, RunError> {
        loop {
            let limit = self.args.limit().and_then(|limit| self.begin.checked_add(limit));
            let boot = self.boots.filter(|_| !self.up).and_then(|at| at.checked_add(self.args.boot_limit()));
            let now = Instant::now();
            if limit.is_some_and(|at| at <= now) {
                return Ok(RunEnd::Timeout);
            }
            if boot.is_some_and(|at| at <= now) {
                if self.boot_instead()? {
                    continue;
                }
                return Ok(RunEnd::BootTimeout);
            }
            let soonest = [limit, boot].into_iter().flatten().min();
            // An event that arrives after the limit is ignored.
            let Some(event) = events.next(soonest.map_or(NO_LIMIT, |at| at - now)) else { continue };
            if let Some(end) = self.handle(event)? {
                return Ok(end);
            }
        }
    }

    pub(super) fn handle(&mut self, event: RunEvent) -> Result<Option<RunEnd>, RunError> {
        match event {
            RunEvent::Starting => self.boots = Some(Instant::now()),
            RunEvent::Running(at) => self.times.running = Some(at),
            RunEvent::Init(took) => self.times.init = Some(took),
            RunEvent::Started(started) => {
                let started = (*started)?;
                watch_end(&started.machine, self.attempt, &self.sender).map_err(no_thread)?;
                let waits = self.ready || matches!(started.way, Way::Restored);
                self.started = Some(started);
                if waits {
                    self.ready = true;
                    self.guest_waits()?;
                }
            }
            // A machine gets one command, however often it says so.
            RunEvent::Ready if self.ready || self.ended.is_some() => {}
            RunEvent::Ready => {
                self.ready = true;
                self.times.ready = Some(Instant::now());
                if self.started.is_some() {
                    self.guest_waits()?;
                }
            }
            RunEvent::Saved(saved) => {
                say_saved(self.args, &saved);
                self.give_command()?;
            }
            RunEvent::Up => {
                if self.args.stdin && !self.up {
                    let pass = match &self.terminal {
                        Some(terminal) => terminal::pass_keys(&self.ports, terminal, &self.sender),
                        None => pass_stdin(&self.ports, &self.sender),
                    };
                    pass.map_err(no_thread)?;
                }
                self.up = true;
                // It may have changed since the command was given.
                self.resize();
                self.times.up.get_or_insert_with(Instant::now);
            }
            RunEvent::NoDirectory => return Ok(Some(RunEnd::NoDirectory)),
            RunEvent::CommandExited(status) => {
                self.times.exited.get_or_insert_with(Instant::now);
                self.ended = self.ended.or(Some(status));
                if self.args.out.is_some() && !self.packed {
                    let text = "the guest's init ended the command and sent no files for --out";
                    return Ok(Some(RunEnd::NoFiles(text.to_owned())));
                }
            }
            RunEvent::StreamComplete(index, now) => {
                if let Some(complete) = self.complete.get_mut(index) {
                    *complete = now;
                }
            }
            RunEvent::OutputFailed(index, error) => {
                self.output_error.get_or_insert(output_error(index, &error));
                return Ok(Some(RunEnd::OutputFailed));
            }
            // A command that has ended did not need the rest.
            RunEvent::InputFailed(_) if self.ended.is_some() => {}
            RunEvent::InputFailed(error) => return Ok(Some(RunEnd::InputFailed(error))),
            RunEvent::Closed => self.closed += 1,
            RunEvent::MachineEnded(attempt) if attempt < self.attempt => {}
            RunEvent::MachineEnded(_) => {
                return Ok(if self.boot_instead()? { None } else { Some(RunEnd::MachineEnded) });
            }
            RunEvent::Packed(0) => self.packed = true,
            RunEvent::Packed(status) => {
                let text = format!(
                    "the guest's tar could not pack the files for --out, and ended with status {status}"
                );
                return Ok(Some(RunEnd::NoFiles(text)));
            }
            RunEvent::Files(files) => self.files = Some(*files),
            RunEvent::Resized => {
                if self.up {
                    self.resize();
                }
            }
            RunEvent::Signal(number) => return Ok(Some(RunEnd::Signal(number))),
            RunEvent::Quit => return Ok(Some(RunEnd::Quit)),
        }
        Ok(self.done().map(RunEnd::Done))
    }

    /// Tells the guest the size of the terminal that the command has.
    fn resize(&mut self) {
        if let Some(size) = terminal::size(self.terminal.as_ref()).filter(|_| self.args.tty) {
            self.ports.resize(size);
        }
    }

    /// The guest waits for its command: it is kept before, if that is wanted.
    fn guest_waits(&mut self) -> Result<(), RunError> {
        let started = self.started.as_mut();
        let keep = started.and_then(|started| match &mut started.way {
            Way::Boots(keep) => Some((keep.take()?, started.machine.controls())),
            Way::Restored => None,
        });
        let Some((keep, controls)) = keep else { return self.give_command() };
        // A save takes the time that it takes.
        self.boots = None;
        let save = move |events: Sender<RunEvent>| {
            let _ = events.send(RunEvent::Saved(keep.save(&controls)));
        };
        spawn("save", &self.sender, save).map_err(no_thread)
    }

    fn give_command(&mut self) -> Result<(), RunError> {
        if let Some(terminal) = self.terminal.as_ref().filter(|_| self.args.stdin) {
            // Before the command says anything, whose line ends are as it wants them.
            terminal.update().map_err(|source| RunError::Host { what: "the terminal", source })?;
        }
        let environment = environment::of(self.args, std::env::vars_os());
        let task = Task {
            words: &self.args.command,
            environment: &environment,
            directory: self.args.workdir.as_deref(),
            terminal: self.args.tty.then(|| terminal::size(self.terminal.as_ref())),
            // What is typed is not in that port.
            input: self.args.stdin && !self.args.tty,
            token: &self.token,
        };
        let line = task.line().map_err(|source| RunError::Host { what: "random bytes", source })?;
        self.ports.give(&line);
        self.boots = Some(Instant::now());
        self.times.given = self.boots;
        Ok(())
    }

    /// Boots a machine if this one goes on from a warm one and its command has not begun: what was saved is damaged, or this host is not
    /// the one that it was saved on. Says whether it does.
    fn boot_instead(&mut self) -> Result<bool, RunError> {
        let restored = |started: &Started| matches!(started.way, Way::Restored);
        if self.up || !self.started.as_ref().is_some_and(restored) {
            return Ok(false);
        }
        let (Some(Started { machine, control, .. }), Some(again)) = (self.started.take(), self.again.take())
        else {
            return Ok(false);
        };
        machine.kill();
        if machine.wait_for(END_LIMIT).is_none() {
            std::mem::forget(machine);
        }
        if let Some(control) = control {
            let text = "it boots instead of going on from a warm machine".to_owned();
            control.finish(Ending { status: Status::RunNeverUp.code(), text });
        }
        // The next one gets it when it was saved.
        self.ports.take_back();
        (self.ready, self.boots, self.times) = (false, None, Times::default());
        self.attempt += 1;
        self.start(RunStart { anew: true, ..again })?;
        Ok(true)
    }

    /// The command's status, once all its output is written.
    pub(super) fn done(&self) -> Option<u8> {
        let has_files = self.args.out.is_none() || self.files.is_some();
        self.ended.filter(|_| has_files && self.has_all_output())
    }

    /// Whether both streams have come to their end.
    pub(super) fn has_all_output(&self) -> bool {
        self.complete == [true; 2]
    }

    /// Ends the machine, and prints how the run ended.
    fn finish(mut self, mut end: RunEnd, events: &Events) -> Status {
        self.await_start(events);
        // What is said from here on is for a terminal as it was.
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
        let exit = self.started.as_ref().and_then(|Started { machine, .. }| {
            machine.kill();
            machine.wait_for(END_LIMIT)
        });
        self.ports.close();
        self.drain(events);
        if let (RunEnd::MachineEnded, Some(status)) = (&end, self.done()) {
            end = RunEnd::Done(status);
        }
        if let (RunEnd::Done(_), Some(files)) = (&end, self.files.take()) {
            end = out::keep(files, self.args).map_or_else(RunEnd::NoFiles, |()| end);
        }
        let (text, status) = self.verdict(&end, exit.as_deref());
        if self.args.time {
            print_within_limit(format!("minivmm: time: {}\n", self.times.since(self.begin)));
        }
        if self.args.root.is_none()
            && let Some(advice) = advice(status, &self.args.command)
        {
            print_within_limit(format!("minivmm: {advice}\n"));
        }
        if let Some(text) = &text {
            let mut words = format!("minivmm: {text}\n");
            // With `--verbose` the console was already shown.
            if !self.args.verbose && end.is_caused_by_guest() {
                words.push_str(&self.console_tail());
            }
            print_within_limit(words);
        }
        if let Some(Started { machine, control, .. }) = self.started {
            let text = text.unwrap_or_else(|| format!("its command ended with status {}", status.code()));
            if let Some(control) = control {
                control.finish(Ending { status: status.code(), text });
            }
            if exit.is_none() {
                print_within_limit(ABANDONED.into());
                // Dropping it would wait; the kernel ends it with this process.
                std::mem::forget(machine);
            }
        }
        status
    }

    /// Waits for a machine that is starting. One that takes longer is left to the kernel.
    fn await_start(&mut self, events: &Events) {
        let deadline = Instant::now() + START_LIMIT;
        while self.started.is_none() {
            match events.next(deadline.saturating_duration_since(Instant::now())) {
                // The machine is ended at once: its threads are not running.
                Some(RunEvent::Started(started)) => match *started {
                    Ok(started) => self.started = Some(started),
                    Err(_) => return,
                },
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Waits until all output before the machine's end is written.
    fn drain(&mut self, events: &Events) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        let more = [self.ports.terminal.is_some(), self.ports.files.is_some()];
        let ports = READ_PORTS + more.into_iter().map(usize::from).sum::<usize>();
        while self.closed < ports {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.next(left) {
                Some(RunEvent::MachineEnded(_) | RunEvent::Signal(_) | RunEvent::Quit) => {}
                Some(RunEvent::Ready | RunEvent::Saved(_)) => {}
                Some(event) => drop(self.handle(event)),
                None => return,
            }
        }
    }

    /// The last lines of the console.
    fn console_tail(&self) -> String {
        let text =
            self.started.as_ref().map(|Started { machine, .. }| machine.console().last_lines(CONSOLE_LINES));
        let lines: String =
            text.iter().flat_map(|text| text.lines()).map(|line| format!("  | {line}\n")).collect();
        match lines.is_empty() {
            true => "minivmm: the console said nothing\n".to_owned(),
            false => format!("minivmm: the console said last:\n{lines}"),
        }
    }
}
