//! What a machine has done so far, in numbers.

use std::sync::{Arc, Weak};

use virtio::DeviceKind;
use virtio::counters::{Count, Counters};

use crate::host::merged::merged_memory;
use crate::kvm::memory::GuestRam;

/// What one boot of a machine has done so far. Counts begin anew when the guest is reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Stats {
    /// A processor each.
    pub vcpus: Vec<VcpuStats>,
    /// Memory.
    pub memory: MemoryStats,
    /// Its devices, in the order of the PCI bus.
    pub devices: Vec<DeviceStats>,
}

#[cfg(test)]
impl Stats {
    /// Of a machine with a processor and a disk, for tests of those who show it.
    pub(crate) fn sample() -> Self {
        let counters = Counters::default();
        counters.requests.add(7);
        counters.bytes_in.add(4096);
        let threads = vec![Arc::new(counters)];
        let counted = DeviceCounters { name: "vda".into(), kind: DeviceKind::Block, threads };
        Stats {
            vcpus: vec![VcpuStats::default()],
            memory: MemoryStats::default(),
            devices: vec![counted.now()],
        }
    }
}

/// Why one processor left its guest, and how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct VcpuStats {
    /// Reads of I/O ports.
    pub port_in: u64,
    /// Writes to I/O ports.
    pub port_out: u64,
    /// Reads of registers in memory.
    pub mmio_read: u64,
    /// Writes to registers in memory.
    pub mmio_write: u64,
    /// It was called out by this process.
    pub interrupted: u64,
}

/// The guest's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MemoryStats {
    /// What the guest has.
    pub size: u64,
    /// How much of it the host has given so far.
    pub resident: u64,
    /// How much the guest has left to the host through its balloon.
    pub balloon: u64,
    /// How much memory of this process, and so of all machines in it, the host has merged with equal pages (KSM): of
    /// [`Spec::merge`](crate::spec::Spec::merge), or by the process's own wish. 0 too where the kernel does not tell (before Linux 5.19).
    pub merged: u64,
}

/// What one device has done. Its numbers are read one after the other while it works, so they may be of slightly
/// different moments; those of a machine at rest fit together.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DeviceStats {
    /// Its id, such as `vda`, `net0` or `console0`: as Linux names a disk, and as
    /// [`MachineEvent::DeviceFailed`](crate::MachineEvent::DeviceFailed) and the log call it.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What it has done for its driver, ended well or not: requests of a disk or a shared folder, frames of a network, sent or received, and its
    /// commands, buffers of the console and the entropy source, messages of the balloon.
    pub requests: u64,
    /// Bytes of data that the guest got: read from the disk, received from the network (whole frames), typed into the
    /// console or its ports, random ones; memory that it took back from the balloon.
    pub bytes_in: u64,
    /// Bytes of data that the guest gave: written to the disk, sent to the network (whole frames), said on the console or
    /// its ports; memory that it left to the balloon, or reported as free.
    pub bytes_out: u64,
    /// Requests that were answered with an error, or made no sense; frames that could not be sent, and such as came and
    /// fitted into no buffers of the guest.
    pub errors: u64,
    /// How often the device was woken for a queue: by the guest, whose kicks that come close together wake it once, and by
    /// itself, to go on with what was left when its turn was over.
    pub kicks: u64,
    /// How often the device told the guest that something is done.
    pub interrupts: u64,
    /// How often requests of a disk had to wait because of its limits.
    pub throttled: u64,
}

/// Stats that lack how much memory the host has given, which takes long to count: 0.6 s a TiB. That is done on the thread of
/// the caller who wants to know.
#[derive(Debug)]
pub(super) struct UnfinishedStats {
    stats: Stats,
    /// Weak, so that a boot that ends meanwhile gives its memory back.
    ram: Weak<GuestRam>,
}

impl UnfinishedStats {
    pub(super) fn new(stats: Stats, ram: &Arc<GuestRam>) -> Self {
        UnfinishedStats { stats, ram: Arc::downgrade(ram) }
    }

    pub(super) fn finish(mut self) -> Stats {
        let part = |number| self.ram.upgrade().and_then(|ram| ram.resident(number));
        self.stats.memory.resident = (0..).map_while(part).sum();
        self.stats.memory.merged = merged_memory();
        self.stats
    }
}

/// A device's counts, where its workers count.
#[derive(Debug, Clone)]
pub(super) struct DeviceCounters {
    pub(super) name: String,
    pub(super) kind: DeviceKind,
    /// One for each thread.
    pub(super) threads: Vec<Arc<Counters>>,
}

impl DeviceCounters {
    /// One of the counts, over all threads.
    pub(super) fn sum(&self, count: impl Fn(&Counters) -> &Count) -> u64 {
        self.threads.iter().fold(0, |sum, counters| sum.wrapping_add(count(counters).now()))
    }

    pub(super) fn now(&self) -> DeviceStats {
        DeviceStats {
            name: self.name.clone(),
            kind: self.kind,
            requests: self.sum(|counters| &counters.requests),
            bytes_in: self.sum(|counters| &counters.bytes_in),
            bytes_out: self.sum(|counters| &counters.bytes_out),
            errors: self.sum(|counters| &counters.errors),
            kicks: self.sum(|counters| &counters.kicks),
            interrupts: self.sum(|counters| &counters.interrupts),
            throttled: self.sum(|counters| &counters.throttled),
        }
    }
}

/// A vCPU's counts; only its own thread writes them.
#[derive(Debug, Default)]
pub(super) struct ExitCounters {
    pub(super) port_in: Count,
    pub(super) port_out: Count,
    pub(super) mmio_read: Count,
    pub(super) mmio_write: Count,
    pub(super) interrupted: Count,
}

impl ExitCounters {
    pub(super) fn now(&self) -> VcpuStats {
        VcpuStats {
            port_in: self.port_in.now(),
            port_out: self.port_out.now(),
            mmio_read: self.mmio_read.now(),
            mmio_write: self.mmio_write.now(),
            interrupted: self.interrupted.now(),
        }
    }
}
