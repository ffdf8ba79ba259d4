//! Why a machine could not be started.

use std::io;
use std::path::PathBuf;

use super::{RestoreError, devices};
use crate::host::capture::CaptureError;
use crate::host::disk::DiskError;
use crate::host::forward::ForwardError;
use crate::host::net_socket::NetSocketError;
use crate::host::open_files;
use crate::host::ports::PortError;
use crate::host::share::ShareError;
use crate::host::switch_port::SwitchPortError;
use crate::host::tap::TapError;
use crate::image::ImageError;
use crate::kvm::KvmError;
use crate::saved::SavedMachineError;
use crate::shown::path as shown;
use crate::spec::{MemSize, Spec, SpecError};

/// Why a machine could not be started, or started again for a reboot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The spec is not complete.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No kernel was named, and the first disk gives none; or that disk cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file could not be opened.
    #[error("cannot open the {what} {path}: {source}", path = shown(path))]
    Open {
        /// What the file is to the machine.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = shown(path))]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The kernel is of a kind that this machine cannot boot.
    #[error("cannot boot {path}: {source}", path = shown(path))]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What it is, and what to give instead.
        source: boot::kernel::KernelError,
    },
    /// What the machine went on from has an initrd that nobody has kept.
    #[error(
        "the guest was booted by `minivmm run --warm`, and its initial RAM disk was in that run's memory, so that it cannot boot \
         again; end it, and start another run"
    )]
    InitrdGone,
    /// What was given as the initrd is none.
    #[error("cannot use {path} as the initrd: {source}", path = shown(path))]
    Initrd {
        /// Its path.
        path: PathBuf,
        /// What it is.
        source: boot::initrd::InitrdError,
    },
    /// Kernel, initrd and command line do not fit the machine.
    #[error("cannot boot {path} in this machine: {source}", path = shown(path))]
    Plan {
        /// The kernel.
        path: PathBuf,
        /// What does not fit, and how to mend it.
        source: boot::plan::PlanError,
    },
    /// The host has no room for the guest's memory.
    #[error(
        "the host has no {mib} MiB of address space for the guest's memory: {source}; ask for less with --mem, or see \
         `ulimit -v` and /proc/sys/vm/overcommit_memory"
    )]
    Memory {
        /// What was asked for.
        mib: u64,
        /// What the host said.
        source: io::Error,
    },
    /// More memory than the processor can address.
    #[error(
        "{mib} MiB of memory reach past the {bits} address bits of this host's processor; ask for less with --mem"
    )]
    AddressBits {
        /// What was asked for.
        mib: u64,
        /// Guest physical address width.
        bits: u32,
    },
    /// An image or block device.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network interface of the host.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The sockets of a network interface.
    #[error(transparent)]
    NetSocket(#[from] NetSocketError),
    /// A port of a virtual switch.
    #[error(transparent)]
    SwitchPort(#[from] SwitchPortError),
    /// The file for an interface's frames.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A port of the host that shall lead to the guest.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A port's socket.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A shared folder.
    #[error(transparent)]
    Share(#[from] Box<ShareError>),
    /// A virtio device could not be put on the bus.
    #[error(transparent)]
    Virtio(#[from] virtio::transport::TransportError),
    /// /dev/kvm could not be opened, or refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A disk of a frozen machine is another one now.
    #[error(
        "the disk {path} was written to since the machine was frozen, and its guest would see half of that; freeze a machine on the disk as it is now",
        path = shown(path)
    )]
    DiskChanged {
        /// The image or device.
        path: PathBuf,
    },
    /// A saved machine does not fit, or is damaged.
    #[error("the machine cannot be restored: {0}")]
    Restore(#[from] RestoreError),
    /// A disk of a snapshot could not be put back.
    #[error(transparent)]
    Saved(#[from] SavedMachineError),
    /// The machine's own tables could not be made.
    #[error("cannot describe the machine to the guest: {0}")]
    Describe(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host has no file descriptor left for a device.
    #[error("no file descriptor for a device: {0}")]
    Descriptors(#[source] io::Error),
    /// This process may not have as many files open as the machine needs.
    #[error(
        "{source}; this process may have {limit} files open, which is too few: raise the limit to {enough} or more, as with \
         `ulimit -n {enough}`, or LimitNOFILE= of a systemd unit"
    )]
    OpenFiles {
        /// What failed.
        source: Box<StartError>,
        /// The limit.
        limit: usize,
        /// One that suffices.
        enough: usize,
    },
    /// The host refused a thread.
    #[error(
        "the host refused a thread: {0}; see `ulimit -v` (address space), `ulimit -u` (threads of this user) and pids.max \
         of the control group"
    )]
    Thread(#[source] io::Error),
    /// A call of the host does not return.
    #[error(
        "{what} takes longer than {limit:?}: what it is on does not answer, such as a file server or a device that is away; look at \
         it with `ls`, and start the machine when that answers"
    )]
    Unanswered {
        /// What is being done, and on which path.
        what: String,
        /// How long that was waited for.
        limit: std::time::Duration,
    },
    /// The caller does not want the machine any more.
    #[error("the start was interrupted")]
    Interrupted,
    /// The terminal could not be made the guest's console.
    #[error("the terminal cannot be made the guest's console: {0}")]
    Terminal(#[source] io::Error),
    /// A thread of the machine panicked.
    #[error("minivmm itself failed: {0} panicked. This is a defect: please report what was printed above")]
    Internal(&'static str),
}

impl StartError {
    /// Tells the limit that suffices, if there were too few open files for the machine of `spec`.
    pub(super) fn with_limit_of_files(self, spec: &Spec) -> Self {
        if matches!(self, StartError::OpenFiles { .. }) || !open_files::is_to_blame(&self) {
            return self;
        }
        let limits = open_files::too_low(devices::most_descriptors(spec));
        StartError::OpenFiles { source: Box::new(self), limit: limits.now, enough: limits.enough }
    }

    /// For mistakes in the machine's own tables.
    pub(super) fn describe(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        StartError::Describe(Box::new(error))
    }
}

/// A machine was not paused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PauseError {
    /// It had ended, or ended meanwhile.
    #[error("the machine has ended")]
    Ended,
    /// It was resumed or reset before it was paused.
    #[error("the machine was resumed or reset before it was paused")]
    Interrupted,
    /// It takes longer: it boots just now, the host has not done yet what a disk was asked for, or a processor is held up.
    #[error(
        "the machine was not paused within {0:?}: it is still booting, or the host is slow with its disks or processors"
    )]
    TimedOut(std::time::Duration),
}

/// A balloon cannot be what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonError {
    /// It would hold all that the guest has.
    #[error("a balloon of {mib} MiB leaves a guest of {mem} no memory; ask for less")]
    NothingLeft {
        /// What was asked for.
        mib: u64,
        /// What the guest has.
        mem: MemSize,
    },
    /// There is no machine any more.
    #[error("the machine has ended")]
    Ended,
}

/// A disk was not grown, or its new size not taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// There is no such disk.
    #[error("{}", no_disk(id, ids))]
    NoDisk {
        /// What was asked for.
        id: String,
        /// What there is.
        ids: Vec<String>,
    },
    /// The guest has data behind the new end.
    #[error(
        "the disk {id} has {has} bytes, and would have {wanted}: the disk of a running machine only grows; a larger size, or as in \
         `+20G` what to add, is done"
    )]
    Smaller {
        /// The disk.
        id: String,
        /// Its size.
        has: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// No file can be so large.
    #[error("no file can be as large as the disk {id} would be; ask for less")]
    TooLarge {
        /// The disk.
        id: String,
    },
    /// The machine may not write to it.
    #[error(
        "the disk {id} is read-only (`ro`), and cannot be grown from here; grow its image on the host, then say `+0`"
    )]
    ReadOnly {
        /// The disk.
        id: String,
    },
    /// A block device is not the machine's to grow.
    #[error(
        "the disk {id} is a block device of {has} bytes, which only the host can grow (a logical volume: `lvextend`); then say `+0`, \
         and the guest is told of its new size"
    )]
    Device {
        /// The disk.
        id: String,
        /// Its size.
        has: u64,
    },
    /// The host refused, or does not say how large it is.
    #[error("the host does not grow disk {id} or give its size: {source}")]
    Host {
        /// The disk.
        id: String,
        /// What it said.
        source: io::Error,
    },
    /// There is no machine any more.
    #[error("the machine has ended")]
    Ended,
}

/// A disk of a running machine was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskChangeError {
    /// There is no such disk.
    #[error("{}", no_disk(id, ids))]
    NoDisk {
        /// What was asked for.
        id: String,
        /// What there is.
        ids: Vec<String>,
    },
    /// The guest writes to it.
    #[error(
        "the guest writes to the disk {id}; only one that is read-only (`--disk PATH,ro`) can be taken out and put in"
    )]
    Fixed {
        /// The disk.
        id: String,
    },
    /// There is nothing to take out.
    #[error("there is no disk in {id}; `minivmm disk insert` puts one in")]
    Empty {
        /// The drive.
        id: String,
    },
    /// There is a disk in it.
    #[error("the drive {id} has {} in it; take it out first with `minivmm disk eject`", shown(path))]
    Full {
        /// The drive.
        id: String,
        /// What is in it.
        path: PathBuf,
    },
    /// The host has not ended what was asked of the disk before.
    #[error(
        "the guest has no disk in {id} any more, but the host has not ended all requests to the one that was there; it is closed \
         when they end, and another can be put in then"
    )]
    InFlight {
        /// The drive.
        id: String,
    },
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Several threads cannot serve it.
    #[error(
        "{id} is served by {threads} threads (`threads={threads}`), and an image that is not raw by one; make a raw image of {} with \
         `minivmm disk convert`",
        shown(path)
    )]
    Threads {
        /// The drive.
        id: String,
        /// The image.
        path: PathBuf,
        /// Threads of the drive.
        threads: u16,
    },
    /// The host does not open it.
    #[error(
        "opening {} takes longer than {limit:?}: what it is on does not answer; look at it with `ls`",
        shown(path)
    )]
    Unanswered {
        /// Its path.
        path: PathBuf,
        /// How long that was waited for.
        limit: std::time::Duration,
    },
    /// The host refused something.
    #[error("the host does not change the disk {id}: {source}")]
    Host {
        /// The drive.
        id: String,
        /// What it said.
        source: io::Error,
    },
    /// There is no machine any more.
    #[error("the machine has ended")]
    Ended,
}

fn no_disk(id: &str, ids: &[String]) -> String {
    if ids.is_empty() {
        return format!("the machine has no disk {id:?}, and no other; `--disk` gives it one at its start");
    }
    format!("the machine has no disk {id:?}; its disks are: {}", ids.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_proposed_for_want_of_descriptors_and_for_no_other_error() {
        let spec = Spec::new("k").with_share("/d".parse().unwrap());
        let of =
            |code| StartError::Descriptors(io::Error::from_raw_os_error(code)).with_limit_of_files(&spec);
        let said = of(libc::EMFILE).with_limit_of_files(&spec).to_string();
        assert!(
            said.contains("(os error 24); this process may have ") && said.contains("`ulimit -n "),
            "{said}"
        );
        assert_eq!(said.matches("raise the limit").count(), 1, "{said}");
        let said = of(libc::ENFILE).to_string();
        assert!(said.ends_with("(os error 23)"), "{said}");
    }
}
