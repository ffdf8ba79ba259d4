//! A machine as a service: in the background, with a pidfile, and with notifications for a service manager.
//!
//! With `-d` the process that was called only waits for a child, which does all the work and reports errors
//! on the same standard error until the machine runs. The child then redirects the standard streams to
//! /dev/null and reports success. If the parent has died by then, nobody would know of the machine, so it is
//! ended.

mod notify;
mod pidfile;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use log::Level;

pub(super) use self::notify::Notify;
pub(super) use self::pidfile::{Pidfile, PidfileError};
use super::exit::Status;
use super::{machine_log, print_line, report_error};
use crate::control::BannerLine;
use crate::host::process::{Fork, close_others, detach, redirect_to_null};
use crate::host::ready::is_hung_up;
use crate::migration::ReceiveError;

/// How a machine runs, whatever it is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ServiceArgs {
    /// In the background; also --pidfile FILE, --log FILE
    ///
    /// Returns when the machine runs, and prints the number of its process; errors until then are printed as without it, with
    /// the same exit status. The guest's console is kept for `minivmm console NAME` (its last 64 KiB).
    #[arg(short, long)]
    pub daemonize: bool,
    /// File with the number of the process, while the machine runs
    ///
    /// It is written when the machine runs and removed when it has ended. The pidfile of a running machine is not replaced.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub pidfile: Option<PathBuf>,
    /// Write messages to this file too, with the time
    ///
    /// Without it, a machine in the background leaves that to the host's log (journald or syslog). The file may be rotated in any
    /// way. The guest's console does not go there.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub log: Option<PathBuf>,
}

/// What a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Machine,
    Switch,
}

impl What {
    /// What SIGTERM does to it.
    fn on_term(self) -> &'static str {
        match self {
            What::Machine => "presses its power button",
            What::Switch => "ends it",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Machine => "machine",
            What::Switch => "switch",
        })
    }
}

/// Why a running machine or switch must be ended again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    /// No pidfile.
    #[error(transparent)]
    Pidfile(#[from] PidfileError),
    /// The parent was killed, perhaps by Ctrl-C.
    #[error("the {0} is ended: the process that started it ended before the {0} ran")]
    ParentGone(What),
    /// A machine that has come from elsewhere may not run.
    #[error(transparent)]
    NoLeave(#[from] ReceiveError),
    /// The same was ended before it ran.
    #[error("the machine was ended before it ran; it runs on where it was")]
    EndedBefore,
    /// The standard streams could not be redirected.
    #[error("the standard streams cannot be redirected to /dev/null: {0}")]
    Streams(io::Error),
}

/// Why there is no process in the background.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("no process can be started in the background: {source}; run the {what} without `-d`")]
    Detach { what: What, source: io::Error },
    #[error("the process in the background died before the {0} ran; run the {0} without `-d` to see more")]
    Died(What),
    #[error(
        "the {what} runs as process {pid}, and its number cannot be written to standard output: {source}; \
         `kill {pid}` {}", .what.on_term()
    )]
    PidNotPrinted { what: What, pid: u32, source: io::Error },
}

/// Most bytes that a parent prints.
const MOST_ANNOUNCED: usize = 1 << 20;

/// Standard input, output and error.
const STANDARD_STREAMS: [libc::c_int; 3] = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];

/// The parent process, until it has been told the result of the start.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    what: What,
    channel: Arc<Mutex<Option<UnixStream>>>,
    announcement: Arc<OnceLock<String>>,
}

impl Parent {
    fn channel(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the parent print this text instead of the number of this process, when it runs.
    pub(super) fn announce(&self, text: String) {
        let _ = self.announcement.set(text);
    }

    /// Whether the parent has ended before it was told a result.
    pub(super) fn is_gone(&self) -> bool {
        self.channel().as_ref().is_some_and(is_hung_up)
    }

    /// Reports that it runs.
    pub(super) fn report_ready(&self) -> Result<(), ServiceError> {
        let Some(mut channel) = self.channel().take() else { return Ok(()) };
        redirect_to_null(&STANDARD_STREAMS).map_err(ServiceError::Streams)?;
        let text = self.announcement.get().map_or("", String::as_str).as_bytes();
        let text = text.get(..MOST_ANNOUNCED).unwrap_or(text);
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let numbers = [std::process::id(), length].map(u32::to_le_bytes).concat();
        channel
            .write_all(&[&[Status::Done.code()], &numbers[..], text].concat())
            .map_err(|_| ServiceError::ParentGone(self.what))?;
        // Sent once the number of this process was printed: a machine that nobody knows of must not run.
        channel.read_exact(&mut [0]).map_err(|_| ServiceError::ParentGone(self.what))
    }

    /// Reports a failure whose reason was already printed.
    fn report_failure(&self, status: Status) {
        if let Some(mut channel) = self.channel().take() {
            let _ = channel.write_all(&[status.code()]);
        }
    }
}

/// Forks a child that does `work`, and waits until it runs a machine or switch, or fails.
pub(super) fn launch(what: What, notify: Notify, work: impl FnOnce(Notify, Parent) -> Status) -> Status {
    launch_keeping(what, notify, &[], work)
}

/// The same; the child keeps these descriptors.
pub(super) fn launch_keeping(
    what: What,
    notify: Notify,
    keep: &[RawFd],
    work: impl FnOnce(Notify, Parent) -> Status,
) -> Status {
    let failed = |source| report_error(&LaunchError::Detach { what, source }, Status::Failed);
    match detach() {
        Ok(Fork::Parent(channel)) => wait_for_child(what, channel, &notify),
        Ok(Fork::Child(channel)) => {
            // Errors still go to the parent's standard error.
            let [input, output, _] = STANDARD_STREAMS;
            let ours = close_others(&[keep, &[channel.as_raw_fd()]].concat())
                .and_then(|()| redirect_to_null(&[input, output]));
            let channel = Arc::new(Mutex::new(Some(channel)));
            let parent = Parent { what, channel, announcement: Arc::default() };
            let status = match ours {
                Ok(()) => work(notify, parent.clone()),
                Err(error) => failed(error),
            };
            parent.report_failure(status);
            status
        }
        Err(error) => failed(error),
    }
}

/// Waits for the child's result.
fn wait_for_child(what: What, mut channel: UnixStream, notify: &Notify) -> Status {
    let (mut status, mut pid, mut length) = ([0], [0; 4], [0; 4]);
    if channel.read_exact(&mut status).is_err() {
        return report_error(&LaunchError::Died(what), Status::Failed);
    }
    let [code] = status;
    if code != Status::Done.code() {
        return Status::ALL.into_iter().find(|status| status.code() == code).unwrap_or(Status::Failed);
    }
    let read = channel.read_exact(&mut pid).and_then(|()| channel.read_exact(&mut length));
    let mut text =
        vec![0; usize::try_from(u32::from_le_bytes(length)).map_or(0, |len| len.min(MOST_ANNOUNCED))];
    if read.and_then(|()| channel.read_exact(&mut text)).is_err() {
        return report_error(&LaunchError::Died(what), Status::Failed);
    }
    let pid = u32::from_le_bytes(pid);
    // Sent by the parent, which the manager has started: it may ignore messages from other processes.
    notify.ready(pid);
    let printed = if text.is_empty() {
        print_line(&pid.to_string())
    } else {
        print_line(&String::from_utf8_lossy(&text))
    };
    // The child may have died: its pidfile or log says why.
    let _ = channel.write_all(&[Status::Done.code()]);
    match printed {
        Ok(()) => Status::Done,
        Err(source) => report_error(&LaunchError::PidNotPrinted { what, pid, source }, Status::Failed),
    }
}

/// The lines of a banner.
pub(super) fn banner_lines(text: &str) -> Vec<BannerLine> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("~> ")?.split_once(':'));
    let line =
        |(name, value): (&str, &str)| BannerLine { name: name.trim().into(), value: value.trim().into() };
    lines.map(line).collect()
}

/// The parties that are informed about a running machine.
#[derive(Debug)]
pub(super) struct Service {
    notify: Notify,
    parent: Option<Parent>,
    pidfile: Mutex<Option<Pidfile>>,
    banner: Vec<BannerLine>,
}

impl Service {
    /// Runs before the start of the machine, so that errors are reported by then.
    pub(super) fn prepare(
        args: &ServiceArgs,
        notify: Notify,
        parent: Option<Parent>,
    ) -> Result<Self, PidfileError> {
        let pidfile = args.pidfile.as_deref().map(Pidfile::prepare).transpose()?;
        Ok(Service { notify, parent, pidfile: Mutex::new(pidfile), banner: Vec::new() })
    }

    /// The same with the lines of the banner.
    pub(super) fn with_banner(self, banner: &str) -> Self {
        Service { banner: banner_lines(banner), ..self }
    }

    /// The lines of the banner.
    pub(super) fn banner(&self) -> Vec<BannerLine> {
        self.banner.clone()
    }

    /// The process that started this one has ended, and nobody would know of the machine.
    pub(super) fn parent_is_gone(&self) -> bool {
        self.parent.as_ref().is_some_and(Parent::is_gone)
    }

    /// Whether the machine runs in the background.
    pub(super) fn is_detached(&self) -> bool {
        self.parent.is_some()
    }

    /// Does what may fail of [`Service::report_running`].
    pub(super) fn prepare_to_run(&self) -> Result<(), ServiceError> {
        self.pidfile().as_mut().map(Pidfile::publish).transpose()?;
        if self.parent_is_gone() { Err(ServiceError::ParentGone(What::Machine)) } else { Ok(()) }
    }

    /// Reports that it runs.
    pub(super) fn report_running(&self) -> Result<(), ServiceError> {
        self.pidfile().as_mut().map(Pidfile::publish).transpose()?;
        // Before the parent continues, which may end the machine at once.
        machine_log::record(Level::Info, "the machine runs");
        match &self.parent {
            Some(parent) => parent.report_ready(),
            None => {
                self.notify.ready(std::process::id());
                Ok(())
            }
        }
    }

    /// Reports that the machine will end soon, whatever its guest does.
    pub(super) fn report_stopping(&self) {
        self.notify.stopping("The guest is asked to shut down.");
    }

    /// Reports how the machine has ended, and removes the pidfile.
    pub(super) fn report_ended(&self, how: &str) {
        self.notify.stopping(how);
        drop(self.pidfile().take());
    }

    fn pidfile(&self) -> MutexGuard<'_, Option<Pidfile>> {
        self.pidfile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
