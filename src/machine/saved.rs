//! A machine's saved state: of every component but the contents of guest memory, which go to a file of their own.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use boot::plan::Load;
use devices::component::{State, StateError};
use serde::{Deserialize, Serialize};

use super::PauseError;
use super::components::States;
use super::disks::disk_id;
#[cfg(feature = "cli")]
use super::incoming::Incoming;
use super::loader::Source;
use super::net_handles::BoundForward;
use super::resources::Resources;
use crate::host::disk::{DiskMark, Drive, WrittenFile};
use crate::kvm::memory::{GuestRam, Placement, extents, parts, read_ahead};
use crate::kvm::{CpuBaseline, KvmError, saved_cpu};
use crate::saved::{NewSavedMachine, SavedMachineError, WorkingSet};
use crate::spec::{NetLink, Spec};

/// Layout of [`SavedState`].
const VERSION: u16 = 1;

/// The state of a paused machine, but for the contents of its memory: [`Machine::save`](crate::Machine::save) writes those to a
/// file, and [`MachineBuilder::restore`](crate::MachineBuilder::restore) takes both.
///
/// It can be written and read in any format of [serde](https://docs.rs/serde). What is read is checked when a machine takes it, not
/// before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    version: u16,
    /// `panic=` of the guest's command line, by which its end is told.
    panic_timeout: i64,
    components: States,
}

impl SavedState {
    pub(super) fn new(panic_timeout: i64, components: States) -> Self {
        SavedState { version: VERSION, panic_timeout, components }
    }

    /// From what a file says of it.
    pub(crate) fn from_states(
        version: u16,
        panic_timeout: i64,
        states: impl IntoIterator<Item = (String, State)>,
    ) -> Self {
        SavedState { version, panic_timeout, components: states.into_iter().collect() }
    }

    pub(crate) fn version(&self) -> u16 {
        self.version
    }

    pub(crate) fn panic_timeout(&self) -> i64 {
        self.panic_timeout
    }

    /// The states by the ids of their components.
    pub(crate) fn states(&self) -> impl ExactSizeIterator<Item = (&String, &State)> {
        self.components.iter()
    }

    /// What the guest was told of its processor, if a state says so.
    pub(crate) fn cpu(&self) -> Option<CpuBaseline> {
        self.components.get("vcpu0").and_then(saved_cpu)
    }

    /// The states by component, if they are in a layout that this program knows.
    pub(super) fn components(&self) -> Result<&States, RestoreError> {
        if self.version == VERSION { Ok(&self.components) } else { Err(RestoreError::Version(self.version)) }
    }
}

/// What a paused machine gives to be saved.
#[derive(Debug)]
pub(crate) struct SavedParts {
    pub(super) state: SavedState,
    /// The memory, whose contents are still to be written.
    pub(super) ram: Arc<GuestRam>,
    /// Gone once the machine is no longer paused: the memory may have changed then.
    pub(super) paused: Weak<()>,
    /// What the machine is made of now, or why it cannot be made again.
    pub(super) spec: Result<Spec, Unsaveable>,
    /// Of each disk, if it has one.
    pub(super) marks: Vec<Option<DiskMark>>,
    /// Of each disk, the file that the guest's writes change, if it has one.
    pub(super) written: Vec<Option<WrittenFile>>,
}

/// How a machine is saved to a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaveOptions {
    with_disks: bool,
}

impl SaveOptions {
    /// The disks stay where they are, and are not in the folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// The folder gets a copy of each image that the guest writes to, which shares its blocks where the file system can (btrfs, XFS).
    /// Of an overlay it is the overlay alone: its base stays where it is. So the folder can be restored again and again, and the
    /// machine may go on.
    #[must_use]
    pub fn with_disks(self) -> Self {
        SaveOptions { with_disks: true }
    }

    pub(crate) fn copies_disks(self) -> bool {
        self.with_disks
    }
}

impl SavedParts {
    /// Copies the disks into a folder which has not got them yet, if `options` say so, as long as the machine rests and `wanted` says so. Gives
    /// the bytes that were copied. Disks that stay where they are must have a name there.
    pub(super) fn copy_disks(
        &self,
        options: SaveOptions,
        new: &mut NewSavedMachine,
        wanted: &dyn Fn() -> bool,
    ) -> Result<u64, SaveError> {
        if !options.with_disks {
            return self.check_names().map(|()| 0);
        }
        let mut bytes = 0;
        for (index, file) in self.written_files() {
            if file.is_device {
                return Err(Unsaveable::DeviceDisk(disk_id(index)).into());
            }
            if !new.has_disk(index) {
                bytes += new.copy_disk(index, file, &|| self.paused.strong_count() > 0 && wanted())?;
            }
        }
        Ok(bytes)
    }

    /// Refuses an image that was removed: the machine's own descriptor is the last that there is of it.
    fn check_names(&self) -> Result<(), SaveError> {
        for (index, file) in self.written_files() {
            if file.is_removed().map_err(|source| SaveError::Disk { id: disk_id(index), source })? {
                return Err(SaveError::DiskRemoved(disk_id(index)));
            }
        }
        Ok(())
    }

    fn written_files(&self) -> impl Iterator<Item = (usize, &WrittenFile)> {
        self.written.iter().enumerate().filter_map(|(index, file)| Some((index, file.as_ref()?)))
    }
}

/// From when a restored guest's clocks go on: kvm-clock, the TSC, and with them what the guest calls its time. The real-time clock
/// always shows the host's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum GuestClock {
    /// From the host's time: the guest sees that time has passed, as after a suspend to memory that it was not told of. Its timers
    /// that were to fire meanwhile fire at once.
    #[default]
    Host,
    /// From when the machine was saved: no time has passed for the guest, and its clock is behind from then on.
    Saved,
}

/// What a machine is restored from.
#[derive(Debug, Clone)]
pub(crate) struct Restore {
    pub(super) clock: GuestClock,
    pub(super) state: Arc<SavedState>,
    /// Contents of the guest's memory.
    pub(super) memory: Arc<File>,
    /// What its guest was told of its processor, if the state says so.
    cpu: Option<Arc<CpuBaseline>>,
    /// What of the file has to be mapped, once it was looked for.
    parts: Arc<OnceLock<Vec<(u64, u64)>>>,
    /// Memory that came from elsewhere, instead of the file.
    pub(super) arrived: Option<Arc<GuestRam>>,
    /// What is read ahead, and where it is noted.
    pub(super) prefetch: Option<Arc<WorkingSet>>,
    /// The initrd that its guest booted was in no file, and is not there any more.
    pub(super) initrd_is_gone: bool,
}

impl Restore {
    pub(crate) fn new(state: SavedState, memory: File) -> Self {
        let cpu = state.cpu().map(Arc::new);
        Restore {
            clock: GuestClock::default(),
            state: Arc::new(state),
            memory: Arc::new(memory),
            cpu,
            parts: Arc::default(),
            arrived: None,
            prefetch: None,
            initrd_is_gone: false,
        }
    }

    /// Which reads ahead what is noted there, if anything, and notes it anew.
    #[must_use]
    pub(crate) fn with_prefetch(self, prefetch: Option<WorkingSet>) -> Self {
        Restore { prefetch: prefetch.map(Arc::new), ..self }
    }

    /// Of a guest that cannot boot again, if that is so: the initrd that it booted was in no file.
    #[must_use]
    pub(crate) fn with_initrd_gone(self, initrd_is_gone: bool) -> Self {
        Restore { initrd_is_gone, ..self }
    }

    /// The same for many machines: what is noted is read ahead now, and nothing is noted.
    #[must_use]
    pub(super) fn read_ahead(mut self) -> Self {
        self.prefetch.iter().for_each(|set| set.warn());
        for (offset, len) in self.prefetch.take().iter().flat_map(|set| set.ranges()) {
            read_ahead(&self.memory, *offset, *len);
        }
        self
    }

    /// With its clocks from then on.
    #[must_use]
    pub(crate) fn with_clock(self, clock: GuestClock) -> Self {
        Restore { clock, ..self }
    }

    /// Bits of guest physical address that the guest was told of.
    pub(super) fn address_bits(&self) -> Option<u32> {
        self.cpu.as_ref().map(|cpu| cpu.physical_address_bits())
    }

    /// One that has come from elsewhere, and goes on as the same machine once [`Controls::arrive`](super::Controls::arrive) is called.
    #[cfg(feature = "cli")]
    pub(crate) fn received(state: SavedState, Incoming(ram): Incoming) -> io::Result<Self> {
        Ok(Restore { arrived: Some(ram), ..Self::new(state, File::open("/dev/null")?) })
    }

    /// Whether the file is as long as the memory of `spec`.
    pub(super) fn check_size(&self, spec: &Spec) -> Result<(), RestoreError> {
        let (file, machine) = (self.memory.metadata().map_err(memory_failed)?.len(), spec.mem().bytes());
        if file == machine { Ok(()) } else { Err(RestoreError::MemorySize { file, machine }) }
    }

    /// Memory that shows the file until it is written.
    pub(super) fn map(&self, ranges: &[(u64, u64)]) -> Result<GuestRam, RestoreError> {
        let len = ranges.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        let parts = match self.parts.get() {
            Some(known) => known.clone(),
            None => {
                let found = parts(&self.memory, len).map_err(memory_failed)?;
                self.parts.get_or_init(|| found).clone()
            }
        };
        GuestRam::mapped(ranges, &self.memory, parts).map_err(memory_failed)
    }

    /// What goes into `ram`; the rest is zeros.
    pub(super) fn source(&self, ram: &GuestRam) -> Result<Source, RestoreError> {
        let extents = extents(&self.memory, ram.size()).map_err(memory_failed)?;
        let placements = extents.into_iter().flat_map(|(offset, len)| ram.place(offset, len));
        let copy = |Placement { offset, guest, len }| Load { file_offset: offset, guest, len };
        Ok(Source::memory(self.memory.clone(), placements.map(copy).collect()))
    }
}

fn memory_failed(source: io::Error) -> RestoreError {
    RestoreError::Memory { source }
}

/// What keeps a machine from being made again from a folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsaveable {
    /// What its guest wrote to a disk with `snapshot` ends with it.
    #[error(
        "what the guest has written to {0} ends with the machine, because the disk has `snapshot`; start it with `overlay=FILE` to \
         save it later"
    )]
    SnapshotDisk(String),
    /// A block device is not copied.
    #[error(
        "the disk {0} is a block device, which is not copied into a folder; save the machine without its disks, or start it on an image"
    )]
    DeviceDisk(String),
    /// A drive is empty.
    #[error(
        "the drive {0} is empty, and a machine is not restored with an empty drive; insert a disk before"
    )]
    EmptyDrive(String),
    /// A program of the host holds ports of it, as `minivmm run` does.
    #[error(
        "a program holds ports of this machine, which would not be there afterwards, as those of `minivmm run`"
    )]
    Streams,
}

/// The spec with what was changed since the start.
pub(super) fn current_spec(resources: &Resources) -> Result<Spec, Unsaveable> {
    let mut spec = resources.spec.clone();
    if !resources.run_resources.streams.is_empty() {
        return Err(Unsaveable::Streams);
    }
    for (disk, now) in spec.disk.iter_mut().zip(resources.disk_handles.states()) {
        if disk.snapshot {
            return Err(Unsaveable::SnapshotDisk(now.id));
        }
        now.write_to(disk).map_err(Unsaveable::EmptyDrive)?;
    }
    set_forwards(&mut spec, &resources.forwards());
    Ok(spec)
}

/// Gives each user network the forwards that it has now, as they were asked for.
fn set_forwards(spec: &mut Spec, bound: &[BoundForward]) {
    let ids: Vec<_> = spec.interfaces().map(|(id, _)| id).collect();
    let nets = spec.net.iter_mut().filter(|net| net.link != NetLink::None);
    for (id, net) in ids.iter().zip(nets) {
        if let NetLink::User(user) = &mut net.link {
            user.forward = bound.iter().filter(|bound| bound.net == *id).map(|bound| bound.forward).collect();
        }
    }
}

/// Brings all disks to rest but those that were copied; gives the mark of each that has one.
pub(super) fn rest(drives: &[Arc<Drive>], copied: &[usize]) -> Result<Vec<Option<DiskMark>>, SaveError> {
    let rest = |(index, drive): (usize, &Arc<Drive>)| {
        if copied.contains(&index) {
            return Ok(None);
        }
        drive.medium().rest().map_err(|source| SaveError::Disk { id: disk_id(index), source })
    };
    drives.iter().enumerate().map(rest).collect()
}

/// The files that the guest's writes change.
pub(super) fn written_files(drives: &[Arc<Drive>]) -> Result<Vec<Option<WrittenFile>>, SaveError> {
    let written = |(index, drive): (usize, &Arc<Drive>)| {
        let file = drive.medium().written_file();
        file.map_err(|source| SaveError::Disk { id: disk_id(index), source })
    };
    drives.iter().enumerate().map(written).collect()
}

/// Why a machine could not be saved. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// It runs.
    #[error("the machine runs; pause it before it is saved")]
    NotPaused,
    /// It has ended.
    #[error("the machine has ended")]
    Ended,
    /// It went on before all of its memory was saved.
    #[error(
        "the machine was resumed or reset while its memory was saved, so that what was written is of no use; save it again and let it \
         rest meanwhile"
    )]
    Resumed,
    /// A part of it cannot be saved.
    #[error("{id}: {source}")]
    Component {
        /// Its id.
        id: String,
        /// Why.
        source: StateError,
    },
    /// Written pages are not known: the log was not switched on since the guest booted, or KVM refused.
    #[error("the log of what the guest writes cannot be had: {0}")]
    Log(#[source] KvmError),
    /// Another one takes from the log what it would need.
    #[error(
        "the machine's memory is being copied already, by a save or a migration; wait until that is done"
    )]
    LogInUse,
    /// Its guest booted again while its memory was copied.
    #[error("the guest was reset while its memory was copied, which ended the copy; do it again")]
    Reset,
    /// The caller wanted no more.
    #[error("the copy was cancelled")]
    Cancelled,
    /// Its guest writes too much.
    #[error(
        "the guest writes faster than it is copied: {} MiB are left again and again, and {} MiB pass in a second; allow a longer \
         pause than {downtime:?}, or more bandwidth, or let the guest do less", .left.div_ceil(1 << 20), .rate >> 20
    )]
    Diverges {
        /// Bytes that were left after the last round.
        left: u64,
        /// Bytes in a second.
        rate: u64,
        /// What was allowed.
        downtime: Duration,
    },
    /// A disk would not be as it was when the memory was saved.
    #[error(
        "the guest can write to {0}, which a machine that runs on after its save would do; save it with `--with-disks`, or without \
         `--keep-running`"
    )]
    WritableDisk(String),
    /// The image of a disk has no name any more.
    #[error(
        "the image of the disk {0} was removed while the machine runs, and would be lost with it; save it with its disks \
         (`--with-disks`), which copies what the image has"
    )]
    DiskRemoved(String),
    /// A disk that was copied while the machine ran was made larger.
    #[error("the disk {0} was made larger while it was copied, which ended the copy; do it again")]
    DiskResized(String),
    /// A disk that is copied while the machine runs cannot be read.
    #[error("the disk {id} cannot be read to be copied: {source}")]
    DiskRead {
        /// The disk.
        id: String,
        /// What the host said.
        source: io::Error,
    },
    /// A copy of a disk could not be written.
    #[error("the copy of the disk {id} could not be written: {source}")]
    DiskCopy {
        /// The disk.
        id: String,
        /// What the host said.
        source: io::Error,
    },
    /// A block device does not move.
    #[error(
        "the guest can write to the block device {0}, of which each host may have another idea, and which does not move with its machine; \
         have it copied with `--with-disks`, or give it this disk with `ro`"
    )]
    DeviceStays(String),
    /// A block device whose sectors no image has.
    #[error(
        "the sectors of the block device {0} are larger than 512 bytes, which those of the image that it would be copied to are not; end the \
         machine and start it there"
    )]
    LargeSectors(String),
    /// Another process may have a disk that was let go for it.
    #[error(
        "the disk {id} was let go for a machine elsewhere, and is not had again: {why}; as long as that is so, the machine rests"
    )]
    DiskAway {
        /// The disk.
        id: String,
        /// Why.
        why: String,
    },
    /// Nobody knows whether it runs elsewhere.
    #[error(
        "the machine may run elsewhere, where it has migrated to; look there first, and `minivmm resume` or `minivmm kill` it here"
    )]
    Away,
    /// It cannot be made again from a folder.
    #[error(transparent)]
    Unsaveable(#[from] Unsaveable),
    /// It was not paused.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The folder could not be written.
    #[error(transparent)]
    Folder(#[from] SavedMachineError),
    /// The last that its guest wrote could not be brought to a disk.
    #[error("{id}: what the guest has written cannot be brought to its image: {source}")]
    Disk {
        /// The disk.
        id: String,
        /// What the host said.
        source: io::Error,
    },
    /// The file for the memory's contents did not take them.
    #[error("the guest's memory could not be written: {source}")]
    Memory {
        /// What the host said.
        #[from]
        source: io::Error,
    },
}

/// Why a machine could not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Written in another layout.
    #[error(
        "the saved machine has version {0}, and this program reads version {VERSION}; restore it with the version of minivmm \
         that saved it"
    )]
    Version(u16),
    /// This host's processor or KVM offers less than the guest was told.
    #[error("{0}; restore it on a host that offers as much, or boot the machine anew")]
    Processor(String),
    /// A part of this machine is not in the saved one.
    #[error(
        "the saved machine has no `{0}`, and this one has; restore it into a machine of the same specification"
    )]
    Missing(String),
    /// A part of the saved machine is not in this one.
    #[error(
        "the saved machine has a `{0}`, and this one has none; restore it into a machine of the same specification"
    )]
    Unknown(String),
    /// A part does not take its state.
    #[error("{id}: {source}")]
    Component {
        /// Its id.
        id: String,
        /// Why.
        source: StateError,
    },
    /// The file with the memory's contents is not of this machine.
    #[error(
        "the saved memory has {file} bytes and this machine {machine}; restore it into a machine of the same specification, with \
         the file that was saved with the state"
    )]
    MemorySize {
        /// Of the file.
        file: u64,
        /// Of the machine.
        machine: u64,
    },
    /// The file with the memory's contents could not be read.
    #[error("the saved memory could not be read: {source}")]
    Memory {
        /// What the host said.
        source: io::Error,
    },
}

impl RestoreError {
    /// [`RestoreError::Unknown`] for an id that stands in a saved state: it may be anything.
    pub(super) fn unknown(id: &str) -> Self {
        const LONGEST: usize = 64;
        RestoreError::Unknown(id.chars().take(LONGEST).flat_map(char::escape_debug).collect())
    }
}
