//! The start of a machine for a run.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::args::RunArgs;
use super::error::RunError;
use super::guest;
use super::ports::RunEvent;
use crate::cli::preflight::{self, Start};
use crate::cli::switch::ensure_for;
use crate::cli::{banner, logger, report};
use crate::control::{Claim, ControlServer, RunningTarget};
use crate::host::facts::Host;
use crate::host::stdio::Output;
use crate::machine::Machine;
use crate::machine::run_resources::{Image, RunResources, StreamPort};
use crate::spec::{Initrd, OnReboot, Spec};

/// Maximum number of ports beside the console and those of a run: Linux takes 31 in all
/// (`VIRTCONS_MAX_PORTS`).
const PORTS: usize = 26;

/// What a machine of a run is started from.
#[derive(Debug)]
pub(super) struct RunStart {
    pub(super) args: RunArgs,
    pub(super) spec: Spec,
    pub(super) streams: Vec<StreamPort>,
    pub(super) token: String,
}

/// A running machine, with its control server if it has a name.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) machine: Machine,
    pub(super) control: Option<ControlServer>,
}

impl RunStart {
    /// Starts it. This may block without a limit: a directory may be large, or its file system unreachable.
    pub(super) fn start(self, events: &Sender<RunEvent>) -> Result<Started, RunError> {
        let (host, args) = (Host::here(), self.args);
        if self.spec.port.len() > PORTS {
            return Err(RunError::Ports { asked: self.spec.port.len(), max: PORTS });
        }
        let spec = run_spec(self.spec.settled()?, &host)?;
        // Before opening anything that another machine of this name uses.
        let claim = spec.name.as_ref().map(Claim::take).transpose()?;
        let mut prepared = preflight::prepare(&spec, Start::Kernel)?;
        let initrd: Arc<dyn Image> = Arc::new(guest::initramfs(&args, &spec, &prepared, &host, &self.token)?);
        prepared.give_initrd(&initrd)?;
        for warning in preflight::judge(&spec, &host, &mut prepared)? {
            report::message(&format_args!("minivmm: warning: {warning}\n"));
        }
        ensure_for(&spec)?;
        logger::install();
        // The console goes to stderr if asked for; the machine keeps its last output in any case.
        let shown = args.verbose.then(|| Box::new(Output::error()) as _);
        let _ = events.send(RunEvent::Starting);
        let prepared = Some(prepared);
        let run_resources = RunResources { prepared, streams: self.streams, ..RunResources::default() };
        let machine = Machine::start_supplied(&spec, shown, run_resources)?;
        // Those that were asked for by number are known.
        let forwards = machine.forwards();
        if forwards.iter().any(|bound| bound.forward.host == 0) {
            report::message(&banner::forwards(&forwards));
        }
        let target = Arc::new(RunningTarget::new(&machine, spec));
        let control = claim.map(|claim| ControlServer::serve(claim, target)).transpose();
        let control = control.map_err(|source| RunError::Host { what: "a control socket", source })?;
        Ok(Started { machine, control })
    }
}

/// The machine for the command: the user's spec, with the fields that a run sets.
fn run_spec(mut spec: Spec, host: &Host) -> Result<Spec, RunError> {
    if spec.kernel.is_none() && spec.disk.is_empty() {
        let kernel = guest::newest_kernel(host)?;
        report::message(&format_args!(
            "minivmm: the kernel is {}, the newest of this host\n",
            kernel.display()
        ));
        spec.kernel = Some(kernel);
    }
    let words = spec.append.take().unwrap_or_default();
    spec.append = Some(boot::cmdline::join(&["quiet", &words, "rdinit=/.minivmm/init"]));
    (spec.initrd, spec.on_reboot) = (Some(Initrd::None), Some(OnReboot::Exit));
    Ok(spec)
}
