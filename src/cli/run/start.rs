//! From what was asked for to a machine that runs.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::args::RunArgs;
use super::error::RunError;
use super::guest;
use super::ports::News;
use crate::cli::preflight::{self, InitrdOrigin};
use crate::cli::{logger, report};
use crate::control::{Claim, ControlServer, RunningTarget};
use crate::host::facts::Host;
use crate::host::stdio::Output;
use crate::machine::Machine;
use crate::machine::run_resources::{Image, RunResources, StreamPort};
use crate::spec::{Initrd, OnReboot, Spec};

/// Ports beside the console and those of a run: Linux takes 31 in all (`VIRTCONS_MAX_PORTS`).
const PORTS: usize = 26;

/// What a machine of a run is started from.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) args: RunArgs,
    pub(super) spec: Spec,
    pub(super) streams: Vec<StreamPort>,
    pub(super) token: String,
}

/// A machine that runs, and who answers for it if it has a name.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) machine: Machine,
    pub(super) control: Option<ControlServer>,
}

impl Start {
    /// Starts it. That can take long, or for ever: a directory may be large, and its file system away.
    pub(super) fn start(self, news: &Sender<News>) -> Result<Started, RunError> {
        let (host, args) = (Host::here(), self.args);
        if self.spec.port.len() > PORTS {
            return Err(RunError::Ports { asked: self.spec.port.len(), max: PORTS });
        }
        let spec = machine(self.spec.settled()?, &host)?;
        // Before anything is opened that the other machine of this name has.
        let claim = spec.name.as_ref().map(Claim::take).transpose()?;
        let mut prepared = preflight::prepare(&spec, InitrdOrigin::ToBeMade)?;
        let initrd: Arc<dyn Image> = Arc::new(guest::initramfs(&args, &spec, &prepared, &host, &self.token)?);
        prepared.give_initrd(&initrd)?;
        for warning in preflight::judge(&spec, &host, &prepared.boot)? {
            report::say(&format_args!("minivmm: warning: {warning}\n"));
        }
        logger::install();
        // What is shown of the console is shown; the machine keeps the last of it.
        let shown = args.verbose.then(|| Box::new(Output::error()) as _);
        let _ = news.send(News::Boots);
        let prepared = Some(prepared);
        let run_resources = RunResources { prepared, streams: self.streams, ..RunResources::default() };
        let machine = Machine::start_supplied(&spec, shown, run_resources)?;
        let target = Arc::new(RunningTarget::new(&machine, spec));
        let control = claim.map(|claim| ControlServer::serve(claim, target)).transpose();
        let control = control.map_err(|source| RunError::Host { what: "a control socket", source })?;
        Ok(Started { machine, control })
    }
}

/// The machine that runs the command: what is said of it, and what a run decides.
fn machine(mut spec: Spec, host: &Host) -> Result<Spec, RunError> {
    if spec.kernel.is_none() && spec.disk.is_empty() {
        let kernel = guest::newest_kernel(host)?;
        report::say(&format_args!("minivmm: the kernel is {}, the newest of this host\n", kernel.display()));
        spec.kernel = Some(kernel);
    }
    let words = spec.append.take().unwrap_or_default();
    spec.append = Some(boot::cmdline::join(&["quiet", &words, "rdinit=/.minivmm/init"]));
    (spec.initrd, spec.on_reboot) = (Some(Initrd::None), Some(OnReboot::Exit));
    Ok(spec)
}
