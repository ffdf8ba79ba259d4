//! The host's hand on a balloon: it outlives the device, of which each boot of a machine makes a new one.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::statistics::Statistics;
use super::{ACTUAL, TARGET};
use crate::config_space::ConfigSpace;

/// Balloon pages of a MiB.
const PAGES_PER_MIB: u64 = 256;

/// How large a balloon shall be, and is. Clones are of the same balloon; nothing waits but
/// [`BalloonControl::fresh_statistics`]. It keeps nothing of a machine that has ended.
#[derive(Debug, Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Statistics came.
    came: Condvar,
    wanted: AtomicBool,
}

/// What a control reaches of a device.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) config: Arc<ConfigSpace>,
    /// Statistics are wanted.
    pub(super) bell: EventFd,
}

#[derive(Debug)]
struct State {
    /// Pages that the balloon shall have.
    target: u32,
    /// The present boot's device, as long as it lives: behind it are the interrupts, and the whole VM behind those.
    device: Weak<Reach>,
    latest: Option<Statistics>,
}

impl BalloonControl {
    /// A balloon that shall have `mib` MiB: for who makes a device.
    #[doc(hidden)]
    pub fn new(mib: u64) -> Self {
        let state = State { target: pages(mib), device: Weak::new(), latest: None };
        let (state, came, wanted) = (Mutex::new(state), Condvar::new(), AtomicBool::new(false));
        BalloonControl { shared: Arc::new(Shared { state, came, wanted }) }
    }

    pub(super) fn set_target_pages(&self, pages: u32) {
        let mut state = self.state();
        state.target = pages;
        if let Some(device) = state.device.upgrade() {
            device.config.set(TARGET, &pages.to_le_bytes());
        }
    }

    /// What was last asked for, in MiB.
    pub fn target(&self) -> u64 {
        u64::from(self.state().target) / PAGES_PER_MIB
    }

    /// What the guest says to have left to the host, in bytes; 0 once the machine has ended.
    pub fn actual(&self) -> u64 {
        let device = self.state().device.upgrade();
        device.map_or(0, |device| u64::from(device.config.read_u32(ACTUAL)) << super::pages::PAGE_SHIFT)
    }

    /// The statistics that came last in the present boot.
    pub fn statistics(&self) -> Option<Statistics> {
        self.state().latest
    }

    /// Asks the guest for new statistics, which [`BalloonControl::statistics`] gives once they have come.
    pub fn request_statistics(&self) {
        self.shared.wanted.store(true, Ordering::Release);
        if let Some(device) = self.state().device.upgrade() {
            // Its counter has room for 2^64 requests.
            let _ = device.bell.write(1);
        }
    }

    /// Asks for statistics and waits for them, at most `limit`; `None` from a guest that does not answer, and at once where
    /// none is any more.
    pub fn fresh_statistics(&self, limit: Duration) -> Option<Statistics> {
        let asked = Instant::now();
        self.request_statistics();
        let mut state = self.state();
        loop {
            match state.latest {
                Some(latest) if latest.at >= asked => return Some(latest),
                _ if state.device.strong_count() == 0 => return None,
                _ => {}
            }
            let left = limit.checked_sub(asked.elapsed()).filter(|left| !left.is_zero())?;
            state = self.shared.came.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether new statistics were wanted; not any more.
    pub(super) fn take_wish(&self) -> bool {
        self.shared.wanted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn publish(&self, statistics: Statistics) {
        self.state().latest = Some(statistics);
        self.shared.came.notify_all();
    }

    /// A device of a new boot, or one that was reset: nothing is known of its guest. Gives the target.
    pub(super) fn attach(&self, device: &Arc<Reach>) {
        let mut state = self.state();
        device.config.set(TARGET, &state.target.to_le_bytes());
        device.config.set(ACTUAL, &[0; 4]);
        state.device = Arc::downgrade(device);
        state.latest = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on the guest of this balloon shall leave `mib` MiB of its memory to the host. It does what it can, in its own time;
/// more than it has is as much as it can. No method, so that who is lent a control to look at cannot ask for all the memory.
pub fn set_target(control: &BalloonControl, mib: u64) {
    control.set_target_pages(pages(mib));
}

impl Reach {
    /// The host may have no file descriptor left.
    pub(super) fn new(config: ConfigSpace) -> io::Result<Self> {
        Ok(Reach { config: Arc::new(config), bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }
}

fn pages(mib: u64) -> u32 {
    u32::try_from(mib.saturating_mul(PAGES_PER_MIB)).unwrap_or(u32::MAX)
}
