//! A virtio function as a component: quiesced, saved, loaded, and let go. The PCI root saves its configuration space.

use devices::component::{Component, State, StateError};
use devices::pci::state::MsixVectorState;
use serde::{Deserialize, Serialize};

use super::registers::status;
use super::run::DeviceLocation;
use super::{FEATURE_VERSION_1, Part, VirtioFunction, VirtioPci};
use crate::DeviceKind;
use crate::poll::Poller;
use crate::queue::{QueueConfig, QueueState};
use crate::shared_registers::{ISR_BITS, NEEDS_RESET};

const KIND: &str = "virtio-pci";
const VERSION: u16 = 1;

/// Registers, queues, interrupt table and device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionState {
    status: u8,
    isr: u8,
    generation: u8,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    config_vector: u16,
    queues: Vec<SavedQueue>,
    msix: Vec<MsixVectorState>,
    device: State,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    config: QueueConfig,
    vector: u16,
    /// Its position; `None` if it does not run.
    at: Option<QueueState>,
}

impl<P: Poller + 'static> Component for VirtioPci<P> {
    /// Takes the device off its worker, and keeps the positions of its queues.
    fn quiesce(&mut self) {
        self.quiesced = true;
        if self.held.is_none() {
            self.wait_for_reset(None);
            self.held = self.take_back();
        }
    }

    fn save(&self) -> Result<State, StateError> {
        if !self.quiesced {
            return Err(StateError::Running { kind: KIND });
        }
        let is_here = |part: &Part<P>| matches!(part.location, DeviceLocation::Here(_));
        let Some(DeviceLocation::Here(device)) =
            self.parts.first().filter(|_| self.parts.iter().all(is_here)).map(|part| &part.location)
        else {
            let name = &self.info.name;
            return Err(StateError::refused(KIND, format_args!("a thread of {name} has died")));
        };
        let registers = &self.registers;
        let queues = (0u16..).zip(&registers.queues).map(|(index, config)| SavedQueue {
            config: *config,
            vector: self.shared.queue_vector(index),
            at: self.held.as_ref().and_then(|at| at.get(usize::from(index)).copied().flatten()),
        });
        let state = FunctionState {
            status: self.shared.status(),
            isr: self.shared.isr(),
            generation: self.info.config.generation(),
            accepted: registers.accepted,
            device_select: registers.device_select,
            driver_select: registers.driver_select,
            queue_select: registers.queue_select,
            config_vector: self.shared.config_vector(),
            queues: queues.collect(),
            msix: self.msix.state(),
            device: device.save()?,
        };
        State::new(KIND, VERSION, &state)
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let state: FunctionState = state.open(KIND, VERSION)?;
        self.check(&state)?;
        if !self.quiesced {
            return Err(StateError::Running { kind: KIND });
        }
        // All parts check the same, so that only the first one can refuse.
        for part in &mut self.parts {
            match &mut part.location {
                DeviceLocation::Here(device) => device.load(&state.device)?,
                _ => return Err(StateError::refused(KIND, "its thread has died")),
            }
        }
        self.msix.load(&state.msix);
        self.registers.accepted = state.accepted;
        self.registers.device_select = state.device_select;
        self.registers.driver_select = state.driver_select;
        self.registers.queue_select = state.queue_select;
        self.shared.set_config_vector(state.config_vector);
        for ((index, own), saved) in (0u16..).zip(&mut self.registers.queues).zip(&state.queues) {
            *own = saved.config;
            self.shared.set_queue_vector(index, saved.vector);
        }
        self.info.config.load_generation(state.generation);
        self.shared.set_isr(state.isr);
        self.shared.set_status(state.status);
        let running = state.status & status::DRIVER_OK != 0;
        self.held = running.then(|| state.queues.iter().map(|queue| queue.at).collect());
        self.loaded = running;
        Ok(())
    }

    fn go(&mut self) {
        if !std::mem::replace(&mut self.quiesced, false) {
            return;
        }
        self.msix.go(&self.config);
        if std::mem::replace(&mut self.loaded, false) {
            self.interrupt_again();
        }
        self.run();
        for message in std::mem::take(&mut self.untold) {
            // One whose thread has died since is broken anyway.
            let _ = self.tell(message);
        }
    }
}

impl<P: Poller + 'static> VirtioPci<P> {
    /// Raises each interrupt that may have been on its way when the function was saved. A driver that finds nothing new
    /// ignores it.
    fn interrupt_again(&self) {
        for (index, _) in (0u16..).zip(self.held.iter().flatten()).filter(|(_, at)| at.is_some()) {
            self.shared.queue(index);
        }
        // Also for what the new machine shows otherwise, such as the state of a link.
        self.shared.config();
    }

    /// Whether `state` fits this function and its device may run with it: never with features that it does not offer, or
    /// with none settled (§3.1.1).
    fn check(&self, state: &FunctionState) -> Result<(), StateError> {
        let own = self.registers.queues.iter().map(|queue| queue.max_size);
        if !own.eq(state.queues.iter().map(|queue| queue.config.max_size)) {
            return Err(self.differs("it has other queues", "it has fewer or more queues"));
        }
        if state.msix.len() != self.msix.len() {
            let other =
                "it has other interrupt vectors: another version of minivmm saved it, which can restore it";
            return Err(self.differs(other, "it has fewer or more queues"));
        }
        let settled = state.status & status::FEATURES_OK != 0;
        if state.status & !(status::DRIVERS | NEEDS_RESET) != 0
            || state.status & status::DRIVER_OK != 0 && !settled
            || settled && state.accepted & FEATURE_VERSION_1 == 0
        {
            let reason = format_args!("status {:#04x} without the features for it", state.status);
            return Err(StateError::damaged(KIND, reason));
        }
        if state.isr & !ISR_BITS != 0 {
            return Err(StateError::damaged(KIND, format_args!("interrupt status {:#04x}", state.isr)));
        }
        let tolerated = self.parts.first().map_or(0, |part| match &part.location {
            DeviceLocation::Here(device) => device.tolerated(),
            _ => 0,
        });
        if settled && state.accepted & !(self.registers.offered | tolerated) != 0 {
            return Err(self.differs(
                "its driver uses features that are not offered here",
                "its guest leaves checksums and the cutting of segments to the host in ways that this one does not know",
            ));
        }
        Ok(())
    }

    /// The state does not fit for this `reason`: that of a network, by what connects it.
    fn differs(&self, reason: &str, of_network: &str) -> StateError {
        match self.info.kind {
            DeviceKind::Network => {
                StateError::Network { name: self.info.name.clone(), reason: of_network.into() }
            }
            _ => StateError::mismatch(KIND, reason),
        }
    }
}
