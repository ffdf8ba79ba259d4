//! `minivmm console`: a machine's console in this terminal, until the machine ends or somebody detaches.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::wait::Waiting;
use super::{ANSWER, Speaker, VerbError};
use crate::cli::exit::Status;
use crate::cli::menu::{ATTACHED_HELP, Choice, Typed, read_input};
use crate::cli::report;
use crate::control::client::{Attached, ClientError};
use crate::host::ready::until_left;
use crate::host::signals::{Signal, Signals};
use crate::host::terminal::{GiveBack, RawTerminal, in_foreground};
use crate::spec::MachineName;

/// How long a machine whose console has ended may take to end itself.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) fn attach(name: &MachineName) -> Result<Status, VerbError> {
    let speaker = Speaker::to(name)?;
    let Attached { stream, heard } =
        Attached::to(&speaker.0.socket).map_err(|source| speaker.failed(source))?;
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block().map_err(VerbError::Terminal)?;
    let foreground = in_foreground();
    let terminal =
        Arc::new(if foreground { RawTerminal::take().map_err(VerbError::Terminal)? } else { None });
    let give_back = GiveBack(terminal.clone());
    let viewer = Arc::new(Viewer { speaker, stream, terminal, detached: AtomicBool::new(false) });
    viewer.greet();
    let listener = viewer.clone();
    start("signals", move || listener.listen(&signals))?;
    // A background job that reads from its terminal would be stopped by it.
    if foreground {
        let typist = viewer.clone();
        start("stdin", move || typist.type_in())?;
    }
    let watcher = viewer.clone();
    start("stdout", move || watcher.leave_when_nobody_reads())?;
    let shown = viewer.show(&heard);
    // What is said next is for a person at a normal prompt.
    drop(give_back);
    shown.map_err(VerbError::Terminal)?;
    viewer.ending()
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), VerbError> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(VerbError::Terminal)
}

/// What the threads share.
#[derive(Debug)]
struct Viewer {
    speaker: Speaker,
    stream: UnixStream,
    terminal: Arc<Option<RawTerminal>>,
    detached: AtomicBool,
}

impl Viewer {
    fn name(&self) -> &MachineName {
        &self.speaker.0.name
    }

    /// Only a person at a terminal is greeted.
    fn greet(&self) {
        if self.terminal.is_some() {
            let info = self.speaker.get("/v1/machine").unwrap_or_default();
            let paused = if info.get("state") == Some(&"paused".into()) { "it is paused; " } else { "" };
            self.say(&format!(
                "the console of {}: {paused}Ctrl-] d detaches, Ctrl-] ? lists the keys",
                self.name()
            ));
        }
    }

    /// From the guest to standard output, until the machine ends or lets us go, or nobody reads there any more.
    fn show(&self, heard: &[u8]) -> io::Result<()> {
        let (mut output, mut from) = (io::stdout().lock(), &self.stream);
        let mut bytes = [0; 4096];
        let mut shown = output.write_all(heard).and_then(|()| output.flush());
        while shown.is_ok() {
            shown = match from.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(n) => output.write_all(bytes.get(..n).unwrap_or_default()).and_then(|()| output.flush()),
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
        if until_left(&io::stdout()).is_ok() {
            self.detach();
        }
    }

    fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        // Ends what shows the console.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// From standard input to the guest. Its end ends nothing: `minivmm console vm0 </dev/null` goes on to show.
    fn type_in(&self) {
        read_input(self.terminal.is_some(), |typed| match typed {
            Typed::Text(text) => (&self.stream).write_all(text),
            Typed::Choice(choice) => {
                self.choose(choice);
                Ok(())
            }
        });
    }

    fn choose(&self, choice: Choice) {
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

    fn order(&self, paths: &[&str], done: &str) {
        self.say(done);
        let obeyed = paths.iter().try_for_each(|path| self.speaker.say("POST", path, None, ANSWER).map(drop));
        if let Err(error) = obeyed {
            self.say(&report::chain(&error));
        }
    }

    /// Ended from outside, the terminal must not stay raw.
    fn listen(&self, signals: &Signals) {
        while let Ok(signal) = signals.wait(None) {
            match (signal, &*self.terminal) {
                (Some(Signal::Continued), Some(terminal)) => {
                    let _ = terminal.set_raw();
                }
                (Some(Signal::End(number)), _) => {
                    drop(GiveBack(self.terminal.clone()));
                    std::process::exit(128 + number);
                }
                (Some(Signal::Continued) | None, _) => {}
            }
        }
    }

    /// What the connection's end means.
    fn ending(&self) -> Result<Status, VerbError> {
        let name = self.name();
        if self.detached.load(Ordering::Acquire) {
            if self.terminal.is_some() {
                report::aside(false, &format!("detached from {name}; it runs on"));
            }
            return Ok(Status::Done);
        }
        // The console's end comes a moment before the machine's.
        match Waiting::begin(&self.speaker).and_then(|mut waiting| waiting.end(LAST_WORDS)) {
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
        report::aside(self.terminal.is_some(), text);
    }
}
