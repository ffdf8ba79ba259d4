//! The block device (virtio 1.3 §5.2): requests from its queues become operations of an [`Engine`].
//!
//! The way of a request: [`Block::kicked`] pops its chain, `request` checks it, a slot keeps it while the engine
//! works on it, [`Block::ready`] completes it. Whatever became available or completed in one wake-up is submitted or
//! told to the driver together.

mod config;
mod engine;
mod errors;
mod full;
mod lane;
mod pace;
mod request;
mod slots;
mod throttle;
mod work;

#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use devices::component::{State, StateError};
use devices::ration::Ration;
use serde::{Deserialize, Serialize};

pub use config::{Disk, MOST_SEGMENTS, MOST_ZEROES, QUEUE_SIZE, SECTOR, Topology};
pub use engine::{Completion, Engine, Extent, Operation, Tag};
pub use throttle::DiskLimits;

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceInfo, Message};
use crate::memory::Segment;
use crate::poll::Token;
use crate::queue::QueueFault;
use config::{CAPACITY, WRITEBACK, feature};
use errors::ErrorLog;
use full::{Stalled, StalledRequests};
use lane::SpaceLane;
use pace::Pace;
use slots::Slots;
use throttle::{Place, Throttle};

/// Operations have ended.
const DONE: Token = 0;
const KIND: &str = "virtio-block";
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
    lane: SpaceLane,
    /// Data segments of the request at hand.
    segments: Vec<Segment>,
    /// Queues in which something was completed since the last interrupt: a bit each.
    used: Marks,
    /// Queues to serve in the next call: kicked, with more than their share, or with kicks off.
    waiting: Marks,
    /// The queue to begin with when some have to wait for the limits.
    first: u16,
    /// Of all threads of the disk.
    throttle: Arc<Throttle>,
    place: Place,
    pace: Pace,
    stalled: StalledRequests,
    errors: ErrorLog,
    /// Of warnings of rings that are found at fault while the device stops.
    stop_ration: Ration,
    /// The device stopped, and the host has requests in flight all the same.
    is_undrained: bool,
}

/// A set of queues.
#[derive(Debug, Default, Clone, Copy)]
struct Marks(u64);

impl Marks {
    fn add(&mut self, queue: u16) {
        self.0 |= 1u64.checked_shl(queue.into()).unwrap_or(0);
    }

    fn take(&mut self) -> impl Iterator<Item = u16> + use<> {
        self.take_from(0)
    }

    /// As [`Marks::take`], beginning with queue `first`.
    fn take_from(&mut self, first: u16) -> impl Iterator<Item = u16> + use<> {
        let marks = std::mem::take(&mut self.0);
        (first..MOST_QUEUES.get()).chain(0..first).filter(move |queue| marks >> queue & 1 != 0)
    }
}

/// Most queues of a disk.
pub const MOST_QUEUES: NonZeroU16 = NonZeroU16::new(64).unwrap();

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockState {
    sectors: u64,
    writeback: bool,
    /// Requests that wait for room on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stalled: Vec<Stalled>,
}

impl Block {
    /// A disk that log lines call `name`: `vda`. More than [`MOST_QUEUES`] queues are not made.
    pub fn new(name: impl Into<String>, mut disk: Disk) -> Self {
        disk.queues = disk.queues.min(MOST_QUEUES);
        Block {
            name: name.into(),
            config: Arc::new(disk.config()),
            disk,
            slots: Slots::default(),
            lane: SpaceLane::default(),
            segments: Vec::new(),
            used: Marks::default(),
            waiting: Marks::default(),
            first: 0,
            throttle: Arc::default(),
            place: Place::default(),
            pace: Pace::default(),
            stalled: StalledRequests::default(),
            errors: ErrorLog::default(),
            stop_ration: Ration::default(),
            is_undrained: false,
        }
    }

    /// The same with these limits.
    #[must_use]
    pub fn with_limits(self, limits: DiskLimits) -> Self {
        Block { throttle: Arc::new(Throttle::new(limits, Instant::now())), ..self }
    }

    /// The same disk for another thread, which serves other queues with an engine of its own on the same file. The limits are for
    /// all threads together.
    #[must_use]
    pub fn for_another_thread(&self) -> Self {
        Block {
            config: self.config.clone(),
            stalled: self.stalled.for_another_thread(),
            throttle: self.throttle.clone(),
            ..Block::new(self.name.clone(), self.disk.clone())
        }
    }

    /// The size that the driver is shown: one for all threads of the disk.
    fn sectors(&self) -> u64 {
        let mut sectors = [0; 8];
        self.config.read(CAPACITY, &mut sectors);
        u64::from_le_bytes(sectors)
    }

    /// §5.2.6.2: what completes is on stable storage already.
    fn writes_through(&self, features: u64) -> bool {
        // §5.2.5.2: a driver that cannot flush has no cache.
        if features & feature::FLUSH == 0 {
            return true;
        }
        if features & feature::CONFIG_WCE != 0 {
            return !self.is_writeback();
        }
        false
    }

    /// The cache mode in the configuration space, which the driver may change.
    fn is_writeback(&self) -> bool {
        let mut writeback = [0];
        self.config.read(WRITEBACK, &mut writeback);
        writeback != [0]
    }
}

impl Device for Block {
    type Poller = AnyEngine;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
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
        (self.used, self.waiting, self.pace, self.lane) = Default::default();
        self.stalled.start(cx.queues);
        self.place = Place::default();
        cx.poller.attach(cx.base + DONE, cx.memory);
        if self.disk.sectors > self.sectors() {
            self.config.set(CAPACITY, &self.disk.sectors.to_le_bytes());
        }
        Ok(())
    }

    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        self.waiting.add(queue);
        self.turn(cx)
    }

    /// Operations have ended, or it is time to serve queues that wait.
    fn ready(&mut self, _: Token, cx: &mut Context<'_, AnyEngine>) -> Result<(), QueueFault> {
        self.turn(cx)
    }

    fn stop(&mut self, cx: &mut Context<'_, AnyEngine>) {
        self.stalled.stop();
        let mut skipped = self.skip_discards(cx);
        // A request of several operations goes on when one of them ends.
        loop {
            for fault in
                [std::mem::replace(&mut skipped, Ok(())), self.finish(cx)].into_iter().filter_map(Result::err)
            {
                if let Some(left_out) = self.stop_ration.take() {
                    log::warn!("{}: {fault}, while it stopped{left_out}", self.name);
                }
                if let Some(queue) = cx.queues.get_mut(usize::from(fault.queue)) {
                    *queue = None;
                }
            }
            if self.slots.in_flight() == 0 {
                return;
            }
            if let Err(error) = cx.poller.drain() {
                log::error!("{}: the host does not say when its requests end: {error}", self.name);
                self.is_undrained = true;
                return;
            }
        }
    }

    fn reset(&mut self) {
        self.config.set(WRITEBACK, &[1]);
        self.stalled.reset();
    }

    fn tell(&mut self, message: Message, cx: Option<&mut Context<'_, AnyEngine>>) -> Result<(), QueueFault> {
        match message {
            Message::DiskSize { sectors } => {
                self.disk.sectors = sectors;
                // Other threads of this disk go by it from here on: a driver may use the new sectors of any queue.
                self.config.set(CAPACITY, &sectors.to_le_bytes());
                Ok(())
            }
            Message::DiskLimits { limits } => {
                self.throttle.set(limits, Instant::now());
                self.place = Place::default();
                // What waits for the old limits goes by the new ones.
                cx.map_or(Ok(()), |cx| self.turn(cx))
            }
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<State, StateError> {
        if self.is_undrained {
            let reason = format_args!("the host does not say when the requests of {} end", self.name);
            return Err(StateError::refused(KIND, reason));
        }
        let state = BlockState {
            sectors: self.sectors(),
            writeback: self.is_writeback(),
            stalled: self.stalled.save(),
        };
        State::new(KIND, VERSION, &state)
    }

    /// An image that has grown to its whole size offers discards no more.
    fn tolerated(&self) -> u64 {
        if self.disk.read_only { 0 } else { feature::DISCARD }
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let BlockState { sectors, writeback, stalled } = state.open(KIND, VERSION)?;
        if sectors > self.disk.sectors {
            let bytes = |sectors: u64| sectors.saturating_mul(SECTOR);
            let (now, then) = (bytes(self.disk.sectors), bytes(sectors));
            return Err(StateError::ShortDisk { name: self.name.clone(), now, then });
        }
        self.stalled.load(stalled, self.disk.queues.get())?;
        // A disk that has grown meanwhile tells its driver when it starts.
        self.config.load(CAPACITY, &sectors.to_le_bytes());
        self.config.load(WRITEBACK, &[writeback.into()]);
        Ok(())
    }
}
