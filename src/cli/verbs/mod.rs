//! Verbs that speak to machines with a name.

mod args;
mod console;
mod exits;
mod ls;
mod show;
mod stop;
mod wait;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

pub use args::{BalloonArgs, ConsoleArgs, ListArgs, NameArgs, NameVerb, ShowArgs, StopArgs};
pub(super) use exits::exits;

use super::exit::Status;
use super::{complain, print};
use crate::control::client::{ClientError, ask};
use crate::control::routes::balloon_body;
use crate::control::{Place, find};
use crate::host::lock::by;
use crate::spec::MachineName;

/// How long a machine may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
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
    /// It was told to end, and does not.
    #[error(
        "{name} was told to end and is still there after {limit:?}{}: its host has not done yet what a disk was asked for, or \
         has no time for it; it ends when that is done, or with its process", by(.pid)
    )]
    Lives { name: MachineName, limit: Duration, pid: Option<u32> },
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
        NameVerb::Ls(ListArgs { json, .. }) => {
            let text = ls::list(*json)?;
            if text.is_empty() { Ok(done) } else { Ok(print(&text, Status::Done).into()) }
        }
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
struct Speaker(Place);

impl Speaker {
    fn to(name: &MachineName) -> Result<Self, VerbError> {
        find(name).map(Speaker).ok_or_else(|| VerbError::NoMachine(name.clone()))
    }

    fn get(&self, path: &str) -> Result<Value, VerbError> {
        self.say("GET", path, None, ANSWER)
    }

    fn say(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, VerbError> {
        ask(&self.0.socket, method, path, body, limit).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: ClientError) -> VerbError {
        VerbError::Machine { name: self.0.name.clone(), source }
    }
}
