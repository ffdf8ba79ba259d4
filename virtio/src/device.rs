//! What a virtio device is to the rest: constants as data, and a few calls from the worker thread that owns it.

use std::fmt::Debug;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::DeviceKind;
use crate::config_space::ConfigSpace;
use crate::memory::Memory;
use crate::poll::{Interest, Poller, Token};
use crate::queue::{Queue, QueueFault};

/// What does not change in a device's life.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Its kind.
    pub kind: DeviceKind,
    /// For log lines: `blk0`, `net1`.
    pub name: String,
    /// Feature bits of its kind that it offers (§5); the transport adds those of the ring.
    pub features: u64,
    /// Most descriptors of each queue, powers of 2.
    pub queues: Vec<NonZeroU16>,
    /// Its configuration structure.
    pub config: Arc<ConfigSpace>,
}

/// What a device needs to go on elsewhere, beyond its queues and its transport's registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// [`DeviceInfo::kind`].
    pub kind: DeviceKind,
    /// Version of the kind's own format of `data`.
    pub version: u16,
    /// What the kind says.
    pub data: serde_json::Value,
}

/// A state that a device does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Of another kind.
    #[error("the saved state is of a virtio {saved:?} device and this one is a {own:?} device")]
    Kind {
        /// Of the state.
        saved: DeviceKind,
        /// Of the device.
        own: DeviceKind,
    },
    /// Written by another version of this program.
    #[error(
        "the saved state of a virtio {kind:?} device has version {saved}, and only {own} is understood; restore it with the program that saved it"
    )]
    Version {
        /// Of both.
        kind: DeviceKind,
        /// Of the state.
        saved: u16,
        /// Of the device.
        own: u16,
    },
    /// Nonsense.
    #[error("the saved state of a virtio device is damaged: {0}")]
    Damaged(String),
}

impl DeviceState {
    /// Says `data` as version `version` of `kind`.
    pub fn new(kind: DeviceKind, version: u16, data: &impl Serialize) -> Self {
        // Plain structs of numbers and texts always become JSON.
        DeviceState { kind, version, data: serde_json::to_value(data).unwrap_or_default() }
    }

    /// The data, if it is version `version` of `kind`.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn open<T: for<'a> Deserialize<'a>>(
        &self,
        kind: DeviceKind,
        version: u16,
    ) -> Result<T, RestoreError> {
        if self.kind != kind {
            return Err(RestoreError::Kind { saved: self.kind, own: kind });
        }
        if self.version != version {
            return Err(RestoreError::Version { kind, saved: self.version, own: version });
        }
        T::deserialize(&self.data).map_err(|error| RestoreError::Damaged(error.to_string()))
    }
}

/// A device. Between [`Device::start`] and [`Device::stop`] a worker thread owns it and makes all the calls; outside,
/// the transport has it. No call may wait for anything but the host's answer to a short call.
pub trait Device: Debug + Send {
    /// What its worker waits in.
    type Poller: Poller;

    /// Its constants.
    fn info(&self) -> DeviceInfo;

    /// The driver is ready: `cx.queues` and `cx.features` are its choice. Watch what has to be watched. Every queue is
    /// looked at once after this, as if it had been kicked.
    ///
    /// # Errors
    /// The host refused something; the device then says that it needs a reset.
    fn start(&mut self, cx: &mut Context<'_, Self::Poller>) -> io::Result<()>;

    /// The driver put something into queue `queue`.
    ///
    /// # Errors
    /// What was wrong in the ring; the worker marks that queue as broken.
    fn kicked(&mut self, queue: u16, cx: &mut Context<'_, Self::Poller>) -> Result<(), QueueFault>;

    /// A file descriptor watched as `token` is ready, or, as [`TIMER`], the time of [`Context::wake_at`] has come.
    ///
    /// # Errors
    /// As [`Device::kicked`].
    fn ready(&mut self, token: Token, cx: &mut Context<'_, Self::Poller>) -> Result<(), QueueFault> {
        let _ = (token, cx);
        Ok(())
    }

    /// Ends all work: nothing of it touches guest memory afterwards, and every chain is completed or put back. What
    /// was watched through `cx` is unwatched by the worker.
    fn stop(&mut self, cx: &mut Context<'_, Self::Poller>);

    /// Back to what it was before the driver first came: forget what was negotiated.
    fn reset(&mut self) {}

    /// Its state; while it is stopped.
    fn state(&self) -> DeviceState;

    /// Takes a state; while it is stopped.
    ///
    /// # Errors
    /// [`RestoreError`], and nothing is changed.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// The token of [`Device::ready`] for [`Context::wake_at`].
pub const TIMER: Token = 0xfff;
/// Tokens of a device's own are below this.
pub const MOST_TOKENS: Token = 0x800;
/// Above them, the doorbells of its queues.
pub(crate) const KICK: Token = MOST_TOKENS;
/// Tokens of each device that shares a worker.
pub(crate) const SLOT_TOKENS: Token = 0x1000;

/// What a device works with while it runs.
#[derive(Debug)]
pub struct Context<'a, P> {
    /// The queues; `None` for one that the driver did not enable, or that is broken.
    pub queues: &'a mut [Option<Queue>],
    /// What was negotiated.
    pub features: u64,
    /// Guest memory.
    pub memory: &'a Memory,
    /// What the worker waits in, for a backend that is a part of it.
    pub poller: &'a mut P,
    pub(crate) watched: &'a mut Vec<(RawFd, Token)>,
    pub(crate) base: Token,
    pub(crate) deadline: &'a mut Option<Instant>,
}

impl<P: Poller> Context<'_, P> {
    /// Queue `index`, if it works.
    pub fn queue(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(index))?.as_mut()
    }

    /// Whether all of `bits` were negotiated.
    pub fn has(&self, bits: u64) -> bool {
        self.features & bits == bits
    }

    /// From now on [`Device::ready`] hears as `token` (below [`MOST_TOKENS`]) of `fd`.
    ///
    /// # Errors
    /// The host refused.
    pub fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        let token = self.base + token;
        self.poller.watch(fd, token, interest)?;
        self.watched.push((fd, token));
        Ok(())
    }

    /// Ends what [`Context::watch`] began.
    pub fn unwatch(&mut self, fd: RawFd) {
        self.watched.retain(|(own, token)| {
            if *own == fd {
                // The host only refuses what is not watched.
                let _ = self.poller.unwatch(fd, *token);
            }
            *own != fd
        });
    }

    /// Calls [`Device::ready`] with [`TIMER`] at `time`, once; a later call replaces an earlier one.
    pub fn wake_at(&mut self, time: Option<Instant>) {
        *self.deadline = time;
    }

    /// As [`Context::wake_at`], unless it is to be called earlier already.
    pub fn wake_by(&mut self, time: Instant) {
        *self.deadline = Some(self.deadline.map_or(time, |earlier| earlier.min(time)));
    }
}
