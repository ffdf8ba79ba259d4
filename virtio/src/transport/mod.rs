//! A virtio device as a PCI function (virtio 1.3 §4.1): registers, negotiation, and handing the device to its worker
//! and back.

mod bar;
mod capabilities;
mod function;
mod registers;
mod run;
mod state;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::bus::Effect;
use devices::irq::MsiAllocator;
use devices::pci::bar::BarIndex;
use devices::pci::config::{ConfigSpace, Identity};
use devices::pci::function::PciFunction;
use devices::pci::msix::Msix;
use devices::ration::Ration;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::{Device, DeviceInfo, Message};
use crate::memory::Memory;
use crate::poll::Poller;
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, QueueState};
pub use crate::shared_registers::Failures;
use crate::shared_registers::SharedRegisters;
use crate::worker::Worker;
use bar::Area;
use capabilities::PciAccess;
pub use function::{DeviceHandle, TellError, VirtioFunction};
use registers::Registers;
use run::Part;

/// VIRTIO_F_VERSION_1 (virtio 1.3 §6): everything here is modern.
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// What wakes a worker when the guest writes to an address, with no exit to this program.
pub trait Doorbells: std::fmt::Debug + Send + Sync {
    /// From now on a write of any width to `address` signals `event`.
    ///
    /// # Errors
    /// The host refused; then the writes come as accesses to the BAR.
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Ends what [`Doorbells::attach`] began.
    ///
    /// # Errors
    /// The host refused.
    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// A virtio device on the PCI bus.
#[derive(Debug)]
pub struct VirtioPci<P: Poller + 'static> {
    config: ConfigSpace,
    msix: Msix,
    access: PciAccess,
    info: DeviceInfo,
    registers: Registers,
    shared: Arc<SharedRegisters>,
    memory: Memory,
    /// At least one.
    parts: Vec<Part<P>>,
    /// Whether the function may reach memory (PCI 3.0 §6.2.2). While it may not, its device rests: on its worker, or here
    /// with its positions in `held`.
    master: bool,
    /// From [`Component::quiesce`](devices::component::Component::quiesce) to its `go`.
    quiesced: bool,
    /// A state was loaded since.
    loaded: bool,
    /// Positions of the queues of a device that is here although its driver has started it: it is quiesced, or no bus
    /// master. A reset drops them.
    held: Option<Vec<Option<QueueState>>>,
    /// Messages for a device that is on its way back from its worker, or quiesced.
    untold: Vec<Message>,
    /// Rations the warnings of [`VirtioPci::rest`].
    late_writes: Ration,
    doorbells: Arc<dyn Doorbells>,
    kicks: Vec<Arc<EventFd>>,
    /// Where the doorbells are attached.
    rung_at: Option<u64>,
}

/// What the functions of one machine share.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Guest memory.
    pub memory: Memory,
    /// Where interrupts come from.
    pub msi: Arc<dyn MsiAllocator>,
    /// Where doorbells go.
    pub doorbells: Arc<dyn Doorbells>,
    /// Is told of devices that cannot go on.
    pub failures: Arc<dyn Failures>,
}

/// A device that cannot be put on PCI.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Too many queues for a BAR or an MSI-X table, or no room for capabilities.
    #[error("a virtio device does not fit on PCI: {0}")]
    Layout(String),
    /// The host has no file descriptor left.
    #[error("the doorbells of a virtio device could not be made: {0}")]
    Doorbell(#[from] io::Error),
}

/// A device for a share of the queues, and the worker that runs it.
pub type DeviceThread<P> = (Box<dyn Device<Poller = P>>, Arc<Worker<P>>);

impl<P: Poller + 'static> VirtioPci<P> {
    /// Makes a function of a device, described by `info`, that runs on one thread or several. Each of `threads` has a device of
    /// its own and serves an equal share of the queues; all of these devices have the configuration space of `info`.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn new(
        info: DeviceInfo,
        threads: Vec<DeviceThread<P>>,
        platform: &Platform,
    ) -> Result<Self, TransportError> {
        let parts: Vec<_> = threads.into_iter().map(|(device, worker)| Part::new(device, worker)).collect();
        let layout = |error: &dyn std::fmt::Display| TransportError::Layout(error.to_string());
        let queues = u16::try_from(info.queues.len()).map_err(|error| layout(&error))?;
        if queues > bar::MOST_QUEUES {
            return Err(TransportError::Layout(format!("{queues} queues")));
        }
        let mut config = ConfigSpace::new(Identity {
            vendor: crate::VENDOR,
            device: info.kind.pci_device(),
            // §4.1.2.1: 1 or higher, since it is no transitional device.
            revision: 1,
            class: info.kind.pci_class(),
            subsystem_vendor: crate::VENDOR,
            // §4.1.2.1: 0x40 or higher.
            subsystem: info.kind.pci_device(),
        });
        config.add_bar(bar::bar().map_err(|error| layout(&error))?).map_err(|error| layout(&error))?;
        let access = capabilities::add(&mut config).map_err(|error| layout(&error))?;
        let vectors = info.kind.vectors(queues);
        let msix =
            Msix::new(&mut config, vectors, bar::MSIX, &platform.msi).map_err(|error| layout(&error))?;
        if parts.is_empty() {
            return Err(TransportError::Layout("no thread".into()));
        }
        let vectors = (0..vectors).filter_map(|vector| msix.vector(vector)).collect();
        let shared = SharedRegisters::new(vectors, queues.into());
        let shared = Arc::new(shared.heard_by(info.name.clone(), platform.failures.clone()));
        info.config.attach(shared.clone());
        let offered = info.features | FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;
        let kick = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        Ok(VirtioPci {
            config,
            msix,
            access,
            registers: Registers::new(offered, &info.queues),
            shared,
            memory: platform.memory.clone(),
            parts,
            held: None,
            untold: Vec::new(),
            master: false,
            quiesced: false,
            loaded: false,
            late_writes: Ration::default(),
            doorbells: platform.doorbells.clone(),
            kicks: (0..queues).map(|_| kick()).collect::<io::Result<_>>()?,
            rung_at: None,
            info,
        })
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match bar::area(offset) {
            Some((Area::Common, at)) => self.read_common(at, data),
            Some((Area::Isr, 0)) => {
                if let Some(first) = data.first_mut() {
                    *first = self.shared.take_isr();
                }
            }
            Some((Area::Device, at)) => self.info.config.read(at, data),
            Some((Area::Msix, _)) => self.msix.read(offset, data),
            Some((Area::Isr | Area::Notify, _)) | None => {}
        }
    }

    /// As [`VirtioPci::read`], without side effects.
    fn peek(&mut self, offset: u64, data: &mut [u8]) {
        match bar::area(offset) {
            Some((Area::Isr, at)) => {
                data.fill(0);
                if let (0, Some(first)) = (at, data.first_mut()) {
                    *first = self.shared.isr();
                }
            }
            _ => self.read(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match bar::area(offset) {
            Some((Area::Common, at)) => self.write_common(at, data),
            Some((Area::Device, at)) => self.info.config.driver_writes(at, data),
            // Comes here where there is no ioeventfd.
            Some((Area::Notify, at)) => {
                if let Some(kick) = self.kicks.get(at / bar::NOTIFY_STRIDE) {
                    // Its counter has room for 2^64 kicks.
                    let _ = kick.write(1);
                }
            }
            Some((Area::Msix, _)) => self.msix.write(offset, data),
            Some((Area::Isr, _)) | None => {}
        }
    }

    fn ring_at(&mut self, address: Option<u64>) {
        let doorbell = |base: u64, queue: usize| base.checked_add(bar::notify_offset(queue));
        if let Some(base) = self.rung_at.take() {
            for (queue, kick) in self.kicks.iter().enumerate() {
                if let Some(Err(error)) = doorbell(base, queue).map(|at| self.doorbells.detach(at, kick)) {
                    log::debug!("{}: doorbell {queue} was not detached: {error}", self.info.name);
                }
            }
        }
        let Some(base) = address else { return };
        for (queue, kick) in self.kicks.iter().enumerate() {
            if let Some(Err(error)) = doorbell(base, queue).map(|at| self.doorbells.attach(at, kick)) {
                log::debug!("{}: doorbell {queue} comes through this program: {error}", self.info.name);
            }
        }
        self.rung_at = Some(base);
    }
}

impl<P: Poller + 'static> PciFunction for VirtioPci<P> {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_written(&mut self, written: Range<u16>) {
        let (old, new) = (self.master, self.config.master_enabled());
        self.master = new;
        if old && !new {
            // Before the vectors close: the driver is interrupted for what was done until now.
            self.rest();
        }
        self.msix.config_written(&self.config, &written);
        if new && !old {
            self.run();
        }
        if let Some(access) = self.access.written(&self.config, &written) {
            self.pci_access(access);
        }
    }

    fn bar_read(&mut self, _: BarIndex, offset: u64, data: &mut [u8]) -> Option<Effect> {
        self.read(offset, data);
        None
    }

    fn bar_write(&mut self, _: BarIndex, offset: u64, data: &[u8]) -> Option<Effect> {
        self.write(offset, data);
        None
    }

    fn bar_changed(&mut self, _: BarIndex, address: Option<u64>) {
        self.ring_at(address);
    }
}

impl<P: Poller + 'static> Drop for VirtioPci<P> {
    fn drop(&mut self) {
        self.ring_at(None);
        self.begin_reset();
        // The worker may serve others: this device must be off it before its memory goes.
        self.wait_for_reset(None);
    }
}
