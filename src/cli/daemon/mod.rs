//! A machine as a service: in the background, with a pidfile, with a service manager that wants to know how it stands.
//!
//! With `-d` the process that was called only waits for another one, which does all the work and says on the same
//! standard error what is wrong, until the machine runs. It then lets go of the caller's streams and says so. Should the
//! caller have gone by then, nobody would know of the machine, and it is ended.

mod notify;
mod pidfile;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::Level;

pub(super) use self::notify::Notify;
pub(super) use self::pidfile::{Pidfile, PidfileError};
use super::exit::Status;
use super::{complain, deliver, logbook};
use crate::control::BannerLine;
use crate::host::process::{Side, close_others, detach, silence};

/// How a machine runs, whatever it is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ServiceArgs {
    /// In the background; also --pidfile FILE, --log FILE
    ///
    /// Returns when the machine runs, and prints the number of its process; what is wrong until then is said as without it, with
    /// the same exit status. The guest's console is kept for `minivmm console NAME` (its last 64 KiB).
    #[arg(short, long)]
    pub daemonize: bool,
    /// While the machine runs, this file has the number of its process
    ///
    /// It is written when the machine runs and removed when it has ended. That of a machine that runs is not taken away.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub pidfile: Option<PathBuf>,
    /// Add what minivmm says to this file too, with the time
    ///
    /// Without it, a machine in the background leaves that to the host's log (journald or syslog). The file may be rotated in any
    /// way. The guest's console does not go there.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub log: Option<PathBuf>,
}

/// Why a machine that runs is no service all the same.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    /// No pidfile.
    #[error(transparent)]
    Pidfile(#[from] PidfileError),
    /// The caller was killed, perhaps by Ctrl-C.
    #[error("the machine is ended, as whoever started it has gone meanwhile")]
    CallerGone,
    /// The caller's streams.
    #[error("the standard streams cannot be let go: {0}")]
    Streams(io::Error),
}

/// Why there is no process in the background.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("no process can be started in the background: {0}; run the machine without `-d`")]
    Detach(io::Error),
    #[error(
        "the process in the background died before the machine ran; run the machine without `-d` to see more"
    )]
    Died,
    #[error(
        "the machine runs as process {pid}, and its number cannot be written to standard output: {source}; \
         `kill {pid}` presses its power button"
    )]
    Unprinted { pid: u32, source: io::Error },
}

/// Standard input, output and error.
const STREAMS: [libc::c_int; 3] = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];

/// The process that was called, until it has been told how the start went.
#[derive(Debug, Clone)]
pub(super) struct Caller(Arc<Mutex<Option<UnixStream>>>);

impl Caller {
    fn line(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine runs.
    fn release(&self) -> Result<(), ServiceError> {
        let Some(mut line) = self.line().take() else { return Ok(()) };
        silence(&STREAMS).map_err(ServiceError::Streams)?;
        let [a, b, c, d] = std::process::id().to_le_bytes();
        line.write_all(&[Status::Done.code(), a, b, c, d]).map_err(|_| ServiceError::CallerGone)
    }

    /// It does not, and the reason has been said.
    fn fail(&self, status: Status) {
        if let Some(mut line) = self.line().take() {
            let _ = line.write_all(&[status.code()]);
        }
    }
}

/// Does `work` in a process in the background and waits until that runs a machine, or fails.
pub(super) fn launch(notify: Notify, work: impl FnOnce(Notify, Caller) -> Status) -> Status {
    match detach() {
        Ok(Side::Caller(line)) => follow(line, &notify),
        Ok(Side::Detached(line)) => {
            // What is said still goes to the caller's standard error.
            let [input, output, _] = STREAMS;
            let ours = close_others(&line).and_then(|()| silence(&[input, output]));
            let caller = Caller(Arc::new(Mutex::new(Some(line))));
            let status = match ours {
                Ok(()) => work(notify, caller.clone()),
                Err(error) => complain(&LaunchError::Detach(error), Status::Failed),
            };
            caller.fail(status);
            status
        }
        Err(error) => complain(&LaunchError::Detach(error), Status::Failed),
    }
}

/// Waits for the news from the other process.
fn follow(mut line: UnixStream, notify: &Notify) -> Status {
    let (mut status, mut pid) = ([0], [0; 4]);
    if line.read_exact(&mut status).is_err() {
        return complain(&LaunchError::Died, Status::Failed);
    }
    let [code] = status;
    if code != Status::Done.code() {
        return Status::ALL.into_iter().find(|status| status.code() == code).unwrap_or(Status::Failed);
    }
    if line.read_exact(&mut pid).is_err() {
        return complain(&LaunchError::Died, Status::Failed);
    }
    let pid = u32::from_le_bytes(pid);
    // By us, whom the manager has started: of others it may not want to hear that they are the ones now.
    notify.ready(pid);
    match deliver(&pid.to_string()) {
        Ok(()) => Status::Done,
        Err(source) => complain(&LaunchError::Unprinted { pid, source }, Status::Failed),
    }
}

/// Who is told of a machine that runs.
#[derive(Debug)]
pub(super) struct Service {
    notify: Notify,
    caller: Option<Caller>,
    pidfile: Mutex<Option<Pidfile>>,
    banner: Vec<BannerLine>,
}

impl Service {
    /// Before the machine is started, so that what cannot be had is an error by then.
    pub(super) fn prepare(
        args: &ServiceArgs,
        notify: Notify,
        caller: Option<Caller>,
    ) -> Result<Self, PidfileError> {
        let pidfile = args.pidfile.as_deref().map(Pidfile::prepare).transpose()?;
        Ok(Service { notify, caller, pidfile: Mutex::new(pidfile), banner: Vec::new() })
    }

    /// The same of a machine whose banner is this.
    pub(super) fn of(self, banner: &str) -> Self {
        let lines = banner.lines().filter_map(|line| line.strip_prefix("~> ")?.split_once(':'));
        let line =
            |(name, value): (&str, &str)| BannerLine { name: name.trim().into(), value: value.trim().into() };
        Service { banner: lines.map(line).collect(), ..self }
    }

    /// What the machine is made of.
    pub(super) fn banner(&self) -> Vec<BannerLine> {
        self.banner.clone()
    }

    /// Whether nobody sits in front of it.
    pub(super) fn is_detached(&self) -> bool {
        self.caller.is_some()
    }

    /// The machine runs.
    pub(super) fn runs(&self) -> Result<(), ServiceError> {
        self.pidfile().as_mut().map(Pidfile::publish).transpose()?;
        // Before the caller goes on, who may end it at once.
        logbook::keep(Level::Info, "the machine runs");
        match &self.caller {
            Some(caller) => caller.release(),
            None => {
                self.notify.ready(std::process::id());
                Ok(())
            }
        }
    }

    /// It will have ended soon, whatever its guest wants.
    pub(super) fn will_end(&self) {
        self.notify.stopping("The guest is asked to shut down.");
    }

    /// It has ended in this way; the next one may have its files.
    pub(super) fn has_ended(&self, how: &str) {
        self.notify.stopping(how);
        drop(self.pidfile().take());
    }

    fn pidfile(&self) -> MutexGuard<'_, Option<Pidfile>> {
        self.pidfile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
