//! A copy of a machine as others see it: how far it is; and they may end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CopyProgress;
use crate::host::disk::DiskMark;

/// The copy of a machine that is under way, if one is.
#[derive(Debug, Clone, Default)]
pub(in crate::machine) struct CopyStatus(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Option<CopyProgress>>,
    cancelled: AtomicBool,
    /// Marks of the disks of a machine of which nobody knows whether it runs elsewhere.
    away: Mutex<Option<Vec<Option<DiskMark>>>>,
}

impl CopyStatus {
    /// From now on one is under way, until what this returns is dropped.
    pub(super) fn show(&self) -> Shown {
        self.0.cancelled.store(false, Ordering::Relaxed);
        *self.0.progress() = Some(CopyProgress::default());
        Shown(self.0.clone())
    }

    pub(in crate::machine) fn progress(&self) -> Option<CopyProgress> {
        *self.0.progress()
    }

    pub(in crate::machine) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// Nobody knows whether the machine runs elsewhere; its disks had these marks.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
    pub(in crate::machine) fn set_away(&self, marks: Option<Vec<Option<DiskMark>>>) {
        *self.0.away.lock().unwrap_or_else(PoisonError::into_inner) = marks;
    }

    pub(in crate::machine) fn away(&self) -> Option<Vec<Option<DiskMark>>> {
        self.0.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Option<CopyProgress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`CopyStatus::show`].
#[derive(Debug)]
pub(super) struct Shown(Arc<Shared>);

impl Shown {
    /// It has come so far; whether it is to go on.
    pub(super) fn is_wanted(&self, progress: CopyProgress) -> bool {
        *self.0.progress() = Some(progress);
        !self.0.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        *self.0.progress() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_seen_while_it_is_under_way_and_a_cancel_is_for_one() {
        let status = CopyStatus::default();
        assert_eq!(status.progress(), None);
        status.cancel();
        let shown = status.show();
        let progress = CopyProgress { round: 2, ..CopyProgress::default() };
        assert!(shown.is_wanted(progress));
        assert_eq!(status.progress(), Some(progress));
        status.clone().cancel();
        assert!(!shown.is_wanted(progress));
        drop(shown);
        assert_eq!(status.progress(), None);
        assert!(status.show().is_wanted(progress));
    }
}
