//! Memory balloon (virtio 1.3 §5.5): memory that the guest gives up leaves the host.
//!
//! Pages come from the guest in two ways: because it was asked to (inflate), and because it has no use for them just
//! now (free page reporting). Both are given back to the host, and come anew, as zeros, when the guest touches them;
//! so nothing has to be done when the balloon deflates, and a driver need not even wait (no MUST_TELL_HOST).

mod control;
mod pages;
mod statistics;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use devices::component::{State, StateError};
use serde::{Deserialize, Serialize};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceInfo, Message, TIMER};
use crate::poll::{Epoll, Token};
use crate::queue::{Queue, QueueFault};
pub use control::{BalloonControl, set_target};
pub use statistics::Statistics;

/// VIRTIO_BALLOON_F_STATS_VQ, F_DEFLATE_ON_OOM, F_PAGE_REPORTING (§5.5.3).
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// Queues from here on: statistics if negotiated, then reporting.
const OTHERS: u16 = 2;
/// §5.5.2 numbers five queues, whether or not their features are there. Linux closes the gaps that absent features
/// leave. So the first of the others is for statistics, if negotiated, and any behind it is for reporting.
const QUEUES: usize = 5;
const QUEUE_SIZE: NonZeroU16 = NonZeroU16::new(128).unwrap();

/// Offsets in the configuration (§5.5.4).
const TARGET: usize = 0;
const ACTUAL: usize = 4;
const CONFIG_LEN: usize = 8;

/// Budget in pages or ranges, after which other devices of the thread are served.
const BUDGET: usize = 4096;
const KIND: &str = "virtio-balloon";
const VERSION: u16 = 1;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    name: String,
    control: BalloonControl,
    config: Arc<ConfigSpace>,
    /// New statistics are wanted.
    statistics_wanted: bool,
    /// The chain at the front of the statistics queue was read. It stays there until new statistics are wanted.
    statistics_read: bool,
    /// Scratch, so that no request allocates.
    numbers: Vec<u32>,
    /// The warning that the guest gave pages beyond its memory was logged.
    warned: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonState {
    target: u32,
    actual: u32,
    statistics_read: bool,
}

impl Balloon {
    /// The device of the next boot, with the size that `control` asks for.
    pub fn new(name: impl Into<String>, control: &BalloonControl) -> Self {
        let writable = [[0; 4], [0xff; 4]].concat();
        let config = Arc::new(ConfigSpace::with_writable(vec![0; CONFIG_LEN], writable));
        config.load(TARGET, &control.target_pages().to_le_bytes());
        Balloon {
            name: name.into(),
            control: control.clone(),
            config,
            statistics_wanted: false,
            statistics_read: false,
            numbers: Vec::new(),
            warned: false,
        }
    }

    fn inflate(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let numbers = &mut self.numbers;
        let mut refused = 0;
        let more = serve_some(cx.queue(INFLATE), |queue| {
            let Some(chain) = queue.pop()? else { return Ok(None) };
            pages::read(&mut chain.reader(queue.memory()), numbers);
            let (given, bad) = pages::discard(numbers, queue.memory());
            count(queue, given, bad);
            refused += bad;
            queue.complete(chain)?;
            Ok(Some(numbers.len()))
        })?;
        self.finish(more, refused, cx);
        Ok(())
    }

    fn deflate(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let more = serve_some(cx.queue(DEFLATE), |queue| {
            let Some(chain) = queue.pop()? else { return Ok(None) };
            let pages = chain.readable_len() / size_of::<u32>() as u64;
            queue.counters().bytes_in.add(pages << pages::PAGE_SHIFT);
            queue.complete(chain)?;
            Ok(Some(0))
        })?;
        self.finish(more, 0, cx);
        Ok(())
    }

    /// §5.5.6.6: the buffers are themselves the free memory, until they are given back.
    fn report(&mut self, queue: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let mut refused = 0;
        let more = serve_some(cx.queue(queue), |queue| {
            let Some(chain) = queue.pop()? else { return Ok(None) };
            let (mut given, mut bad) = (0, 0);
            for free in chain.writable() {
                match queue.memory().discard(free.address, free.len.into()) {
                    Ok(()) => given += u64::from(free.len),
                    Err(_) => bad += 1,
                }
            }
            count(queue, given, bad);
            refused += bad;
            // Ranges without memory cost the host time too.
            let huge_pages = usize::try_from(chain.writable_len() >> 21).unwrap_or(BUDGET);
            let work = chain.writable().len().saturating_add(huge_pages);
            queue.complete(chain)?;
            Ok(Some(work))
        })?;
        self.finish(more, refused, cx);
        Ok(())
    }

    fn finish(&mut self, more: bool, refused: usize, cx: &mut Context<'_, Epoll>) {
        if more {
            cx.wake_at(Some(Instant::now()));
        }
        if refused > 0 && !self.warned {
            self.warned = true;
            log::warn!("{}: the guest gave back pages that are not its memory; they are ignored", self.name);
        }
    }

    /// §5.5.6.3: the driver leaves one buffer with the device, which gives it back to have it filled anew.
    fn read_statistics(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let Some(queue) = cx.queue(OTHERS) else { return Ok(()) };
        if self.statistics_read {
            return Ok(());
        }
        if queue.enable_kicks()?
            && let Some(chain) = queue.pop()?
        {
            let statistics = Statistics::read(&mut chain.reader(queue.memory()), Instant::now());
            queue.put_back(chain);
            (self.statistics_read, self.statistics_wanted) = (true, false);
            self.control.publish(statistics);
        }
        Ok(())
    }

    fn ask_for_statistics(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        if !cx.has(STATS_VQ) || !self.statistics_read || !self.statistics_wanted {
            return Ok(());
        }
        let Some(queue) = cx.queue(OTHERS) else { return Ok(()) };
        (self.statistics_read, self.statistics_wanted) = (false, false);
        if let Some(chain) = queue.pop()? {
            queue.complete(chain)?;
            queue.notify()?;
        }
        // A second buffer may stand behind the first.
        self.read_statistics(cx)
    }
}

/// Counts what one request gave to the host, and whether part of it was refused.
fn count(queue: &Queue, bytes: u64, refused: usize) {
    queue.counters().bytes_out.add(bytes);
    queue.counters().errors.add((refused > 0).into());
}

/// Runs `serve`, which returns how much it did, until nothing is left or the [`BUDGET`] is used up; `true` then.
fn serve_some(
    queue: Option<&mut Queue>,
    mut serve: impl FnMut(&mut Queue) -> Result<Option<usize>, QueueFault>,
) -> Result<bool, QueueFault> {
    let Some(queue) = queue else { return Ok(false) };
    let mut done = 0;
    while done < BUDGET {
        match serve(queue)? {
            Some(work) => done += work + 1,
            None if queue.enable_kicks()? => {}
            None => {
                queue.notify()?;
                return Ok(false);
            }
        }
    }
    queue.notify()?;
    Ok(true)
}

impl Device for Balloon {
    type Poller = Epoll;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: DeviceKind::Balloon,
            name: self.name.clone(),
            features: STATS_VQ | DEFLATE_ON_OOM | PAGE_REPORTING,
            queues: vec![QUEUE_SIZE; QUEUES],
            config: self.config.clone(),
        }
    }

    fn start(&mut self, _: &mut Context<'_, Epoll>) -> io::Result<()> {
        Ok(())
    }

    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        match queue {
            INFLATE => self.inflate(cx),
            DEFLATE => self.deflate(cx),
            OTHERS if cx.has(STATS_VQ) => {
                self.read_statistics(cx)?;
                self.ask_for_statistics(cx)
            }
            _ if cx.has(PAGE_REPORTING) => self.report(queue, cx),
            _ => Ok(()),
        }
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        if token != TIMER {
            return Ok(());
        }
        // A budget was used up before the work was done. Serve all queues: idle ones cost little.
        // A fault of one queue does not keep the others from being served.
        let mut outcome = Ok(());
        for queue in (0..).take(QUEUES) {
            outcome = self.kicked(queue, cx).and(outcome);
        }
        outcome
    }

    /// Between calls it holds no chain.
    fn stop(&mut self, _: &mut Context<'_, Epoll>) {}

    fn reset(&mut self) {
        self.config.set(ACTUAL, &[0; 4]);
        (self.statistics_read, self.statistics_wanted) = (false, false);
        self.control.forget_statistics();
    }

    fn tell(&mut self, message: Message, cx: Option<&mut Context<'_, Epoll>>) -> Result<(), QueueFault> {
        match message {
            Message::BalloonTarget { pages } => self.config.set(TARGET, &pages.to_le_bytes()),
            Message::BalloonStatistics => {
                self.statistics_wanted = true;
                if let Some(cx) = cx {
                    return self.ask_for_statistics(cx);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn save(&self) -> Result<State, StateError> {
        let [target, actual] = [TARGET, ACTUAL].map(|field| self.config.read_u32(field));
        State::new(KIND, VERSION, &BalloonState { target, actual, statistics_read: self.statistics_read })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let BalloonState { target, actual, statistics_read } = state.open(KIND, VERSION)?;
        self.config.load(TARGET, &target.to_le_bytes());
        self.config.load(ACTUAL, &actual.to_le_bytes());
        self.statistics_read = statistics_read;
        self.control.loaded(target);
        Ok(())
    }
}
