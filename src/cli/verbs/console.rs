//! `minivmm console`: a machine's console in this terminal, until the machine ends or the user detaches.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use devices::thread::{self, Role};

use super::wait::EndWaiter;
use super::{ANSWER_LIMIT, MachineClient, VerbError};
use crate::cli::console_input::forward_input;
use crate::cli::exit::Status;
use crate::cli::menu::{ATTACHED_HELP, Choice};
use crate::cli::report;
use crate::cli::session::suspend;
use crate::control::client::{ClientError, ConsoleConnection};
use crate::control::routes::terminal_size_body;
use crate::host::ready::wait_for_hangup;
use crate::host::signals::{Signal, Signals};
use crate::host::stdio::{Input, Output};
use crate::host::terminal::{RestoreGuard, Terminal};
use crate::spec::MachineName;

/// How long a machine may take to end after its console has ended.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long output that was already read may take to be shown after detaching.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

pub(super) fn attach(name: &MachineName) -> Result<Status, VerbError> {
    let client = MachineClient::find(name)?;
    let ConsoleConnection { stream, received } =
        ConsoleConnection::open(&client.0.socket).map_err(|source| client.failed(source))?;
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block_terminal().map_err(VerbError::Terminal)?;
    report::limit_stderr_waits();
    let terminal = Terminal::standard().map(Arc::new);
    let restore_guard = RestoreGuard(terminal.clone());
    if let Some(terminal) = &terminal {
        terminal.update().map_err(VerbError::Terminal)?;
    }
    let (events, event_receiver) = mpsc::channel();
    let viewer = Arc::new(Viewer {
        client,
        stream,
        terminal,
        detached: AtomicBool::new(false),
        events: events.clone(),
    });
    // Sent now, as the machine's process may end directly after its console. If the limit on streams refuses
    // it, it is sent again then.
    let waiter = EndWaiter::start(&viewer.client).ok();
    viewer.print_greeting();
    let (resized, sizes) = mpsc::sync_channel(1);
    let size_viewer = viewer.clone();
    spawn("size", move || size_viewer.tell_sizes(&sizes))?;
    let _ = resized.try_send(());
    let signal_viewer = viewer.clone();
    spawn("signals", move || signal_viewer.handle_signals(&signals, &resized))?;
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
        // A blocked reader must not delay the user's detaching.
        Ok(ViewerEvent::Detached) | Err(_) => match event_receiver.recv_timeout(DRAIN_LIMIT) {
            Ok(ViewerEvent::Shown(shown)) => shown,
            _ => Ok(()),
        },
    };
    // The next message is for a normal prompt.
    drop(restore_guard);
    shown.map_err(VerbError::Output)?;
    viewer.report_end(waiter)
}

/// An event that ends the verb.
#[derive(Debug)]
enum ViewerEvent {
    /// The console has ended, or cannot be shown.
    Shown(io::Result<()>),
    Detached,
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), VerbError> {
    thread::spawn(Role::Cli, name, work).map(drop).map_err(VerbError::Terminal)
}

/// Printed when a console that was opened in the background comes to the foreground.
fn announce() {
    report::notice(true, "the keys of this terminal reach the guest now; Ctrl-] d detaches");
}

/// State that the threads share.
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

    /// Prints a greeting on a terminal.
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

    /// Copies the guest's output to standard output, until the machine ends, the connection closes, or the
    /// reader of standard output is gone.
    fn show(&self, received: &[u8]) -> io::Result<()> {
        let (mut output, mut from) = (Output::standard(), &self.stream);
        let mut bytes = [0; 4096];
        let mut shown = output.write_all(received);
        while shown.is_ok() {
            shown = match from.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(n) => output.write_all(bytes.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
                // The connection was reset: the machine's process was killed.
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

    /// `minivmm console vm0 | grep -m 1 WORD` ends with grep, also when the guest has no more output.
    fn detach_when_reader_closes(&self) {
        if wait_for_hangup(&Output::standard()).is_ok() {
            self.detach();
        }
    }

    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        // Ends the output thread.
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.events.send(ViewerEvent::Detached);
    }

    /// Copies standard input to the guest. Its end does not end the verb: `minivmm console vm0 </dev/null`
    /// still shows output.
    fn forward_stdin(self: &Arc<Self>) {
        let Ok(guest) = self.stream.try_clone() else { return };
        let input = Input::raw(self.terminal.clone());
        let handle_choice = |choice| self.handle_choice(choice);
        forward_input(input, self.terminal.is_some(), guest, handle_choice, |text| self.notice(text));
    }

    fn handle_choice(self: &Arc<Self>, choice: Choice) {
        match choice {
            Choice::Detach => self.detach(),
            // A paused guest would not see the button.
            Choice::PowerButton => self.post(&["/v1/resume", "/v1/power-button"], "power button pressed"),
            Choice::Reset => self.post(&["/v1/reset"], "reset"),
            // Quitting the viewer must not end the machine.
            Choice::Quit => {
                self.notice(&format!("d detaches; `minivmm kill {}` ends the machine", self.name()))
            }
            Choice::Help => ATTACHED_HELP.iter().for_each(|line| self.notice(line)),
            Choice::Unknown => self.notice("no such key in the menu; Ctrl-] ? lists them"),
        }
    }

    /// Sends requests in a thread of its own: a machine may not answer, and Ctrl-] d must work meanwhile.
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

    /// Tells the machine the size of the terminal, each time that it may be another one. A machine may not answer, so that nothing waits
    /// for this.
    fn tell_sizes(&self, resized: &mpsc::Receiver<()>) {
        let Some(terminal) = &self.terminal else { return };
        while resized.recv().is_ok() {
            let Some(size) = terminal.size() else { continue };
            let body = terminal_size_body(size);
            // One of before this request does not know it; there is no size then.
            let _ = self.client.send("PUT", "/v1/console/size", Some(&body), ANSWER_LIMIT);
        }
    }

    /// Restores the terminal if a signal ends the verb.
    fn handle_signals(&self, signals: &Signals, resized: &mpsc::SyncSender<()>) {
        while let Ok(signal) = signals.wait(None) {
            match (signal, self.terminal.as_deref()) {
                (Some(Signal::Stop), terminal) => suspend(terminal),
                (Some(Signal::Continued), Some(terminal)) => {
                    let _ = terminal.resume();
                    let _ = resized.try_send(());
                }
                // One that waits to be sent is read when it is.
                (Some(Signal::Resized), _) => drop(resized.try_send(())),
                (Some(Signal::End(number)), _) => {
                    drop(RestoreGuard(self.terminal.clone()));
                    std::process::exit(128 + number);
                }
                (Some(Signal::Continued) | None, _) => {}
            }
        }
    }

    /// Reports why the connection ended.
    fn report_end(&self, waiter: Option<EndWaiter<'_>>) -> Result<Status, VerbError> {
        let name = self.name();
        if self.detached.load(Ordering::Acquire) {
            if self.terminal.is_some() {
                report::notice(false, &format!("detached from {name}; it runs on"));
            }
            return Ok(Status::Done);
        }
        // The console ends a moment before the machine.
        let end = match waiter.map(|mut waiter| waiter.end(END_LIMIT)) {
            Some(Ok(end)) => Ok(end),
            // The request was refused, or its connection was replaced.
            None | Some(Err(_)) => {
                EndWaiter::start(&self.client).and_then(|mut waiter| waiter.end(END_LIMIT))
            }
        };
        match end {
            Ok(Some(report_end)) => report::notice(false, &format!("{name} has ended: {}", report_end.text)),
            Ok(None) | Err(VerbError::Machine { source: ClientError::Refused { .. }, .. }) => {
                return Err(VerbError::Disconnected(name.clone()));
            }
            // The machine ended before or during its answer.
            Err(_) => report::notice(false, &format!("{name} has ended")),
        }
        Ok(Status::Done)
    }

    fn notice(&self, text: &str) {
        report::notice(self.terminal.as_ref().is_some_and(|terminal| terminal.is_raw()), text);
    }
}
