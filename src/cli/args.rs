//! The command line: verbs and flags. The flags of a machine are the fields of [`Spec`].

mod quick;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches};

use super::clone::CloneArgs;
use super::daemon::ServiceArgs;
use super::disk::DiskArgs;
use super::exit;
use super::net_flags::NetFlags;
use super::preflight::FileError;
use super::receive::ReceiveArgs;
use super::restore::RestoreArgs;
use super::run::{self, args::RunArgs};
use super::switch::SwitchArgs;
use super::verbs::NameVerb;
use super::warm::WarmArgs;
use crate::spec::{MemSize, NetSpec, Spec, SpecError};

/// Boots a Linux kernel in a virtual machine on /dev/kvm.
#[derive(Debug, clap::Parser)]
#[command(
    name = "minivmm",
    version,
    disable_help_flag = true,
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    override_usage = USAGE,
    help_template = "{usage-heading} {usage}\n\nVerbs:\n{subcommands}\n\nOptions:\n{options}{after-help}",
    max_term_width = 100
)]
pub struct Args {
    /// The verb, if any; without one a machine is run.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// How the machine runs.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Print this help (all: --help-all); -V version
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
    /// Print the help of all options
    ///
    /// As the manual has it. `minivmm help OPTION` prints that of one, such as `minivmm help share`.
    #[arg(long, action = ArgAction::HelpLong, hide_short_help = true)]
    help_all: Option<bool>,
    /// Print the version
    // The manual page prints the long help of options that the short help hides.
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true, long_help = "Print the version")]
    version: Option<bool>,
}

/// A machine from a file, from flags or from both.
#[derive(Debug, Clone, clap::Args)]
pub struct MachineArgs {
    /// Read the machine from a TOML file; flags win
    ///
    /// Its keys are the names of the flags. Relative paths in it count from its folder.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The flags.
    #[command(flatten)]
    spec: Spec,
    /// Those for networks.
    #[command(flatten)]
    net: NetFlags,
}

/// A verb.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Verb {
    /// Say whether this host can run a machine, and what to do if not
    Doctor(DoctorArgs),
    /// Run one command in a small guest, and end with its status
    Run(Box<RunArgs>),
    /// List or remove the machines that `run --warm` has kept
    Warm(WarmArgs),
    /// Run a virtual switch for machines, or look at one
    ///
    /// A switch connects the machines that say `--net switch=NAME`: each machine is in VLAN 1 or in the VLANs that it names. The
    /// first machine starts the switch, and it ends some seconds after the last one. Started by hand it can have uplinks.
    /// `minivmm switch ls`, `show NAME`, `set NAME PORT OPTION...`, `capture NAME PORT` and `stop NAME` are for switches that run;
    /// no switch can have one of these words, or `help`, as its name.
    Switch(Box<SwitchArgs>),
    /// Make, show, resize, copy and check disk images
    ///
    /// An image is raw or qcow2. Which one is said by `--format` or by the file's ending, `.qcow2` or anything else, and never by
    /// its content, which a guest can write. An image that a machine uses is left alone; resized, it is by that machine.
    Disk(Box<DiskArgs>),
    /// Let a saved machine go on
    ///
    /// It goes on where `minivmm save` has left it, in a machine of the same parts: kernel, disks, networks and ports are opened
    /// again by the paths that they had. Its memory is read from FOLDER as the guest touches it, and FOLDER is not written (but for the note
    /// of `--prefetch`), so that it can be restored again; but its disks change with the first machine that goes on, so keep a copy of those too, or use
    /// `overlay=FILE`. The guest gets a new VM generation ID. Connections through a user network are gone.
    Restore(Box<RestoreArgs>),
    /// Take over a machine that `minivmm migrate` sends
    ///
    /// The machine goes on here where it was, as the same machine: with its name, unless `--name` gives another, and with its VM generation
    /// ID. Kernel, initrd and disks have to be at the same paths; the processor and KVM have to offer the same. What does not fit is
    /// refused before the memory is sent, and the machine runs on where it was. Errors are printed here, and ssh shows them there.
    Receive(Box<ReceiveArgs>),
    /// Make a second machine of one that runs, was saved or is off
    ///
    /// MACHINE is the name of a running machine, a folder of `minivmm save`, or a machine's file (or the folder of a clone that is off). Of a
    /// running or saved machine the clone runs at once, in the background; of one that is off it is made, and off too. Its disks and its file vm.toml,
    /// which boots it later, are in ./NAME. Disks are copied, by reflinks where the file system can, and lie on the same bases as the
    /// original's; with --full the clone needs nothing of the original. Of a saved machine they are overlays on the folder's copies. Name, VM
    /// generation ID, sockets of ports and, from its next boot on, MAC addresses are the clone's own; forwards and captures stay the
    /// original's. What was done of this is printed.
    Clone(Box<CloneArgs>),
    /// Print a script for random numbers and clock of a restored guest
    ///
    /// A guest that was restored or cloned draws the random numbers that the other ones draw, unless its kernel has a driver for the VM
    /// generation ID (Linux 5.18 and later with CONFIG_VMGENID; Debian's cloud kernels have none). The helper gives it new ones, and sets its
    /// clock if that is behind: `minivmm guest-helper | ssh -p 5555 root@localhost sh` installs it. The machine needs `--port generation`.
    #[command(hide = true)]
    GuestHelper(GuestHelperArgs),
    /// A verb for a machine that has a name.
    #[command(flatten)]
    Named(NameVerb),
}

/// Nothing but its help.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct GuestHelperArgs {
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// What the doctor examines besides the host.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DoctorArgs {
    /// Look at this kernel too
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Look at this initial RAM disk too
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Memory of a machine [default: 512]
    #[arg(long, alias = "memory", value_name = "SIZE", allow_hyphen_values = true)]
    pub mem: Option<MemSize>,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    pub(super) help: Option<bool>,
}

/// A parsed command line.
#[derive(Debug)]
pub enum Command {
    /// Run this machine until it ends.
    Run(Spec, ServiceArgs),
    /// Examine the host.
    Doctor(DoctorArgs),
    /// Run a command in this machine.
    RunCommand(Box<RunArgs>, Spec),
    /// List or remove warm machines.
    Warm(WarmArgs),
    /// Run a switch, or do something with one.
    Switch(Box<SwitchArgs>),
    /// Work on a disk image.
    Disk(Box<DiskArgs>),
    /// Let a saved machine go on.
    Restore(Box<RestoreArgs>),
    /// Take over a machine.
    Receive(Box<ReceiveArgs>),
    /// Make a second machine of one.
    Clone(Box<CloneArgs>),
    /// Print the installer of the guest's helper.
    GuestHelper,
    /// Send a request to a machine.
    Named(NameVerb),
}

/// Why a command line is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Wrong flags; also `--help` and `--version`, which clap reports as errors.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// The file of `--config`.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The file of `--config` is not there, or closed to this user.
    #[error(transparent)]
    Config(FileError),
    /// The command line is empty.
    #[error("{FIRST_STEPS}")]
    Empty,
}

/// The definition of the command line.
pub fn definition() -> clap::Command {
    Args::command().mut_subcommand("run", run::args::define).after_help(exit::summary())
}

/// Parses a command line, whose first word is the program's name.
///
/// # Errors
/// [`ArgsError`].
pub fn parse<W: Into<OsString> + Clone>(words: impl IntoIterator<Item = W>) -> Result<Command, ArgsError> {
    let words: Vec<_> = words.into_iter().map(Into::into).collect();
    if let Some(help) = option_help(&words) {
        return Err(help.into());
    }
    let words = rewrite_help(words);
    if words.len() <= 1 {
        return Err(ArgsError::Empty);
    }
    quick::parse(&words).unwrap_or_else(|| parse_whole(words))
}

/// The same, by the definition of everything.
fn parse_whole(words: Vec<OsString>) -> Result<Command, ArgsError> {
    let is_run = words.get(1).is_some_and(|word| word == "run");
    let explain = |error| if is_run { run::podman::explain(error, &words) } else { error };
    let matches = definition().try_get_matches_from(&words).map_err(explain)?;
    let args = Args::from_arg_matches(&matches)?;
    match args.verb {
        Some(Verb::Doctor(doctor)) => Ok(Command::Doctor(doctor)),
        Some(Verb::Run(run)) => {
            let spec = run.spec(matches.subcommand_matches("run").unwrap_or(&matches))?;
            Ok(Command::RunCommand(run, spec))
        }
        Some(Verb::Warm(warm)) => Ok(Command::Warm(warm)),
        Some(Verb::Switch(switch)) => Ok(Command::Switch(switch)),
        Some(Verb::Disk(disk)) => Ok(Command::Disk(disk)),
        Some(Verb::Restore(restore)) => Ok(Command::Restore(restore)),
        Some(Verb::Receive(receive)) => Ok(Command::Receive(receive)),
        Some(Verb::Clone(clone)) => Ok(Command::Clone(clone)),
        Some(Verb::GuestHelper(_)) => Ok(Command::GuestHelper),
        Some(Verb::Named(verb)) => Ok(Command::Named(verb)),
        None => Ok(Command::Run(machine(args.machine, &matches)?, args.service)),
    }
}

/// The machine of `args`, with a network if it says nothing of one.
fn machine(args: MachineArgs, matches: &ArgMatches) -> Result<Spec, ArgsError> {
    let mut spec = args.spec(matches)?;
    if spec.net.is_empty() {
        spec.net.push(NetSpec::user());
    }
    Ok(spec)
}

/// The help of an option, for `help OPTION`. Verbs come first, then the options of a machine, then those of `run`.
fn option_help(words: &[OsString]) -> Option<clap::Error> {
    let [_, help, name] = words else { return None };
    let name = name.to_str().filter(|_| help == "help")?;
    let all = definition();
    if all.find_subcommand(name).is_some() {
        return None;
    }
    let name = name.trim_start_matches('-');
    let is_it = |arg: &clap::Arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
    };
    let run = all.find_subcommand("run")?;
    let whose = [(&all, "minivmm"), (run, "minivmm run")];
    let (command, whose) = whose.into_iter().find(|(command, _)| command.get_arguments().any(is_it))?;
    let alone = command.clone().mut_args(|arg| {
        let is_other = !is_it(&arg);
        arg.hide(is_other)
    });
    let alone = alone.help_template(format!("{{options}}\n\n`{whose} --help-all` has all options."));
    alone.try_get_matches_from([whose, "--help-all"]).err()
}

/// Rewrites `help VERB` as `VERB --help`, and so `switch help` and `disk help`.
fn rewrite_help(words: Vec<OsString>) -> Vec<OsString> {
    let (before, rest) = match words.as_slice() {
        [program, help, rest @ ..] if help == "help" => (vec![program], rest),
        [program, verb, help, rest @ ..]
            if (verb == "switch" || verb == "disk" || verb == "warm") && help == "help" =>
        {
            (vec![program, verb], rest)
        }
        _ => return words,
    };
    before.into_iter().chain(rest).cloned().chain(["--help".into()]).collect()
}

impl MachineArgs {
    /// The machine of the file, if there is one, overridden by the flags in `matches`.
    pub(super) fn spec(self, matches: &ArgMatches) -> Result<Spec, ArgsError> {
        let mut spec = self.spec;
        if let Some(file) = self.config {
            spec = Spec::from_file(file).map_err(unreadable_config)?;
            // Sets the fields whose flag is on this command line, and leaves the others.
            spec.update_from_arg_matches(matches)?;
        }
        // A text option that is given several times is joined with spaces.
        for (flag, field) in [("cmdline", &mut spec.cmdline), ("append", &mut spec.append)] {
            if let Some(texts) = matches.get_many::<String>(flag) {
                *field = Some(texts.map(String::as_str).collect::<Vec<_>>().join(" "));
            }
        }
        self.net.apply(matches, &mut spec);
        Ok(spec)
    }
}

/// As other files that cannot be read are told.
fn unreadable_config(error: SpecError) -> ArgsError {
    match error {
        SpecError::Unreadable { path, source } if source.raw_os_error().is_some() => {
            ArgsError::Config(FileError::of("machine's file", &path, source))
        }
        other => ArgsError::Spec(other),
    }
}

/// The usage lines of `--help`.
const USAGE: &str = "\
minivmm --kernel FILE --disk PATH [OPTIONS]   boot a Linux on KVM
       minivmm VERB [OPTIONS]                        see `minivmm help VERB`";

/// Printed for an empty command line.
pub(super) const FIRST_STEPS: &str = "\
minivmm boots a Linux in a virtual machine on /dev/kvm.

  minivmm doctor                    say whether this host can run a machine
  minivmm --disk debian.raw         boot what is on a disk, its console here
  minivmm --kernel FILE --disk PATH boot this kernel
  minivmm run -- uname -a           run one command in a small guest
  minivmm ls                        list the machines that have a name

`minivmm --help` lists verbs and options, `minivmm help VERB` those of a verb.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ConsoleChoice, DiskSpec, Initrd, MemBacking, OnReboot, Rtc};

    fn run(words: &[&str]) -> Result<Spec, ArgsError> {
        match parse([&["minivmm"], words].concat())? {
            Command::Run(spec, _) => Ok(spec),
            Command::Doctor(_)
            | Command::RunCommand(..)
            | Command::Warm(_)
            | Command::Switch(_)
            | Command::Disk(_)
            | Command::Restore(_)
            | Command::Receive(_)
            | Command::Clone(_)
            | Command::GuestHelper
            | Command::Named(_) => {
                panic!("no machine in {words:?}")
            }
        }
    }

    /// One of each flag of a machine.
    pub(super) const FLAGS: [&str; 33] = [
        "--kernel",
        "k",
        "--initrd",
        "none",
        "--cmdline",
        "-x",
        "--append",
        "--y",
        "--mem",
        "2G",
        "--mem-backing",
        "memfd",
        "--merge",
        "--cpus",
        "4",
        "--rtc",
        "utc",
        "--on-reboot",
        "exit",
        "--disk",
        "a.raw",
        "--disk",
        "b.raw,ro",
        "--tap",
        "tap2",
        "--port",
        "name=p,socket=s",
        "--balloon",
        "1G",
        "--console",
        "hvc0",
        "--name",
        "vm0",
    ];

    #[test]
    fn definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn help_fits_a_screen() {
        let verbs = definition();
        let verbs = verbs.get_subcommands().map(|verb| Some(verb.get_name()));
        for verb in verbs.chain([None]) {
            let words = ["minivmm"].into_iter().chain(verb).chain(["--help"]);
            let Err(ArgsError::Flags(help)) = parse(words) else { panic!("no help") };
            // As it is printed. The list of verbs stands before the options of a machine.
            let text = help.to_string().trim_end().to_owned();
            let most = if verb.is_none() { 48 } else { 24 };
            assert!(text.lines().count() < most, "{} lines:\n{text}", text.lines().count());
            assert!(text.lines().all(|line| line.chars().count() <= 80), "a line is too wide:\n{text}");
        }
    }

    #[test]
    fn every_field_has_its_flag() {
        let spec = run(&FLAGS).unwrap();
        let expected = Spec::new("k")
            .with_initrd(Initrd::None)
            .with_cmdline("-x")
            .with_append("--y")
            .with_mem("2048".parse().unwrap())
            .with_mem_backing(MemBacking::Memfd)
            .with_merge(true)
            .with_cpus("4".parse().unwrap())
            .with_rtc(Rtc::Utc)
            .with_on_reboot(OnReboot::Exit)
            .with_disk(DiskSpec::new("a.raw"))
            .with_disk(DiskSpec::new("b.raw").read_only())
            .with_net("tap=tap2".parse().unwrap())
            .with_port("name=p,socket=s".parse().unwrap())
            .with_balloon("1024".parse().unwrap())
            .with_console(ConsoleChoice::Hvc0)
            .with_name("vm0".parse().unwrap());
        assert_eq!(spec, expected);
    }

    fn help(words: &[&str]) -> String {
        match parse([&["minivmm"], words].concat()) {
            Err(ArgsError::Flags(error)) if !error.use_stderr() => error.to_string(),
            other => panic!("no help for {words:?}: {other:?}"),
        }
    }

    #[test]
    fn help_says_of_every_verb_what_it_does() {
        let text = help(&["--help"]);
        for verb in definition().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let (name, about) = (verb.get_name(), verb.get_about().unwrap().to_string());
            let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")));
            assert!(line.is_some_and(|line| line.ends_with(&about)), "{name}:\n{text}");
        }
        assert_eq!(help(&["help"]), text);
        assert_eq!(help(&["help", "stop"]), help(&["stop", "--help"]));
        assert!(help(&["help", "stop"]).contains("--timeout <TIME>"));
        assert_eq!(help(&["warm", "help", "rm"]), help(&["help", "warm", "rm"]));
        assert_eq!(help(&["switch", "help"]), help(&["switch", "--help"]));
        assert_eq!(help(&["switch", "help", "set"]), help(&["help", "switch", "set"]));
        assert_eq!(help(&["disk", "help", "resize"]), help(&["help", "disk", "resize"]));
        let switch = definition().find_subcommand("switch").unwrap().get_long_about().unwrap().to_string();
        for word in crate::spec::SwitchName::RESERVED {
            assert!(switch.contains(word), "{word}: {switch}");
        }
    }

    #[test]
    fn every_option_is_in_a_help_that_is_named_in_the_short_one() {
        for verb in [None, Some("run")] {
            let short = help(&verb.into_iter().chain(["-h"]).collect::<Vec<_>>());
            assert!(short.contains("--help-all"), "{short}");
            let long = help(&verb.into_iter().chain(["--help-all"]).collect::<Vec<_>>());
            let all = definition();
            let command = verb.map_or(&all, |verb| all.find_subcommand(verb).unwrap());
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let Some(name) = option.get_long() else { continue };
                assert!(long.contains(&format!("--{name}")), "{name}: {long}");
            }
        }
        assert!(help(&["--help"]).contains("--share <DIR[:/MOUNT]>  Folder of the host"));
    }

    #[test]
    fn help_of_a_word_that_is_no_verb_is_that_of_the_option() {
        for (name, said, whose) in [
            ("share", "virtiofs NAME /mnt", "`minivmm --help-all`"),
            ("--share", "virtiofs NAME /mnt", "`minivmm --help-all`"),
            ("memory", "--mem <SIZE>", "`minivmm --help-all`"),
            ("volume", "`:ro`", "`minivmm run --help-all`"),
            ("root-rw", "as this user", "`minivmm run --help-all`"),
        ] {
            let text = help(&["help", name]);
            assert!(text.contains(said) && text.contains(whose), "{name}: {text}");
            let options = text.lines().filter(|line| line.trim_start().starts_with('-')).count();
            assert_eq!(options, 1, "{name}: {text}");
        }
        // Verbs come first.
        assert!(help(&["help", "balloon"]).contains("Usage: minivmm balloon"));
        for name in ["shred", "", "--"] {
            let Err(ArgsError::Flags(error)) = parse(["minivmm", "help", name]) else { panic!("{name}") };
            assert!(error.use_stderr() || !error.to_string().contains("has all options"), "{name}");
        }
    }

    #[test]
    fn no_words_are_answered_with_the_first_steps() {
        let Err(error @ ArgsError::Empty) = parse(["minivmm"]) else { panic!() };
        let text = error.to_string();
        assert!(
            text.lines().count() < 12 && text.contains("minivmm doctor") && text.contains("--help"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn texts_that_are_given_several_times_are_joined_everywhere() {
        let twice = ["--append", "a=1", "--append", "--b", "--cmdline", "ro", "--cmdline", "quiet"];
        let spec = run(&[&["--kernel", "k"], &twice[..]].concat()).unwrap();
        assert_eq!((spec.append.as_deref(), spec.cmdline.as_deref()), (Some("a=1 --b"), Some("ro quiet")));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.toml");
        std::fs::write(&file, "kernel = 'k'\nappend = ['x', 'y']\n").unwrap();
        let file = ["--config", file.to_str().unwrap()];
        assert_eq!(run(&file).unwrap().append.as_deref(), Some("x y"));
        assert_eq!(run(&[&file[..], &twice[..4]].concat()).unwrap().append.as_deref(), Some("a=1 --b"));
        let words = [&["minivmm", "run", "--kernel", "k"], &twice[..4], &["--", "true", "--append"]].concat();
        let Ok(Command::RunCommand(_, spec)) = parse(words) else { panic!() };
        assert_eq!(spec.append.as_deref(), Some("a=1 --b"));
    }

    #[test]
    fn flags_win_over_the_file_and_leave_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.toml");
        std::fs::write(&file, "kernel = 'k'\nmem = '2G'\ncpus = 2\nrtc = 'utc'\nmerge = true\n").unwrap();
        let spec = run(&["--config", file.to_str().unwrap(), "--mem", "64", "--initrd", "i"]).unwrap();
        let expected = Spec::new(folder.path().join("k"))
            .with_initrd("i")
            .with_mem("64".parse().unwrap())
            .with_cpus("2".parse().unwrap())
            .with_rtc(Rtc::Utc)
            .with_merge(true)
            .with_net(NetSpec::user());
        assert_eq!(spec, expected);
    }

    #[test]
    fn wrong_amounts_are_explained() {
        for (words, said) in [
            (["--mem", "lots"], "`512M`"),
            (["--mem", "-5"], "is not an amount"),
            (["--cpus", "0"], "from 1 to 255"),
            (["--rtc", "gmt"], "localtime"),
        ] {
            let error = run(&words).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn how_a_machine_runs_is_said_beside_what_it_is() {
        let words = ["minivmm", "--kernel", "k", "-d", "--pidfile", "p", "--log", "l"];
        let Ok(Command::Run(spec, service)) = parse(words) else { panic!("no machine") };
        let [pidfile, log] = ["p", "l"].map(|file| Some(PathBuf::from(file)));
        let machine = Spec::new("k").with_net(NetSpec::user());
        assert_eq!((spec, service), (machine, ServiceArgs { daemonize: true, pidfile, log }));
        assert!(parse(["minivmm", "run", "-d", "true"]).is_err());
    }

    #[test]
    fn doctor_takes_no_machine() {
        assert!(parse(["minivmm", "--mem", "5", "doctor"]).is_err());
        assert!(matches!(parse(["minivmm", "doctor", "--json"]), Ok(Command::Doctor(d)) if d.json));
    }
}
