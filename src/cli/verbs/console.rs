//! `minivmm console`: a machine's console in this terminal, until the machine ends or somebody detaches.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use devices::thread::{self, Role};

use super::wait::Waiting;
use super::{ANSWER, Speaker, VerbError};
use crate::cli::exit::Status;
use crate::cli::menu::{ATTACHED_HELP, Choice};
use crate::cli::report;
use crate::cli::session::suspend;
use crate::cli::typing::carry;
use crate::control::client::{ClientError, ConsoleConnection};
use crate::host::ready::wait_for_hangup;
use crate::host::signals::{Signal, Signals};
use crate::host::stdio::{Input, Output};
use crate::host::terminal::{GiveBack, Terminal};
use crate::spec::MachineName;

/// How long a machine whose console has ended may take to end itself.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long what was read already may take to be shown once somebody has detached.
const LAST_SHOWN: Duration = Duration::from_secs(1);

pub(super) fn attach(name: &MachineName) -> Result<Status, VerbError> {
    let speaker = Speaker::to(name)?;
    let ConsoleConnection { stream, received } =
        ConsoleConnection::open(&speaker.0.socket).map_err(|source| speaker.failed(source))?;
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block_stop().map_err(VerbError::Terminal)?;
    report::hurry();
    let terminal = Terminal::standard().map(Arc::new);
    let give_back = GiveBack(terminal.clone());
    if let Some(terminal) = &terminal {
        terminal.settle().map_err(VerbError::Terminal)?;
    }
    let (over, ends) = mpsc::channel();
    let viewer =
        Arc::new(Viewer { speaker, stream, terminal, detached: AtomicBool::new(false), over: over.clone() });
    // Asked now: the machine's process may be gone a moment after its console's end. Without a seat it is asked then.
    let waiting = Waiting::begin(&viewer.speaker).ok();
    viewer.greet();
    let listener = viewer.clone();
    start("signals", move || listener.listen(&signals))?;
    let typist = viewer.clone();
    start("stdin", move || typist.type_in())?;
    let watcher = viewer.clone();
    start("reader", move || watcher.leave_when_nobody_reads())?;
    let shower = viewer.clone();
    start("stdout", move || {
        let _ = over.send(Over::Shown(shower.show(&received)));
    })?;
    let shown = match ends.recv() {
        Ok(Over::Shown(shown)) => shown,
        // What is stuck at its reader must not hold up a person that leaves.
        Ok(Over::Detached) | Err(_) => match ends.recv_timeout(LAST_SHOWN) {
            Ok(Over::Shown(shown)) => shown,
            _ => Ok(()),
        },
    };
    // What is said next is for a person at a normal prompt.
    drop(give_back);
    shown.map_err(VerbError::Output)?;
    viewer.ending(waiting)
}

/// What ends the verb.
#[derive(Debug)]
enum Over {
    /// The console has ended, or cannot be shown.
    Shown(io::Result<()>),
    Detached,
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), VerbError> {
    thread::spawn(Role::Cli, name, work).map(drop).map_err(VerbError::Terminal)
}

/// What is said when a console that was opened in the background comes to the foreground.
fn announce() {
    report::aside(true, "the keys of this terminal reach the guest now; Ctrl-] d detaches");
}

/// What the threads share.
#[derive(Debug)]
struct Viewer {
    speaker: Speaker,
    stream: UnixStream,
    terminal: Option<Arc<Terminal>>,
    detached: AtomicBool,
    over: mpsc::Sender<Over>,
}

impl Viewer {
    fn name(&self) -> &MachineName {
        &self.speaker.0.name
    }

    /// Only a person at a terminal is greeted.
    fn greet(&self) {
        if let Some(terminal) = &self.terminal {
            let keys = if terminal.is_raw() {
                "Ctrl-] d detaches, Ctrl-] ? lists the keys"
            } else {
                "no keys in the background: use `fg`, or `timeout --foreground`"
            };
            terminal.announce(announce);
            let info = self.speaker.get("/v1/machine").unwrap_or_default();
            let paused = if info.get("state") == Some(&"paused".into()) { "it is paused; " } else { "" };
            self.say(&format!("the console of {}: {paused}{keys}", self.name()));
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
    fn leave_when_nobody_reads(&self) {
        if wait_for_hangup(&Output::standard()).is_ok() {
            self.detach();
        }
    }

    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        // Ends what shows the console.
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.over.send(Over::Detached);
    }

    /// From standard input to the guest. Its end ends nothing: `minivmm console vm0 </dev/null` goes on to show.
    fn type_in(self: &Arc<Self>) {
        let Ok(guest) = self.stream.try_clone() else { return };
        let input = Input::raw(self.terminal.clone());
        let choose = |choice| self.choose(choice);
        carry(input, self.terminal.is_some(), guest, choose, |text| self.say(text));
    }

    fn choose(self: &Arc<Self>, choice: Choice) {
        match choice {
            Choice::Detach => self.detach(),
            // At rest it would not hear the button.
            Choice::PowerButton => self.order(&["/v1/resume", "/v1/power-button"], "power button pressed"),
            Choice::Reset => self.order(&["/v1/reset"], "reset"),
            // Whoever wants this viewer gone must not lose the machine.
            Choice::Quit => self.say(&format!("d detaches; `minivmm kill {}` ends the machine", self.name())),
            Choice::Help => ATTACHED_HELP.iter().for_each(|line| self.say(line)),
            Choice::Unknown => self.say("no such key in the menu; Ctrl-] ? lists them"),
        }
    }

    /// In a thread of its own: a machine may not answer, and Ctrl-] d has to work meanwhile.
    fn order(self: &Arc<Self>, paths: &'static [&'static str], done: &str) {
        self.say(done);
        let viewer = self.clone();
        let order = move || {
            let say = |path: &&str| viewer.speaker.say("POST", path, None, ANSWER).map(drop);
            if let Err(error) = paths.iter().try_for_each(say) {
                viewer.say(&report::chain(&error));
            }
        };
        if let Err(error) = start("order", order) {
            self.say(&report::chain(&error));
        }
    }

    /// Ended from outside, the terminal must not stay raw.
    fn listen(&self, signals: &Signals) {
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
    fn ending(&self, waiting: Option<Waiting<'_>>) -> Result<Status, VerbError> {
        let name = self.name();
        if self.detached.load(Ordering::Acquire) {
            if self.terminal.is_some() {
                report::aside(false, &format!("detached from {name}; it runs on"));
            }
            return Ok(Status::Done);
        }
        // The console's end comes a moment before the machine's.
        let end = match waiting.map(|mut waiting| waiting.end(LAST_WORDS)) {
            Some(Ok(end)) => Ok(end),
            // Its connection was another one's to take.
            None | Some(Err(_)) => {
                Waiting::begin(&self.speaker).and_then(|mut waiting| waiting.end(LAST_WORDS))
            }
        };
        match end {
            Ok(Some(ending)) => report::aside(false, &format!("{name} has ended: {}", ending.text)),
            Ok(None) | Err(VerbError::Machine { source: ClientError::Refused { .. }, .. }) => {
                return Err(VerbError::LetGo(name.clone()));
            }
            // Gone in the midst of an answer, or before it.
            Err(_) => report::aside(false, &format!("{name} has ended")),
        }
        Ok(Status::Done)
    }

    fn say(&self, text: &str) {
        report::aside(self.terminal.as_ref().is_some_and(|terminal| terminal.is_raw()), text);
    }
}
