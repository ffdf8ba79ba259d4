//! What the machine keeps of a virtio device: a function that it can reach, and tell something.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::pci::function::PciFunction;

use super::VirtioPci;
use super::run::DeviceLocation;
use crate::DeviceKind;
use crate::counters::Counters;
use crate::device::{DeviceInfo, Message};
use crate::poll::Poller;

/// A virtio function, whatever its worker waits in.
pub trait VirtioFunction: PciFunction {
    /// The constants of its device.
    fn info(&self) -> &DeviceInfo;

    /// What its device has done since it was made, thread by thread.
    fn counters(&self) -> Vec<Arc<Counters>>;

    /// Tells the device something: at once if no driver is at work, else through its worker, and when the machine goes on if it is
    /// paused. Waits for nothing.
    ///
    /// # Errors
    /// [`TellError`].
    fn tell(&mut self, message: Message) -> Result<(), TellError>;
}

/// Why a device was not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// The message is for another kind of device.
    #[error("{device} is a {own:?} device and does not take what is for a {wanted:?} device")]
    Kind {
        /// Its name.
        device: String,
        /// Its kind.
        own: DeviceKind,
        /// The message's.
        wanted: DeviceKind,
    },
    /// The machine has ended, or the device's thread has died.
    #[error("the device is gone; start the machine again")]
    Gone,
}

impl<P: Poller + 'static> VirtioFunction for VirtioPci<P> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn counters(&self) -> Vec<Arc<Counters>> {
        self.parts.iter().map(|part| part.counters.clone()).collect()
    }

    fn tell(&mut self, message: Message) -> Result<(), TellError> {
        let (own, wanted) = (self.info.kind, message.kind());
        if own != wanted {
            return Err(TellError::Kind { device: self.info.name.clone(), own, wanted });
        }
        // A device that has come back since is told at once.
        self.status();
        if self.parts.iter().any(|part| matches!(part.location, DeviceLocation::Gone)) {
            return Err(TellError::Gone);
        }
        // A paused machine's driver is not interrupted.
        if self.is_stopping() || self.quiesced {
            let kind = std::mem::discriminant(&message);
            self.untold.retain(|earlier| std::mem::discriminant(earlier) != kind);
            self.untold.push(message);
            return Ok(());
        }
        for part in &mut self.parts {
            match &mut part.location {
                DeviceLocation::Here(device) => {
                    // Without queues none can be at fault.
                    let _ = device.tell(message.clone(), None);
                }
                DeviceLocation::Running(slot) => {
                    if !part.worker.tell(*slot, message.clone()) {
                        return Err(TellError::Gone);
                    }
                }
                DeviceLocation::Stopping(_) | DeviceLocation::Gone => return Err(TellError::Gone),
            }
        }
        Ok(())
    }
}

/// Reaches a device for as long as its machine's present boot lives; keeps nothing of it.
#[derive(Debug, Clone)]
pub struct DeviceHandle(Weak<Mutex<dyn VirtioFunction>>);

impl DeviceHandle {
    /// A handle on `function`.
    pub fn new(function: &Arc<Mutex<dyn VirtioFunction>>) -> Self {
        DeviceHandle(Arc::downgrade(function))
    }

    /// Tells the device something, as [`VirtioFunction::tell`]. Waits while the device is being reset or quiesced.
    ///
    /// # Errors
    /// [`TellError`].
    pub fn tell(&self, message: Message) -> Result<(), TellError> {
        self.with(|function| function.tell(message)).unwrap_or(Err(TellError::Gone))
    }

    /// Calls `call` with the function; `None` if it is gone. Waits while the device is being reset or quiesced.
    pub fn with<R>(&self, call: impl FnOnce(&mut dyn VirtioFunction) -> R) -> Option<R> {
        let function = self.0.upgrade()?;
        let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
        Some(call(&mut *function))
    }

    /// Whether the boot of the device is over.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}
