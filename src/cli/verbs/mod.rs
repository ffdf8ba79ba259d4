//! Verbs that speak to machines with a name.

mod args;
mod console;
mod exits;
mod force;
mod ls;
mod show;
mod stop;
mod wait;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use args::{BalloonArgs, ConsoleArgs, ListArgs, NameArgs, NameVerb, ShowArgs, StopArgs};
pub(super) use exits::exits;

use super::exit::Status;
use super::{complain, print};
use crate::control::client::{ClientError, PendingRequest};
use crate::control::routes::balloon_body;
use crate::control::{RunningMachine, find};
use crate::host::lock::by;
use crate::host::target::is_stopped;
use crate::spec::MachineName;

/// How long a machine may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an answer is waited for before we look whether the process is stopped.
const STOPPED: Duration = Duration::from_secs(2);
/// How long it may take to do what it is told; it is told to come to rest within half of that.
const ORDER: Duration = Duration::from_secs(60);

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerbError {
    /// Nobody has that name.
    #[error("no machine called {0} runs here; `minivmm ls` lists those that do")]
    NoMachine(MachineName),
    /// Somebody has, and it came to nothing.
    #[error("{name}: {source}")]
    Machine { name: MachineName, source: ClientError },
    /// It does not answer in time.
    #[error(
        "{name} did not answer within {} s: its process{} has no time, or waits for the host; `minivmm kill {name}` ends it \
         in any case", limit.as_secs(), number(.pid)
    )]
    Late { name: MachineName, limit: Duration, pid: Option<u32> },
    /// Its process is stopped.
    #[error(
        "{name} cannot answer: its process {pid} is stopped; `kill -CONT {pid}` lets it go on, `minivmm kill {name}` ends it"
    )]
    Stopped { name: MachineName, pid: u32 },
    /// The folder of its socket was removed.
    #[error(
        "{name} runs{}, and its control socket {} is gone; the machine makes it again within seconds once its folder can be \
         made (the next login does that); until then `minivmm stop {name}` and `minivmm kill {name}` end it by signals",
        by(.pid), .socket.display()
    )]
    Unreachable { name: MachineName, socket: PathBuf, pid: Option<u32> },
    /// It was to be ended by force, and its process cannot be told for sure.
    #[error("{name} does not answer, and its process{} cannot be ended from here: {why}{}", number(.pid), cure(.pid))]
    Beyond { name: MachineName, pid: Option<u32>, why: String },
    /// It was ended by force, and is still there.
    #[error(
        "{name} is still there: its process {pid} was sent SIGKILL, and the kernel has not ended it within {} s; it waits for \
         a device or a file system that does not answer, and ends when that does", limit.as_secs()
    )]
    Lives { name: MachineName, limit: Duration, pid: u32 },
    /// The terminal, its signals or a thread.
    #[error("this terminal cannot be used as a console")]
    Terminal(#[source] io::Error),
    /// Standard output takes no more of a console.
    #[error("standard output cannot be written, and the machine runs on: {0}")]
    Output(io::Error),
    /// A console that broke off.
    #[error(
        "the console of {0} broke off, and the machine runs on; a reader that takes nothing for 5 s is let go, \
         `minivmm console {0}` shows it again"
    )]
    LetGo(MachineName),
    /// It cannot be shown.
    #[error("the machine's answer cannot be shown")]
    Shown(#[from] serde_json::Error),
}

/// A process in the middle of a sentence.
fn number(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" {pid}")).unwrap_or_default()
}

fn cure(pid: &Option<u32>) -> String {
    pid.map(|pid| format!("; `sudo kill -9 {pid}` may")).unwrap_or_default()
}

/// A verb's way out: an error is said and is a failure.
pub(super) fn run(verb: &NameVerb) -> ExitCode {
    match obey(verb) {
        Ok(code) => code,
        Err(error) => complain(&error, Status::Failed).into(),
    }
}

fn obey(verb: &NameVerb) -> Result<ExitCode, VerbError> {
    let done = Status::Done.into();
    match verb {
        NameVerb::Ls(ListArgs { json, .. }) => Ok(print(&ls::list(*json)?, Status::Done).into()),
        NameVerb::Info(args) => Ok(print(&show::info(args)?, Status::Done).into()),
        NameVerb::Stats(args) => Ok(print(&show::stats(args)?, Status::Done).into()),
        NameVerb::Stop(args) => stop::stop(args).map(|()| done),
        NameVerb::Wait(args) => wait::wait(&args.name),
        NameVerb::Console(args) => console::attach(&args.name).map(Status::into),
        NameVerb::Pause(args) => order(args, "/v1/pause").map(|()| done),
        NameVerb::Resume(args) => order(args, "/v1/resume").map(|()| done),
        NameVerb::Reset(args) => order(args, "/v1/reset").map(|()| done),
        NameVerb::Kill(args) => stop::kill(args).map(|()| done),
        NameVerb::Balloon(BalloonArgs { name, size, .. }) => {
            let body = balloon_body(size.mib());
            Speaker::to(name)?.say("PUT", "/v1/balloon", Some(&body), ORDER).map(|_| done)
        }
    }
}

fn order(args: &NameArgs, path: &str) -> Result<(), VerbError> {
    Speaker::to(&args.name)?.say("POST", path, None, ORDER).map(drop)
}

/// Speaks to one machine.
#[derive(Debug)]
struct Speaker(RunningMachine);

impl Speaker {
    fn to(name: &MachineName) -> Result<Self, VerbError> {
        find(name).map(Speaker).ok_or_else(|| VerbError::NoMachine(name.clone()))
    }

    fn get(&self, path: &str) -> Result<Value, VerbError> {
        self.say("GET", path, None, ANSWER)
    }

    /// Asks, and gives back the answer. A stopped process is not waited for.
    fn say(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, VerbError> {
        let until = Instant::now() + limit;
        let asked = PendingRequest::send(&self.0.socket, method, path, body, limit.min(ANSWER));
        let mut asked = asked.map_err(|source| self.failed(source))?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match asked.answer(left.min(STOPPED)) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) if left > STOPPED && !self.is_stopped() => {}
                Ok(None) => return Err(self.failed(ClientError::TimedOut(limit))),
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    /// Whether its process is stopped, as far as that can be seen.
    fn is_stopped(&self) -> bool {
        self.0.pid.is_some_and(is_stopped)
    }

    fn failed(&self, source: ClientError) -> VerbError {
        let RunningMachine { name, socket, pid } = self.0.clone();
        match (source, pid) {
            (ClientError::TimedOut(_), Some(pid)) if self.is_stopped() => VerbError::Stopped { name, pid },
            (ClientError::TimedOut(limit), _) => VerbError::Late { name, limit, pid },
            (ClientError::Unreachable(_), _) if !self.0.has_socket() && find(&name).is_some() => {
                VerbError::Unreachable { name, socket, pid }
            }
            (source, _) => VerbError::Machine { name, source },
        }
    }
}
