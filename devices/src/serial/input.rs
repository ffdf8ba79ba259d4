//! The host's end of a serial port's input.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Serial;
use crate::console::{ByteQueue, Closed};

/// How often a sender that waits for room pokes the port again.
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
            self.poke();
            if self.queue.is_closed() {
                return Err(Closed);
            }
            if rest.is_empty() {
                return Ok(());
            }
            self.queue.wait_room(ROOM);
        }
    }

    /// Lets the port look at its queue. A vCPU has the port for the time of an access only: see [`ConsoleSink`](super::ConsoleSink).
    pub fn poke(&self) {
        self.port.lock().unwrap_or_else(PoisonError::into_inner).poke();
    }
}
