//! The command `minivmm`: arguments in, text for people and an exit status out. Decisions about a machine are
//! made elsewhere.

mod advice;
pub mod args;
mod banner;
pub mod clone;
mod console_input;
mod console_output;
pub mod daemon;
pub mod disk;
mod doctor;
mod drivers;
pub mod exit;
mod guest_helper;
#[cfg(test)]
#[path = "../../tests/kernels/mod.rs"]
pub(crate) mod kernels;
mod logger;
mod machine_log;
mod menu;
pub mod migration_address;
mod net_flags;
mod preflight;
pub mod receive;
pub mod report;
mod restore;
pub mod run;
mod session;
mod state_folder;
pub mod switch;
pub mod verbs;
pub mod warm;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use args::{ArgsError, Command, DoctorArgs};
use banner::{Banner, KeyboardInput, Paths};
use daemon::{Notify, Parent, Service, ServiceArgs, What};
use exit::Status;
use log::Level;
use machine_log::MachineLog;

use crate::control::{Claim, own_folder};
use crate::host::facts::Host;
use crate::host::lock::user;
use crate::host::process::{raise_fd_limit, share_heap};
use crate::host::signals::ignore_file_limit;
use crate::host::stdio::Output;
use crate::machine::files::Restore;
use crate::migration::Leave;
use crate::shown::path as shown;
use crate::spec::Spec;

/// The whole program.
pub fn main() -> ExitCode {
    share_heap();
    raise_fd_limit();
    ignore_file_limit();
    match args::parse(std::env::args_os()) {
        Ok(Command::Run(spec, service)) => match spec.settled() {
            Ok(spec) => run_machine(&spec, &service),
            Err(error) => report_error(&error, Status::Usage),
        },
        Ok(Command::Doctor(args)) => examine(&args),
        Ok(Command::RunCommand(args, spec)) => run::run(&args, spec),
        Ok(Command::Warm(args)) => warm::run(&args),
        Ok(Command::Switch(args)) => switch::run(&args),
        Ok(Command::Disk(args)) => disk::run(&args),
        Err(ArgsError::Flags(error)) => report_flag_error(&error, usage_status()),
        Err(ArgsError::Spec(error)) => report_error(&error, usage_status()),
        Err(ArgsError::Config(error)) => report_error(&error, usage_status()),
        Err(error @ ArgsError::Empty) => {
            report::message(&format_args!("{error}\n"));
            Status::Usage
        }
        Ok(Command::Restore(args)) => restore::run(&args),
        Ok(Command::Receive(args)) => receive::run(&args),
        Ok(Command::Clone(args)) => clone::run(&args),
        Ok(Command::GuestHelper) => print(guest_helper::INSTALLER, Status::Done),
        Ok(Command::Named(verb)) => return verbs::run(&verb),
    }
    .into()
}

/// Runs a machine, here or in the background.
fn run_machine(spec: &Spec, args: &ServiceArgs) -> Status {
    in_place(args, |notify, parent| serve(spec, None, args, (notify, parent), || Ok(())))
}

/// Does `work` here or in the background. No file that was opened before is open there: `work` opens what it needs.
fn in_place(args: &ServiceArgs, work: impl FnOnce(Notify, Option<Parent>) -> Status) -> Status {
    let notify = Notify::take();
    if args.daemonize {
        return daemon::launch(What::Machine, notify, |notify, parent| work(notify, Some(parent)));
    }
    work(notify, None)
}

/// Checks a machine, prints its banner and runs it, from the beginning or where it was saved. `begun` is called when nothing prevents
/// the start any more, and the guest is about to run.
fn serve(
    spec: &Spec,
    saved: Option<Restore>,
    args: &ServiceArgs,
    (notify, parent): (Notify, Option<Parent>),
    begun: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Status {
    serve_with_leave(spec, saved, None, args, (notify, parent), begun)
}

/// The same; with `leave` it is a machine that has come from elsewhere, which runs once it may.
fn serve_with_leave(
    spec: &Spec,
    saved: Option<Restore>,
    leave: Option<Leave>,
    args: &ServiceArgs,
    (notify, parent): (Notify, Option<Parent>),
    begun: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Status {
    let detached = parent.is_some();
    let mut warnings = Vec::new();
    let captures = spec.net.iter().filter_map(|net| net.pcap.as_deref());
    if let Some(Err(error)) = args.log.as_deref().map(|log| machine_log::refuse_captures(log, captures)) {
        return report_error(&error, Status::Failed);
    }
    if args.log.is_some() || detached {
        match MachineLog::open(args.log.as_deref(), spec.name.as_ref()) {
            Ok(machine_log) => machine_log.install(),
            Err(error @ machine_log::LogError::File { .. }) => return report_error(&error, Status::Failed),
            Err(error) => warnings.push(error.to_string()),
        }
    }
    // Before opening anything that another machine of this name, or with this pidfile, uses.
    let claim = match spec.name.as_ref().map(Claim::take).transpose() {
        Ok(claim) => claim,
        Err(error) => return report_error(&error, Status::Failed),
    };
    let service = match Service::prepare(args, notify, parent) {
        Ok(service) => service,
        Err(error) => return report_error(&error, Status::Failed),
    };
    let host = Host::here();
    let checked = match saved {
        Some(saved) => preflight::check_saved(spec, saved, &host),
        None => preflight::check(spec, &host),
    };
    let preflight::Checked { prepared, warnings: more } = match checked {
        Ok(checked) => checked,
        Err(error) => return report_error(&error, error.status()),
    };
    // For a machine that nothing else prevents, and before its networks are opened, which attach to them.
    if let Err(error) = switch::ensure_for(spec) {
        return report_error(&error, Status::Failed);
    }
    let keys = if detached { KeyboardInput::None } else { KeyboardInput::detect() };
    let banner = |paths| Banner { spec, prepared: &prepared, keys, paths }.to_string();
    // A console that is opened elsewhere shows it too: of a machine that has a socket.
    let shown_elsewhere = claim.as_ref().map(|_| banner(Paths::Absolute)).unwrap_or_default();
    let banner = banner(Paths::AsTyped);
    warnings.extend(more.iter().map(ToString::to_string));
    if detached && spec.name.is_none() {
        warnings.push(UNNAMED_WARNING.to_owned());
    }
    if detached && spec.name.is_some() {
        warnings.extend(removed_at_logout(&host));
    }
    logger::install();
    let service = service.with_banner(&shown_elsewhere);
    session::run(spec, prepared, claim, service, leave, move |forwards| {
        begun()?;
        report::message(&format_args!("{banner}{}", banner::forwards(forwards)));
        for warning in warnings {
            report::message_at(Level::Warn, &format_args!("minivmm: warning: {warning}\n"));
        }
        Ok(())
    })
}

/// Warning for a machine in the background without a name.
const UNNAMED_WARNING: &str = "without `--name` this machine is reached by signals only: no verb finds it, and its console cannot be opened";

/// Warning for a machine in the background whose socket is removed with its user's session.
fn removed_at_logout(host: &Host) -> Option<String> {
    let folder = own_folder();
    let user = host.removed_at_logout(&folder, user())?;
    Some(format!(
        "the machine's control socket is in {}, which is removed when you log out; until you log in again `minivmm ls`, `stop` and \
         `kill` alone find the machine, and some hosts end it: `loginctl enable-linger {user}` keeps both",
        shown(&folder)
    ))
}

fn examine(args: &DoctorArgs) -> Status {
    let report = doctor::examine(args, &Host::here());
    let text = if args.json { report.json() } else { Ok(report.to_string()) };
    match text {
        Ok(text) => print(&text, report.status()),
        Err(error) => report_error(&error, Status::Failed),
    }
}

/// Help and version go to stdout and are a success; a mistake goes to stderr.
fn report_flag_error(error: &clap::Error, usage_status: Status) -> Status {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return print(text.trim_end(), Status::Done);
    }
    // A verb without its words shows its help, which is no sentence.
    let is_help = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    let program = if is_help { "" } else { "minivmm: " };
    report::message(&format_args!("{program}{}", text.strip_prefix("error: ").unwrap_or(&text)));
    usage_status
}

/// The status of a wrong command line: that of `run` must differ from a command's.
fn usage_status() -> Status {
    if is_run() { Status::RunFailed } else { Status::Usage }
}

fn is_run() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word == "run")
}

/// Prints on stdout. A reader that has closed its end is no error; any other failure is one.
fn print(text: &str, status: Status) -> Status {
    match print_text(text) {
        Ok(()) => status,
        Err(error) => report_error(&StdoutError(error), failure_status()),
    }
}

fn print_text(text: &str) -> io::Result<()> {
    print_line(text)
        .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// As [`print_text`], but a reader that has closed its end is an error.
fn print_line(text: &str) -> io::Result<()> {
    let mut output = Output::standard();
    output.open().and_then(|()| output.write_all(format!("{text}\n").as_bytes()))
}

/// The output could not be printed.
#[derive(Debug, thiserror::Error)]
#[error("standard output cannot be written: {0}")]
struct StdoutError(io::Error);

/// The status of a command that could not print: that of `run` must differ from a command's.
fn failure_status() -> Status {
    if is_run() { Status::RunFailed } else { Status::Failed }
}

fn report_error(error: &dyn Error, status: Status) -> Status {
    report::message_at(Level::Error, &format_args!("minivmm: {}\n", report::chain(error)));
    status
}
