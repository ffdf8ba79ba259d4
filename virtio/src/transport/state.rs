//! What a virtio function is in the middle of, to be saved and taken up again.

use devices::pci::function::PciFunction;
use devices::pci::state::{MsixState, MsixStateError};
use serde::{Deserialize, Serialize};

use super::registers::status;
use super::run::DeviceLocation;
use super::{FEATURE_VERSION_1, VirtioPci};
use crate::device::{DeviceState, RestoreError};
use crate::poll::Poller;
use crate::queue::{QueueConfig, QueueState};
use crate::shared_registers::NEEDS_RESET;

/// A function's registers, queues and device. PCI configuration space is saved by the PCI root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    version: u16,
    status: u8,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    config_vector: u16,
    queues: Vec<SavedQueue>,
    msix: MsixState,
    device: DeviceState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    config: QueueConfig,
    vector: u16,
    /// Where it stands; `None` if it does not run.
    at: Option<QueueState>,
}

/// A state that this function does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportRestoreError {
    /// Written by another version of this program.
    #[error("the saved state of a virtio function has version {0}, and only {version} is understood; restore it with the program that saved it", version = TransportState::VERSION)]
    Version(u16),
    /// Of another device.
    #[error(
        "the saved state has other queues or features than this machine's virtio device; restore it into a machine of the same specification"
    )]
    OtherDevice,
    /// Negotiation cannot have come to this.
    #[error(
        "the saved state of a virtio function has status {0:#04x}, which its features cannot lead to; it is damaged"
    )]
    Status(u8),
    /// The device is at work.
    #[error("a virtio device that runs cannot take a saved state")]
    Running,
    /// The interrupt table.
    #[error(transparent)]
    Msix(#[from] MsixStateError),
    /// The device.
    #[error(transparent)]
    Device(#[from] RestoreError),
}

impl TransportState {
    /// The version that is written.
    pub const VERSION: u16 = 1;
}

impl<P: Poller + 'static> VirtioPci<P> {
    /// Pauses the function, if it is not paused yet, and gives its state. `None` if its worker has died.
    /// [`PciFunction::resume`] goes on.
    pub fn save(&mut self) -> Option<TransportState> {
        self.pause();
        let DeviceLocation::Here(device) = &self.place else { return None };
        let registers = &self.registers;
        let queues = (0u16..).zip(&registers.queues).map(|(index, config)| SavedQueue {
            config: *config,
            vector: self.shared.queue_vector(index),
            at: self.held.as_ref().and_then(|at| at.get(usize::from(index)).copied().flatten()),
        });
        Some(TransportState {
            version: TransportState::VERSION,
            status: self.shared.status(),
            accepted: registers.accepted,
            device_select: registers.device_select,
            driver_select: registers.driver_select,
            queue_select: registers.queue_select,
            config_vector: self.shared.config_vector(),
            queues: queues.collect(),
            msix: self.msix.state(),
            device: device.state(),
        })
    }

    /// Takes registers, interrupt table and device of `state`. Configuration space must be restored before. The device
    /// does nothing until [`PciFunction::resume`].
    ///
    /// # Errors
    /// [`TransportRestoreError`]; the function must be reset before it is used then.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), TransportRestoreError> {
        if state.version != TransportState::VERSION {
            return Err(TransportRestoreError::Version(state.version));
        }
        let same_queues = self.registers.queues.iter().map(|queue| queue.max_size);
        if !same_queues.eq(state.queues.iter().map(|queue| queue.config.max_size)) {
            return Err(TransportRestoreError::OtherDevice);
        }
        self.check_negotiated(state)?;
        let DeviceLocation::Here(device) = &mut self.place else {
            return Err(TransportRestoreError::Running);
        };
        self.msix.restore(&state.msix, &self.config)?;
        device.restore(&state.device)?;
        self.registers.accepted = state.accepted;
        self.registers.device_select = state.device_select;
        self.registers.driver_select = state.driver_select;
        self.registers.queue_select = state.queue_select;
        self.shared.set_config_vector(state.config_vector);
        for ((index, own), saved) in (0u16..).zip(&mut self.registers.queues).zip(&state.queues) {
            *own = saved.config;
            self.shared.set_queue_vector(index, saved.vector);
        }
        self.shared.set_status(state.status);
        let at = || state.queues.iter().map(|queue| queue.at).collect();
        self.held = (state.status & status::DRIVER_OK != 0).then(at);
        Ok(())
    }

    /// A device must never run with features that it does not offer, or with none settled (§3.1.1).
    fn check_negotiated(&self, state: &TransportState) -> Result<(), TransportRestoreError> {
        let settled = state.status & status::FEATURES_OK != 0;
        if state.status & !(status::DRIVERS | NEEDS_RESET) != 0
            || state.status & status::DRIVER_OK != 0 && !settled
            || settled && state.accepted & FEATURE_VERSION_1 == 0
        {
            return Err(TransportRestoreError::Status(state.status));
        }
        if settled && state.accepted & !self.registers.offered != 0 {
            return Err(TransportRestoreError::OtherDevice);
        }
        Ok(())
    }
}
