//! The lab itself: which kind this host calls for, its start, its commands, its end.

use crate::channel::{Channel, Console};
use crate::error::seconds;
use crate::host::say;
use crate::{Cmd, Flavour, LabError, Output, Process, backend};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// A busy machine of two cores takes 3.5 s; this is for one that does much else.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Where commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabKind {
    /// On this host: its own KVM boots Linux.
    Direct,
    /// In a machine emulated by QEMU, whose KVM works on emulated SVM.
    Nested,
}

impl LabKind {
    /// What this host calls for, and why; `MINIVMM_LAB=direct` or `nested` overrides.
    #[must_use]
    pub fn of_host() -> (Self, String) {
        match std::env::var("MINIVMM_LAB").as_deref() {
            Ok("direct") => return (Self::Direct, "MINIVMM_LAB says so".into()),
            Ok("nested") => return (Self::Nested, "MINIVMM_LAB says so".into()),
            _ => {}
        }
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |flag: &str| flags.split_whitespace().any(|w| w == flag);
        if Path::new("/sys/module/kvm_pvm").exists() {
            return (Self::Nested, "/dev/kvm is kvm_pvm, which cannot boot Linux".into());
        }
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            return (Self::Nested, format!("/dev/kvm cannot be used ({error})"));
        }
        if !has("vmx") && !has("svm") {
            return (Self::Nested, "this processor shows neither VMX nor SVM".into());
        }
        (Self::Direct, "/dev/kvm works here".into())
    }
}

/// What commands in the lab may do with a disk of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and write it.
    Write,
    /// Read it.
    Read,
    /// Read and write what is forgotten with the lab.
    Forget,
}

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct LabConfig {
    pub(crate) mem_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) disks: Vec<(PathBuf, String, Access)>,
    pub(crate) debian: bool,
    pub(crate) kernel: Flavour,
    pub(crate) nested_paging: bool,
    limit: Duration,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            mem_mib: 2048,
            cpus: 1,
            files: Vec::new(),
            disks: Vec::new(),
            debian: false,
            kernel: Flavour::Cloud,
            nested_paging: false,
            limit: BOOT_LIMIT,
        }
    }
}

impl LabConfig {
    /// Memory of the emulated machine.
    #[must_use]
    pub fn mem_mib(mut self, mem_mib: u32) -> Self {
        self.mem_mib = mem_mib;
        self
    }

    /// Processors of the emulated machine.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The kernel of the emulated machine, whose KVM is what machines run on.
    #[must_use]
    pub fn kernel(mut self, kernel: Flavour) -> Self {
        self.kernel = kernel;
        self
    }

    /// Uses nested paging under any QEMU. One before version 10 then loses events of guests now and then; with its shadow
    /// paging instead, a 32-bit guest that switches to compatibility mode never gets there.
    #[must_use]
    pub fn nested_paging(mut self) -> Self {
        self.nested_paging = true;
        self
    }

    /// A file of the host under this name in the directory where commands run. A program brings its libraries along.
    #[must_use]
    pub fn file(mut self, host: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.files.push((host.into(), name.into()));
        self
    }

    /// A disk image (raw) of the host under this name there: a link to the file, or to the block device that it becomes
    /// in the emulated machine.
    #[must_use]
    pub fn disk(mut self, host: impl Into<PathBuf>, name: impl Into<String>, access: Access) -> Self {
        self.disks.push((host.into(), name.into(), access));
        self
    }

    /// Commands find Debian's programs (resources/image/tools.sh lists them) instead of busybox's. Their directory is on
    /// ext4, has room for disks, and holds the files of [`crate::Debian`] and `cloud.qcow2` ([`crate::cloud`]) to write to; all is
    /// forgotten with the lab.
    /// `tools.ext4` there is a disk with the programs, for a guest to mount read-only. Where there is no emulated machine the programs are the host's.
    #[must_use]
    pub fn debian(mut self) -> Self {
        self.debian = true;
        self.mem_mib = self.mem_mib.max(4096);
        self
    }
}

/// A place in which /dev/kvm boots Linux. Dropping it ends everything that runs in it.
#[derive(Debug)]
pub struct Lab {
    kind: LabKind,
    channel: Arc<Channel>,
    child: Child,
    /// Dropped with the lab: ends the thread that the child depends on.
    _keeper: mpsc::Sender<()>,
    directory: Option<PathBuf>,
}

impl Lab {
    /// Starts the lab that this host calls for.
    pub fn start(config: &LabConfig) -> Result<Self, LabError> {
        Self::start_kind(LabKind::of_host().0, config)
    }

    /// Starts a lab of this kind.
    pub fn start_kind(kind: LabKind, config: &LabConfig) -> Result<Self, LabError> {
        for name in
            config.files.iter().map(|(_, name)| name).chain(config.disks.iter().map(|(_, name, _)| name))
        {
            if name.starts_with('/') || name.split('/').any(|part| part == ".." || part.is_empty()) {
                return Err(LabError::format(
                    Path::new(name),
                    "a file's name in the lab is relative to its directory",
                ));
            }
        }
        match kind {
            LabKind::Direct => {
                let (command, directory) = backend::direct(config)?;
                Self::begin(kind, config, command, Some(directory))
            }
            // QEMU reads what is in memory before the agent can speak: after that nobody needs it.
            LabKind::Nested => {
                let start = |resume| {
                    let (command, _memory) = backend::nested(config, resume)?;
                    Self::begin(kind, config, command, None)
                };
                start(true).or_else(|error| {
                    say(&format!("booting the emulated machine, as none could be resumed: {error}"));
                    start(false)
                })
            }
        }
    }

    fn begin(
        kind: LabKind,
        config: &LabConfig,
        command: Command,
        directory: Option<PathBuf>,
    ) -> Result<Self, LabError> {
        let (ours, theirs) = UnixStream::pair().map_err(LabError::io("cannot make a socket pair"))?;
        let console = Console::default();
        let (child, keeper) = keep(command, theirs.into(), &console)?;
        if kind == LabKind::Nested {
            // Its init waits for the time of day.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            writeln!(&ours, "{now}").map_err(LabError::io("cannot talk to the lab"))?;
        }
        let channel = Channel::new(ours, console).map_err(LabError::io("cannot talk to the lab"))?;
        let mut lab = Self { kind, channel: Arc::new(channel), child, _keeper: keeper, directory };
        if lab.channel.ready(config.limit) {
            if kind == LabKind::Nested {
                lab.channel.keep_awake().map_err(LabError::io("cannot start a thread"))?;
            }
            return Ok(lab);
        }
        let reason = match lab.child.try_wait() {
            Ok(Some(status)) => format!("the lab's machine ended ({status}) before it was up"),
            _ => format!("the lab did not come up within {}", seconds(config.limit)),
        };
        Err(LabError::Machine { reason, console: lab.channel.console.tail() })
    }

    /// Where its commands run.
    #[must_use]
    pub fn kind(&self) -> LabKind {
        self.kind
    }

    /// The process number of the emulated machine, or of the agent.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts a command.
    pub fn spawn(&self, cmd: &Cmd) -> Result<Process, LabError> {
        Process::start(&self.channel, cmd)
    }

    /// Runs a command to its end. A status other than 0 is no error here.
    pub fn exec(&self, cmd: &Cmd) -> Result<Output, LabError> {
        let mut process = self.spawn(cmd)?;
        process.send(&cmd.stdin)?;
        if !cmd.tty {
            process.close_stdin()?;
        }
        process.wait(cmd.limit)
    }

    /// Runs a shell line that must succeed; gives its standard output as text.
    pub fn sh(&self, line: &str) -> Result<String, LabError> {
        let out = self.exec(&Cmd::sh(line))?;
        if out.status.code() == 0 {
            return Ok(out.text());
        }
        let (command, stderr) = (line.to_owned(), out.err_text());
        Err(LabError::Command { command, status: format!("status {}", out.status.code()), stderr })
    }

    /// Puts a file into the directory where commands run.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<(), LabError> {
        let cmd = Cmd::new("sh").args(["-c", "cat > \"$0\"", name]).stdin(content);
        self.exec(&cmd).map(drop)
    }

    /// The sums of KVM's counters (debugfs), such as `exits`, over all machines that run in the lab now.
    pub fn kvm_counter(&self, name: &str) -> Result<u64, LabError> {
        let text = self.sh(&format!("cat /sys/kernel/debug/kvm/{name}"))?;
        text.trim().parse().map_err(|_| LabError::format(Path::new(name), format!("{text:?} is no number")))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.channel.close();
        if self.kind == LabKind::Direct {
            // The agent kills what it started, then leaves.
            let until = Instant::now() + Duration::from_secs(5);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
        }
        drop(self.child.kill());
        drop(self.child.wait());
        self.directory.iter().for_each(|dir| drop(fs::remove_dir_all(dir)));
    }
}

/// Starts a program that this process may have written just now. A child that another thread starts at the same moment holds
/// the file open for writing until it runs its own program; until then the kernel refuses ours (ETXTBSY).
fn spawn_written(command: &mut Command) -> std::io::Result<Child> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < until =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            spawned => return spawned,
        }
    }
}

/// Starts the command on a thread that lives as long as the lab: the parent-death signal is sent when the *thread*
/// that started a process ends, and a test's thread ends before a lab that tests share.
fn keep(
    mut command: Command,
    stdin: OwnedFd,
    console: &Console,
) -> Result<(Child, mpsc::Sender<()>), LabError> {
    let line = format!("cannot run {}", command.get_program().to_string_lossy());
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (child_tx, child_rx) = mpsc::channel();
    let (keeper, end) = mpsc::channel();
    let spawn = move || {
        drop(child_tx.send(spawn_written(&mut command)));
        // Our copy of the child's end of the stream: open, it would hide that the child has gone.
        drop(command);
        let _ = end.recv();
    };
    thread::Builder::new().name("lab-keeper".into()).spawn(spawn).map_err(LabError::io(&line))?;
    let spawned =
        child_rx.recv().map_err(|_| LabError::io(&line)(std::io::Error::other("its thread ended")))?;
    let mut child = spawned.map_err(LabError::io(&line))?;
    if let Some(stdout) = child.stdout.take() {
        console.gather(stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        console.gather(stderr);
    }
    Ok((child, keeper))
}
