//! The block device (virtio 1.3 §5.2): requests from its queues become operations of an [`Engine`].
//!
//! The way of a request: [`Block::kicked`] pops its chain, [`request`] checks it, a slot keeps it while the engine
//! works on it, [`Block::ready`] completes it. Whatever became available or completed in one wake-up is submitted or
//! told to the driver together.

mod config;
mod engine;
mod errors;
mod request;
mod slots;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests;

use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use config::{Disk, MOST_SEGMENTS, MOST_ZEROES, QUEUE_SIZE, SECTOR, Topology};
pub use engine::{Completion, Engine, Extent, Operation, Tag};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceState, RestoreError, TIMER, Traits};
use crate::memory::{Memory, Segment, cut};
use crate::poll::Token;
use crate::queue::{Chain, Queue, QueueFault};
use config::{WRITEBACK, feature};
use errors::ErrorLog;
use request::{HEADER, ID, Limits, Request, Status};
use slots::Slots;

/// Operations have ended.
const DONE: Token = 0;
const VERSION: u16 = 1;

/// A disk's poller, whichever engine it is.
pub type AnyEngine = Box<dyn Engine>;

/// A block device.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Disk,
    config: Arc<ConfigSpace>,
    slots: Slots,
    /// Data segments of the request at hand.
    segments: Vec<Segment>,
    /// Queues in which something was completed since the driver was told: a bit each.
    used: Marks,
    /// Queues that had more than their share, and are looked at again.
    waiting: Marks,
    errors: ErrorLog,
}

/// A set of queues.
#[derive(Debug, Default, Clone, Copy)]
struct Marks(u64);

impl Marks {
    fn add(&mut self, queue: u16) {
        self.0 |= 1u64.checked_shl(queue.into()).unwrap_or(0);
    }

    fn take(&mut self) -> impl Iterator<Item = u16> + use<> {
        let marks = std::mem::take(&mut self.0);
        (0..MOST_QUEUES.get()).filter(move |queue| marks >> queue & 1 != 0)
    }
}

/// Most queues of a disk.
pub const MOST_QUEUES: NonZeroU16 = NonZeroU16::new(64).unwrap();

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    sectors: u64,
    writeback: bool,
}

impl Block {
    /// A disk that log lines call `name`: `blk0`. More than [`MOST_QUEUES`] queues are not made.
    pub fn new(name: impl Into<String>, mut disk: Disk) -> Self {
        disk.queues = disk.queues.min(MOST_QUEUES);
        Block {
            name: name.into(),
            config: Arc::new(disk.config()),
            disk,
            slots: Slots::default(),
            segments: Vec::new(),
            used: Marks::default(),
            waiting: Marks::default(),
            errors: ErrorLog::default(),
        }
    }

    /// §5.2.6.2: what completes is on stable storage already.
    fn writes_through(&self, features: u64) -> bool {
        if features & feature::CONFIG_WCE != 0 {
            let mut writeback = [0];
            self.config.read(WRITEBACK, &mut writeback);
            return writeback == [0];
        }
        features & feature::FLUSH == 0
    }

    fn set_writeback(&self, on: bool) {
        self.config.set(WRITEBACK, &[on.into()]);
    }

    /// Begins what is available in queue `index`, until there is nothing and the driver will kick for the next.
    fn serve(&mut self, index: u16, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        let limits =
            Limits { sectors: self.disk.sectors, read_only: self.disk.read_only, features: cx.features };
        let stable = self.writes_through(cx.features);
        let Some(Some(queue)) = cx.queues.get_mut(usize::from(index)) else { return Ok(()) };
        queue.disable_kicks()?;
        // A driver that adds as fast as it is served must not keep its thread from the other queues.
        let mut share = queue.size();
        loop {
            while let Some(chain) = queue.pop()? {
                self.begin(chain, queue, &limits, stable, cx.poller.as_mut())?;
                share -= 1;
                if share == 0 {
                    self.waiting.add(index);
                    cx.wake_at(Some(Instant::now()));
                    return Ok(());
                }
            }
            if !queue.enable_kicks()? {
                return Ok(());
            }
        }
    }

    /// Begins a request, or ends it if there is nothing to wait for.
    fn begin(
        &mut self,
        mut chain: Chain,
        queue: &mut Queue,
        limits: &Limits,
        stable: bool,
        engine: &mut dyn Engine,
    ) -> Result<(), QueueFault> {
        // A request without room for a status is none (§5.2.6). As many slots as descriptors: one is free.
        let room = chain.writable_len() > 0;
        let Some((tag, slot)) = room.then(|| self.slots.take()).flatten() else {
            log::debug!("{}: a request has no room for its status", self.name);
            self.used.add(queue.index());
            return queue.complete(chain);
        };
        let parsed = Request::parse(&chain, queue.memory(), limits, &mut slot.ranges);
        self.segments.clear();
        let first = match parsed {
            Ok(Request::Transfer(operation, extent)) if extent.len > 0 => {
                match operation {
                    Operation::Read => cut(chain.writable(), 0, extent.len, &mut self.segments),
                    _ => cut(chain.readable(), HEADER, extent.len, &mut self.segments),
                }
                Ok(Some((operation, extent)))
            }
            Ok(Request::Transfer(..)) => Ok(None),
            Ok(Request::Flush) => Ok(Some((Operation::Flush, Extent::default()))),
            Ok(Request::Ranges) => Ok(slot.next()),
            Ok(Request::GetId) => {
                let wrote = self.disk.write_id(&mut chain, queue.memory());
                Err((Status::Ok, wrote))
            }
            Err(status) => Err((status, 0)),
        };
        slot.chain = Some(chain);
        slot.queue = queue.index();
        slot.stable = stable;
        match first {
            Ok(Some((operation, extent))) => {
                slot.operation = Some((operation, extent));
                slot.stable &= !matches!(operation, Operation::Read | Operation::Flush);
                engine.submit(tag, operation, extent, &self.segments);
                Ok(())
            }
            Ok(None) => self.end(tag, Status::Ok, 0, queue),
            Err((status, wrote)) => self.end(tag, status, wrote, queue),
        }
    }

    /// Takes what the engine has finished, and tells the driver once.
    fn finish(&mut self, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        while let Some(Completion { tag, result }) = cx.poller.completed() {
            let Some(slot) = self.slots.get(tag) else { continue };
            let (operation, extent) = slot.operation.unwrap_or((Operation::Flush, Extent::default()));
            let (status, wrote) = match result {
                Ok(()) => {
                    if let Some((next, at)) = slot.next() {
                        slot.operation = Some((next, at));
                        cx.poller.submit(tag, next, at, &[]);
                        continue;
                    }
                    (Status::Ok, if operation == Operation::Read { extent.len } else { 0 })
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => (Status::Unsupported, 0),
                Err(error) => {
                    self.errors.failed(&self.name, operation, extent, &error);
                    (Status::IoError, 0)
                }
            };
            let index = slot.queue;
            match cx.queues.get_mut(usize::from(index)) {
                Some(Some(queue)) => self.end(tag, status, wrote, queue)?,
                // Latched meanwhile: nobody waits for it.
                _ => drop(self.slots.release(tag)),
            }
        }
        let mut result = Ok(());
        for index in self.used.take() {
            if let Some(Err(fault)) = cx.queue(index).map(Queue::notify) {
                result = Err(fault);
            }
        }
        result
    }

    /// Ends the request of `tag`, of which `wrote` bytes of data went to the driver.
    fn end(&mut self, tag: Tag, status: Status, wrote: u64, queue: &mut Queue) -> Result<(), QueueFault> {
        let Some((_, mut chain)) = self.slots.release(tag) else { return Ok(()) };
        let data = chain.writable_len().saturating_sub(1);
        let mut writer = chain.writer(queue.memory());
        writer.advance(data);
        writer.write(&[status as u8]);
        if wrote < data {
            // §2.7.8: the used length counts from the front, and a hole is not counted.
            chain.writer(queue.memory()).advance(wrote);
        }
        self.used.add(queue.index());
        queue.complete(chain)
    }

    /// After a fault in one queue the others go on: what was left undone is done at the next turn.
    fn turn(
        &mut self,
        cx: &mut Context<'_, AnyEngine>,
        work: impl FnOnce(&mut Self, &mut Context<'_, AnyEngine>) -> Result<(), QueueFault>,
    ) -> Result<(), QueueFault> {
        let result = work(self, cx).and_then(|()| self.finish(cx));
        if result.is_err() {
            cx.wake_at(Some(Instant::now()));
        }
        result
    }
}

impl Device for Block {
    type Poller = AnyEngine;

    fn traits(&self) -> Traits {
        Traits {
            kind: DeviceKind::Block,
            name: self.name.clone(),
            features: self.disk.features(),
            queues: vec![QUEUE_SIZE; self.disk.queues.get().into()],
            config: self.config.clone(),
        }
    }

    fn start(&mut self, cx: &mut Context<'_, AnyEngine>) -> io::Result<()> {
        let requests = cx.queues.iter().flatten().map(|queue| usize::from(queue.size())).sum();
        self.slots.resize(requests);
        (self.used, self.waiting) = Default::default();
        cx.poller.attach(cx.base + DONE, cx.memory);
        Ok(())
    }

    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        self.turn(cx, |block, cx| block.serve(queue, cx))
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        self.turn(cx, |block, cx| {
            if token == TIMER {
                let mut waiting = std::mem::take(&mut block.waiting);
                return waiting.take().try_for_each(|queue| block.serve(queue, cx));
            }
            Ok(())
        })
    }

    fn stop(&mut self, cx: &mut Context<'_, AnyEngine>) {
        // A request of several operations goes on when one of them ends.
        while self.slots.in_flight() > 0 {
            if let Err(error) = cx.poller.drain() {
                log::error!("{}: the host does not say when its requests end: {error}", self.name);
                return;
            }
            if let Err(fault) = self.finish(cx) {
                log::warn!("{}: {fault}, while it stopped", self.name);
                if let Some(queue) = cx.queues.get_mut(usize::from(fault.queue)) {
                    *queue = None;
                }
            }
        }
    }

    fn reset(&mut self) {
        self.set_writeback(true);
    }

    fn state(&self) -> DeviceState {
        let state =
            State { sectors: self.disk.sectors, writeback: !self.writes_through(feature::CONFIG_WCE) };
        DeviceState::new(DeviceKind::Block, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let State { sectors, writeback } = state.open(DeviceKind::Block, VERSION)?;
        if sectors != self.disk.sectors {
            let own = self.disk.sectors;
            return Err(RestoreError::Damaged(format!(
                "its disk has {own} sectors now and had {sectors}; give it the image that it was saved with"
            )));
        }
        self.set_writeback(writeback);
        Ok(())
    }
}

impl Disk {
    /// Puts the id string into `chain`, before its status byte, and says how many bytes that were.
    fn write_id(&self, chain: &mut Chain, memory: &Memory) -> u64 {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(self.serial.as_bytes()) {
            *to = *from;
        }
        let room = usize::try_from(chain.writable_len().saturating_sub(1)).unwrap_or(ID).min(ID);
        let wrote = chain.writer(memory).write(id.get(..room).unwrap_or_default());
        wrote as u64
    }
}
