//! The host's end of a serial port's input.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use super::Serial;
use crate::console::{ByteQueue, Closed};

/// How long to leave a port alone that a vCPU is busy with.
const BUSY: Duration = Duration::from_millis(1);
/// How often a sender that waits for room looks again whether the port has seen all there is.
const ROOM: Duration = Duration::from_millis(100);

/// Sends bytes to a serial port from any thread.
#[derive(Debug, Clone)]
pub struct SerialInput {
    queue: Arc<ByteQueue>,
    port: Arc<Mutex<Serial>>,
}

impl SerialInput {
    /// The way into `port`.
    pub fn new(port: Arc<Mutex<Serial>>) -> Self {
        let queue = port.lock().unwrap_or_else(PoisonError::into_inner).input.clone();
        SerialInput { queue, port }
    }

    /// Sends all of `bytes`, waiting while the guest does not read.
    ///
    /// # Errors
    /// [`Closed`] once the input queue was closed, which also ends the wait.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Closed> {
        let mut rest = bytes;
        loop {
            rest = rest.get(self.queue.try_push(rest)..).unwrap_or_default();
            while !self.poke() && !self.queue.is_closed() {
                std::thread::sleep(BUSY);
            }
            if self.queue.is_closed() {
                return Err(Closed);
            }
            if rest.is_empty() {
                return Ok(());
            }
            self.queue.wait_room(ROOM);
        }
    }

    /// Sends what fits now, never waits, and says how many bytes that was. Where the port was busy, call
    /// [`SerialInput::poke`] until it says yes, or the last bytes may wait for the next ones.
    pub fn try_send(&self, bytes: &[u8]) -> usize {
        let count = self.queue.try_push(bytes);
        self.poke();
        count
    }

    /// Lets the port look at its queue; false if a vCPU is busy with the port, possibly waiting for room in the output.
    pub fn poke(&self) -> bool {
        let mut port = match self.port.try_lock() {
            Ok(port) => port,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        port.poke();
        true
    }
}
