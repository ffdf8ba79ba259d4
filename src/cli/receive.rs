//! `minivmm receive`: a machine comes from another process, and goes on here.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use clap::ArgAction;

use super::daemon::{Notify, Parent, ServiceArgs, What, launch_keeping};
use super::exit::Status;
use super::migration_address::{MigrationAddress, NobodyCame, SILENCE, of, silence};
use super::{report, report_error, serve_with_leave};
use crate::control::find;
use crate::host::process::redirect_to_null;
use crate::host::share::ShareError;
use crate::migration::{ReceiveOptions, Received, receive};
use crate::shown::path as shown;
use crate::spec::{Initrd, MachineName, ShareOrigin, Spec};

/// Where the machine comes from, and how it goes on.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ReceiveArgs {
    /// Wait at unix:PATH or tcp:127.0.0.1:PORT
    ///
    /// Without it the stream is on standard input and output, as behind ssh, and the machine runs in the background (`-d`).
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<MigrationAddress>,
    /// Give up when nothing comes for so long [default: 30s]
    ///
    /// The source sends something all the time, however little `--bandwidth` lets it send. It counts from when one has connected. So long
    /// the machine waits for its leave to run, too.
    #[arg(long, value_name = "TIME", value_parser = silence, hide_short_help = true)]
    pub timeout: Option<Duration>,
    /// Where disks go that come with it
    ///
    /// `minivmm migrate --with-disks` sends them. They become new raw images in this folder, which is there already, such as vda.raw; nothing is replaced, and they are gone
    /// unless the machine comes to run.
    #[arg(long, value_name = "FOLDER")]
    pub disks: Option<PathBuf>,
    /// Its name from now on [default: as it was]
    #[arg(long, value_name = "NAME")]
    pub name: Option<MachineName>,
    /// How it runs.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// Where the stream is.
#[derive(Debug)]
enum Way {
    Standard(OwnedFd, OwnedFd),
    At(MigrationAddress),
}

#[derive(Debug, thiserror::Error)]
#[error("no machine can be waited for{}: {source}", .at.as_ref().map(|at| format!(" at {at}")).unwrap_or_default())]
struct WayError {
    at: Option<MigrationAddress>,
    source: io::Error,
}

/// Nobody can type a machine.
#[derive(Debug, thiserror::Error)]
#[error(
    "`minivmm receive` takes a machine from its standard input and answers on its standard output, and one of them is a terminal: run `minivmm \
     migrate NAME --to 'ssh THIS-HOST minivmm receive'` where the machine is, or wait here with `--listen unix:PATH`"
)]
struct OnTerminal;

/// A signal has come first.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; no machine has come")]
struct Ended;

/// Takes the machine and runs it until it ends, here or in the background.
pub(super) fn run(args: &ReceiveArgs) -> Status {
    let notify = Notify::take();
    let way = match &args.listen {
        Some(address) => Way::At(address.clone()),
        None if io::stdin().is_terminal() || io::stdout().is_terminal() => {
            return report_error(&OnTerminal, Status::Usage);
        }
        None => match standard() {
            Ok(way) => way,
            Err(source) => return report_error(&WayError { at: None, source }, Status::Failed),
        },
    };
    let keep = match &way {
        Way::Standard(input, output) => vec![input.as_raw_fd(), output.as_raw_fd()],
        Way::At(_) => Vec::new(),
    };
    if args.service.daemonize || args.listen.is_none() {
        return launch_keeping(What::Machine, notify, &keep, |notify, parent| {
            take(way, args, notify, Some(parent))
        });
    }
    take(way, args, notify, None)
}

/// The standard streams are the migration's, and nobody else's from now on.
fn standard() -> io::Result<Way> {
    let way =
        Way::Standard(io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
    redirect_to_null(&[libc::STDIN_FILENO, libc::STDOUT_FILENO])?;
    Ok(way)
}

fn take(way: Way, args: &ReceiveArgs, notify: Notify, parent: Option<Parent>) -> Status {
    let limit = args.timeout.unwrap_or(SILENCE);
    let stream = match way {
        Way::Standard(input, output) => match of(File::from(input), File::from(output), limit) {
            Ok(stream) => stream,
            Err(source) => return report_error(&WayError { at: None, source }, Status::Failed),
        },
        Way::At(address) => {
            let listening =
                |at: &_| report::message(&format_args!("minivmm: waiting for a machine at {at}\n"));
            let refused = |why: &str| {
                report::message(&format_args!(
                    "minivmm: a connection was refused: {why}; still waiting for a machine at {address}\n"
                ));
            };
            match address.accept(limit, listening, refused) {
                Ok(stream) => stream,
                Err(NobodyCame::Ended(signal)) => return report_error(&Ended, Status::Signal(signal)),
                Err(NobodyCame::Io(source)) => {
                    return report_error(&WayError { at: Some(address), source }, Status::Failed);
                }
            }
        }
    };
    // The machine names them by it.
    let disks = match args.disks.as_ref().map(absolute).transpose() {
        Ok(disks) => disks,
        Err(source) => return report_error(&WayError { at: None, source }, Status::Failed),
    };
    let options = ReceiveOptions { limit, disks: disks.as_deref() };
    match receive(stream, options, |spec, comes| check(spec, args.name.as_ref(), comes)) {
        Ok(Received { spec, restore, leave }) => {
            serve_with_leave(&spec, Some(restore), Some(leave), &args.service, (notify, parent), || Ok(()))
        }
        Err(error) => report_error(&error, Status::Failed),
    }
}

/// What can be known of a machine before its memory has come; `comes` says which disks come with it.
fn check(spec: &mut Spec, name: Option<&MachineName>, comes: &dyn Fn(usize) -> bool) -> Result<(), String> {
    if let Some(name) = name {
        spec.name = Some(name.clone());
    }
    if let Some(name) = spec.name.as_ref().filter(|name| find(name).is_some()) {
        return Err(format!(
            "a machine called {name} runs there already; give another name with `minivmm receive --name`"
        ));
    }
    let disks = spec.disk.iter().enumerate().filter(|(index, _)| !comes(*index));
    let disks = disks.map(|(_, disk)| disk.image());
    let initrd = match &spec.initrd {
        Some(Initrd::File(path)) => Some(path.as_path()),
        _ => None,
    };
    let unusable = |path: &Path, why: &dyn Display| {
        format!("{} cannot be used there: {why}; it has to be at the same path on both hosts", shown(path))
    };
    for path in spec.kernel.as_deref().into_iter().chain(initrd).chain(disks) {
        path.metadata().map_err(|error| unusable(path, &error))?;
    }
    for share in &mut spec.share {
        share.origin = ShareOrigin::Received;
        ShareError::look_at(share).map_err(|error| error.to_string())?;
    }
    Ok(())
}
