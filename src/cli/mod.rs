//! The command `minivmm`: arguments in, text for people and an exit status out. Nothing of a machine is decided here.

mod advice;
pub mod args;
mod banner;
mod console_output;
pub mod daemon;
mod doctor;
mod drivers;
pub mod exit;
#[cfg(test)]
#[path = "../../tests/kernels/mod.rs"]
pub(crate) mod kernels;
mod logbook;
mod logger;
mod menu;
mod preflight;
pub mod report;
pub mod run;
mod session;
mod typing;
pub mod verbs;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use args::{ArgsError, Command, DoctorArgs};
use banner::{Banner, Keys};
use daemon::{Caller, Notify, Service, ServiceArgs};
use exit::Status;
use log::Level;
use logbook::Logbook;

use crate::control::{Claim, own_folder};
use crate::host::facts::Host;
use crate::host::lock::user;
use crate::host::process::raise_descriptors;
use crate::host::signals::ignore_file_limit;
use crate::host::stdio::Output;
use crate::spec::Spec;

/// The whole program.
pub fn main() -> ExitCode {
    raise_descriptors();
    ignore_file_limit();
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(spec, service)) => match spec.settled() {
            Ok(spec) => machine(&spec, &service),
            Err(error) => complain(&error, Status::Usage),
        },
        Ok(Command::Doctor(args)) => examine(&args),
        Ok(Command::RunCommand(args, spec)) => run::run(&args, spec),
        Err(ArgsError::Flags(error)) => flags(&error, usage()),
        Err(ArgsError::Spec(error)) => complain(&error, usage()),
        Err(error @ ArgsError::Nothing) => {
            report::say(&format_args!("{error}\n"));
            Status::Usage
        }
        Ok(Command::Named(verb)) => return verbs::run(&verb),
    }
    .into()
}

/// Runs a machine, here or in the background.
fn machine(spec: &Spec, args: &ServiceArgs) -> Status {
    let notify = Notify::take();
    if args.daemonize {
        return daemon::launch(notify, |notify, caller| serve(spec, args, notify, Some(caller)));
    }
    serve(spec, args, notify, None)
}

/// Checks a machine, says what it is made of, runs it.
fn serve(spec: &Spec, args: &ServiceArgs, notify: Notify, caller: Option<Caller>) -> Status {
    let detached = caller.is_some();
    let mut warnings = Vec::new();
    if args.log.is_some() || detached {
        match Logbook::open(args.log.as_deref(), spec.name.as_ref()) {
            Ok(logbook) => logbook.install(),
            Err(error @ logbook::LogError::File { .. }) => return complain(&error, Status::Failed),
            Err(error) => warnings.push(error.to_string()),
        }
    }
    // Before anything is opened that the other machine of this name, or with this pidfile, has.
    let claim = match spec.name.as_ref().map(Claim::take).transpose() {
        Ok(claim) => claim,
        Err(error) => return complain(&error, Status::Failed),
    };
    let service = match Service::prepare(args, notify, caller) {
        Ok(service) => service,
        Err(error) => return complain(&error, Status::Failed),
    };
    let preflight::Cleared { prepared, warnings: more } = match preflight::check(spec, &Host::here()) {
        Ok(cleared) => cleared,
        Err(error) => return complain(&error, error.status()),
    };
    let keys = if detached { Keys::None } else { Keys::here() };
    let banner = Banner { spec, prepared: &prepared, keys }.to_string();
    warnings.extend(more.iter().map(ToString::to_string));
    if detached && spec.name.is_none() {
        warnings.push(NAMELESS.to_owned());
    }
    if detached && spec.name.is_some() {
        warnings.extend(removed_at_logout(&Host::here()));
    }
    logger::install();
    let service = service.of(&banner);
    session::run(spec, prepared, claim, service, move || {
        report::say(&banner);
        for warning in warnings {
            report::say_as(Level::Warn, &format_args!("minivmm: warning: {warning}\n"));
        }
    })
}

/// A machine that nobody can ask for.
const NAMELESS: &str =
    "without `--name` this machine is reached by signals only: no verb finds it, its console is nobody's";

/// A machine in the background whose socket goes with its user's session.
fn removed_at_logout(host: &Host) -> Option<String> {
    let folder = own_folder();
    let user = host.removed_at_logout(&folder, user())?;
    Some(format!(
        "the machine's control socket is in {}, which is removed when you log out; until you log in again `minivmm ls`, `stop` and \
         `kill` alone find the machine, and some hosts end it: `loginctl enable-linger {user}` keeps both",
        folder.display()
    ))
}

fn examine(args: &DoctorArgs) -> Status {
    let report = doctor::examine(args, &Host::here());
    let text = if args.json { report.json() } else { Ok(report.to_string()) };
    match text {
        Ok(text) => print(&text, report.status()),
        Err(error) => complain(&error, Status::Failed),
    }
}

/// Help and version go to stdout and are no failure, a mistake goes to stderr.
fn flags(error: &clap::Error, usage: Status) -> Status {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return print(text.trim_end(), Status::Done);
    }
    report::say(&format_args!("minivmm: {}", text.strip_prefix("error: ").unwrap_or(&text)));
    usage
}

/// How a wrong command line ends: that of `run` must not look like its command.
fn usage() -> Status {
    if is_run() { Status::RunFailed } else { Status::Usage }
}

fn is_run() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == "run")
}

/// Prints on stdout. A reader that closes its end early has seen what it wanted; any other failure is one.
fn print(text: &str, status: Status) -> Status {
    match write(text) {
        Ok(()) => status,
        Err(error) => complain(&Unprinted(error), failed()),
    }
}

fn write(text: &str) -> io::Result<()> {
    deliver(text).or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// As [`write`], for what must not get lost: a reader that is gone is an error, too.
fn deliver(text: &str) -> io::Result<()> {
    let mut output = Output::standard();
    output.open().and_then(|()| output.write_all(format!("{text}\n").as_bytes()))
}

/// What was asked for could not be printed.
#[derive(Debug, thiserror::Error)]
#[error("standard output cannot be written: {0}")]
struct Unprinted(io::Error);

/// How a command ends that could not print: `run` must not look like its command.
fn failed() -> Status {
    if is_run() { Status::RunFailed } else { Status::Failed }
}

fn complain(error: &dyn Error, status: Status) -> Status {
    report::say_as(Level::Error, &format_args!("minivmm: {}\n", report::chain(error)));
    status
}
