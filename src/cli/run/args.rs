//! The command line of `minivmm run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{Error, ErrorKind};
use clap::{ArgAction, ArgMatches};

use super::super::args::{ArgsError, MachineArgs};
use super::super::exit;
use super::super::warm::WarmName;
use super::environment::Variable;
use super::volume::Volume;
use crate::spec::Spec;

/// The command and its guest.
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    override_usage = "minivmm run [OPTIONS] [--] COMMAND [ARGUMENT]...",
    help_template = "{usage-heading} {usage}\n\n{options}{after-help}"
)]
pub struct RunArgs {
    /// The guest's files: this directory, not busybox
    ///
    /// It is shared with the guest (virtio-fs), whose changes are in its memory and gone with it: the directory stays as it is. /proc, /sys, /dev,
    /// /tmp and /run are the guest's own. `--root /` runs this host's programs. With `--warm`, or if the kernel has no module virtiofs or overlay,
    /// or this host no static busybox, it is packed into the guest's memory, which takes twice its size.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Let the guest change the directory of --root
    ///
    /// What the guest writes is written there, as this user.
    #[arg(long, requires = "root", conflicts_with = "warm", hide_short_help = true)]
    pub root_rw: bool,
    /// A directory of the host in the guest: .:/work
    ///
    /// It is mounted at that path of the guest, which is made if it is missing; with `:ro` behind it the guest cannot write. What the guest writes
    /// belongs to this user. May be given up to 24 times, 23 with `--root`.
    #[arg(long, value_name = "HOST:GUEST", value_parser = OsStringValueParser::new().try_map(Volume::parse))]
    pub volume: Vec<Volume>,
    /// Kernel modules, if not those in /lib/modules
    ///
    /// A directory as /lib/modules, one kernel's in it, or an unpacked package of the kernel.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub modules: Option<PathBuf>,
    /// End the machine after so many seconds
    #[arg(long, value_name = "SEC", value_parser = seconds)]
    pub timeout: Option<u32>,
    /// Give up if it is not up by then [default: 60]
    ///
    /// That is until the guest waits for its command. The time of the command itself is limited by `--timeout`.
    #[arg(long, value_name = "SEC", hide_short_help = true, value_parser = seconds)]
    pub boot_timeout: Option<u32>,
    /// Keep the booted guest as NAME for later runs
    ///
    /// The first run boots, and saves its machine before the command begins. Later ones with the same options go on from there, each in
    /// a clone of its own. If the kernel, the files of the guest or an option have changed, the machine is made anew. `minivmm warm ls` lists
    /// these machines, `minivmm warm rm NAME` removes one.
    #[arg(long, value_name = "NAME")]
    pub warm: Option<WarmName>,
    /// Pass standard input on to the command
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal
    ///
    /// All its output is on standard output then, and its size is that of this terminal. With `-i` what is typed here is the command's, Ctrl-C as
    /// well: Ctrl-] `q` ends the run. The terminal is the guest's `hvc1`.
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Take the files in $MINIVMM_OUT out into DIR
    ///
    /// The command has a directory for them, /run/out. What is in it when the command has ended, whatever its status, is in DIR then, which is new
    /// or was empty. Nothing is there if anything fails. Devices, sockets and links out of the directory are left out. The guest needs a `tar`, as
    /// busybox has it.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Set a variable; without a value, the host's
    ///
    /// A variable of the command's environment, which has PATH and HOME otherwise. Without `=VALUE` it has the value that it has here, and is
    /// left out if it has none here. May be given often; the last one of a name counts.
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(Variable::parse))]
    pub env: Vec<Variable>,
    /// Pass the whole environment on to the command
    ///
    /// All variables that are set here, but for PATH, HOME, PWD and others that say what is true of the host only. `-e` has the last word.
    #[arg(long, hide_short_help = true)]
    pub env_host: bool,
    /// Run the command in this directory of the guest
    ///
    /// An absolute path. If the guest has no such directory the command does not run, and the status is 125.
    #[arg(short = 'w', long, value_name = "DIR", value_parser = OsStringValueParser::new().try_map(absolute))]
    pub workdir: Option<PathBuf>,
    /// Print what the start took, on standard error
    ///
    /// When the command has ended: the time of the monitor until the guest ran, of its kernel, of its init until the command began, and of the
    /// command. A run that goes on from a warm machine has neither kernel nor init.
    #[arg(long, hide_short_help = true)]
    pub time: bool,
    /// Show the guest's console on standard error
    ///
    /// `-v` is short for it in this version. From the next minor version on `-v` is short for `--volume`, as in podman and docker: write
    /// `--verbose` in scripts.
    #[arg(short, long)]
    pub verbose: bool,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Print this help (all: --help-all)
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
    /// Print the help of all options
    ///
    /// As the manual has it.
    #[arg(long, action = ArgAction::HelpLong, hide_short_help = true)]
    help_all: Option<bool>,
    /// The command to run in the guest, and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required = true)]
    pub command: Vec<OsString>,
}

/// Options that `run` sets itself.
const RESERVED: [&str; 3] = ["initrd", "console", "on_reboot"];

impl RunArgs {
    /// Limit for the machine to come up.
    pub(super) fn boot_limit(&self) -> Duration {
        Duration::from_secs(self.boot_timeout.unwrap_or(60).into())
    }

    /// Limit for the whole run.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.timeout.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Whether the guest has a port for its command's input. One that is kept may get a command with `-i` later; what is typed at a terminal comes
    /// there.
    pub(super) fn has_input(&self) -> bool {
        self.warm.is_some() || self.stdin && !self.tty
    }

    /// The machine, without the parts that `run` sets.
    pub(in super::super) fn spec(&self, matches: &ArgMatches) -> Result<Spec, ArgsError> {
        let flag = RESERVED.iter().find(|reserved| matches!(matches.try_contains_id(reserved), Ok(true)));
        if let Some(flag) = flag {
            return Err(reserved_option(&format!("--{}", flag.replace('_', "-"))));
        }
        // As podman and docker have it, and the next version.
        if let Some(volume) = self.command.first().filter(|word| self.verbose && is_volume(word)) {
            return Err(no_short_volume(volume).into());
        }
        let spec = self.machine.clone().spec(matches)?;
        // The same options may be in the machine's file.
        let given = [spec.initrd.is_some(), spec.console.is_some(), spec.on_reboot.is_some()];
        match RESERVED.iter().zip(given).find(|(_, given)| *given) {
            Some((key, _)) => {
                Err(reserved_option(&format!("`{}` in the machine's file", key.replace('_', "-"))))
            }
            None => Ok(spec),
        }
    }
}

/// The error for a `-v` that was meant as podman has it.
pub(super) fn no_short_volume(volume: &OsStr) -> Error {
    let volume = volume.to_string_lossy();
    let text = format!(
        "`-v` is short for `--verbose` in this version, so that `{volume}` would be the command; write `--volume {volume}`\n"
    );
    Error::raw(ErrorKind::ArgumentConflict, text)
}

/// Whether it looks as `HOST:/GUEST`, as no command does.
pub(super) fn is_volume(word: &OsStr) -> bool {
    word.as_bytes().windows(2).any(|pair| pair == b":/")
}

/// `40` or `40s`.
fn seconds(text: &str) -> Result<u32, &'static str> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok();
    seconds.filter(|seconds| *seconds > 0).ok_or("give seconds, such as 40")
}

fn absolute(path: OsString) -> Result<PathBuf, String> {
    match Path::new(&path).is_absolute() {
        true => Ok(path.into()),
        false => Err("it is a directory in the guest, whose path begins with `/`".to_owned()),
    }
}

fn reserved_option(what: &str) -> ArgsError {
    let given = format!(
        "`minivmm run` makes the initial RAM disk itself, shows output and not a console, and ends with its command: leave out {what}\n"
    );
    Error::raw(ErrorKind::ArgumentConflict, given).into()
}

/// The definition of the verb: options that it sets itself are not in its help.
pub(in super::super) fn define(verb: clap::Command) -> clap::Command {
    let verb = RESERVED.iter().fold(verb, |verb, reserved| verb.mut_arg(reserved, |arg| arg.hide(true)));
    // The short help fits a screen.
    let verb = ["share", "tap", "rtc", "config"]
        .iter()
        .fold(verb, |verb, rare| verb.mut_arg(rare, |arg| arg.hide_short_help(true)));
    verb.mut_arg("kernel", |arg| {
        let help = "Linux kernel; else the disk's, else /boot's newest";
        arg.help(help).long_help(help)
    })
    .after_help(exit::run_summary())
}
