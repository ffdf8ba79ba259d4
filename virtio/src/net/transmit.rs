//! From the guest to the wire.

use std::io;

use super::header::{self, FrameError};
use super::{HEADER_LEN, NetBackend, Offloads, Progress};
use crate::memory::{Memory, Segment, cut, total};
use crate::queue::{Chain, Queue, QueueFault};

/// Budget in frames, after which other queues are served.
const BUDGET: u16 = 128;
/// Most pieces of a frame. Linux makes 18 at most.
const MOST_PIECES: usize = 256;

/// One transmit queue's part of the device.
#[derive(Debug, Default)]
pub(super) struct Transmitter {
    segments: Vec<Segment>,
    /// The warning of a bad frame was logged.
    warned: bool,
}

impl Transmitter {
    /// Sends what the driver has put into `queue`, up to the budget.
    pub(super) fn run(
        &mut self,
        pair: u16,
        queue: &mut Queue,
        backend: &mut dyn NetBackend,
        allowed: Offloads,
    ) -> Result<Progress, QueueFault> {
        // No kicks while we serve the queue anyway.
        queue.disable_kicks()?;
        let progress = self.send_some(pair, queue, backend, allowed);
        // Also before a fault: what was sent before it is the driver's again.
        queue.notify()?;
        progress
    }

    fn send_some(
        &mut self,
        pair: u16,
        queue: &mut Queue,
        backend: &mut dyn NetBackend,
        allowed: Offloads,
    ) -> Result<Progress, QueueFault> {
        for _ in 0..BUDGET {
            let Some(chain) = queue.pop()? else {
                // A chain may have come before kicks were on.
                if queue.enable_kicks()? {
                    queue.disable_kicks()?;
                    continue;
                }
                return Ok(Progress::Idle);
            };
            let memory = queue.memory();
            let sent = match self.prepare(&chain, memory, allowed) {
                Ok(header) => backend.send(pair, &header, memory, &self.segments),
                Err(error) => {
                    self.warn(pair, error);
                    Err(io::ErrorKind::InvalidData.into())
                }
            };
            match sent {
                Ok(()) => queue.counters().bytes_out.add(total(&self.segments)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.put_back(chain);
                    return Ok(Progress::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    queue.put_back(chain);
                    continue;
                }
                // As on any wire: a frame that cannot be sent is lost. Protocols above repeat it or not.
                Err(_) => queue.counters().errors.add_one(),
            }
            queue.complete(chain)?;
        }
        Ok(Progress::More)
    }

    /// The header to send, and the frame's pieces in `self.segments`. The guest's header is read here and not again.
    fn prepare(
        &mut self,
        chain: &Chain,
        memory: &Memory,
        allowed: Offloads,
    ) -> Result<[u8; HEADER_LEN], FrameError> {
        let mut raw = [0; HEADER_LEN];
        // §5.1.6.2: a header and a frame, all of it for the device to read.
        if !chain.writable().is_empty() || chain.reader(memory).read(&mut raw) < HEADER_LEN {
            return Err(FrameError::Buffer);
        }
        let frame_len = chain.readable_len() - HEADER_LEN as u64;
        let header = header::checked(&raw, frame_len, allowed)?;
        self.segments.clear();
        cut(chain.readable(), HEADER_LEN as u64, frame_len, &mut self.segments);
        if self.segments.len() > MOST_PIECES {
            return Err(FrameError::Buffer);
        }
        Ok(header)
    }

    fn warn(&mut self, pair: u16, error: FrameError) {
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!(
                "a frame of the guest in pair {pair} is not sent: {error}; others like it are dropped silently"
            );
        }
    }
}
