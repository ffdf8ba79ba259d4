//! A machine in this process: its console on standard input and output unless it is detached, its end as an
//! exit status.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use log::Level;

use super::console_input::forward_input;
use super::console_output::{ConsoleOutput, LostBytes};
use super::daemon::{Service, ServiceError};
use super::exit::Status;
use super::menu::{Choice, HELP};
use super::{machine_log, report};
use crate::control::{Claim, ControlServer, Ending, RunningTarget};
use crate::host::signals::{Signal, Signals, stop};
use crate::host::stdio::{Input, Output};
use crate::host::terminal::{RestoreGuard, Terminal};
use crate::machine::deadline::Progress;
use crate::machine::files::Prepared;
use crate::machine::{BoundForward, ConsoleInput, Controls, Exit, Machine};
use crate::migration::{Leave, remove_received};
use crate::spec::Spec;

/// How long a guest may take to shut down after a signal; systemd gives a service the same.
const GRACE: Duration = Duration::from_secs(90);
/// How often the power button is pressed: a guest that still boots ignores it.
pub(super) const PRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Signals within this time count as one: a terminal that is closed sends SIGHUP itself and through its
/// shell.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// How long a machine may then take to end: longer than the final flush of its console.
pub(super) const END_LIMIT: Duration = Duration::from_secs(20);

/// Why this process killed the machine.
#[derive(Debug, Clone, Copy)]
enum KillReason {
    Menu,
    Signal(libc::c_int),
}

/// State that the threads of the session share.
#[derive(Debug, Clone)]
struct Session {
    controls: Controls,
    input: ConsoleInput,
    reason: Arc<Mutex<Option<KillReason>>>,
    terminal: Option<Arc<Terminal>>,
    /// Console output that could not be written to standard output.
    lost: LostBytes,
    service: Arc<Service>,
}

/// A start in progress, for the thread that receives signals.
#[derive(Debug, Default)]
struct Start {
    progress: Progress,
    state: Mutex<StartState>,
    /// Signalled when the machine is known to run.
    running: Condvar,
}

#[derive(Debug, Default)]
enum StartState {
    #[default]
    InProgress,
    /// By this signal.
    Interrupted(libc::c_int),
    /// The guest runs, or will in a moment: a signal is for the machine, as soon as there is one.
    Begun,
    Running(Session),
}

impl Start {
    fn state(&self) -> MutexGuard<'_, StartState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self) -> Option<libc::c_int> {
        if let StartState::Interrupted(number) = *self.state() { Some(number) } else { None }
    }

    /// The last step before the guest runs, unless a signal came before.
    fn set_begun(&self) -> io::Result<()> {
        match &mut *self.state() {
            StartState::Interrupted(_) => Err(io::Error::from(io::ErrorKind::Interrupted)),
            state => {
                *state = StartState::Begun;
                Ok(())
            }
        }
    }

    /// The machine that was begun can be spoken to.
    fn set_running(&self, session: &Session) {
        *self.state() = StartState::Running(session.clone());
        self.running.notify_all();
    }

    /// Handles signals from before the first open on. Until the guest is about to run, the first signal interrupts the
    /// start, whatever it is waiting for.
    fn handle_signals(&self, signals: &Signals) {
        while let Ok(signal) = signals.wait(None) {
            // If the start fails at this point, the process ends.
            let begun = |state: &mut StartState| matches!(state, StartState::Begun);
            let mut state =
                self.running.wait_while(self.state(), begun).unwrap_or_else(PoisonError::into_inner);
            let running = match (&mut *state, signal) {
                (StartState::Running(session), _) => Some(session.clone()),
                (state, Some(Signal::End(number))) => {
                    *state = StartState::Interrupted(number);
                    None
                }
                (_, Some(Signal::Stop)) => {
                    stop();
                    continue;
                }
                (_, Some(Signal::Continued | Signal::Resized) | None) => continue,
            };
            drop(state);
            if let Some(session) = running {
                return session.handle_signals(signals, signal);
            }
            self.progress.interrupt();
            wait_until_abandoned(signals);
            remove_received();
            std::process::exit(128 + self.interrupted().unwrap_or_default());
        }
    }
}

/// Runs the machine until it ends. `print_banner` is called when nothing prevents the start any more.
/// `prepared` are the open files of the spec and the boot files; `claim` is for the machine's name. One with `leave` has come from elsewhere,
/// and rests until it may run.
pub(super) fn run(
    spec: &Spec,
    prepared: Prepared,
    claim: Option<Claim>,
    service: Service,
    mut leave: Option<Leave>,
    print_banner: impl FnOnce(&[BoundForward]) -> io::Result<()> + Send + 'static,
) -> Status {
    let begin = Arc::new(Start { progress: prepared.progress.clone(), ..Start::default() });
    match start(spec, prepared, claim, service, &begin, print_banner) {
        Ok((machine, session, control)) => {
            let terminal = RestoreGuard(session.terminal.clone());
            let running = match leave {
                None => session.service.report_running(),
                Some(_) => session.take_over(&mut leave),
            };
            if running.is_err() {
                machine.kill();
            }
            let exit = machine.wait();
            // The source hears that it has not run when it has let go of all it had.
            drop(leave);
            // Restores the terminal first: the final message is for a normal prompt.
            drop(terminal);
            let (text, status) = session.add_lost_output(session.outcome(&exit, running));
            match status.level() {
                None => machine_log::record(Level::Info, &text),
                Some(level) => report::message_at(level, &format_args!("minivmm: {text}\n")),
            }
            // Before clients are told, which may start the next machine at once.
            session.service.report_ended(&text);
            if let Some(control) = control {
                control.finish(Ending { status: status.code(), text });
            }
            status
        }
        Err(failure) => match begin.interrupted() {
            Some(number) => {
                let text = format!("minivmm: ended by signal {number} before the guest ran\n");
                report::message_at(Level::Error, &text);
                Status::Signal(u8::try_from(number).unwrap_or(0))
            }
            None => super::report_error(&*failure, Status::Failed),
        },
    }
}

/// A running machine, its session and its control server.
type Started = (Machine, Session, Option<ControlServer>);

fn start(
    spec: &Spec,
    prepared: Prepared,
    claim: Option<Claim>,
    service: Service,
    begin: &Arc<Start>,
    print_banner: impl FnOnce(&[BoundForward]) -> io::Result<()> + Send + 'static,
) -> Result<Started, Box<dyn std::error::Error>> {
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block_terminal()?;
    let listener = begin.clone();
    thread::spawn(Role::Cli, "signals", move || listener.handle_signals(&signals))?;
    // The console of a detached machine is only on the control socket.
    let attached = !service.is_detached();
    let terminal = if attached { Terminal::standard().map(Arc::new) } else { None };
    // If the machine or a thread cannot be started, the terminal must not stay raw.
    let restore_guard = RestoreGuard(terminal.clone());
    let console = terminal.clone();
    let service = Arc::new(service);
    let (starting, last_step) = (service.clone(), begin.clone());
    let about_to_run = move |forwards: &[BoundForward]| {
        if starting.parent_is_gone() {
            return Err(io::Error::other("the process that started the machine has ended"));
        }
        print_banner(forwards)?;
        if let Some(terminal) = console {
            // Before the guest starts, which may use the console at once.
            terminal.update()?;
            terminal.announce(announce);
        }
        last_step.set_begun()
    };
    let builder = Machine::builder(spec).prepared(prepared).progress(begin.progress.clone());
    let (builder, lost) = (builder.about_to_run(about_to_run), LostBytes::default());
    let output = || ConsoleOutput::new(Output::standard(), lost.clone());
    let machine = if attached { builder.output(output()) } else { builder }.start()?;
    let controls = machine.controls();
    let input = machine.console_input();
    let session = Session { controls, input, reason: Arc::default(), terminal, lost, service };
    session.follow_size();
    begin.set_running(&session);
    if attached {
        let (reader, input) = (session.clone(), machine.console_input());
        thread::spawn(Role::Cli, "stdin", move || reader.read_input(input))?;
    }
    let target = RunningTarget::new(&machine, spec.clone()).banner(session.service.banner());
    let control =
        claim.map(|claim| ControlServer::serve(claim, Arc::new(target))).transpose().map_err(|source| {
            io::Error::new(
                source.kind(),
                format!("the control socket of `--name` cannot be served: {source}"),
            )
        })?;
    restore_guard.keep();
    report::limit_stderr_waits();
    Ok((machine, session, control))
}

/// Printed when a machine that was started in the background comes to the foreground.
fn announce() {
    report::notice(true, "this terminal is the guest's console now; Ctrl-] then ? for the menu, q to quit");
}

/// Waits until the machine ends after a signal, or until a further signal. A machine may not end if the host
/// never completes an operation: a disk on an unreachable network.
pub(super) fn wait_until_abandoned(signals: &Signals) {
    let begin = Instant::now();
    loop {
        match signals.wait(Some(begin + END_LIMIT)) {
            Ok(Some(Signal::Continued | Signal::Stop | Signal::Resized)) => {}
            Ok(Some(Signal::End(_))) if begin.elapsed() < DEBOUNCE => {}
            Ok(Some(Signal::End(_)) | None) | Err(_) => return,
        }
    }
}

/// Restores the terminal, stops this process, and sets the terminal up again when it continues.
pub(super) fn suspend(terminal: Option<&Terminal>) {
    if let Some(terminal) = terminal {
        terminal.suspend();
    }
    stop();
    if let Some(terminal) = terminal {
        let _ = terminal.resume();
    }
}

impl Session {
    /// The first signal presses the power button. The second, of whatever kind, or [`GRACE`] ends the
    /// machine: the guest may ignore the button.
    fn handle_signals(&self, signals: &Signals, mut first: Option<Signal>) {
        let mut asked: Option<(libc::c_int, Instant)> = None;
        let mut presses = 0;
        let mut next = |asked: Option<(libc::c_int, Instant)>, presses: u32| match first.take() {
            Some(signal) => Ok(Some(signal)),
            None => signals.wait(asked.map(|(_, at)| at + (PRESS_INTERVAL * presses).min(GRACE))),
        };
        while let Ok(signal) = next(asked, presses) {
            match (signal, asked) {
                (Some(Signal::Stop), _) => suspend(self.terminal.as_deref()),
                (Some(Signal::Continued), _) => {
                    if let Some(terminal) = &self.terminal {
                        let _ = terminal.resume();
                    }
                    self.follow_size();
                }
                (Some(Signal::Resized), _) => self.follow_size(),
                (Some(Signal::End(number)), None) => {
                    self.service.report_stopping();
                    self.press_power_button();
                    (asked, presses) = (Some((number, Instant::now())), 1);
                    self.notice(&format!(
                        "power button pressed; a second signal, or {} s, ends the machine",
                        GRACE.as_secs()
                    ));
                }
                (Some(Signal::End(_)), Some((_, at))) if at.elapsed() < DEBOUNCE => {}
                (None, Some((_, at))) if at.elapsed() < GRACE => {
                    self.press_power_button();
                    presses += 1;
                }
                (Some(Signal::End(number)), Some(_)) | (None, Some((number, _))) => {
                    self.end(KillReason::Signal(number));
                    return self.abandon(signals, number);
                }
                // There is no deadline before the first signal.
                (None, None) => {}
            }
        }
    }

    /// The machine was ended by a signal, and does not end.
    fn abandon(&self, signals: &Signals, number: libc::c_int) {
        wait_until_abandoned(signals);
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
        let text = "the machine has not ended yet, and is left to the kernel";
        self.notice(text);
        self.service.report_ended(text);
        remove_received();
        std::process::exit(128 + number);
    }

    /// Asks for the leave of a machine that has come from elsewhere, and lets it go on. From then on it ends as any other machine does, and
    /// for no other reason: whoever has started this process, or waits for its pidfile, may be gone.
    fn take_over(&self, leave: &mut Option<Leave>) -> Result<(), ServiceError> {
        self.service.prepare_to_run()?;
        leave.as_mut().map_or(Ok(()), Leave::ask)?;
        self.controls.arrive().map_err(|_| ServiceError::EndedBefore)?;
        if let Some(leave) = leave.take() {
            leave.runs();
        }
        if let Err(error) = self.service.report_running() {
            machine_log::record(Level::Warn, &report::chain(&error));
        }
        Ok(())
    }

    /// Tells the guest the size of the terminal.
    fn follow_size(&self) {
        if let Some(size) = self.terminal.as_ref().and_then(|terminal| terminal.size()) {
            self.input.set_terminal_size(size.columns, size.rows);
        }
    }

    /// Copies standard input to the guest.
    fn read_input(&self, guest: ConsoleInput) {
        let input = Input::raw(self.terminal.clone());
        let handle_choice = |choice| self.handle_choice(choice);
        forward_input(input, self.terminal.is_some(), guest, handle_choice, |text| self.notice(text));
    }

    fn handle_choice(&self, choice: Choice) {
        match choice {
            Choice::PowerButton => {
                self.press_power_button();
                self.notice("power button pressed");
            }
            Choice::Reset => {
                self.controls.reset();
                self.notice("reset");
            }
            Choice::Quit => self.end(KillReason::Menu),
            Choice::Detach => {
                self.notice(
                    "the machine runs in this terminal; one that was started with -d can be detached from",
                );
            }
            Choice::Help => HELP.iter().for_each(|line| self.notice(line)),
            Choice::Unknown => self.notice("no such key in the menu; Ctrl-] ? lists them"),
        }
    }

    /// Resumes the guest first, which would not see the button while it is paused. The two requests are sent
    /// in this order without waiting: the machine may be busy, and another signal may come.
    fn press_power_button(&self) {
        self.controls.resume_within(Duration::ZERO);
        self.controls.power_button();
    }

    fn end(&self, reason: KillReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.controls.kill();
    }

    fn notice(&self, text: &str) {
        report::notice(self.terminal.as_ref().is_some_and(|terminal| terminal.is_raw()), text);
    }

    /// A normal end is a failure if console output was lost.
    fn add_lost_output(&self, (text, status): (String, Status)) -> (String, Status) {
        match (self.lost.bytes(), status) {
            (0, _) => (text, status),
            (lost, Status::Done) => {
                (format!("{text}, and {lost} bytes of its console could not be written"), Status::Failed)
            }
            (lost, _) => (format!("{text}; {lost} bytes of its console could not be written"), status),
        }
    }

    /// How the machine ended, in words and as a status.
    fn outcome(&self, exit: &Exit, running: Result<(), ServiceError>) -> (String, Status) {
        if let Err(error) = running {
            return (report::chain(&error), Status::Failed);
        }
        let text = match exit {
            Exit::PoweredOff => "the guest powered off".to_owned(),
            Exit::Failed(error) => report::chain(error),
            ended => ended.to_string(),
        };
        match Status::of(exit) {
            Some(status) => (text, status),
            None => match *self.reason.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(KillReason::Signal(number)) => {
                    (format!("ended by signal {number}"), Status::Signal(u8::try_from(number).unwrap_or(0)))
                }
                Some(KillReason::Menu) => ("quit".to_owned(), Status::Quit),
                // No other cause remains.
                None => ("killed over its control socket".to_owned(), Status::Quit),
            },
        }
    }
}
