//! The host's side of a balloon. It outlives the device, of which each boot of a machine makes a new one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::ACTUAL;
use super::statistics::Statistics;
use crate::config_space::ConfigSpace;
use crate::device::Message;
use crate::transport::DeviceHandle;

/// Balloon pages of a MiB.
const PAGES_PER_MIB: u64 = 256;

/// How large a balloon should be, and is. Clones are of the same balloon. It keeps nothing of a machine that has ended.
#[derive(Debug, Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

/// Order of locks: `device`, then the function that it leads to, then `latest`.
#[derive(Debug)]
struct Shared {
    /// Pages that the balloon should have.
    target: AtomicU32,
    /// The device of the present boot. Locked while it is told a target, so that the last target is told last.
    device: Mutex<Option<DeviceHandle>>,
    /// The configuration space of that device: read without a wait for the device. Locked for an instant only.
    config: Mutex<Weak<ConfigSpace>>,
    latest: Mutex<Option<Statistics>>,
    /// Statistics came.
    came: Condvar,
}

impl BalloonControl {
    /// A balloon that should have `mib` MiB. For code that makes a [`Balloon`](super::Balloon).
    #[doc(hidden)]
    pub fn new(mib: u64) -> Self {
        let shared = Shared {
            target: AtomicU32::new(pages(mib)),
            device: Mutex::default(),
            config: Mutex::default(),
            latest: Mutex::default(),
            came: Condvar::new(),
        };
        BalloonControl { shared: Arc::new(shared) }
    }

    /// From now on `device` is the balloon: that of a new boot. For code that makes a [`Balloon`](super::Balloon).
    #[doc(hidden)]
    pub fn attach(&self, device: DeviceHandle) {
        let mut present = self.device();
        self.forget_statistics();
        let config = device.with(|function| Arc::downgrade(&function.info().config));
        *self.config() = config.unwrap_or_default();
        // The target may have changed since the device was made. One that is gone needs none.
        let _ = device.tell(Message::BalloonTarget { pages: self.target_pages() });
        *present = Some(device);
    }

    fn set_target_pages(&self, pages: u32) {
        let device = self.device();
        self.shared.target.store(pages, Ordering::Release);
        if let Some(device) = &*device {
            // A machine that has ended keeps the target for nothing.
            let _ = device.tell(Message::BalloonTarget { pages });
        }
    }

    pub(super) fn target_pages(&self) -> u32 {
        self.shared.target.load(Ordering::Acquire)
    }

    /// What was last asked for, in MiB.
    pub fn target(&self) -> u64 {
        u64::from(self.target_pages()) / PAGES_PER_MIB
    }

    /// Bytes that the guest reports to have given to the host; 0 once the machine has ended.
    pub fn actual(&self) -> u64 {
        let config = self.config().upgrade();
        let pages = config.map_or(0, |config| config.read_u32(ACTUAL));
        u64::from(pages) << super::pages::PAGE_SHIFT
    }

    /// The latest statistics of the present boot.
    pub fn statistics(&self) -> Option<Statistics> {
        *self.latest()
    }

    /// Asks the guest for new statistics, which [`BalloonControl::statistics`] gives once they have come.
    pub fn request_statistics(&self) {
        if let Some(device) = self.device().clone() {
            // From a machine that has ended none come.
            let _ = device.tell(Message::BalloonStatistics);
        }
    }

    /// Asks for statistics and waits for them, at most `limit`. `None` from a guest that does not answer, and at once from a
    /// machine that has ended.
    pub fn fresh_statistics(&self, limit: Duration) -> Option<Statistics> {
        let asked = Instant::now();
        self.request_statistics();
        loop {
            let is_gone = self.device().as_ref().is_none_or(DeviceHandle::is_gone);
            let latest = self.latest();
            match *latest {
                Some(latest) if latest.at >= asked => return Some(latest),
                _ if is_gone => return None,
                _ => {}
            }
            let left = limit.checked_sub(asked.elapsed()).filter(|left| !left.is_zero())?;
            drop(self.shared.came.wait_timeout(latest, left));
        }
    }

    pub(super) fn publish(&self, statistics: Statistics) {
        *self.latest() = Some(statistics);
        self.shared.came.notify_all();
    }

    /// The device of the present boot was loaded with this target.
    pub(super) fn loaded(&self, target: u32) {
        self.shared.target.store(target, Ordering::Release);
        self.forget_statistics();
    }

    /// The guest's driver is gone: its statistics are out of date.
    pub(super) fn forget_statistics(&self) {
        *self.latest() = None;
    }

    fn config(&self) -> MutexGuard<'_, Weak<ConfigSpace>> {
        self.shared.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> MutexGuard<'_, Option<DeviceHandle>> {
        self.shared.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latest(&self) -> MutexGuard<'_, Option<Statistics>> {
        self.shared.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on the guest of this balloon should give `mib` MiB of its memory to the host; it does so in its own time, as far
/// as it can. No method, so that code that is lent a control to read cannot ask for all the memory.
pub fn set_target(control: &BalloonControl, mib: u64) {
    control.set_target_pages(pages(mib));
}

fn pages(mib: u64) -> u32 {
    u32::try_from(mib.saturating_mul(PAGES_PER_MIB)).unwrap_or(u32::MAX)
}
