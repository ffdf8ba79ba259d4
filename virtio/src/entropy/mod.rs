//! Entropy device (virtio 1.3 §5.4): the host's random bytes, as fast as a guest can need them and no faster.

mod bucket;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use devices::component::{State, StateError};
use devices::ration::Ration;
use serde::{Deserialize, Serialize};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceInfo, TIMER};
use crate::memory::Memory;
use crate::poll::{Epoll, Token};
use crate::queue::{Chain, QueueFault};
use bucket::Bucket;

const REQUESTS: u16 = 0;
const QUEUE_SIZE: NonZeroU16 = NonZeroU16::new(64).unwrap();
const KIND: &str = "virtio-entropy";
const VERSION: u16 = 1;

/// Most bytes of an answer: a request for more gets a short one, which §5.4.6.1 allows.
const MOST_BYTES: u64 = 64 << 10;
/// A request costs at least this many tokens, since waking up costs too.
const LEAST_COST: u64 = 512;

/// Nothing of it outlives its queues: the rate begins anew.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntropyState {}

/// Fills a buffer with random bytes.
pub type Fill = fn(&mut [u8]) -> io::Result<()>;

/// The device. While its tokens are spent, requests wait in the ring.
#[derive(Debug)]
pub struct Entropy {
    name: String,
    fill: Fill,
    bucket: Bucket,
    ration: Ration,
}

impl Entropy {
    /// One that gives what the host's getrandom(2) gives.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_source(name, |bytes| getrandom::fill(bytes).map_err(io::Error::from))
    }

    /// One that gives what `fill` gives.
    pub fn with_source(name: impl Into<String>, fill: Fill) -> Self {
        Entropy { name: name.into(), fill, bucket: Bucket::new(Instant::now()), ration: Ration::default() }
    }

    fn serve(&mut self, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        let Some(queue) = cx.queue(REQUESTS) else { return Ok(()) };
        loop {
            while let Some(mut chain) = queue.pop()? {
                let cost = chain.writable_len().clamp(LEAST_COST, MOST_BYTES);
                if let Err(full_at) = self.bucket.take(cost, Instant::now()) {
                    queue.put_back(chain);
                    queue.disable_kicks()?;
                    queue.notify()?;
                    cx.wake_at(Some(full_at));
                    return Ok(());
                }
                let memory = queue.memory().clone();
                let wanted = chain.writable_len().min(MOST_BYTES);
                self.answer(&mut chain, &memory);
                let got = u64::from(chain.written());
                queue.counters().bytes_in.add(got);
                // The host gave less, or the driver left no room.
                queue.counters().errors.add((got < wanted || wanted == 0).into());
                queue.complete(chain)?;
            }
            if !queue.enable_kicks()? {
                return queue.notify();
            }
        }
    }

    fn answer(&self, chain: &mut Chain, memory: &Memory) {
        let mut writer = chain.writer(memory);
        let mut left = writer.left().min(MOST_BYTES);
        let mut bytes = [0; 4096];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let Some(part) = bytes.get_mut(..part) else { return };
            if let Err(error) = (self.fill)(part) {
                if let Some(left_out) = self.ration.take() {
                    log::error!("{}: the host gave no random bytes: {error}{left_out}", self.name);
                }
                return;
            }
            left -= writer.write(part) as u64;
        }
    }
}

impl Device for Entropy {
    type Poller = Epoll;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: DeviceKind::Entropy,
            name: self.name.clone(),
            features: 0,
            queues: vec![QUEUE_SIZE],
            config: Arc::new(ConfigSpace::new(Vec::new())),
        }
    }

    fn start(&mut self, _: &mut Context<'_, Epoll>) -> io::Result<()> {
        Ok(())
    }

    fn kicked(&mut self, _: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        self.serve(cx)
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        if token == TIMER { self.serve(cx) } else { Ok(()) }
    }

    /// Between calls it holds no chain.
    fn stop(&mut self, _: &mut Context<'_, Epoll>) {}

    fn save(&self) -> Result<State, StateError> {
        State::new(KIND, VERSION, &EntropyState {})
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        state.open(KIND, VERSION).map(|EntropyState {}| ())
    }
}
