//! `minivmm run`: one command in a guest that lives no longer than it. Its output comes out as it is, standard error apart,
//! and its exit status is ours.
//!
//! The guest boots an initramfs that is made here. Its init finds named ports of the virtio console, whose other ends are in
//! this process: no file is left behind, whatever happens.

pub mod args;
mod busybox;
mod error;
mod guest;
mod output;
mod ports;
mod session;
mod tree;

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use args::RunArgs;
use error::RunError;

use super::exit::Status;
use super::{logger, preflight, report};
use crate::host::facts::Host;
use crate::machine::files::BootFiles;
use crate::machine::supplies::{Image, Supplies};
use crate::spec::{Initrd, OnReboot, Spec};

/// Ports beside the console and those of a run: Linux takes 31 in all (`VIRTCONS_MAX_PORTS`).
const PORTS: usize = 26;

/// Runs a command in a machine.
pub(super) fn run(args: &RunArgs, spec: Spec) -> Status {
    attempt(args, spec, &Host::here()).unwrap_or_else(|error| super::complain(&error, Status::RunFailed))
}

fn attempt(args: &RunArgs, spec: Spec, host: &Host) -> Result<Status, RunError> {
    if spec.port.len() > PORTS {
        return Err(RunError::Ports { asked: spec.port.len(), max: PORTS });
    }
    let spec = machine(spec.settled()?, host)?;
    // What is named is looked at first: there is more to say of a file that cannot be had.
    spec.kernel.as_deref().map(preflight::kernel).transpose()?;
    let token = token().map_err(|source| RunError::Host { what: "random bytes", source })?;
    let files = BootFiles::find(&spec)?;
    let initrd: Arc<dyn Image> = Arc::new(guest::initramfs(args, &spec, &files, host, &token)?);
    let cleared = preflight::check_with(&spec, host, Some(&initrd))?;
    for warning in cleared.warnings {
        report::say(&format_args!("minivmm: warning: {warning}\n"));
    }
    logger::install();
    session::run(args, &spec, Supplies { initrd: Some(initrd), streams: Vec::new() }, &token)
}

/// The machine that runs the command: what is said of it, and what a run decides.
fn machine(mut spec: Spec, host: &Host) -> Result<Spec, RunError> {
    if spec.kernel.is_none() && spec.disk.is_empty() {
        let kernel = guest::newest_kernel(host)?;
        report::say(&format_args!("minivmm: the kernel is {}, the newest of this host\n", kernel.display()));
        spec.kernel = Some(kernel);
    }
    let words = spec.append.take().unwrap_or_default();
    spec.append = Some(format!("quiet {words} rdinit=/.minivmm/init"));
    (spec.initrd, spec.console, spec.on_reboot) = (Some(Initrd::None), None, Some(OnReboot::Exit));
    Ok(spec)
}

/// What no command writes by chance.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
