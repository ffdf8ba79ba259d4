//! What a machine has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one boot of a machine has done so far. Counts begin anew when the guest is reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Stats {
    /// A processor each.
    pub vcpus: Vec<VcpuStats>,
    /// Memory.
    pub memory: MemoryStats,
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

/// A number with one writer, so that no locked instruction is needed.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add_one(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
