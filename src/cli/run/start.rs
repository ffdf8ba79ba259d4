//! The start of a machine for a run.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use diskimage::shell_word;

use super::args::RunArgs;
use super::build_tree;
use super::busybox::Busybox;
use super::covered;
use super::error::RunError;
use super::guest;
use super::nested;
use super::ports::RunEvent;
use super::volume;
use super::warm::{self, Keep};
use crate::cli::banner::{Banner, KeyboardInput, Paths};
use crate::cli::daemon::banner_lines;
use crate::cli::preflight::{self, Start};
use crate::cli::switch::ensure_for;
use crate::cli::warm::WarmMachine;
use crate::cli::{banner, logger, report};
use crate::control::{BannerLine, Claim, ControlServer, RunningTarget};
use crate::host::facts::Host;
use crate::host::stdio::Output;
use crate::machine::Machine;
use crate::machine::files::Prepared;
use crate::machine::run_resources::{BeforeRun, Image, RunResources, StreamPort};
use crate::spec::{Initrd, OnReboot, Spec};

/// Maximum number of ports beside the console and those of a run: Linux takes 31 in all
/// (`VIRTCONS_MAX_PORTS`).
const PORTS: usize = 26;

/// What a machine of a run is started from.
#[derive(Debug, Clone)]
pub(super) struct RunStart {
    pub(super) args: RunArgs,
    pub(super) spec: Spec,
    pub(super) streams: Vec<StreamPort>,
    /// Boot, whatever warm machine there is.
    pub(super) anew: bool,
}

/// A running machine, with its control server if it has a name.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) machine: Machine,
    pub(super) control: Option<ControlServer>,
    /// How it came to wait for a command.
    pub(super) way: Way,
}

/// How a machine comes to wait for a command.
#[derive(Debug)]
pub(super) enum Way {
    /// It boots, and is kept when it waits if that is wanted.
    Boots(Option<Box<Keep>>),
    /// It goes on from a warm machine, which waits.
    Restored,
}

impl RunStart {
    /// Starts it. This may block without a limit: a directory may be large, or its file system unreachable.
    pub(super) fn start(self, events: &Sender<RunEvent>) -> Result<Started, RunError> {
        let host = Host::here();
        let most = PORTS - usize::from(self.args.tty) - usize::from(self.args.out.is_some());
        if self.spec.port.len() > most {
            return Err(RunError::Ports { asked: self.spec.port.len(), max: most });
        }
        let mut given = self.spec.clone();
        let busybox = Busybox::default();
        volume::share(&self.args, &mut given, &busybox)?;
        covered::check(&self.args, &given, &busybox)?;
        nested::check(&self.args, &given)?;
        if self.args.warm.is_some() && !given.share.is_empty() {
            return Err(RunError::WarmShare);
        }
        if self.args.warm.is_some() {
            warm::fix_addresses(&mut given);
        }
        let mut spec = run_spec(given.settled()?, &host)?;
        let kept = warm::find(&self.args, &spec, &busybox)?;
        // Before opening anything that another machine of this name uses.
        let claim = spec.name.as_ref().map(Claim::take).transpose()?;
        let restored = kept.as_ref().and_then(|kept| self.restore(kept, &spec, &host, events));
        let ((machine, banner), way) = match restored {
            Some(launched) => (launched, Way::Restored),
            None => {
                let mut prepared = preflight::prepare(&spec, Start::Kernel)?;
                let made = guest::initramfs(&self.args, &spec, &prepared, &busybox, &host)?;
                if made.is_packed && volume::has_root(&spec) {
                    spec.share.pop();
                    prepared.open.shares.pop();
                }
                let initrd: Arc<dyn Image> = Arc::new(made.archive);
                prepared.give_initrd(&initrd)?;
                let launched = self.launch(&spec, &host, prepared, events)?;
                let files = made.modules;
                let keep = kept.map(|warm| Box::new(Keep { warm, spec: spec.clone(), files }));
                (launched, Way::Boots(keep))
            }
        };
        // Those that were asked for by number are known.
        let forwards = machine.forwards();
        if forwards.iter().any(|bound| bound.forward.host == 0) {
            report::message(&banner::forwards(&forwards));
        }
        let target = Arc::new(RunningTarget::new(&machine, spec).banner(banner));
        let control = claim.map(|claim| ControlServer::serve(claim, target)).transpose();
        let control = control.map_err(|source| RunError::Host { what: "a control socket", source })?;
        Ok(Started { machine, control, way })
    }

    /// A machine that goes on from a warm one. `None` if it has to boot, for which the reason is said.
    fn restore(
        &self,
        kept: &WarmMachine,
        spec: &Spec,
        host: &Host,
        events: &Sender<RunEvent>,
    ) -> Option<Launched> {
        let restored = match kept.find() {
            _ if self.anew => Err("its guest did not go on".to_owned()),
            Ok(None) => {
                warm::say(&self.args, "there is none yet");
                return None;
            }
            Ok(Some(saved)) => {
                let prepared = preflight::prepare(spec, Start::Saved(saved)).map_err(RunError::from);
                let launched = prepared.and_then(|prepared| self.launch(spec, host, prepared, events));
                launched.map_err(|error| report::chain(&error))
            }
            Err(why) => Err(why),
        };
        match restored {
            Ok(launched) => {
                warm::say(&self.args, "the command runs in a clone of it");
                Some(launched)
            }
            Err(why) => {
                warm::say(&self.args, &format!("it is made anew: {why}"));
                None
            }
        }
    }

    /// Lets a machine run.
    fn launch(
        &self,
        spec: &Spec,
        host: &Host,
        mut prepared: Prepared,
        events: &Sender<RunEvent>,
    ) -> Result<Launched, RunError> {
        for warning in preflight::judge(spec, host, &mut prepared)? {
            report::message(&format_args!("minivmm: warning: {warning}\n"));
        }
        ensure_for(spec)?;
        logger::install();
        // The console goes to stderr if asked for; the machine keeps its last output in any case.
        let shown = self.args.verbose.then(|| Box::new(Output::error()) as _);
        let _ = events.send(RunEvent::Starting);
        let banner = self.banner(spec, &prepared);
        let (prepared, streams) = (Some(prepared), self.streams.clone());
        let running = events.clone();
        let about_to_run = BeforeRun::new(move |_| {
            let _ = running.send(RunEvent::Running(Instant::now()));
            Ok(())
        });
        let run_resources = RunResources { prepared, streams, about_to_run, ..RunResources::default() };
        Ok((Machine::start_supplied(spec, shown, run_resources)?, banner))
    }

    /// What `minivmm info` says that it is made of, if that can find it.
    fn banner(&self, spec: &Spec, prepared: &Prepared) -> Vec<BannerLine> {
        if spec.name.is_none() {
            return Vec::new();
        }
        let banner = Banner { spec, prepared, keys: KeyboardInput::None, paths: Paths::Absolute };
        let words = self.args.command.iter().map(|word| shell_word(Path::new(word)));
        let command: String = words.collect::<Vec<_>>().join(" ").chars().take(MOST_OF_COMMAND).collect();
        let command = BannerLine { name: "Command".into(), value: command };
        std::iter::once(command).chain(banner_lines(&banner.to_string())).collect()
    }
}

/// A machine that runs, and what it is made of.
type Launched = (Machine, Vec<BannerLine>);

/// Most characters of a command that `minivmm info` shows.
const MOST_OF_COMMAND: usize = 1000;

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
    if let Some(tree) = spec.kernel.as_ref().filter(|kernel| kernel.is_dir()) {
        spec.kernel = Some(build_tree::kernel(tree)?);
    }
    let words = spec.append.take().unwrap_or_default();
    spec.append = Some(boot::cmdline::join(&["quiet", &words, "rdinit=/.minivmm/init"]));
    (spec.initrd, spec.on_reboot) = (Some(Initrd::None), Some(OnReboot::Exit));
    Ok(spec)
}
