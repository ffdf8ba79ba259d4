//! `minivmm console`: a machine's console in this terminal, until the machine ends or somebody detaches.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::wait::EndWaiter;
use super::{ANSWER_LIMIT, MachineClient, VerbError};
use crate::cli::console_input::forward_input;
use crate::cli::exit::Status;
use crate::cli::menu::{ATTACHED_HELP, Choice};
use crate::cli::report;
use crate::cli::session::suspend;
use crate::control::client::{ClientError, ConsoleConnection};
use crate::host::ready::wait_for_hangup;
use crate::host::signals::{Signal, Signals};
use crate::host::stdio::{Input, Output};
use crate::host::terminal::{GiveBack, Terminal};
use crate::spec::MachineName;

/// How long a machine whose console has ended may take to end itself.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long what was read already may take to be shown once somebody has detached.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

pub(super) fn attach(name: &MachineName) -> Result<Status, VerbError> {
    let client = MachineClient::find(name)?;
    let ConsoleConnection { stream, received } =
        ConsoleConnection::open(&client.0.socket).map_err(|source| client.failed(source))?;
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block_stop().map_err(VerbError::Terminal)?;
    report::limit_stderr_waits();
    let terminal = Terminal::standard().map(Arc::new);
    let restore_guard = GiveBack(terminal.clone());
    if let Some(terminal) = &terminal {
        terminal.settle().map_err(VerbError::Terminal)?;
    }
    let (events, event_receiver) = mpsc::channel();
    let viewer = Arc::new(Viewer {
        client,
        stream,
        terminal,
        detached: AtomicBool::new(false),
        events: events.clone(),
    });
    // Asked now: the machine's process may be gone a moment after its console's end. Without a seat it is asked then.
    let waiter = EndWaiter::start(&viewer.client).ok();
    viewer.print_greeting();
    let signal_viewer = viewer.clone();
    spawn("signals", move || signal_viewer.handle_signals(&signals))?;
    let input_viewer = viewer.clone();
    spawn("stdin", move || input_viewer.forward_stdin())?;
    let reader_viewer = viewer.clone();
    spawn("reader", move || reader_viewer.detach_when_reader_closes())?;
    let output_viewer = viewer.clone();
    spawn("stdout", move || {
        let _ = events.send(ViewerEvent::Shown(output_viewer.show(&received)));
    })?;
    let shown = match event_receiver.recv() {
        Ok(ViewerEvent::Shown(shown)) => shown,
        // What is stuck at its reader must not hold up a person that leaves.
        Ok(ViewerEvent::Detached) | Err(_) => match event_receiver.recv_timeout(DRAIN_LIMIT) {
            Ok(ViewerEvent::Shown(shown)) => shown,
            _ => Ok(()),
        },
    };
    // What is said next is for a person at a normal prompt.
    drop(restore_guard);
    shown.map_err(VerbError::Output)?;
    viewer.report_end(waiter)
}

/// What ends the verb.
#[derive(Debug)]
enum ViewerEvent {
    /// The console has ended, or cannot be shown.
    Shown(io::Result<()>),
    Detached,
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), VerbError> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(VerbError::Terminal)
}

/// What is said when a console that was opened in the background comes to the foreground.
fn announce() {
    report::notice(true, "the keys of this terminal reach the guest now; Ctrl-] d detaches");
}

/// What the threads share.
#[derive(Debug)]
struct Viewer {
    client: MachineClient,
    stream: UnixStream,
    terminal: Option<Arc<Terminal>>,
    detached: AtomicBool,
    events: mpsc::Sender<ViewerEvent>,
}

impl Viewer {
    fn name(&self) -> &MachineName {
        &self.client.0.name
    }

    /// Only a person at a terminal is greeted.
    fn print_greeting(&self) {
        if let Some(terminal) = &self.terminal {
            let keys = if terminal.is_raw() {
                "Ctrl-] d detaches, Ctrl-] ? lists the keys"
            } else {
                "no keys in the background: use `fg`, or `timeout --foreground`"
            };
            terminal.announce(announce);
            let info = self.client.get("/v1/machine").unwrap_or_default();
            let paused = if info.get("state") == Some(&"paused".into()) { "it is paused; " } else { "" };
            self.notice(&format!("the console of {}: {paused}{keys}", self.name()));
        }
    }

    /// From the guest to standard output, until the machine ends or lets us go, or nobody reads there any more.
    fn show(&self, received: &[u8]) -> io::Result<()> {
        let (mut output, mut from) = (Output::standard(), &self.stream);
        let mut bytes = [0; 4096];
        let mut shown = output.write_all(received);
        while shown.is_ok() {
            shown = match from.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(n) => output.write_all(bytes.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
                // The machine's end of the connection went without a word: its process was killed.
                Err(_) => return Ok(()),
            };
        }
        match shown {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.detach();
                Ok(())
            }
            other => other,
        }
    }

    /// `minivmm console vm0 | grep -m 1 WORD` ends with grep, also when the guest has nothing more to say.
    fn detach_when_reader_closes(&self) {
        if wait_for_hangup(&Output::standard()).is_ok() {
            self.detach();
        }
    }

    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        // Ends what shows the console.
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.events.send(ViewerEvent::Detached);
    }

    /// From standard input to the guest. Its end ends nothing: `minivmm console vm0 </dev/null` goes on to show.
    fn forward_stdin(self: &Arc<Self>) {
        let Ok(guest) = self.stream.try_clone() else { return };
        let input = Input::raw(self.terminal.clone());
        let handle_choice = |choice| self.handle_choice(choice);
        forward_input(input, self.terminal.is_some(), guest, handle_choice, |text| self.notice(text));
    }

    fn handle_choice(self: &Arc<Self>, choice: Choice) {
        match choice {
            Choice::Detach => self.detach(),
            // At rest it would not hear the button.
            Choice::PowerButton => self.post(&["/v1/resume", "/v1/power-button"], "power button pressed"),
            Choice::Reset => self.post(&["/v1/reset"], "reset"),
            // Whoever wants this viewer gone must not lose the machine.
            Choice::Quit => {
                self.notice(&format!("d detaches; `minivmm kill {}` ends the machine", self.name()))
            }
            Choice::Help => ATTACHED_HELP.iter().for_each(|line| self.notice(line)),
            Choice::Unknown => self.notice("no such key in the menu; Ctrl-] ? lists them"),
        }
    }

    /// In a thread of its own: a machine may not answer, and Ctrl-] d has to work meanwhile.
    fn post(self: &Arc<Self>, paths: &'static [&'static str], done: &str) {
        self.notice(done);
        let viewer = self.clone();
        let post = move || {
            let send = |path: &&str| viewer.client.send("POST", path, None, ANSWER_LIMIT).map(drop);
            if let Err(error) = paths.iter().try_for_each(send) {
                viewer.notice(&report::chain(&error));
            }
        };
        if let Err(error) = spawn("order", post) {
            self.notice(&report::chain(&error));
        }
    }

    /// Ended from outside, the terminal must not stay raw.
    fn handle_signals(&self, signals: &Signals) {
        while let Ok(signal) = signals.wait(None) {
            match (signal, self.terminal.as_deref()) {
                (Some(Signal::Stop), terminal) => suspend(terminal),
                (Some(Signal::Continued), Some(terminal)) => drop(terminal.resume()),
                (Some(Signal::End(number)), _) => {
                    drop(GiveBack(self.terminal.clone()));
                    std::process::exit(128 + number);
                }
                (Some(Signal::Continued) | None, _) => {}
            }
        }
    }

    /// What the connection's end means.
    fn report_end(&self, waiter: Option<EndWaiter<'_>>) -> Result<Status, VerbError> {
        let name = self.name();
        if self.detached.load(Ordering::Acquire) {
            if self.terminal.is_some() {
                report::notice(false, &format!("detached from {name}; it runs on"));
            }
            return Ok(Status::Done);
        }
        // The console's end comes a moment before the machine's.
        let end = match waiter.map(|mut waiter| waiter.end(END_LIMIT)) {
            Some(Ok(end)) => Ok(end),
            // Its connection was another one's to take.
            None | Some(Err(_)) => {
                EndWaiter::start(&self.client).and_then(|mut waiter| waiter.end(END_LIMIT))
            }
        };
        match end {
            Ok(Some(report_end)) => report::notice(false, &format!("{name} has ended: {}", report_end.text)),
            Ok(None) | Err(VerbError::Machine { source: ClientError::Refused { .. }, .. }) => {
                return Err(VerbError::Disconnected(name.clone()));
            }
            // Gone in the midst of an answer, or before it.
            Err(_) => report::notice(false, &format!("{name} has ended")),
        }
        Ok(Status::Done)
    }

    fn notice(&self, text: &str) {
        report::notice(self.terminal.as_ref().is_some_and(|terminal| terminal.is_raw()), text);
    }
}
