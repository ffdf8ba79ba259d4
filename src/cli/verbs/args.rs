//! The arguments of these verbs.

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;

use super::snapshot::SnapshotName;
use crate::cli::migration_address::{MigrationWay, silence};
use crate::spec::{BalloonSize, Delay, DiskBps, MachineName, NetId, PortForward};

/// A verb for machines with a name.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum NameVerb {
    /// List the machines that run and have a name
    Ls(ListArgs),
    /// Show a machine's parts and its state
    Info(ShowArgs),
    /// Press the power button, and end the machine if that does not
    Stop(StopArgs),
    /// Wait until a machine ends, and end with its exit status
    Wait(NameArgs),
    /// End a machine at once, and wait until it has ended
    Kill(NameArgs),
    /// Show a machine's console here, and type into it
    ///
    /// The last output of the guest is shown first, up to 64 KiB. Several may look and
    /// type at the same time.
    ///
    /// On a terminal Ctrl-] opens a menu: d detaches, and the machine runs on; p
    /// presses the power button; r resets the machine; ? lists these keys; Ctrl-] once
    /// more sends Ctrl-] to the guest. With pipes in place of a terminal every byte is
    /// the guest's, and the end of the input ends nothing: `timeout 2 minivmm console
    /// vm0 </dev/null` prints what the guest has said, and `minivmm console vm0
    /// </dev/null | grep -m 1 login:` waits for a word.
    #[command(verbatim_doc_comment)]
    Console(ConsoleArgs),
    /// List, add and remove ports of the host that lead to the guest
    ///
    /// `minivmm forward vm0` lists them, `minivmm forward vm0 8080:80` adds one: port
    /// 8080 of this host leads to port 80 of the guest, until it is removed (`--remove
    /// 8080:80`) or the machine ends. A reboot does not change it. Connections go on
    /// when their forward is removed.
    #[command(verbatim_doc_comment)]
    Forward(ForwardArgs),
    /// Copy the frames of a network interface to a file or a program
    ///
    /// The capture is in pcapng, for Wireshark and tcpdump: `minivmm capture vm0 -w - |
    /// wireshark -k -i -`. It ends with Ctrl-C, with the machine, or as -c and --seconds
    /// say.
    ///
    /// A program or disk that is slow loses frames of the capture, which are counted;
    /// the guest is never held up.
    #[command(verbatim_doc_comment)]
    Capture(CaptureArgs),
    /// Pause a machine
    Pause(NameArgs),
    /// Resume a paused machine
    Resume(NameArgs),
    /// Save a machine to a folder, and end it
    ///
    /// FOLDER has all of the machine but the contents of its disks, which stay where they are: `minivmm restore FOLDER` lets
    /// it go on, as long as nothing has written to them meanwhile. With --with-disks it has copies of the images that the guest writes
    /// to, and can be restored again and again. The folder is there as a whole or not
    /// at all. On a terminal a bar shows how far the memory is. Ctrl-C cancels, and the machine is as it was.
    Save(SaveArgs),
    /// Keep a machine as it is under a name, with memory and disks
    ///
    /// The machine rests for its disks and the last of its memory, and goes on. A copy of a disk shares its blocks where the file system can (btrfs, XFS).
    /// `minivmm revert` takes the machine back. Snapshots are in $XDG_STATE_HOME/minivmm/snapshots.
    Snapshot(SnapshotArgs),
    /// List the snapshots of a machine
    Snapshots(ShowArgs),
    /// Take a running machine back to a snapshot
    ///
    /// Memory, devices and disks are those of the snapshot; what the machine did since then is lost, without a question. Its images are
    /// replaced by new files of the same names. Console, networks and ports stay. The guest gets a new VM generation ID.
    Revert(RevertArgs),
    /// Have a machine go on in another process or on another host
    ///
    /// `minivmm migrate vm0 --to 'ssh host2 minivmm receive'`: its memory is copied while it runs, as by `save --keep-running`; it is paused for the
    /// rest only, and goes on there. ssh brings encryption and knows who may. Whatever fails before the target has all of the machine, it runs
    /// on here, and so does Ctrl-C. If the stream breaks in the moment in which the target is told to run, nobody knows whether it does: the machine
    /// stays paused here, and a sentence says what to do. It never runs twice.
    Migrate(MigrateArgs),
    /// Stop the guest where it is and boot it again
    Reset(NameArgs),
    /// Take memory back from a guest
    Balloon(BalloonArgs),
    /// Say what a machine has done since its guest booted
    Stats(ShowArgs),
}

/// A machine.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct NameArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The machine whose console is shown.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ConsoleArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpLong)]
    help: Option<bool>,
}

/// How to list machines.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ListArgs {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A machine, and the output format.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ShowArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// How to stop a machine.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct StopArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Time until it is killed, as 40s or 2m
    #[arg(long, value_name = "TIME", default_value = "90", value_parser = time)]
    pub timeout: Duration,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A port of the host that leads to the guest, to add or remove.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct ForwardArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Add this one: `[ADDRESS:]HOST:GUEST[/udp]`, as for -p
    ///
    /// Without an address the host listens on 127.0.0.1. Port 0 of the host is any
    /// that is free.
    #[arg(value_name = "FORWARD")]
    pub add: Option<PortForward>,
    /// Remove this one
    #[arg(long, value_name = "FORWARD", conflicts_with = "add")]
    pub remove: Option<PortForward>,
    /// The interface, if there are several user networks
    #[arg(long, value_name = "ID")]
    pub net: Option<NetId>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// What to capture, and where it goes.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct CaptureArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// The interface, if there are several
    #[arg(long, value_name = "ID")]
    pub net: Option<NetId>,
    /// Where the frames go.
    #[command(flatten)]
    pub output: CaptureOutput,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// Where captured frames go, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct CaptureOutput {
    /// The file, new or an earlier capture; or - for stdout
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after so many frames
    #[arg(short, long, value_name = "FRAMES", value_parser = at_least_one)]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub seconds: Option<u64>,
}

/// The machine, and where it is saved.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct SaveArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// The folder, new or empty
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Copy its disks into FOLDER, too
    #[arg(long)]
    pub with_disks: bool,
    /// Save it while it runs, and let it run on
    ///
    /// Its memory is copied while it runs, then what the guest has written meanwhile, and so on, until the rest is small; it is paused
    /// for that rest only. Each page that the guest writes in that time costs it a little. A guest that can write to a disk needs
    /// --with-disks: the disk would soon be another one than the one that its memory knows.
    #[arg(long)]
    pub keep_running: bool,
    /// With --keep-running: its pause [default: 300ms]
    ///
    /// It is what the copy aims at: a guest that writes its memory faster than it is copied is paused for longer.
    #[arg(long, value_name = "TIME", value_parser = downtime, requires = "keep_running")]
    pub downtime: Option<Duration>,
    /// With --keep-running: most bytes a second, as 100M
    #[arg(long, value_name = "BYTES", value_parser = bandwidth, requires = "keep_running")]
    pub bandwidth: Option<u64>,
    /// With --keep-running: print what it took, as JSON
    #[arg(long, requires = "keep_running")]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The machine, and the name of its snapshot.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct SnapshotArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: SnapshotName,
    /// Delete it; the machine need not run
    #[arg(long)]
    pub delete: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The machine, and where it goes back to.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct RevertArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: SnapshotName,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The machine, and where it goes.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct MigrateArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// A command, unix:PATH or tcp:127.0.0.1:PORT
    ///
    /// The command leads to `minivmm receive`: the stream is on its standard input and output. tcp is for this host alone: it is neither encrypted nor authenticated.
    #[arg(long, value_name = "TARGET")]
    pub to: MigrationWay,
    /// Copy the disks, too
    ///
    /// All that the guest can write to is copied while it runs, to new raw images in the folder that `minivmm receive --disks` names. The images here
    /// stay as they are. Without it the images have to be on shared storage, at the same path.
    #[arg(long)]
    pub with_disks: bool,
    /// The longest pause [default: 300ms]
    ///
    /// A guest that writes its memory faster than it is copied is not migrated, and runs on here.
    #[arg(long, value_name = "TIME", value_parser = downtime)]
    pub downtime: Option<Duration>,
    /// Most bytes a second, such as 100M
    #[arg(long, value_name = "BYTES", value_parser = bandwidth)]
    pub bandwidth: Option<u64>,
    /// Give up on a target that is silent for so long [default: 30s]
    ///
    /// A command has 300s until its target answers for the first time, because somebody may have to type a password.
    #[arg(long, value_name = "TIME", value_parser = silence, hide_short_help = true)]
    pub timeout: Option<Duration>,
    /// Print what it took, as JSON
    #[arg(long)]
    pub json: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A time: seconds, or with its unit.
fn time(text: &str) -> Result<Duration, &'static str> {
    const UNITS: [(&str, u64); 3] = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let in_unit = |(unit, millis)| Some((text.strip_suffix(unit)?, millis));
    let (number, millis) = UNITS.into_iter().find_map(in_unit).unwrap_or((text, 1000));
    let number = number.parse().map(|number: u32| Duration::from_millis(u64::from(number) * millis));
    number.map_err(|_| "give seconds, such as 40, or a time with its unit, such as 40s, 500ms or 2m")
}

/// A pause.
fn downtime(text: &str) -> Result<Duration, &'static str> {
    text.parse()
        .map(Delay::duration)
        .map_err(|_| "give a time with its unit, such as 300ms or 2s, 10s at most")
}

/// Bytes in a second.
fn bandwidth(text: &str) -> Result<u64, &'static str> {
    let bytes = text.parse().map(DiskBps::get).ok().filter(|bytes| *bytes >= 64 << 10);
    bytes.ok_or("give bytes in a second, such as 100M, 64K at least")
}

/// The size of a machine's balloon.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct BalloonArgs {
    /// The machine, as it was called with --name
    pub name: MachineName,
    /// How much: 256 (MiB), 256M, 1G; 0 gives all of it back to the guest
    #[arg(value_name = "MIB", allow_hyphen_values = true)]
    pub size: BalloonSize,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A limit of a capture.
fn at_least_one(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "write a whole number, at least 1".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_in_seconds_or_has_a_unit() {
        for (text, millis) in [("0", 0), ("40", 40_000), ("40s", 40_000), ("500ms", 500), ("2m", 120_000)] {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "ms", "m", "-1", "1.5s", "1h", "5 s", "99999999999"] {
            assert!(time(text).unwrap_err().contains("such as 40"), "{text}");
        }
    }

    #[test]
    fn limit_of_a_capture_is_a_number_of_one_at_least() {
        assert_eq!(at_least_one("1"), Ok(1));
        for text in ["0", "-1", "1.5", "", "99999999999999999999"] {
            assert!(at_least_one(text).unwrap_err().contains("at least 1"), "{text}");
        }
    }
}
