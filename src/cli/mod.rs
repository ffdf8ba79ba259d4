//! The command `minivmm`: arguments in, text for people and an exit status out. Nothing of a machine is decided here.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "saying things to people is what the command line does"
)]

mod advice;
pub mod args;
mod drivers;
pub mod exit;
mod menu;
pub mod report;
mod session;

use std::process::ExitCode;

use args::{ArgsError, Command};
use exit::Status;

/// The whole program.
pub fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(spec)) => run(&spec),
        Ok(Command::Doctor(_)) => Status::Done,
        Err(ArgsError::Flags(error)) => flags(&error),
        Err(ArgsError::Spec(error)) => {
            complain(&error);
            Status::Usage
        }
    }
    .into()
}

/// Help and version go to stdout and are no failure, a mistake goes to stderr.
fn flags(error: &clap::Error) -> Status {
    if !error.use_stderr() {
        // A reader that closes its end has seen what it wanted.
        let _ = error.print();
        return Status::Done;
    }
    let text = error.render().to_string();
    eprint!("minivmm: {}", text.strip_prefix("error: ").unwrap_or(&text));
    Status::Usage
}

fn run(spec: &crate::spec::Spec) -> Status {
    match spec.kernel() {
        Ok(_) => session::run(spec),
        Err(error) => {
            complain(&error);
            Status::Usage
        }
    }
}

fn complain(error: &dyn std::error::Error) {
    eprintln!("minivmm: {}", report::chain(error));
}
