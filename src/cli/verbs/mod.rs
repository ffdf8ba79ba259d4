//! Verbs that send requests to machines with a name.

mod args;
mod capture;
mod console;
mod exits;
mod force;
mod forward;
mod ls;
mod migrate;
pub(super) mod save;
mod show;
pub(super) mod snapshot;
mod stop;
mod wait;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::shown::path as shown;
use serde_json::Value;

pub use args::{
    BalloonArgs, CaptureArgs, CaptureOutput, ConsoleArgs, ForwardArgs, ListArgs, MigrateArgs, NameArgs,
    NameVerb, RevertArgs, SaveArgs, ShowArgs, SnapshotArgs, StopArgs,
};
pub(super) use capture::{CaptureFailure, write_frames};
pub(super) use exits::exits;
pub(super) use ls::uptime;
pub(super) use show::{listing, size};
pub use snapshot::SnapshotName;

use super::exit::Status;
use super::{print, report_error};
use crate::control::client::{ClientError, PendingRequest};
use crate::control::routes::balloon_body;
use crate::control::{RunningMachine, find};
use crate::host::lock::pid_clause;
use crate::host::pidfd::is_stopped;
use crate::saved::SavedMachineError;
use crate::spec::MachineName;

/// Limit for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for an answer before checking whether the process is stopped.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Limit for an action; a pause has half of it.
pub(super) const ACTION_LIMIT: Duration = Duration::from_secs(60);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerbError {
    /// No machine has that name.
    #[error("no machine called {0} runs here; `minivmm ls` lists those that do")]
    NoMachine(MachineName),
    /// The request failed.
    #[error("{name}: {source}")]
    Machine { name: MachineName, source: ClientError },
    /// No answer within the limit.
    #[error(
        "{name} did not answer within {} s: its process{} gets no processor time, or the host blocks it; `minivmm kill {name}` \
         ends it in any case", limit.as_secs(), pid_suffix(.pid)
    )]
    TimedOut { name: MachineName, limit: Duration, pid: Option<u32> },
    /// Its process is stopped.
    #[error(
        "{name} cannot answer: its process {pid} is stopped; `kill -CONT {pid}` lets it go on, `minivmm kill {name}` ends it"
    )]
    Stopped { name: MachineName, pid: u32 },
    /// The folder of its socket was removed.
    #[error(
        "{name} runs{}, and its control socket {} is gone; the machine makes it again within seconds once its folder can be \
         made (the next login does that); until then `minivmm stop {name}` and `minivmm kill {name}` end it by signals",
        pid_clause(.pid), shown(.socket)
    )]
    SocketGone { name: MachineName, socket: PathBuf, pid: Option<u32> },
    /// Its process cannot be identified, so it cannot be ended by force.
    #[error("{name} does not answer, and its process{} cannot be ended from here: {why}{}", pid_suffix(.pid), sudo_kill(.pid))]
    CannotEnd { name: MachineName, pid: Option<u32>, why: String },
    /// It was sent SIGKILL, and is still there.
    #[error(
        "{name} is still there: its process {pid} was sent SIGKILL, and the kernel has not ended it within {} s; it waits for \
         a device or a file system that does not answer, and ends when that does", limit.as_secs()
    )]
    SurvivedKill { name: MachineName, limit: Duration, pid: u32 },
    /// The terminal, its signals or a thread.
    #[error("this terminal cannot be used as a console")]
    Terminal(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("standard output cannot be written, and the machine runs on: {0}")]
    Output(io::Error),
    /// The machine has closed the connection.
    #[error(
        "the console of {0} broke off, and the machine runs on; a console that is not read for 5 s is disconnected, \
         `minivmm console {0}` shows it again"
    )]
    Disconnected(MachineName),
    /// Frames cannot be captured.
    #[error(transparent)]
    Capture(#[from] CaptureFailure),
    /// A snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// What a saved folder says is wrong.
    #[error(transparent)]
    Saved(#[from] SavedMachineError),
    /// It has not migrated, or nobody knows.
    #[error("{name} has not migrated: {why}")]
    Migration { name: MachineName, why: String },
    /// A signal cancelled it.
    #[error("interrupted; the machine is as it was")]
    Interrupted(u8),
    /// The same of a migration.
    #[error("interrupted; {name} has not migrated, and is here as it was")]
    Stays { name: MachineName, signal: u8 },
    /// The working directory is gone.
    #[error("{path} has no absolute path: {source}", path = shown(path))]
    Path { path: PathBuf, source: io::Error },
    /// The control socket speaks JSON.
    #[error("{} is not UTF-8, in which the machine is told; give a folder with another name", shown(.0))]
    NotUtf8(PathBuf),
    /// It cannot be formatted.
    #[error("the machine's answer cannot be shown")]
    Json(#[from] serde_json::Error),
}

/// A pid in the middle of a sentence.
fn pid_suffix(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" {pid}")).unwrap_or_default()
}

fn sudo_kill(pid: &Option<u32>) -> String {
    pid.map(|pid| format!("; `sudo kill -9 {pid}` may")).unwrap_or_default()
}

/// Runs a verb; an error is printed and is a failure.
pub(super) fn run(verb: &NameVerb) -> ExitCode {
    match dispatch(verb) {
        Ok(code) => code,
        Err(error @ (VerbError::Interrupted(signal) | VerbError::Stays { signal, .. })) => {
            report_error(&error, Status::Signal(signal)).into()
        }
        Err(error) => report_error(&error, Status::Failed).into(),
    }
}

fn dispatch(verb: &NameVerb) -> Result<ExitCode, VerbError> {
    let done = Status::Done.into();
    match verb {
        NameVerb::Ls(ListArgs { json, .. }) => Ok(print(&ls::list(*json)?, Status::Done).into()),
        NameVerb::Info(args) => Ok(print(&show::info(args)?, Status::Done).into()),
        NameVerb::Stats(args) => Ok(print(&show::stats(args)?, Status::Done).into()),
        NameVerb::Stop(args) => stop::stop(args).map(|()| done),
        NameVerb::Wait(args) => wait::wait(&args.name),
        NameVerb::Console(args) => console::attach(&args.name).map(Status::into),
        NameVerb::Forward(args) => {
            Ok(forward::forward(args)?.map_or(done, |text| print(&text, Status::Done).into()))
        }
        NameVerb::Capture(args) => capture::capture(args).map(|()| done),
        NameVerb::Pause(args) => post(args, "/v1/pause").map(|()| done),
        NameVerb::Resume(args) => post(args, "/v1/resume").map(|()| done),
        NameVerb::Reset(args) => post(args, "/v1/reset").map(|()| done),
        NameVerb::Migrate(args) => migrate::migrate(args).map(Status::into),
        NameVerb::Save(args) => save::save(args).map(Status::into),
        NameVerb::Snapshot(args) => snapshot::snapshot(args).map(|()| done),
        NameVerb::Snapshots(args) => Ok(print(&snapshot::list(args)?, Status::Done).into()),
        NameVerb::Revert(args) => Ok(print(&snapshot::revert(args)?, Status::Done).into()),
        NameVerb::Kill(args) => stop::kill(args).map(|()| done),
        NameVerb::Balloon(BalloonArgs { name, size, .. }) => {
            let body = balloon_body(size.mib());
            MachineClient::find(name)?.send("PUT", "/v1/balloon", Some(&body), ACTION_LIMIT).map(|_| done)
        }
    }
}

fn post(args: &NameArgs, path: &str) -> Result<(), VerbError> {
    MachineClient::find(&args.name)?.send("POST", path, None, ACTION_LIMIT).map(drop)
}

/// Sends requests to one machine.
#[derive(Debug, Clone)]
pub(super) struct MachineClient(RunningMachine);

impl MachineClient {
    pub(super) fn find(name: &MachineName) -> Result<Self, VerbError> {
        find(name).map(MachineClient).ok_or_else(|| VerbError::NoMachine(name.clone()))
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, VerbError> {
        self.send("GET", path, None, ANSWER_LIMIT)
    }

    /// Sends a request and returns the answer. Gives up early if the process is stopped.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, VerbError> {
        let until = Instant::now() + limit;
        let pending = PendingRequest::send(&self.0.socket, method, path, body, limit.min(ANSWER_LIMIT));
        let mut pending = pending.map_err(|source| self.failed(source))?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match pending.answer(left.min(CHECK_INTERVAL)) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) if left > CHECK_INTERVAL && !self.is_stopped() => {}
                Ok(None) => return Err(self.failed(ClientError::TimedOut(limit))),
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    /// Whether its process is stopped, if known.
    fn is_stopped(&self) -> bool {
        self.0.pid.is_some_and(is_stopped)
    }

    fn failed(&self, source: ClientError) -> VerbError {
        let RunningMachine { name, socket, pid } = self.0.clone();
        match (source, pid) {
            (ClientError::TimedOut(_), Some(pid)) if self.is_stopped() => VerbError::Stopped { name, pid },
            (ClientError::TimedOut(limit), _) => VerbError::TimedOut { name, limit, pid },
            (ClientError::Unreachable(_), _) if !self.0.has_socket() && find(&name).is_some() => {
                VerbError::SocketGone { name, socket, pid }
            }
            (source, _) => VerbError::Machine { name, source },
        }
    }
}
