//! `minivmm switch`: a virtual switch as a process of its own, and the verbs for one that runs.

mod args;
mod client;
mod ensure;
mod show;

use std::thread;
use std::time::Duration;

use crate::shown::path as shown;
use devices::thread::{Role, spawn};
use log::Level;

pub use args::{SwitchArgs, SwitchCaptureArgs, SwitchNameArgs, SwitchSetArgs, SwitchShowArgs, SwitchVerb};
pub(super) use ensure::{EnsureError, ensure_for};

use super::daemon::{self, Notify, Parent, What};
use super::exit::Status;
use super::machine_log::{LogError, MachineLog};
use super::{logger, report, report_error};
use crate::control::Claim;
use crate::host::signals::{Signal, Signals};
use crate::spec::{MachineName, SwitchName};
use crate::switch::{End, Keeper, RunningSwitch, SwitchError};

/// Pause before an attempt to wait for signals is made again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Runs a switch, or does something with one.
pub(super) fn run(args: &SwitchArgs) -> Status {
    match (&args.verb, &args.name) {
        (Some(verb), _) => client::run(verb),
        (None, Some(name)) => launch(args, name),
        // clap asks for one of them.
        (None, None) => Status::Usage,
    }
}

fn launch(args: &SwitchArgs, name: &SwitchName) -> Status {
    let notify = Notify::take();
    if args.daemonize {
        return daemon::launch(What::Switch, notify, |notify, parent| {
            serve(args, name, &notify, Some(&parent))
        });
    }
    serve(args, name, &notify, None)
}

/// Runs a switch in this process until it ends.
fn serve(args: &SwitchArgs, name: &SwitchName, notify: &Notify, parent: Option<&Parent>) -> Status {
    if args.log.is_some() || parent.is_some() {
        match MachineLog::open(args.log.as_deref(), Some(&MachineName::from(name))) {
            Ok(log) => log.install(),
            Err(error @ LogError::File { .. }) => return report_error(&error, Status::Failed),
            // A switch has little to say.
            Err(LogError::System(_)) => {}
        }
    }
    let signals = match Signals::block() {
        Ok(signals) => signals,
        Err(source) => {
            return report_error(&SwitchError::Host { name: name.clone(), source }, Status::Failed);
        }
    };
    logger::install();
    let started =
        Claim::take_switch(name).map_err(|error| SwitchError::claim(name, error)).and_then(|claim| {
            let path = claim.path().to_owned();
            let (running, warnings) = RunningSwitch::start(claim, name, keeper(args), &args.uplinks)?;
            Ok((path, running, warnings))
        });
    let (path, running, warnings) = match started {
        Ok(started) => started,
        Err(error) => return report_error(&error, Status::Failed),
    };
    report::message(&format_args!(
        "~> Switch {name} listens on {}; join it with `--net switch={name}`\n",
        shown(&path)
    ));
    for forward in running.forwards() {
        report::message(&format_args!("~> {forward}\n"));
    }
    for warning in warnings {
        report::message_at(Level::Warn, &format_args!("minivmm: warning: {warning}\n"));
    }
    let commands = running.commands();
    let watches = spawn(Role::Cli, "signals", move || {
        loop {
            match signals.wait(None) {
                Ok(Some(Signal::End(signal))) => commands.end(End::Signal(signal)),
                Ok(_) => {}
                Err(_) => thread::sleep(RETRY_DELAY),
            }
        }
    });
    if let Err(source) = watches {
        return report_error(&SwitchError::Host { name: name.clone(), source }, Status::Failed);
    }
    let told = match parent {
        Some(parent) => parent.report_ready(),
        None => {
            notify.ready(std::process::id());
            Ok(())
        }
    };
    if told.is_err() {
        // The process that started it has died: nobody knows of it.
        return Status::Failed;
    }
    report::limit_stderr_waits();
    let end = running.run();
    notify.stopping("The switch has ended.");
    report::message(&format_args!("minivmm: switch {name}: {end}\n"));
    if end == End::Failed { Status::Failed } else { Status::Done }
}

fn keeper(args: &SwitchArgs) -> Keeper {
    match (args.keep, args.for_machine) {
        (true, _) => Keeper::Kept,
        (false, true) => Keeper::Machine,
        (false, false) => Keeper::User,
    }
}
