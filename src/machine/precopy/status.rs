//! The copies of a machine as others see them: how far they are; and they may end them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::CopyProgress;
use crate::host::disk::DiskMark;
use crate::machine::asker::Asker;

/// Between two looks whether the one who asked for a copy is still there.
const LOOK: Duration = Duration::from_millis(20);

/// The copies of a machine that are under way.
#[derive(Debug, Clone, Default)]
pub(in crate::machine) struct CopyStatus {
    copies: Arc<Mutex<Copies>>,
    away: Arc<Mutex<Option<Marks>>>,
    /// Who wants those that are begun by this.
    asker: Asker,
}

/// Of the disks of a machine of which nobody knows whether it runs elsewhere.
type Marks = Vec<Option<DiskMark>>;

/// By the order in which they began.
type Copies = BTreeMap<u64, UnderWay>;

#[derive(Debug, Default)]
struct UnderWay {
    progress: CopyProgress,
    cancelled: bool,
    asker: Asker,
    /// When it was seen last whether the asker is there.
    seen: Option<Instant>,
}

impl UnderWay {
    /// Whether nobody wants it any more; `now` or as it was a moment ago.
    fn is_over(&mut self, now: bool) -> bool {
        if !self.cancelled && (now || self.seen.is_none_or(|seen| seen.elapsed() >= LOOK)) {
            self.cancelled = self.asker.is_gone();
            self.seen = Some(Instant::now());
        }
        self.cancelled
    }
}

impl CopyStatus {
    /// From now on one is under way, until what this returns is dropped.
    pub(in crate::machine) fn show(&self) -> Shown {
        let mut copies = self.copies();
        let number = copies.last_key_value().map_or(0, |(last, _)| last + 1);
        copies.insert(number, UnderWay { asker: self.asker.clone(), ..UnderWay::default() });
        Shown { status: self.clone(), number }
    }

    /// The same copies, as `asker` wants one: it is cancelled when that one is gone.
    pub(in crate::machine) fn asked_by(&self, asker: Asker) -> Self {
        CopyStatus { asker, ..self.clone() }
    }

    /// Whether there is one that is about to end, because nobody wants it any more.
    pub(super) fn has_cancelled(&self) -> bool {
        self.copies().values_mut().any(|one| one.is_over(true))
    }

    /// That of the newest one.
    pub(in crate::machine) fn progress(&self) -> Option<CopyProgress> {
        self.copies().last_key_value().map(|(_, newest)| newest.progress)
    }

    /// Those that are under way are not wanted any more, or only those that were called so.
    pub(in crate::machine) fn cancel(&self, called: Option<&str>) {
        let mut copies = self.copies();
        let wanted = |one: &UnderWay| called.is_none_or(|name| one.asker.has_called(name));
        copies.values_mut().filter(|one| wanted(one)).for_each(|one| one.cancelled = true);
    }

    /// Nobody knows whether the machine runs elsewhere; its disks had these marks.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
    pub(in crate::machine) fn set_away(&self, marks: Option<Marks>) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = marks;
    }

    pub(in crate::machine) fn away(&self) -> Option<Marks> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`CopyStatus::show`].
#[derive(Debug)]
pub(in crate::machine) struct Shown {
    status: CopyStatus,
    number: u64,
}

impl Shown {
    /// It has come so far; whether it is to go on.
    pub(super) fn is_wanted(&self, progress: CopyProgress) -> bool {
        let mut copies = self.status.copies();
        let Some(own) = copies.get_mut(&self.number) else { return false };
        own.progress = progress;
        !own.is_over(false)
    }

    /// Whether it is to go no further.
    pub(in crate::machine) fn is_cancelled(&self) -> bool {
        self.status.copies().get_mut(&self.number).is_none_or(|own| own.is_over(false))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.status.copies().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_seen_while_it_is_under_way_and_a_cancel_is_for_those_that_are() {
        let status = CopyStatus::default();
        assert_eq!(status.progress(), None);
        status.cancel(None);
        let shown = status.show();
        let progress = CopyProgress { round: 2, ..CopyProgress::default() };
        assert!(shown.is_wanted(progress) && !shown.is_cancelled());
        assert_eq!(status.progress(), Some(progress));
        status.clone().cancel(None);
        assert!(!shown.is_wanted(progress) && shown.is_cancelled());
        // Another one neither takes the cancel back nor has it.
        let other = status.show();
        assert!(other.is_wanted(CopyProgress::default()) && shown.is_cancelled());
        assert_eq!(status.progress(), Some(CopyProgress::default()));
        drop(other);
        assert_eq!(status.progress(), Some(progress));
        drop(shown);
        assert_eq!(status.progress(), None);
        assert!(status.show().is_wanted(progress));
    }

    #[test]
    fn copy_that_has_a_name_is_cancelled_alone() {
        let status = CopyStatus::default();
        let show = |name: &str| status.asked_by(Asker::default().calls(Some(name.into()))).show();
        let (one, other, none) = (show("one"), show("other"), status.show());
        let cancelled = || [&one, &other, &none].map(Shown::is_cancelled);
        status.cancel(Some("third"));
        assert_eq!(cancelled(), [false; 3]);
        status.cancel(Some("one"));
        assert_eq!(cancelled(), [true, false, false]);
        status.cancel(None);
        assert_eq!(cancelled(), [true; 3]);
    }

    #[test]
    fn copy_ends_when_the_one_who_asked_for_it_is_gone_and_others_do_not() {
        let status = CopyStatus::default();
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let (asked, other) = (status.asked_by(Asker::at(&here)).show(), status.show());
        assert!(asked.is_wanted(CopyProgress::default()) && !status.has_cancelled());
        drop(there);
        assert!(status.has_cancelled());
        assert!(asked.is_cancelled() && !asked.is_wanted(CopyProgress::default()));
        assert!(other.is_wanted(CopyProgress::default()) && !other.is_cancelled());
        drop(asked);
        assert!(!status.has_cancelled());
        // Without anybody who asks about the others.
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let asked = status.asked_by(Asker::at(&here)).show();
        drop(there);
        let begin = Instant::now();
        while !asked.is_cancelled() {
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
    }
}
