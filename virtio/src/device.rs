//! What a virtio device is to the rest: constants as data, and a few calls from the worker thread that owns it.

use std::fmt::Debug;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use devices::component::{State, StateError};

use crate::DeviceKind;
use crate::block::DiskLimits;
use crate::config_space::ConfigSpace;
use crate::console::TerminalSize;
use crate::memory::Memory;
use crate::poll::{Interest, Poller, Token};
use crate::queue::{Queue, QueueFault};

/// What does not change in a device's life.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Its kind.
    pub kind: DeviceKind,
    /// For log lines: `vda`, `net1`.
    pub name: String,
    /// Feature bits of its kind that it offers (§5); the transport adds those of the ring.
    pub features: u64,
    /// Most descriptors of each queue, powers of 2.
    pub queues: Vec<NonZeroU16>,
    /// Its configuration structure.
    pub config: Arc<ConfigSpace>,
}

/// What the machine tells a device while it exists. Each message sets something, so that only the last one of a kind counts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A block device has this many sectors of 512 bytes.
    DiskSize {
        /// Sectors.
        sectors: u64,
    },
    /// A block device may do this much in a second.
    DiskLimits {
        /// From now on.
        limits: DiskLimits,
    },
    /// The guest should give this many pages of 4 KiB to the host.
    BalloonTarget {
        /// Pages.
        pages: u32,
    },
    /// The guest should send new memory statistics.
    BalloonStatistics,
    /// The terminal of a console has this size.
    ConsoleSize {
        /// From now on.
        size: TerminalSize,
    },
}

impl Message {
    /// The kind of device that understands it.
    pub fn kind(&self) -> DeviceKind {
        match self {
            Message::DiskSize { .. } | Message::DiskLimits { .. } => DeviceKind::Block,
            Message::BalloonTarget { .. } | Message::BalloonStatistics => DeviceKind::Balloon,
            Message::ConsoleSize { .. } => DeviceKind::Console,
        }
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
    /// The host refused something; the device then needs a reset.
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

    /// The machine tells the device something of its [`DeviceInfo::kind`]. Without `cx` no driver is at work, or the device
    /// is quiesced: guest memory must not change then.
    ///
    /// # Errors
    /// As [`Device::kicked`].
    fn tell(
        &mut self,
        message: Message,
        cx: Option<&mut Context<'_, Self::Poller>>,
    ) -> Result<(), QueueFault> {
        let _ = (message, cx);
        Ok(())
    }

    /// The state of a stopped device, without its queues and its transport's registers, as
    /// [`Component::save`](devices::component::Component::save).
    ///
    /// # Errors
    /// As there.
    fn save(&self) -> Result<State, StateError>;

    /// Features that the driver of a saved machine may have besides those of [`DeviceInfo::features`]: the device works with them
    /// although it does not offer them.
    fn tolerated(&self) -> u64 {
        0
    }

    /// Takes over a state, while stopped, as [`Component::load`](devices::component::Component::load). Changes nothing on an
    /// error, and raises no interrupt.
    ///
    /// # Errors
    /// As there.
    fn load(&mut self, state: &State) -> Result<(), StateError>;
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
    /// The queues; `None` for one that the driver did not enable, that is broken, or that another thread serves.
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

    /// From now on [`Device::ready`] is called with `token` (below [`MOST_TOKENS`]) when `fd` is ready.
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
