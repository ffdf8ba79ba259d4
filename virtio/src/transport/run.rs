//! The device status register and what it sets in motion: negotiation, start and reset (virtio 1.3 §2.1, §3.1).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::capabilities::WindowAccess;
use super::registers::status;
use super::{FEATURE_VERSION_1, VirtioPci};
use crate::counters::Counters;
use crate::device::Device;
use crate::poll::Poller;
use crate::queue::{Queue, QueueState};
use crate::shared_registers::NEEDS_RESET;
use crate::worker::{Activation, SlotId, Stopped, Worker};

/// How long a vCPU waits in a write of the status register for a device to stop. Mostly that takes microseconds. A disk that
/// hangs may take for ever; its guest then reads a status that is not 0 yet (§4.1.4.3.2).
const PATIENCE: Duration = Duration::from_millis(50);

/// How long a vCPU waits for the last writes of a device that is bus master no more. Its guest cannot ask again, and may
/// give the memory to another kernel at once.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// A thread's share of a device: part `n` of `m` serves the queues `n`, `n + m`, `n + 2m` and so on. Most devices have one part.
#[derive(Debug)]
pub(super) struct Part<P: Poller + 'static> {
    pub(super) worker: Arc<Worker<P>>,
    pub(super) location: DeviceLocation<P>,
    pub(super) counters: Arc<Counters>,
}

/// Where a part of the device is.
#[derive(Debug)]
pub(super) enum DeviceLocation<P> {
    /// Here: no driver is at work, or it is quiesced.
    Here(Box<dyn Device<Poller = P>>),
    /// On its worker.
    Running(SlotId),
    /// On its way back, to be reset.
    Stopping(Receiver<Stopped<P>>),
    /// Its worker died.
    Gone,
}

impl<P: Poller + 'static> Part<P> {
    pub(super) fn new(device: Box<dyn Device<Poller = P>>, worker: Arc<Worker<P>>) -> Self {
        Part { worker, location: DeviceLocation::Here(device), counters: Arc::default() }
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.location, DeviceLocation::Stopping(_))
    }

    /// The part of the device `name` comes back from its worker, or never.
    fn arrive<E>(&mut self, stopped: Result<Stopped<P>, E>, name: &str) {
        self.location = if let Ok(stopped) = stopped {
            DeviceLocation::Here(stopped.device)
        } else {
            log::error!("{name}: its thread has died, and the device with it");
            DeviceLocation::Gone
        };
    }
}

impl<P: Poller + 'static> VirtioPci<P> {
    /// The status register as the driver reads it.
    pub(super) fn status(&mut self) -> u8 {
        if self.is_stopping() {
            for part in &mut self.parts {
                let DeviceLocation::Stopping(stopped) = &part.location else { continue };
                match stopped.try_recv() {
                    Err(TryRecvError::Empty) => {}
                    stopped => part.arrive(stopped, &self.info.name),
                }
            }
            self.finish_reset();
        }
        self.shared.status()
    }

    /// Whether a reset is not over.
    pub(super) fn is_stopping(&self) -> bool {
        self.parts.iter().any(Part::is_stopping)
    }

    pub(super) fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.begin_reset();
            self.wait_for_reset(Some(PATIENCE));
            return;
        }
        let old = self.status();
        if self.is_stopping() {
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
        for part in &self.parts {
            if let DeviceLocation::Running(slot) = part.location {
                part.worker.go(slot);
            }
        }
        if let Some(states) = self.held.take() {
            self.start(&states);
        }
    }

    /// The function is no bus master any more: its device rests on its workers. Waits for what the host has in flight, up to
    /// [`LAST_WRITES`]; after that the workers still obey as soon as they can.
    pub(super) fn rest(&mut self) {
        let deadline = Instant::now() + LAST_WRITES;
        let running = self.parts.iter().filter_map(|part| match part.location {
            DeviceLocation::Running(slot) => Some(part.worker.quiesce(slot)),
            _ => None,
        });
        // All are asked before one is waited for.
        for quiet in running.collect::<Vec<_>>() {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(RecvTimeoutError::Timeout) = quiet.recv_timeout(left)
                && let Some(left_out) = self.late_writes.take()
            {
                let name = &self.info.name;
                log::warn!(
                    "{name}: it is bus master no more, and requests that the host has not ended may still write{left_out}"
                );
            }
        }
    }

    /// §2.2.2, §6.2: only what was offered, and version 1 always. Where the device is gone nothing fits: its driver
    /// gives up with a message, instead of waiting for a device that never answers.
    fn features_fit(&self) -> bool {
        let registers = &self.registers;
        !self.parts.iter().any(|part| matches!(part.location, DeviceLocation::Gone))
            && registers.accepted & !registers.offered == 0
            && registers.accepted & FEATURE_VERSION_1 != 0
    }

    /// Hands the device to its workers, with its queues at `states`; a queue without one does not run.
    fn start(&mut self, states: &[Option<QueueState>]) {
        if !self.parts.iter().all(|part| matches!(part.location, DeviceLocation::Here(_))) {
            return;
        }
        let mut queues = self.make_queues(states);
        let count = self.parts.len();
        for (n, part) in self.parts.iter_mut().enumerate() {
            let device = match std::mem::replace(&mut part.location, DeviceLocation::Gone) {
                DeviceLocation::Here(device) => device,
                _ => continue,
            };
            let own = |queue: &usize| queue % count == n;
            let place = |(queue, slot): (usize, &mut Option<Queue>)| slot.take_if(|_| own(&queue));
            let job = Activation {
                device,
                name: self.info.name.clone(),
                queues: queues.iter_mut().enumerate().map(place).collect(),
                kicks: (0..)
                    .zip(&self.kicks)
                    .filter(|(queue, _)| own(&usize::from(*queue)))
                    .map(owned)
                    .collect(),
                features: self.registers.accepted,
                memory: self.memory.clone(),
                shared: self.shared.clone(),
                counters: part.counters.clone(),
            };
            match part.worker.start(job) {
                Ok(slot) => part.location = DeviceLocation::Running(slot),
                Err((error, job)) => {
                    part.location = DeviceLocation::Here(job.device);
                    self.shared.fail(log::Level::Error, &format!("the host has no thread for it: {error}"));
                }
            }
        }
    }

    fn make_queues(&self, states: &[Option<QueueState>]) -> Vec<Option<Queue>> {
        let mut queues = Vec::with_capacity(self.registers.queues.len());
        let parts = self.parts.iter().cycle();
        for (((index, config), state), part) in (0u16..).zip(&self.registers.queues).zip(states).zip(parts) {
            let features = self.registers.accepted;
            let queue = state.filter(|_| config.enabled).map(|state| {
                let (shared, counters) = (&self.shared, &part.counters);
                Queue::new(index, config, state, features, &self.memory, shared, counters)
            });
            queues.push(
                queue.and_then(|queue| {
                    queue.inspect_err(|fault| self.shared.fail(log::Level::Warn, fault)).ok()
                }),
            );
        }
        queues
    }

    /// Everything back to power-on; the status reads 0 once the workers have let go of the device.
    pub(super) fn begin_reset(&mut self) {
        for part in &mut self.parts {
            if let DeviceLocation::Running(slot) = part.location {
                part.location = DeviceLocation::Stopping(part.worker.stop(slot));
            }
        }
        self.finish_reset();
    }

    /// Waits for a reset that has begun, for at most `limit`. Without a limit, however long it takes: the machine is at rest.
    pub(super) fn wait_for_reset(&mut self, limit: Option<Duration>) {
        if !self.is_stopping() {
            return;
        }
        let deadline = limit.map(|limit| Instant::now() + limit);
        for part in &mut self.parts {
            let DeviceLocation::Stopping(stopped) = &part.location else { continue };
            let stopped = match deadline {
                Some(time) => stopped.recv_timeout(time.saturating_duration_since(Instant::now())),
                None => stopped.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match stopped {
                Err(RecvTimeoutError::Timeout) => {}
                stopped => part.arrive(stopped, &self.info.name),
            }
        }
        self.finish_reset();
    }

    /// Takes the device off its workers, to be kept; the positions of its queues, if it ran.
    pub(super) fn take_back(&mut self) -> Option<Vec<Option<QueueState>>> {
        let running = self.parts.iter_mut().filter_map(|part| match part.location {
            DeviceLocation::Running(slot) => Some((part.worker.stop(slot), part)),
            _ => None,
        });
        let mut positions: Option<Vec<Option<QueueState>>> = None;
        let mut lost = false;
        // All are asked before one is waited for.
        for (stopped, part) in running.collect::<Vec<_>>() {
            let mut stopped = stopped.recv();
            lost |= stopped.is_err();
            if let Ok(Stopped { queues, .. }) = &mut stopped {
                match &mut positions {
                    None => positions = Some(std::mem::take(queues)),
                    Some(all) => {
                        for (place, queue) in all.iter_mut().zip(queues) {
                            *place = place.or(*queue);
                        }
                    }
                }
            }
            part.arrive(stopped, &self.info.name);
        }
        if lost {
            self.cleared();
            self.shared.set_status(NEEDS_RESET);
            return None;
        }
        positions
    }

    /// A reset ends when no part is on its way back. Where one is lost it ends all the same: what comes after it fails (see
    /// [`VirtioPci::features_fit`]).
    fn finish_reset(&mut self) {
        if self.is_stopping() {
            return;
        }
        for part in &mut self.parts {
            let DeviceLocation::Here(device) = &mut part.location else { continue };
            device.reset();
            for message in &self.untold {
                // Without queues none can be at fault.
                let _ = device.tell(message.clone(), None);
            }
        }
        self.untold.clear();
        self.cleared();
    }

    fn cleared(&mut self) {
        self.held = None;
        self.loaded = false;
        self.registers.reset();
        self.shared.reset();
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

    /// The registers that the worker shares, for tests of interrupts.
    #[cfg(any(test, feature = "testing"))]
    pub fn shared_registers(&self) -> &Arc<crate::shared_registers::SharedRegisters> {
        &self.shared
    }
}

fn owned((queue, kick): (u16, &Arc<EventFd>)) -> (u16, Arc<EventFd>) {
    (queue, kick.clone())
}
