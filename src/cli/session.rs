//! A machine in this process: its console on standard input and output if somebody is there, its end as an exit status.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use log::Level;

use super::console_output::{ConsoleOutput, Lost};
use super::daemon::{Service, ServiceError};
use super::exit::Status;
use super::menu::{Choice, HELP};
use super::typing::carry;
use super::{logbook, report};
use crate::control::{Claim, ControlServer, Ending, RunningTarget};
use crate::host::signals::{Signal, Signals, stop};
use crate::host::stdio::{Input, Output};
use crate::host::terminal::{GiveBack, Terminal};
use crate::machine::deadline::Progress;
use crate::machine::files::Prepared;
use crate::machine::{ConsoleInput, Controls, Exit, Machine, StartError};
use crate::spec::Spec;

/// How long a guest may take to shut down once a signal has asked it to; what systemd gives a service.
const GRACE: Duration = Duration::from_secs(90);
/// How often the button is pressed: a guest that still boots does not hear it.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// Signals that come together are one wish: a terminal that is closed sends SIGHUP through its shell and by itself.
const ONE_EVENT: Duration = Duration::from_secs(1);
/// How long a machine may then take to end: longer than the console's last words.
pub(super) const LAST: Duration = Duration::from_secs(20);

/// Why this side killed the machine.
#[derive(Debug, Clone, Copy)]
enum Reason {
    Menu,
    Signal(libc::c_int),
}

/// What the threads of the session share.
#[derive(Debug, Clone)]
struct Session {
    controls: Controls,
    reason: Arc<Mutex<Option<Reason>>>,
    terminal: Option<Arc<Terminal>>,
    /// What standard output did not take of the guest's console.
    lost: Lost,
    service: Arc<Service>,
}

/// A start that is under way, as the thread that hears signals sees it.
#[derive(Debug, Default)]
struct Start {
    progress: Progress,
    state: Mutex<StartState>,
}

#[derive(Debug, Default)]
enum StartState {
    #[default]
    UnderWay,
    /// By this signal.
    Interrupted(libc::c_int),
    Running(Session),
}

impl Start {
    fn state(&self) -> MutexGuard<'_, StartState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self) -> Option<libc::c_int> {
        if let StartState::Interrupted(number) = *self.state() { Some(number) } else { None }
    }

    /// The machine runs, unless a signal came before.
    fn runs(&self, session: &Session) -> Result<(), StartError> {
        let mut state = self.state();
        if let StartState::Interrupted(_) = *state {
            return Err(StartError::Interrupted);
        }
        *state = StartState::Running(session.clone());
        Ok(())
    }

    /// Hears signals from before anything is opened on. Until the machine runs the first one interrupts the start, whatever that
    /// waits for.
    fn listen(&self, signals: &Signals) {
        while let Ok(signal) = signals.wait(None) {
            let running = match (&mut *self.state(), signal) {
                (StartState::Running(session), _) => Some(session.clone()),
                (state, Some(Signal::End(number))) => {
                    *state = StartState::Interrupted(number);
                    None
                }
                (_, Some(Signal::Stop)) => {
                    stop();
                    continue;
                }
                (_, Some(Signal::Continued) | None) => continue,
            };
            if let Some(session) = running {
                return session.listen(signals, signal);
            }
            self.progress.interrupt();
            until_given_up(signals);
            std::process::exit(128 + self.interrupted().unwrap_or_default());
        }
    }
}

/// Runs the machine until it ends. `introduce` says what it is made of, once nothing keeps it from running.
/// `prepared` are the files of the spec, and what it boots; `claim` is on its name.
pub(super) fn run(
    spec: &Spec,
    prepared: Prepared,
    claim: Option<Claim>,
    service: Service,
    introduce: impl FnOnce() + Send + 'static,
) -> Status {
    let begin = Arc::<Start>::default();
    match start(spec, prepared, claim, service, &begin, introduce) {
        Ok((machine, session, control)) => {
            let terminal = GiveBack(session.terminal.clone());
            let runs = session.service.runs();
            if runs.is_err() {
                machine.kill();
            }
            let exit = machine.wait();
            // The terminal first: what is said next is for a person at a normal prompt.
            drop(terminal);
            let (text, status) = session.with_losses(session.ending(&exit, runs));
            match status.level() {
                None => logbook::keep(Level::Info, &text),
                Some(level) => report::say_as(level, &format_args!("minivmm: {text}\n")),
            }
            // Before anybody is told, who may start the next machine at once.
            session.service.has_ended(&text);
            if let Some(control) = control {
                control.finish(Ending { status: status.code(), text });
            }
            status
        }
        Err(failure) => match begin.interrupted() {
            Some(number) => {
                let text = format!("minivmm: ended by signal {number} before the guest ran\n");
                report::say_as(Level::Error, &text);
                Status::Signal(u8::try_from(number).unwrap_or(0))
            }
            None => super::complain(&*failure, Status::Failed),
        },
    }
}

/// A machine that runs, and who speaks to it.
type Started = (Machine, Session, Option<ControlServer>);

fn start(
    spec: &Spec,
    prepared: Prepared,
    claim: Option<Claim>,
    service: Service,
    begin: &Arc<Start>,
    introduce: impl FnOnce() + Send + 'static,
) -> Result<Started, Box<dyn std::error::Error>> {
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block_stop()?;
    let listener = begin.clone();
    thread::spawn(Role::Cli, "signals", move || listener.listen(&signals))?;
    // A detached machine's console is for those who ask for it over the control socket.
    let attached = !service.is_detached();
    let terminal = if attached { Terminal::standard().map(Arc::new) } else { None };
    // If the machine or a thread cannot be had, the terminal must not stay raw.
    let unfinished = GiveBack(terminal.clone());
    let console = terminal.clone();
    let about_to_run = move || {
        introduce();
        if let Some(terminal) = console {
            // Before the guest, which may speak and be spoken to at once.
            terminal.settle()?;
            terminal.announce(announce);
        }
        Ok(())
    };
    let builder = Machine::builder(spec).prepared(prepared).progress(begin.progress.clone());
    let (builder, lost) = (builder.about_to_run(about_to_run), Lost::default());
    let output = || ConsoleOutput::new(Output::standard(), lost.clone());
    let machine = if attached { builder.output(output()) } else { builder }.start()?;
    let service = Arc::new(service);
    let controls = machine.controls();
    let session = Session { controls, reason: Arc::default(), terminal, lost, service };
    begin.runs(&session)?;
    if attached {
        let (reader, input) = (session.clone(), machine.console_input());
        thread::spawn(Role::Cli, "stdin", move || reader.read_input(input))?;
    }
    let target = RunningTarget::new(&machine, spec.clone()).banner(session.service.banner());
    let control = claim.map(|claim| ControlServer::serve(claim, Arc::new(target))).transpose()?;
    unfinished.keep();
    report::hurry();
    Ok((machine, session, control))
}

/// What is said when a machine that was started in the background comes to the foreground.
fn announce() {
    report::aside(true, "this terminal is the guest's console now; Ctrl-] then ? for the menu, q to quit");
}

/// A machine that was ended by a signal is soon gone, and this process with it, unless the host never answers what it was
/// asked for: a disk on a network that is away. Waits for that, or for another signal, which says that nobody will.
pub(super) fn until_given_up(signals: &Signals) {
    let begin = Instant::now();
    loop {
        match signals.wait(Some(begin + LAST)) {
            Ok(Some(Signal::Continued | Signal::Stop)) => {}
            Ok(Some(Signal::End(_))) if begin.elapsed() < ONE_EVENT => {}
            Ok(Some(Signal::End(_)) | None) | Err(_) => return,
        }
    }
}

/// Gives the terminal back, stops this process, and takes the terminal again when it goes on.
pub(super) fn suspend(terminal: Option<&Terminal>) {
    if let Some(terminal) = terminal {
        terminal.lend();
    }
    stop();
    if let Some(terminal) = terminal {
        let _ = terminal.resume();
    }
}

impl Session {
    /// The first signal presses the power button; the second, of whatever kind, or [`GRACE`] ends the machine: whoever
    /// sent it wants it gone, and the guest may not listen.
    fn listen(&self, signals: &Signals, mut first: Option<Signal>) {
        let mut asked: Option<(libc::c_int, Instant)> = None;
        let mut presses = 0;
        let mut next = |asked: Option<(libc::c_int, Instant)>, presses: u32| match first.take() {
            Some(signal) => Ok(Some(signal)),
            None => signals.wait(asked.map(|(_, at)| at + (AGAIN * presses).min(GRACE))),
        };
        while let Ok(signal) = next(asked, presses) {
            match (signal, asked) {
                (Some(Signal::Stop), _) => suspend(self.terminal.as_deref()),
                (Some(Signal::Continued), _) => {
                    if let Some(terminal) = &self.terminal {
                        let _ = terminal.resume();
                    }
                }
                (Some(Signal::End(number)), None) => {
                    self.service.will_end();
                    self.press();
                    (asked, presses) = (Some((number, Instant::now())), 1);
                    self.say(&format!(
                        "power button pressed; a second signal, or {} s, ends the machine",
                        GRACE.as_secs()
                    ));
                }
                (Some(Signal::End(_)), Some((_, at))) if at.elapsed() < ONE_EVENT => {}
                (None, Some((_, at))) if at.elapsed() < GRACE => {
                    self.press();
                    presses += 1;
                }
                (Some(Signal::End(number)), Some(_)) | (None, Some((number, _))) => {
                    self.end(Reason::Signal(number));
                    return self.give_up(signals, number);
                }
                // There is no deadline before the first signal.
                (None, None) => {}
            }
        }
    }

    /// The machine was ended by a signal, and does not end.
    fn give_up(&self, signals: &Signals, number: libc::c_int) {
        until_given_up(signals);
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
        let text = "the machine has not ended yet, and is left to the kernel";
        self.say(text);
        self.service.has_ended(text);
        std::process::exit(128 + number);
    }

    /// Carries what is typed to the guest.
    fn read_input(&self, guest: ConsoleInput) {
        let input = Input::raw(self.terminal.clone());
        let choose = |choice| self.choose(choice);
        carry(input, self.terminal.is_some(), guest, choose, |text| self.say(text));
    }

    fn choose(&self, choice: Choice) {
        match choice {
            Choice::PowerButton => {
                self.press();
                self.say("power button pressed");
            }
            Choice::Reset => {
                self.controls.reset();
                self.say("reset");
            }
            Choice::Quit => self.end(Reason::Menu),
            Choice::Detach => {
                self.say(
                    "the machine runs in this terminal; one that was started with -d can be detached from",
                );
            }
            Choice::Help => HELP.iter().for_each(|line| self.say(line)),
            Choice::Unknown => self.say("no such key in the menu; Ctrl-] ? lists them"),
        }
    }

    /// At rest, or coming to rest, the guest would not hear the button: it goes on first. Both are done in this order, and not
    /// waited for: a machine may be busy, and another signal may come.
    fn press(&self) {
        self.controls.resume_within(Duration::ZERO);
        self.controls.power_button();
    }

    fn end(&self, reason: Reason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.controls.kill();
    }

    fn say(&self, text: &str) {
        report::aside(self.terminal.as_ref().is_some_and(|terminal| terminal.is_raw()), text);
    }

    /// An end in good order is none where the console could not be written.
    fn with_losses(&self, (text, status): (String, Status)) -> (String, Status) {
        match (self.lost.bytes(), status) {
            (0, _) => (text, status),
            (lost, Status::Done) => {
                (format!("{text}, and {lost} bytes of its console could not be written"), Status::Failed)
            }
            (lost, _) => (format!("{text}; {lost} bytes of its console could not be written"), status),
        }
    }

    /// How the machine ended, in words and as a status.
    fn ending(&self, exit: &Exit, runs: Result<(), ServiceError>) -> (String, Status) {
        if let Err(error) = runs {
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
                Some(Reason::Signal(number)) => {
                    (format!("ended by signal {number}"), Status::Signal(u8::try_from(number).unwrap_or(0)))
                }
                Some(Reason::Menu) => ("quit".to_owned(), Status::Quit),
                // Nobody else has the machine in hand.
                None => ("killed over its control socket".to_owned(), Status::Quit),
            },
        }
    }
}
