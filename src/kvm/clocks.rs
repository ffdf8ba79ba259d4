//! What the clocks of one VM share: kvm-clock and the vCPUs' TSCs stop and go on at one moment, or the guest sees one of them drift
//! from the other, and takes the TSC for unstable.
//!
//! KVM reads kvm-clock and the host's TSC together. The host's TSC with a vCPU's offset is that vCPU's TSC, so that the saved reading and
//! the saved offset say what the guest's TSC showed at the moment of the saved kvm-clock. Loading: first kvm-clock, then another
//! reading, and from the two the offset with which the TSC has gone on by as much as kvm-clock has
//! (Documentation/virt/kvm/devices/vcpu.rst, "KVM_VCPU_TSC_OFFSET").

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Those of one VM.
#[derive(Debug, Clone, Default)]
pub(super) struct Clocks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// See [`Clocks::follow_host_time`].
    saved_at: OnceLock<u64>,
    loaded: Mutex<Option<Loaded>>,
    is_scaled: AtomicBool,
}

/// kvm-clock at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) nanoseconds: u64,
    /// What the host's TSC showed then, where KVM says it (Linux 5.16, on a host that keeps its own time by it).
    pub(super) host_tsc: Option<u64>,
}

/// When it was saved, and after it was loaded.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    then: Reading,
    now: Reading,
}

impl Clocks {
    /// What is loaded from now on goes on from the host's time, and was saved then, in nanoseconds since 1970. Without this call it goes
    /// on as if no time had passed.
    pub(super) fn follow_host_time(&self, saved_at: u64) {
        let _ = self.0.saved_at.set(saved_at);
    }

    /// When it was saved, if it is to go on from the host's time.
    pub(super) fn saved_at(&self) -> Option<u64> {
        self.0.saved_at.get().copied()
    }

    /// Nanoseconds since then. The host's clock may have been set back: a guest's never is.
    pub(super) fn elapsed(&self) -> u64 {
        self.saved_at().map_or(0, |then| host_time().saturating_sub(then))
    }

    /// kvm-clock was loaded: it was `then` when it was saved, and `now` just now.
    pub(super) fn loaded(&self, then: Reading, now: Reading) {
        *self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Loaded { then, now });
    }

    fn get_loaded(&self) -> Option<Loaded> {
        *self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What kvm-clock was when it was saved, once it was loaded: for states of version 0.2.0, which do not say what a TSC showed then.
    pub(super) fn nanoseconds_then(&self) -> Option<u64> {
        self.get_loaded().map(|loaded| loaded.then.nanoseconds)
    }

    /// The offset with which a TSC of `khz` goes on as kvm-clock does, of one that had the offset `saved`. None where a host did not
    /// say what its TSC showed, or scales that.
    pub(super) fn tsc_offset(&self, saved: u64, khz: u32) -> Option<u64> {
        let Loaded { then, now } = self.get_loaded().filter(|_| !self.is_scaled())?;
        let passed = ticks(now.nanoseconds.saturating_sub(then.nanoseconds), khz);
        let between_hosts = then.host_tsc?.wrapping_sub(now.host_tsc?);
        Some(saved.wrapping_add(between_hosts).wrapping_add(passed))
    }

    /// A vCPU's TSC has another frequency than the host's: an offset alone does not make the one of the other.
    pub(super) fn set_scaled(&self) {
        self.0.is_scaled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_scaled(&self) -> bool {
        self.0.is_scaled.load(Ordering::Relaxed)
    }
}

/// Nanoseconds since 1970.
pub(super) fn host_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Ticks of a clock of `khz` in so many nanoseconds; none where the clock would have run over.
pub(super) fn ticks(nanoseconds: u64, khz: u32) -> u64 {
    u64::try_from(u128::from(nanoseconds) * u128::from(khz) / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_ticks_of_any_clock() {
        assert_eq!(ticks(3600 * 1_000_000_000, 2_596_126), 3600 * 2_596_126_000);
        assert_eq!((ticks(999_999, 1), ticks(1_000_000, 1), ticks(0, u32::MAX)), (0, 1, 0));
        // What a damaged state says.
        assert_eq!(ticks(u64::MAX, u32::MAX), 0);
    }

    fn reading(nanoseconds: u64, host_tsc: impl Into<Option<u64>>) -> Reading {
        Reading { nanoseconds, host_tsc: host_tsc.into() }
    }

    #[test]
    fn a_tsc_goes_on_by_as_much_as_kvm_clock_does() {
        let clocks = Clocks::default();
        assert_eq!((clocks.tsc_offset(5, 1), clocks.nanoseconds_then()), (None, None), "nothing is loaded");
        // Offsets are most often negative: the guest booted after its host did.
        for offset in [0, 77, 0u64.wrapping_sub(123_456)] {
            // On a host that has been up for longer, and on one that has just booted; at 2 GHz two ticks a nanosecond.
            for now_tsc in [9_000_000, 10] {
                clocks.loaded(reading(1000, 500_000), reading(4000, now_tsc));
                let new = clocks.tsc_offset(offset, 2_000_000).unwrap();
                let [before, after] =
                    [(500_000u64, offset), (now_tsc, new)].map(|(tsc, by)| tsc.wrapping_add(by));
                assert_eq!(after.wrapping_sub(before), 6000, "offset {offset}, now {now_tsc}");
            }
        }
        assert_eq!(clocks.nanoseconds_then(), Some(1000));
        // A clock never goes back; of damaged states nothing is expected but an end.
        clocks.loaded(reading(u64::MAX, u64::MAX), reading(0, 0));
        assert_eq!(clocks.tsc_offset(0, u32::MAX), Some(u64::MAX));
        for (then, now) in [(None, Some(1)), (Some(1), None)] {
            clocks.loaded(reading(0, then), reading(1, now));
            assert_eq!(clocks.tsc_offset(5, 1), None);
        }
        clocks.loaded(reading(0, 1), reading(0, 1));
        assert_eq!(clocks.tsc_offset(5, 1), Some(5));
        clocks.set_scaled();
        assert_eq!(clocks.tsc_offset(5, 1), None);
    }
}
