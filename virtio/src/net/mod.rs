//! Network device (virtio 1.3 §5.1): frames between a guest and a wire of the host, a [`NetBackend`].
//!
//! Owns the checks on what a guest sends, the gathering of buffers for what it receives, offloads and link state. It
//! must never hand a header to the host that was not checked, nor take a frame from the wire that it cannot keep.

mod backend;
mod control;
mod features;
mod header;
mod receive;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod transmit;

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use devices::component::{State, StateError};
use devices::ration::Ration;
use serde::{Deserialize, Serialize};

pub use backend::{HEADER_LEN, NetBackend, Offloads};
pub use header::{FrameError, required};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::device::{Context, Device, DeviceInfo, TIMER};
use crate::poll::{Interest, Poller, Token};
use crate::queue::QueueFault;
use control::Command;
use receive::{Mode, Receiver, SavedFrame};
use transmit::Transmitter;

/// Descriptors of a receive or transmit queue.
const QUEUE_SIZE: NonZeroU16 = NonZeroU16::new(256).unwrap();
/// Descriptors of the control queue: one command at a time.
const CONTROL_SIZE: NonZeroU16 = NonZeroU16::new(16).unwrap();
/// Most pairs of queues: as many tokens and vectors as are kept for them.
pub const MOST_PAIRS: u16 = 64;

/// The token of the link; those below are the pairs'.
const LINK: Token = 0xb0;
const _: () = assert!((MOST_PAIRS as Token) < LINK && LINK < crate::device::MOST_TOKENS);

/// Where the fields of the configuration are (§5.1.4).
const STATUS_AT: usize = 6;
const CONFIG_LEN: usize = 12;
const LINK_UP: u16 = 1;
/// §5.1.4.1: the device never offers less.
const LEAST_MTU: u16 = 68;

const KIND: &str = "virtio-net";
const VERSION: u16 = 1;

/// Result of serving a queue up to its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing is left: an event or a kick comes with more.
    Idle,
    /// There may be more, and others come first.
    More,
    /// The wire takes nothing now.
    Blocked,
}

/// A network device. `P` is what its worker waits in.
#[derive(Debug)]
pub struct Net<P> {
    name: String,
    backend: Box<dyn NetBackend>,
    pairs: Vec<Pair>,
    config: Arc<ConfigSpace>,
    driver: DriverState,
    /// Commands may be left.
    control_again: bool,
    /// Of warnings of a wire that cannot be watched, and of commands that the host refuses.
    wire_ration: Ration,
    command_ration: Ration,
    poller: PhantomData<fn() -> P>,
}

/// One pair of queues.
#[derive(Debug, Default)]
struct Pair {
    rx: Receiver,
    tx: Transmitter,
    /// Work is left after the budget was used up.
    rx_again: bool,
    tx_again: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetState {
    driver: DriverState,
    /// A frame a pair that waits for buffers.
    frames: Vec<Option<SavedFrame>>,
}

/// What the driver set through the control queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DriverState {
    /// Pairs of queues in use.
    pairs: u16,
    /// What it takes, as feature bits; `None`: all that it negotiated.
    guest_offloads: Option<u64>,
}

impl Default for DriverState {
    fn default() -> Self {
        DriverState { pairs: 1, guest_offloads: None }
    }
}

impl<P: Poller> Net<P> {
    /// The device called `name` in log lines, with the address `mac`, on the wire `backend`; with one pair of queues a
    /// processor at most.
    pub fn new(name: impl Into<String>, mac: [u8; 6], mut backend: Box<dyn NetBackend>, cpus: u16) -> Self {
        let pairs = backend.pairs().min(cpus).clamp(1, MOST_PAIRS);
        let status = if backend.link_is_up() { LINK_UP } else { 0 };
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend(mac);
        for field in [status, pairs, backend.mtu()] {
            config.extend(field.to_le_bytes());
        }
        Net {
            name: name.into(),
            backend,
            pairs: (0..pairs).map(|_| Pair::default()).collect(),
            config: Arc::new(ConfigSpace::new(config)),
            driver: DriverState::default(),
            control_again: false,
            wire_ration: Ration::default(),
            command_ration: Ration::default(),
            poller: PhantomData,
        }
    }

    fn most_pairs(&self) -> u16 {
        u16::try_from(self.pairs.len()).unwrap_or(MOST_PAIRS)
    }

    /// §5.1.2: behind the pairs that the driver knows of.
    fn control_queue(&self, features: u64) -> u16 {
        if features & features::MQ != 0 { 2 * self.most_pairs() } else { 2 }
    }

    fn mode(&self, features: u64) -> Mode {
        let taken = self.driver.guest_offloads.unwrap_or(features & features::GUEST_OFFLOADS);
        Mode {
            offloads: features::to_guest(taken) & self.backend.offloads(),
            mergeable: features & features::MRG_RXBUF != 0,
        }
    }

    fn refresh_link(&mut self) {
        let status = if self.backend.link_is_up() { LINK_UP } else { 0 };
        self.config.set(STATUS_AT, &status.to_le_bytes());
    }

    fn receive(&mut self, index: u16, cx: &mut Context<'_, P>) -> Result<(), QueueFault> {
        let mode = self.mode(cx.features);
        // A pair that is not in use may hold frames from before it was: they are not the driver's any more.
        let used = index < self.driver.pairs;
        let Some(pair) = self.pairs.get_mut(usize::from(index)).filter(|_| used) else { return Ok(()) };
        let Some(queue) = cx.queue(2 * index) else { return Ok(()) };
        let progress = pair.rx.run(index, queue, &mut *self.backend, mode)?;
        pair.rx_again = progress == Progress::More;
        if pair.rx_again {
            cx.wake_at(Some(Instant::now()));
        }
        Ok(())
    }

    fn transmit(&mut self, index: u16, cx: &mut Context<'_, P>) -> Result<(), QueueFault> {
        let allowed = features::from_guest(cx.features) & self.backend.offloads();
        let Some(pair) = self.pairs.get_mut(usize::from(index)) else { return Ok(()) };
        let Some(queue) = cx.queue(2 * index + 1) else { return Ok(()) };
        let progress = pair.tx.run(index, queue, &mut *self.backend, allowed)?;
        pair.tx_again = progress == Progress::More;
        match progress {
            Progress::Idle => {}
            Progress::More => cx.wake_at(Some(Instant::now())),
            Progress::Blocked => self.watch_again(index, cx),
        }
        if self.backend.has_answer(index) {
            // In the same wake-up as the frames that it answers.
            self.mark_readable(index);
            return self.receive(index, cx);
        }
        Ok(())
    }

    /// The wire is full. The TUN driver reports room only after a poll that found none: watching again polls.
    fn watch_again(&mut self, index: u16, cx: &mut Context<'_, P>) {
        let Some(fd) = self.backend.fd(index) else { return };
        cx.unwatch(fd);
        if let Err(error) = cx.watch(fd, index.into(), Interest::Both)
            && let Some(left_out) = self.wire_ration.take()
        {
            log::error!("{}: its wire cannot be watched any more: {error}{left_out}", self.name);
        }
    }

    fn control(&mut self, cx: &mut Context<'_, P>) -> Result<(), QueueFault> {
        let (features, most) = (cx.features, self.most_pairs());
        let index = self.control_queue(features);
        let Some(queue) = cx.queue(index) else { return Ok(()) };
        let before = self.driver.pairs;
        let again = control::serve(queue, features, most, |command| self.obey(command, features))?;
        // Frames may wait in pairs that were not served so far.
        for index in before..self.driver.pairs {
            self.mark_readable(index);
        }
        self.control_again = again;
        if again || self.driver.pairs > before {
            cx.wake_at(Some(Instant::now()));
        }
        Ok(())
    }

    fn obey(&mut self, command: Command, features: u64) -> bool {
        let before = self.driver.clone();
        match command {
            Command::Pairs(pairs) => self.driver.pairs = pairs,
            Command::GuestOffloads(bits) => self.driver.guest_offloads = Some(bits),
        }
        let done = match command {
            Command::Pairs(pairs) => self.backend.enable(pairs),
            Command::GuestOffloads(_) => self.backend.set_offloads(self.mode(features).offloads),
        };
        if let Err(error) = &done {
            if let Some(left_out) = self.command_ration.take() {
                log::warn!(
                    "{}: the host refuses what the guest asks for ({command:?}): {error}{left_out}",
                    self.name
                );
            }
            self.driver = before;
        }
        done.is_ok()
    }

    fn mark_readable(&mut self, index: u16) {
        if let Some(pair) = self.pairs.get_mut(usize::from(index)) {
            pair.rx.readable = true;
            pair.rx_again = true;
        }
    }

    /// Continues where a budget was used up. A fault of one queue does not keep the others from being served; of several
    /// faults the first is reported now, and the others when they occur again.
    fn go_on(&mut self, cx: &mut Context<'_, P>) -> Result<(), QueueFault> {
        let mut outcome = Ok(());
        if self.control_again {
            outcome = self.control(cx);
        }
        for index in 0..self.most_pairs() {
            let Some(pair) = self.pairs.get(usize::from(index)) else { break };
            let (rx, tx) = (pair.rx_again, pair.tx_again);
            if tx {
                outcome = outcome.and(self.transmit(index, cx));
            }
            if rx {
                outcome = outcome.and(self.receive(index, cx));
            }
        }
        outcome
    }
}

impl<P: Poller> Device for Net<P> {
    type Poller = P;

    fn info(&self) -> DeviceInfo {
        use features::{CTRL_GUEST_OFFLOADS, CTRL_VQ, MAC, MQ, MRG_RXBUF, MTU, STATUS};
        let mut features = MAC | STATUS | MRG_RXBUF | CTRL_VQ | features::offered(self.backend.offloads());
        if !self.backend.offloads().is_empty() {
            features |= CTRL_GUEST_OFFLOADS;
        }
        if self.backend.mtu() >= LEAST_MTU {
            features |= MTU;
        }
        if self.pairs.len() > 1 {
            features |= MQ;
        }
        let mut queues = vec![QUEUE_SIZE; 2 * self.pairs.len()];
        queues.push(CONTROL_SIZE);
        DeviceInfo {
            kind: DeviceKind::Network,
            name: self.name.clone(),
            features,
            queues,
            config: self.config.clone(),
        }
    }

    fn start(&mut self, cx: &mut Context<'_, P>) -> io::Result<()> {
        if cx.features & features::MQ == 0 {
            // A damaged state may name more.
            self.driver.pairs = 1;
        }
        self.backend.set_offloads(self.mode(cx.features).offloads)?;
        self.backend.enable(self.driver.pairs)?;
        self.refresh_link();
        if let Some(fd) = self.backend.link_fd() {
            cx.watch(fd, LINK, Interest::Read)?;
        }
        for index in 0..self.most_pairs() {
            if let Some(fd) = self.backend.fd(index) {
                cx.watch(fd, index.into(), Interest::Both)?;
            }
            self.mark_readable(index);
        }
        Ok(())
    }

    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, P>) -> Result<(), QueueFault> {
        if queue == self.control_queue(cx.features) {
            self.control(cx)
        } else if queue.is_multiple_of(2) {
            self.receive(queue / 2, cx)
        } else {
            self.transmit(queue / 2, cx)
        }
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, P>) -> Result<(), QueueFault> {
        if token == TIMER {
            return self.go_on(cx);
        }
        if token == LINK {
            self.refresh_link();
            return Ok(());
        }
        let Ok(index) = u16::try_from(token) else { return Ok(()) };
        self.mark_readable(index);
        // Receiving first: answers that the guest sends then go out in the same wake-up.
        let received = self.receive(index, cx);
        received.and(self.transmit(index, cx))
    }

    fn stop(&mut self, cx: &mut Context<'_, P>) {
        for (index, pair) in (0..).zip(&mut self.pairs) {
            pair.rx.stop(cx.queue(2 * index));
            (pair.rx_again, pair.tx_again) = (false, false);
        }
    }

    fn reset(&mut self) {
        self.driver = DriverState::default();
        self.pairs.iter_mut().for_each(|pair| pair.rx.reset());
        // There is no driver now. The start repeats both calls and reports their errors.
        let _ = self.backend.set_offloads(Offloads::empty());
        let _ = self.backend.enable(1);
    }

    fn save(&self) -> Result<State, StateError> {
        let frames = self.pairs.iter().map(|pair| pair.rx.saved_frame()).collect();
        State::new(KIND, VERSION, &NetState { driver: self.driver.clone(), frames })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let NetState { driver, frames } = state.open(KIND, VERSION)?;
        let own = self.most_pairs();
        if frames.len() != self.pairs.len() {
            let reason = format_args!("{} has {own} pairs of queues and had {}", self.name, frames.len());
            return Err(StateError::mismatch(KIND, reason));
        }
        if !(1..=own).contains(&driver.pairs) {
            let reason = format_args!("{} of {own} pairs of queues are in use", driver.pairs);
            return Err(StateError::damaged(KIND, reason));
        }
        if driver.guest_offloads.is_some_and(|bits| bits & !features::GUEST_OFFLOADS != 0) {
            return Err(StateError::damaged(KIND, "it names offloads that do not exist"));
        }
        if !frames.iter().flatten().all(SavedFrame::is_possible) {
            return Err(StateError::damaged(KIND, "a frame is longer than frames are"));
        }
        self.driver = driver;
        for (pair, frame) in self.pairs.iter_mut().zip(frames) {
            pair.rx.load_frame(frame);
        }
        Ok(())
    }
}
