//! A machine frozen once, from which any number of others go on.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

#[cfg(doc)]
use super::GuestClock;
use super::boot_once::{Beginning, Origin};
use super::commands::{self, CommandPorts, InitLines, Missed, MorePorts, Said};
use super::controls::Controls;
use super::deadline::Progress;
use super::files::{OpenFiles, Prepared, Restore};
use super::hold::Hold;
use super::precopy;
use super::resources::Resources;
use super::saved::{SaveError, SavedParts};
use super::{Exit, Machine, MachineBuilder, PauseError, StartError};
use crate::host::disk::{DiskMark, Drive, OpenDisk};
use crate::kvm::KvmDevice;
use crate::kvm::memory::frozen_memfd;
use crate::saved::SavedMachine;
use crate::spec::{DiskSpec, MemBacking, NetLink, Spec};

/// A machine that was frozen in the midst of its work, from which others go on where it was: a guest is booted and warmed up once,
/// and each clone of it is there in a millisecond or two. Clones of a template are of the same one.
///
/// ```no_run
/// use std::time::Duration;
/// use minivmm::{Machine, Template, spec::Spec};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let machine = Machine::builder(&Spec::new("vmlinuz")).start()?;
/// machine.console().expect("ready", Duration::from_secs(60))?;
/// let template = Template::freeze(&machine, Duration::from_secs(10))?;
/// drop(machine);
/// let clones = (0..100).map(|_| template.spawn()).collect::<Result<Vec<_>, _>>()?;
/// # Ok(())
/// # }
/// ```
///
/// # What clones share
/// The memory that none of them has written, read-only disks, kernel and initrd for a reboot, and nothing else: each has its own
/// console, its own user network with its own NAT, and its own temporary file for what it writes to a disk with `snapshot`.
///
/// # What clones must not share
/// All of them go on from the same memory, and so with the same secrets:
/// - *Random numbers.* Each clone has another VM generation ID. A guest with a driver for it (Linux 5.18, `CONFIG_VMGENID`) makes its
///   random pool anew before it goes on; in one without, all clones draw the same "random" numbers until they are told to reseed.
///   Programs that keep random state of their own (keys made ahead, UUIDs, session tokens) keep it in either case: freeze before they
///   make it. [`Template::exec`] also gives each clone random bytes of the host's; an init that puts them into the pool has to ask for a new
///   generator, too (`RNDRESEEDCRNG`), as that of `minivmm run` does.
/// - *Clocks.* They go on from the host's time, and a guest sees them jump by the time since the freeze ([`GuestClock::Host`]).
///   [`MachineBuilder::clock`] has them go on from the freeze; they stay behind then.
/// - *Addresses.* The MAC and IP addresses of all clones are equal. That is right behind a NAT of one's own, and nowhere else: a machine on
///   a TAP, switch or socket cannot be frozen. The host's ports that led to the original lead to no clone;
///   [`Machine::add_forward`] opens others.
/// - *Connections.* Those through the user network are gone, and the guest sees a reset when it uses them.
#[derive(Debug, Clone)]
pub struct Template(Arc<Frozen>);

#[derive(Debug)]
struct Frozen {
    spec: Spec,
    restore: Restore,
    /// Kernel and initrd.
    files: OpenFiles,
    /// In the order of the spec.
    disks: Vec<FrozenDisk>,
    kvm: Arc<KvmDevice>,
    /// Its guest waits for a command, and has the ports for that.
    takes_commands: bool,
    more_ports: MorePorts,
}

/// A disk of a frozen machine.
#[derive(Debug)]
enum FrozenDisk {
    /// A raw image or a device, read-only: one is enough for all.
    Raw(OpenDisk),
    /// An image that is read-only, with the mark that it had.
    Image(DiskMark),
    /// One with `snapshot`, and what the guest had written.
    Written(DiskMark, File),
}

/// What a running machine shares with those that are made from it.
#[derive(Debug)]
pub(super) struct Shared {
    /// With what was changed since the start.
    spec: Result<Spec, FreezeError>,
    /// A program holds ports of it.
    has_streams: bool,
    files: OpenFiles,
    kvm: Arc<KvmDevice>,
}

/// Why a machine could not be frozen or cloned. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// Two machines would write to one disk.
    #[error(
        "its guest writes to the disk {0}, and two machines cannot write to one disk; start it with `ro` or `snapshot` at that disk"
    )]
    WritableDisk(String),
    /// A drive is empty.
    #[error("the drive {0} is empty; insert a disk before")]
    EmptyDrive(String),
    /// Two machines would have one address on one network.
    #[error(
        "its interface {id} is on {link}, where two machines cannot have one address; start it with `--net user` or `--net none`"
    )]
    Net {
        /// The interface.
        id: String,
        /// What it is connected to.
        link: String,
    },
    /// Two machines cannot listen on one socket.
    #[error(
        "its port {0} is a socket of the host, which two machines cannot both have; start it without `--port`"
    )]
    Port(String),
    /// A program of the host holds ports of it, as `minivmm run` does.
    #[error("a program holds ports of this machine, which a clone would not have")]
    Streams,
    /// Its guest has not said that it waits for a command.
    #[error("the guest did not say within {} s that it waits for a command; its init has to say `ready` on the port minivmm.run", .0.as_secs())]
    NotReady(Duration),
    /// The same, and the machine has ended.
    #[error("the guest ended before it waited for a command: {0}")]
    Ended(Arc<Exit>),
    /// It was not paused.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// Its state could not be taken.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A disk of it could not be taken.
    #[error("the disk {id} cannot be frozen: {source}")]
    Disk {
        /// The disk.
        id: String,
        /// What the host said.
        source: io::Error,
    },
    /// Its files cannot be opened, or the clone could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Shared {
    pub(super) fn of(resources: &Resources) -> Self {
        let Resources { files, kvm, run_resources, .. } = resources;
        let has_streams = !run_resources.streams.is_empty();
        Shared { spec: spec_now(resources), has_streams, files: files.clone(), kvm: kvm.clone() }
    }
}

/// The spec of a clone of the machine as it is now.
fn spec_now(resources: &Resources) -> Result<Spec, FreezeError> {
    let mut spec = resources.spec.clone();
    for (disk, now) in spec.disk.iter_mut().zip(resources.disk_handles.states()) {
        now.write_to(disk).map_err(FreezeError::EmptyDrive)?;
    }
    cloneable(spec)
}

/// The same without what only one machine can have, if it can be without that.
fn cloneable(mut spec: Spec) -> Result<Spec, FreezeError> {
    let writable = |disk: &DiskSpec| !disk.read_only && !disk.snapshot;
    if let Some(index) = spec.disk.iter().position(writable) {
        return Err(FreezeError::WritableDisk(super::disks::disk_id(index)));
    }
    if let Some(port) = spec.port.iter().find(|port| !port.is_generation()) {
        return Err(FreezeError::Port(port.name.to_string()));
    }
    let outside = |link: &NetLink| !matches!(link, NetLink::User(_) | NetLink::None);
    if let Some((id, net)) = spec.interfaces().find(|(_, net)| outside(&net.link)) {
        let link = match &net.link {
            NetLink::Tap(name) => format!("the TAP {name}"),
            link => link.to_string(),
        };
        return Err(FreezeError::Net { id: id.as_str().to_owned(), link });
    }
    for net in &mut spec.net {
        net.pcap = None;
        if let NetLink::User(user) = &mut net.link {
            user.forward.clear();
        }
    }
    spec.name = None;
    Ok(spec)
}

impl Controls {
    /// A second machine that goes on from where this one is: [`Template::freeze`] and [`Template::spawn`] in one. Both run on; this one rests
    /// while its memory is copied. See [`Template`] for what the two share, and what they should not.
    ///
    /// # Errors
    /// [`FreezeError`]; this machine is as it was.
    pub fn clone_running(&self, limit: Duration) -> Result<Machine, FreezeError> {
        Ok(Template::of(self, limit, Streams::Refused)?.spawn()?)
    }
}

impl Template {
    /// Freezes a running or paused machine. It rests while its memory is copied, into memory of this process (what its guest has
    /// touched of it), and goes on then if it ran before; drop it if only its clones are wanted. `limit` is for the time until it rests.
    ///
    /// # Errors
    /// [`FreezeError`]: disks that are written to, networks and ports that two machines cannot have. The machine is as it was.
    pub fn freeze(machine: &Machine, limit: Duration) -> Result<Self, FreezeError> {
        Self::of(&machine.controls, limit, Streams::Refused)
    }

    /// Boots a machine whose init waits for a command, and freezes it there, for [`Template::exec`]. `limit` is for the time until it
    /// waits, and again until it rests.
    ///
    /// Such a guest speaks the protocol of `minivmm run` over ports of its virtio console: the file `resources/initramfs/run.sh` is an init
    /// that does. What `minivmm run --warm` has saved is ready for [`Template::from_saved`].
    ///
    /// # Errors
    /// [`FreezeError`]: what a machine cannot be started or frozen with, [`FreezeError::NotReady`], [`FreezeError::Ended`].
    pub fn boot(spec: &Spec, limit: Duration) -> Result<Self, FreezeError> {
        let ports = CommandPorts::with(MorePorts::OF_ANY);
        let machine = with_streams(Machine::builder(spec), &ports).start()?;
        let (mut lines, mut ready) = (InitLines::default(), false);
        let waits = commands::wait_for(&machine, limit, |waker| {
            commands::drain(&ports.run, waker, |bytes| {
                lines.push(bytes, |said| ready |= said == Said::Ready);
            });
            ready.then_some(())
        });
        waits.map_err(|missed| match missed {
            Missed::Ended(exit) => FreezeError::Ended(exit),
            Missed::TimedOut => FreezeError::NotReady(limit),
        })?;
        Self::of(&machine.controls, limit, Streams::OfCommands)
    }

    /// From a machine that was saved to a folder. Its memory stays in the file, which nobody may change.
    ///
    /// # Errors
    /// [`FreezeError`], as for [`Template::freeze`].
    pub fn from_saved(saved: SavedMachine) -> Result<Self, FreezeError> {
        let takes_commands = saved.takes_commands();
        let (spec, restore) = saved.into_parts();
        let more_ports = MorePorts::of_saved(&restore.state);
        let spec = cloneable(spec.settled().map_err(StartError::from)?)?;
        restore.check_size(&spec).map_err(StartError::from)?;
        let without_disks = Spec { disk: Vec::new(), ..spec.clone() };
        let files = OpenFiles::open(&without_disks, &Progress::default())?;
        let kvm = Arc::new(KvmDevice::open().map_err(StartError::from)?);
        let disks = freeze_disks(&spec, |_| Ok(None))?;
        Ok(Template(Arc::new(Frozen {
            spec,
            restore: restore.read_ahead(),
            files,
            disks,
            kvm,
            takes_commands,
            more_ports,
        })))
    }

    fn of(controls: &Controls, limit: Duration, streams: Streams) -> Result<Self, FreezeError> {
        // First: what cannot be cloned is not stopped either.
        let Shared { spec, has_streams, files, kvm } = controls
            .ask(super::supervisor::Command::Share)
            .recv_timeout(limit)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => PauseError::TimedOut(limit),
                RecvTimeoutError::Disconnected => PauseError::Ended,
            })?;
        let spec = spec?;
        if has_streams && streams == Streams::Refused {
            return Err(FreezeError::Streams);
        }
        let (restore, disks) = Self::take(controls, limit, &spec, &files)?;
        let (files, takes_commands) = (files.with_drives(Vec::new()), streams == Streams::OfCommands);
        Ok(Template(Arc::new(Frozen {
            spec,
            restore,
            files,
            disks,
            kvm,
            takes_commands,
            more_ports: MorePorts::OF_ANY,
        })))
    }

    /// Takes state, memory and disks of a machine, which rests then.
    fn take(
        controls: &Controls,
        limit: Duration,
        spec: &Spec,
        files: &OpenFiles,
    ) -> Result<(Restore, Vec<FrozenDisk>), FreezeError> {
        let _hold = Hold::begin(controls, limit)?;
        let shown = controls.copy.show();
        let SavedParts { state, ram, paused, .. } = controls.ask_to_save(Vec::new())?;
        let mut failed = None;
        let memory = frozen_memfd(|file| {
            let copied = precopy::copy_paused(&shown, &ram, file);
            copied.and_then(|()| controls.check_paused(&paused)).map_err(|error| {
                failed = Some(error);
                io::ErrorKind::Other.into()
            })
        });
        let memory = match (memory, failed) {
            (_, Some(error)) => return Err(error.into()),
            (memory, None) => memory.map_err(|source| SaveError::Memory { source })?,
        };
        let drive = |index: usize| files.drives.get(index).map(|drive| drive.medium().copy_written());
        let disks = freeze_disks(spec, |index| drive(index).unwrap_or(Ok(None)))?;
        if paused.strong_count() == 0 {
            return Err(SaveError::Resumed.into());
        }
        Ok((Restore::new(state, memory), disks))
    }

    /// What its clones are made of. They have no name.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// Another machine that goes on from where the frozen one was. When this returns its guest is about to run.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn spawn(&self) -> Result<Machine, StartError> {
        self.spawn_with(|builder| builder)
    }

    /// The same, with what `configure` adds to its builder: [`MachineBuilder::output`], [`MachineBuilder::clock`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn spawn_with(
        &self,
        configure: impl FnOnce(MachineBuilder) -> MachineBuilder,
    ) -> Result<Machine, StartError> {
        // Nobody gives it a command.
        let ports = self.0.takes_commands.then(|| self.command_ports());
        self.spawn_on(ports.as_ref(), configure)
    }

    /// Whether [`Template::exec`] has a guest that waits for a command.
    pub fn takes_commands(&self) -> bool {
        self.0.takes_commands
    }

    /// Ports for a clone.
    pub(super) fn command_ports(&self) -> CommandPorts {
        CommandPorts::with(self.0.more_ports)
    }

    /// The same with these ports, if its guest has any.
    pub(super) fn spawn_on(
        &self,
        ports: Option<&CommandPorts>,
        configure: impl FnOnce(MachineBuilder) -> MachineBuilder,
    ) -> Result<Machine, StartError> {
        let Frozen { spec, restore, files, disks, kvm, .. } = &*self.0;
        let drives = spec.disk.iter().zip(disks).map(|(disk, frozen)| {
            let open = frozen.open(disk)?;
            Ok(Arc::new(Drive::new(open, disk.image(), disk.is_removable())))
        });
        let open = files.with_drives(drives.collect::<Result<_, StartError>>()?);
        let builder = configure(Machine::builder(spec));
        let builder = match ports {
            Some(ports) => with_streams(builder, ports),
            None => builder,
        };
        // What the memory's reader says is heard by whoever waits for the start.
        let progress = builder.run_resources.progress.clone();
        let restore = restore.clone().with_clock(builder.run_resources.clock.unwrap_or_default());
        let mut prepared = Prepared::saved(open, restore.clone(), &progress);
        let beginning = Beginning::new(kvm, spec, Origin::State(restore), &progress)?;
        prepared.beginning = Some((kvm.clone(), beginning));
        prepared.in_place = is_in_place(spec);
        builder.prepared(prepared).start()
    }
}

/// Ports of the frozen machine that a program holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streams {
    /// A clone would not have them.
    Refused,
    /// Those for a command, which nothing is in: each clone gets new ones.
    OfCommands,
}

fn with_streams(mut builder: MachineBuilder, ports: &CommandPorts) -> MachineBuilder {
    builder.run_resources.streams = ports.streams();
    builder
}

/// Takes the disks of a machine that rests; `written` gives what was written to the one of this number.
fn freeze_disks(
    spec: &Spec,
    written: impl Fn(usize) -> io::Result<Option<File>>,
) -> Result<Vec<FrozenDisk>, FreezeError> {
    let freeze = |(index, disk): (usize, &DiskSpec)| {
        let failed = |source| FreezeError::Disk { id: super::disks::disk_id(index), source };
        let mark = DiskMark::at(top(disk)).map_err(failed)?;
        if let Some(written) = written(index).map_err(failed)? {
            return Ok(FrozenDisk::Written(mark, written));
        }
        match OpenDisk::open(disk).map_err(StartError::Disk)? {
            open @ OpenDisk::Raw(_) => Ok(FrozenDisk::Raw(open)),
            OpenDisk::Image(_) => Ok(FrozenDisk::Image(mark)),
        }
    };
    spec.disk.iter().enumerate().map(freeze).collect()
}

/// Whether nothing that a clone waits for is left to the host: its memory is mapped, and not read.
fn is_in_place(spec: &Spec) -> bool {
    matches!(spec.mem_backing(), MemBacking::Anonymous)
}

/// The image on top of those that have a name. An overlay of a disk with `snapshot` need not be there.
fn top(disk: &DiskSpec) -> &Path {
    disk.overlay.as_deref().filter(|overlay| overlay.exists()).unwrap_or(&disk.path)
}

impl FrozenDisk {
    /// The disk for one clone.
    fn open(&self, spec: &DiskSpec) -> Result<OpenDisk, StartError> {
        let (mark, written) = match self {
            FrozenDisk::Raw(disk) => return Ok(disk.clone()),
            FrozenDisk::Image(mark) => (mark, None),
            FrozenDisk::Written(mark, written) => (mark, Some(written)),
        };
        let open = match written {
            Some(written) => OpenDisk::open_on(spec, written),
            None => OpenDisk::open(spec),
        };
        let open = open.map_err(StartError::Disk)?;
        // Behind the open, from which on it is locked.
        if DiskMark::at(top(spec)).ok().as_ref() == Some(mark) {
            Ok(open)
        } else {
            Err(StartError::DiskChanged { path: top(spec).into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_clone_reads_is_read_with_a_limit() {
        let spec = Spec::new("vmlinuz");
        assert!(is_in_place(&spec));
        assert!(!is_in_place(&Spec { mem_backing: Some(MemBacking::Memfd), ..spec }));
    }
}
