//! The command `minivmm`: arguments in, text for people and an exit status out. Nothing of a machine is decided here.

mod advice;
pub mod args;
mod banner;
mod doctor;
mod drivers;
pub mod exit;
#[cfg(test)]
#[path = "../../tests/kernels/mod.rs"]
pub(crate) mod kernels;
mod logger;
mod menu;
mod preflight;
pub mod report;
pub mod run;
mod session;
pub mod verbs;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use args::{ArgsError, Command, DoctorArgs};
use banner::Banner;
use exit::Status;

use crate::host::facts::Host;
use crate::spec::Spec;

/// The whole program.
pub fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(spec)) => match spec.settled() {
            Ok(spec) => machine(&spec),
            Err(error) => complain(&error, Status::Usage),
        },
        Ok(Command::Doctor(args)) => examine(&args),
        Ok(Command::RunCommand(args, spec)) => run::run(&args, spec),
        Err(ArgsError::Flags(error)) => flags(&error, usage()),
        Err(ArgsError::Spec(error)) => complain(&error, usage()),
        Ok(Command::Named(verb)) => return verbs::run(&verb),
    }
    .into()
}

/// Checks a machine, says what it is made of, runs it.
fn machine(spec: &Spec) -> Status {
    let cleared = match preflight::check(spec, &Host::here()) {
        Ok(cleared) => cleared,
        Err(error) => return complain(&error, error.status()),
    };
    report::say(&Banner { spec, files: &cleared.files, terminal: io::stdin().is_terminal() });
    for warning in cleared.warnings {
        report::say(&format_args!("minivmm: warning: {warning}\n"));
    }
    logger::install();
    session::run(spec)
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
    let runs = std::env::args_os().nth(1).is_some_and(|word| word == "run");
    if runs { Status::RunFailed } else { Status::Usage }
}

/// Prints on stdout. A reader that closes its end early has seen what it wanted.
fn print(text: &str, status: Status) -> Status {
    let _ = writeln!(io::stdout(), "{text}");
    status
}

fn complain(error: &dyn Error, status: Status) -> Status {
    report::say(&format_args!("minivmm: {}\n", report::chain(error)));
    status
}
