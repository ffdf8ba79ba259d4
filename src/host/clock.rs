//! The wall clock, as the guest's real-time clock wants to read it.

use std::time::{SystemTime, UNIX_EPOCH};

use devices::rtc::WallClock;

/// Which time the guest's clock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostClock {
    Utc,
    Local,
}

impl WallClock for HostClock {
    fn now(&self) -> i64 {
        let utc = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        };
        match self {
            HostClock::Utc => utc,
            HostClock::Local => utc.saturating_add(local_offset(utc)),
        }
    }
}

/// Seconds that local time is ahead of UTC at `utc`.
fn local_offset(utc: i64) -> i64 {
    // SAFETY: an all-zero tm is a valid object to be overwritten.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call; localtime_r keeps none of them.
    let filled = unsafe { libc::localtime_r(&utc, &mut local) };
    if filled.is_null() { 0 } else { local.tm_gmtoff }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_is_within_a_day_of_utc() {
        let difference = HostClock::Local.now() - HostClock::Utc.now();
        assert!(difference.abs() <= 15 * 3600, "{difference} s");
    }
}
