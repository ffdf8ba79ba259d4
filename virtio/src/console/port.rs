//! One port: what its driver knows of it, and the bytes through it.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};
use vm_memory::Bytes;

use super::backend::Backend;
use super::control::Event;
use crate::memory::{Segment, cut};
use crate::queue::{Chain, Queue, QueueFault};

/// Bytes that are carried at once: as many as Linux writes at once.
pub(super) const CARRY: usize = 32 << 10;
/// Most chains that are carried at once.
const MOST_CHAINS: usize = 64;
/// Budget in bytes of one port, after which others are served.
const BUDGET: usize = 1 << 20;
/// Cost of a chain in the budget, besides its bytes.
const CHAIN_COST: usize = 256;

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    /// A port without a name is a console.
    pub(super) name: Option<String>,
    pub(super) backend: Box<dyn Backend>,
    pub(super) state: PortState,
    /// The driver has to be told the size of the console's terminal.
    pub(super) resized: bool,
}

/// What a port and its driver have agreed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortState {
    /// The driver was told of the port, and of its name or that it is a console.
    added: bool,
    introduced: bool,
    /// The driver has it.
    ready: bool,
    /// A program in the guest has it open. The driver would drop earlier input.
    pub(super) guest_open: bool,
    /// The driver was told that the host's end is open.
    told_open: bool,
    /// A client left: the driver must be told, even if the next client is there already.
    must_close: bool,
    /// Bytes of the chain at the front of the transmit queue that are gone.
    sent: u64,
}

/// Result of serving a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is nothing that could be done now.
    Done,
    /// There may be more to do.
    Over,
}

/// Space that all ports share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    chains: Vec<Chain>,
}

enum Sent {
    Whole,
    Blocked,
    OverBudget,
}

impl Port {
    pub(super) fn new(name: Option<String>, backend: Box<dyn Backend>) -> Self {
        Port { name, backend, state: PortState::default(), resized: false }
    }

    /// The control message that is due next.
    pub(super) fn due(&self, driver_ready: bool) -> Option<(Event, bool)> {
        let (state, open) = (&self.state, self.backend.is_open());
        if !state.ready {
            return (driver_ready && !state.added).then_some((Event::PortAdd, true));
        }
        if !state.introduced {
            return Some((if self.name.is_some() { Event::PortName } else { Event::ConsolePort }, true));
        }
        if self.resized {
            return Some((Event::Resize, false));
        }
        if state.must_close && state.told_open {
            return Some((Event::PortOpen, false));
        }
        (state.told_open != open).then_some((Event::PortOpen, open))
    }

    /// The driver got this message.
    pub(super) fn sent(&mut self, event: Event, value: bool) {
        let state = &mut self.state;
        match event {
            Event::PortAdd => state.added = true,
            Event::PortName | Event::ConsolePort => state.introduced = true,
            Event::PortOpen => {
                state.told_open = value;
                state.must_close = false;
            }
            Event::Resize => self.resized = false,
            Event::DeviceReady | Event::PortReady => {}
        }
    }

    /// The driver has set the port up, or failed to. The driver of a guest that wakes from hibernation knows its ports
    /// already.
    pub(super) fn is_ready(&mut self, ready: bool) {
        self.state.ready = ready;
        self.state.added = true;
    }

    /// The client at the host's end has left.
    pub(super) fn left(&mut self) {
        self.state.must_close = self.state.told_open;
    }

    /// From the guest to the host, until there is no more or the host takes no more.
    pub(super) fn transmit(
        &mut self,
        queue: &mut Queue,
        scratch: &mut Scratch,
    ) -> Result<Progress, QueueFault> {
        if !self.backend.is_open() {
            // The chains wait in the ring for the next client.
            queue.disable_kicks()?;
            return Ok(Progress::Done);
        }
        let mut left = BUDGET;
        let progress = loop {
            if left == 0 {
                break Progress::Over;
            }
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                break Progress::Done;
            };
            left = left.saturating_sub(CHAIN_COST);
            match self.send(&chain, queue, scratch, &mut left) {
                Sent::Whole => {
                    self.state.sent = 0;
                    queue.complete(chain)?;
                }
                Sent::Blocked => {
                    queue.put_back(chain);
                    queue.disable_kicks()?;
                    break Progress::Done;
                }
                Sent::OverBudget => {
                    queue.put_back(chain);
                    break Progress::Over;
                }
            }
        };
        queue.notify()?;
        Ok(progress)
    }

    fn send(&mut self, chain: &Chain, queue: &Queue, scratch: &mut Scratch, left: &mut usize) -> Sent {
        let (memory, counters) = (queue.memory(), queue.counters());
        scratch.bytes.resize(CARRY, 0);
        loop {
            scratch.segments.clear();
            cut(chain.readable(), self.state.sent, CARRY as u64, &mut scratch.segments);
            if scratch.segments.is_empty() {
                return Sent::Whole;
            }
            if *left == 0 {
                return Sent::OverBudget;
            }
            let mut len = 0;
            for segment in &scratch.segments {
                let end = len + usize::try_from(segment.len).unwrap_or(CARRY);
                let Some(part) = scratch.bytes.get_mut(len..end) else { break };
                // The segment was checked when the chain was popped, and guest memory does not shrink.
                if memory.read_slice(part, segment.address).is_err() {
                    break;
                }
                len = end;
            }
            match self.backend.write(scratch.bytes.get(..len).unwrap_or_default()) {
                Ok(count) if count > 0 => {
                    self.state.sent += count as u64;
                    counters.bytes_out.add(count as u64);
                    *left = left.saturating_sub(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return Sent::Blocked,
            }
        }
    }

    /// From the host to the guest, until there is no more or the guest takes no more.
    pub(super) fn receive(
        &mut self,
        queue: &mut Queue,
        scratch: &mut Scratch,
    ) -> Result<Progress, QueueFault> {
        if !self.state.guest_open {
            return Ok(Progress::Done);
        }
        scratch.bytes.resize(CARRY, 0);
        let mut left = BUDGET;
        let progress = loop {
            if left == 0 {
                break Progress::Over;
            }
            let room = gather(queue, &mut scratch.chains)?;
            if scratch.chains.is_empty() {
                if queue.enable_kicks()? {
                    continue;
                }
                break Progress::Done;
            }
            left = left.saturating_sub(CHAIN_COST * scratch.chains.len());
            let into = scratch.bytes.get_mut(..room).unwrap_or_default();
            let taken = if room == 0 { Ok(0) } else { self.backend.read(into) };
            let count = match taken {
                Ok(count) if count > 0 || room == 0 => count,
                other => {
                    scratch.chains.drain(..).rev().for_each(|chain| queue.put_back(chain));
                    if other.is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
                        continue;
                    }
                    queue.disable_kicks()?;
                    break Progress::Done;
                }
            };
            left = left.saturating_sub(count);
            spread(queue, &mut scratch.chains, into.get(..count).unwrap_or_default())?;
        };
        queue.notify()?;
        Ok(progress)
    }
}

/// Pops chains until they have room for [`CARRY`] bytes, and returns for how many they have.
fn gather(queue: &mut Queue, chains: &mut Vec<Chain>) -> Result<usize, QueueFault> {
    let mut room = 0;
    chains.clear();
    while room < CARRY && chains.len() < MOST_CHAINS {
        let Some(chain) = queue.pop()? else { break };
        room += usize::try_from(chain.writable_len()).unwrap_or(CARRY);
        chains.push(chain);
    }
    Ok(room.min(CARRY))
}

/// Gives `bytes` to the driver in `chains`, and those that are not needed back to the ring.
fn spread(queue: &mut Queue, chains: &mut Vec<Chain>, bytes: &[u8]) -> Result<(), QueueFault> {
    let mut rest = bytes;
    let memory = queue.memory().clone();
    // Chains with no room at all go back empty, or they would stand in the way for ever.
    let needed = chains.iter().scan(0u64, |room, chain| {
        let needed = *room < bytes.len() as u64 || chain.writable_len() == 0;
        *room += chain.writable_len();
        Some(needed)
    });
    let needed = needed.take_while(|needed| *needed).count();
    chains.drain(needed..).rev().for_each(|chain| queue.put_back(chain));
    for mut chain in chains.drain(..) {
        let count = chain.writer(&memory).write(rest);
        queue.counters().bytes_in.add(count as u64);
        rest = rest.get(count..).unwrap_or_default();
        queue.complete(chain)?;
    }
    Ok(())
}
