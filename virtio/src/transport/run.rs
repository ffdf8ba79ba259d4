//! The device status register and what it sets in motion: negotiation, start and reset (virtio 1.3 §2.1, §3.1).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use super::capabilities::WindowAccess;
use super::registers::status;
use super::{FEATURE_VERSION_1, VirtioPci};
use crate::device::Device;
use crate::poll::Poller;
use crate::queue::{Queue, QueueState};
use crate::shared_registers::NEEDS_RESET;
use crate::worker::{Activation, SlotId, Stopped};

/// How long a vCPU waits for a device to stop before it may look again. Almost always it takes microseconds; a disk
/// that hangs may take for ever, and its guest then sees a reset that is not over (§4.1.4.3.2).
const PATIENCE: Duration = Duration::from_millis(50);

/// How long a vCPU waits for the last writes of a device that is bus master no more. Its guest cannot ask again, and may
/// give the memory to another kernel at once.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Where the device is.
#[derive(Debug)]
pub(super) enum DeviceLocation<P> {
    /// Here: no driver is at work.
    Here(Box<dyn Device<Poller = P>>),
    /// On its worker.
    Running(SlotId),
    /// On its way back.
    Stopping(Receiver<Stopped<P>>),
    /// Its worker died.
    Gone,
}

impl<P: Poller + 'static> VirtioPci<P> {
    /// The status register as the driver reads it.
    pub(super) fn status(&mut self) -> u8 {
        if let DeviceLocation::Stopping(stopped) = &self.location {
            match stopped.try_recv() {
                Ok(stopped) => self.arrived(stopped.device),
                Err(TryRecvError::Disconnected) => self.lost(),
                Err(TryRecvError::Empty) => {}
            }
        }
        self.shared.status()
    }

    pub(super) fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.begin_reset();
            if let DeviceLocation::Stopping(stopped) = &self.location {
                match stopped.recv_timeout(PATIENCE) {
                    Ok(stopped) => self.arrived(stopped.device),
                    Err(RecvTimeoutError::Disconnected) => self.lost(),
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            return;
        }
        let old = self.status();
        if matches!(self.location, DeviceLocation::Stopping(_)) {
            return;
        }
        // A driver may add bits only (§2.1.1), and DEVICE_NEEDS_RESET is the device's.
        let mut new = value & status::DRIVERS & !old;
        if new & status::FEATURES_OK != 0 && !self.features_fit() {
            new &= !status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 && (old | new) & status::FEATURES_OK == 0 {
            // §3.1.1: features come first.
            new &= !status::DRIVER_OK;
        }
        self.shared.add_status(new);
        if new & status::DRIVER_OK != 0 {
            self.held = Some(vec![Some(QueueState::default()); self.registers.queues.len()]);
            self.run();
        }
    }

    /// Starts a device whose driver has started it, if it is a bus master and not quiesced.
    pub(super) fn run(&mut self) {
        if !self.master || self.quiesced {
            return;
        }
        if let DeviceLocation::Running(slot) = self.location {
            self.worker.go(slot);
        } else if let Some(states) = self.held.take() {
            self.start(&states);
        }
    }

    /// The function is no bus master any more: its device rests on its worker. Waits for what the host has in flight, up to
    /// [`LAST_WRITES`]; after that the worker still obeys as soon as it can.
    pub(super) fn rest(&mut self) {
        if let DeviceLocation::Running(slot) = self.location
            && let Err(RecvTimeoutError::Timeout) = self.worker.quiesce(slot).recv_timeout(LAST_WRITES)
            && let Some(left_out) = self.late_writes.take()
        {
            let name = &self.info.name;
            log::warn!(
                "{name}: it is bus master no more, and requests that the host has not ended may still write{left_out}"
            );
        }
    }

    /// §2.2.2, §6.2: only what was offered, and version 1 always. Where the device is gone nothing fits: its driver
    /// gives up with a message, instead of waiting for a device that never answers.
    fn features_fit(&self) -> bool {
        let registers = &self.registers;
        !matches!(self.location, DeviceLocation::Gone)
            && registers.accepted & !registers.offered == 0
            && registers.accepted & FEATURE_VERSION_1 != 0
    }

    /// Hands the device to its worker, with its queues at `states`; a queue without one does not run.
    fn start(&mut self, states: &[Option<QueueState>]) {
        let device = match std::mem::replace(&mut self.location, DeviceLocation::Gone) {
            DeviceLocation::Here(device) => device,
            other => {
                self.location = other;
                return;
            }
        };
        let mut queues = Vec::with_capacity(self.registers.queues.len());
        for ((index, config), state) in (0u16..).zip(&self.registers.queues).zip(states) {
            let features = self.registers.accepted;
            let queue = state
                .filter(|_| config.enabled)
                .map(|state| Queue::new(index, config, state, features, &self.memory, &self.shared));
            let queue = queue
                .and_then(|queue| queue.inspect_err(|fault| self.shared.fail(log::Level::Warn, fault)).ok());
            let doorbell = self.kicks.get(usize::from(index));
            queues.push(queue.map(|queue| match doorbell {
                Some(doorbell) => queue.with_doorbell(doorbell.clone()),
                None => queue,
            }));
        }
        let job = Activation {
            device,
            name: self.info.name.clone(),
            queues,
            kicks: self.kicks.clone(),
            features: self.registers.accepted,
            memory: self.memory.clone(),
            shared: self.shared.clone(),
        };
        match self.worker.start(job) {
            Ok(slot) => self.location = DeviceLocation::Running(slot),
            Err((error, job)) => {
                self.location = DeviceLocation::Here(job.device);
                self.shared.fail(log::Level::Error, &format!("the host has no thread for it: {error}"));
            }
        }
    }

    /// Everything back to power-on; the status reads 0 once the worker has let go of the device.
    pub(super) fn begin_reset(&mut self) {
        match std::mem::replace(&mut self.location, DeviceLocation::Gone) {
            DeviceLocation::Running(slot) => self.location = DeviceLocation::Stopping(self.worker.stop(slot)),
            DeviceLocation::Here(mut device) => {
                device.reset();
                self.location = DeviceLocation::Here(device);
                self.cleared();
            }
            DeviceLocation::Stopping(stopped) => self.location = DeviceLocation::Stopping(stopped),
            DeviceLocation::Gone => self.cleared(),
        }
    }

    /// Waits for a reset that has begun, however long it takes: the machine is at rest.
    pub(super) fn wait_for_reset(&mut self) {
        if let DeviceLocation::Stopping(stopped) = &self.location {
            match stopped.recv() {
                Ok(stopped) => self.arrived(stopped.device),
                Err(_) => self.lost(),
            }
        }
    }

    /// Takes the device off its worker to be saved; where its queues stand, if it ran.
    pub(super) fn take_back(&mut self) -> Option<Vec<Option<QueueState>>> {
        let DeviceLocation::Running(slot) = self.location else { return None };
        match self.worker.stop(slot).recv() {
            Ok(Stopped { device, queues }) => {
                self.location = DeviceLocation::Here(device);
                Some(queues)
            }
            Err(_) => {
                self.lost();
                self.shared.set_status(NEEDS_RESET);
                None
            }
        }
    }

    fn arrived(&mut self, mut device: Box<dyn Device<Poller = P>>) {
        device.reset();
        for message in self.untold.drain(..) {
            // Without queues none can be at fault.
            let _ = device.tell(message, None);
        }
        self.location = DeviceLocation::Here(device);
        self.cleared();
    }

    fn cleared(&mut self) {
        self.held = None;
        self.loaded = false;
        self.registers.reset();
        self.shared.reset();
    }

    /// A reset has to end all the same: what comes after it fails (see [`VirtioPci::features_fit`]).
    fn lost(&mut self) {
        log::error!("{}: its thread has died, and the device with it", self.info.name);
        self.location = DeviceLocation::Gone;
        self.cleared();
    }

    /// An access through the configuration window (§4.1.4.9).
    pub(super) fn pci_access(&mut self, access: WindowAccess) {
        let mut data = access.data.unwrap_or_default();
        let Some(bytes) = data.get_mut(..access.len) else { return };
        if access.data.is_some() {
            self.write(access.offset, bytes);
        } else {
            // Setting the window up is no read of the ISR register, which would clear it.
            self.peek(access.offset, bytes);
            self.access.answer(&mut self.config, bytes);
        }
    }

    /// The interrupts, for tests of who is told what.
    pub fn shared_registers(&self) -> &Arc<crate::shared_registers::SharedRegisters> {
        &self.shared
    }
}
