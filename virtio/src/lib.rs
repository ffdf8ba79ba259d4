//! virtio 1.x devices over PCI: queues, the transport, the worker threads, one folder a device.
//!
//! A device ([`device::Device`]) is owned by a worker thread ([`worker`]) while it runs and by its transport
//! ([`transport`]) while it does not. The transport holds registers; the doorbells go from KVM to the worker and the
//! interrupts from the worker to KVM, with no lock and no vCPU thread between.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod block;
pub mod config_space;
pub mod console;
pub mod counters;
pub mod device;
pub mod dirty;
pub mod entropy;
pub mod fs;
pub mod memory;
pub mod net;
pub mod poll;
pub mod queue;
pub mod shared_registers;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod worker;

/// PCI vendor id of every virtio function (virtio 1.3 §4.1.2).
pub const VENDOR: u16 = 0x1af4;

/// Kinds of device that a machine can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceKind {
    /// Network card (virtio 1.3 §5.1).
    Network,
    /// Block device (§5.2).
    Block,
    /// Console and ports (§5.3).
    Console,
    /// Entropy source (§5.4).
    Entropy,
    /// Memory balloon (§5.5).
    Balloon,
    /// File system (§5.11).
    FileSystem,
}

impl DeviceKind {
    /// The virtio device id (virtio 1.3 §5).
    pub const fn id(self) -> u16 {
        match self {
            DeviceKind::Network => 1,
            DeviceKind::Block => 2,
            DeviceKind::Console => 3,
            DeviceKind::Entropy => 4,
            DeviceKind::Balloon => 5,
            DeviceKind::FileSystem => 26,
        }
    }

    /// The PCI device id of a device that is not transitional (virtio 1.3 §4.1.2.1).
    pub const fn pci_device(self) -> u16 {
        0x1040 + self.id()
    }

    /// The PCI class that lspci shows: class, subclass, programming interface.
    pub const fn pci_class(self) -> u32 {
        match self {
            DeviceKind::Network => 0x02_0000,
            DeviceKind::Block | DeviceKind::FileSystem => 0x01_8000,
            DeviceKind::Console => 0x07_8000,
            DeviceKind::Entropy | DeviceKind::Balloon => 0x00_ff00,
        }
    }

    /// Interrupt vectors of a device with this many queues. Each costs a guest's start some six exits and three system calls; a console has two queues for each port, of
    /// which most are idle, and those of a file system are served by one thread: their queues have one together.
    pub(crate) const fn vectors(self, queues: u16) -> u16 {
        const CONFIG: u16 = 1;
        match self {
            DeviceKind::Console | DeviceKind::FileSystem if queues > 1 => CONFIG + 1,
            _ => CONFIG + queues,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceKind::*;

    #[test]
    fn lspci_shows_the_ids_of_modern_devices() {
        let ids = [Network, Block, Console, Entropy, Balloon, FileSystem].map(|kind| kind.pci_device());
        assert_eq!(ids, [0x1041, 0x1042, 0x1043, 0x1044, 0x1045, 0x105a]);
    }

    #[test]
    fn queues_that_matter_have_a_vector_of_their_own() {
        assert_eq!([Network, Block, Balloon].map(|kind| kind.vectors(16)), [17; 3]);
        assert_eq!([Console, FileSystem].map(|kind| kind.vectors(16)), [2; 2]);
        assert_eq!([Entropy, Console].map(|kind| kind.vectors(1)), [2; 2]);
    }
}
