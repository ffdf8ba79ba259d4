//! The wall clock, for the guest's real-time clock and for logs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use devices::rtc::WallClock;

/// The time zone of the guest's clock.
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

/// The offset of local time from UTC at `utc`, in seconds.
fn local_offset(utc: i64) -> i64 {
    local(utc).map_or(0, |local| local.tm_gmtoff)
}

/// The calendar at `utc`; `None` if the year overflows.
fn local(utc: i64) -> Option<libc::tm> {
    // SAFETY: an all-zero tm is a valid object to be overwritten.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call; localtime_r keeps none of them.
    let filled = unsafe { libc::localtime_r(&utc, &mut local) };
    (!filled.is_null()).then_some(local)
}

/// A moment in local time, for a log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalTime {
    at: libc::tm,
    millis: u32,
}

impl LocalTime {
    pub(crate) fn now() -> Self {
        Self::of(SystemTime::now())
    }

    /// So many seconds after 1970 began in UTC.
    pub(crate) fn at(seconds: u64) -> Self {
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).map_or_else(|| Self::of(UNIX_EPOCH), Self::of)
    }

    /// For a list: 2026-02-03 04:05:06.
    pub(crate) fn seconds(&self) -> String {
        self.rfc3339().split('.').next().unwrap_or_default().replace('T', " ")
    }

    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let utc = i64::try_from(since.as_secs()).unwrap_or_default();
        // SAFETY: an all-zero tm is a valid object; it stands for a date that overflows.
        let at = local(utc).unwrap_or_else(|| unsafe { std::mem::zeroed() });
        LocalTime { at, millis: since.subsec_millis() }
    }

    /// In RFC 3339 format: 2026-02-03T04:05:06.007+01:00.
    pub(crate) fn rfc3339(&self) -> String {
        let LocalTime { at, millis } = self;
        let (sign, offset) = (if at.tm_gmtoff < 0 { '-' } else { '+' }, at.tm_gmtoff.abs() / 60);
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{millis:03}{sign}{:02}:{:02}",
            i64::from(at.tm_year) + 1900,
            at.tm_mon + 1,
            at.tm_mday,
            at.tm_hour,
            at.tm_min,
            at.tm_sec,
            offset / 60,
            offset % 60
        )
    }

    /// In RFC 3164 format (4.1.2): `Feb 3 04:05:06`.
    pub(crate) fn rfc3164(&self) -> String {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let at = &self.at;
        let month = usize::try_from(at.tm_mon).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"Jan");
        format!("{month} {:2} {:02}:{:02}:{:02}", at.tm_mday, at.tm_hour, at.tm_min, at.tm_sec)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_written_as_logs_want_them() {
        let (utc, millis) = (1_770_091_506, 7);
        let moment = LocalTime::of(UNIX_EPOCH + Duration::from_secs(utc) + Duration::from_millis(millis));
        let text = moment.rfc3339();
        // In every time zone, local time less its offset is the moment again.
        let number = |at: std::ops::Range<usize>| text[at].parse::<i64>().unwrap();
        assert!(
            text.len() == 29 && text.starts_with("2026-02-0") && text[19..].starts_with(".007"),
            "{text}"
        );
        let seconds =
            ((number(8..10) - 3) * 24 + number(11..13)) * 3600 + number(14..16) * 60 + number(17..19);
        let offset = number(24..26) * 3600 + number(27..29) * 60;
        let offset = if &text[23..24] == "-" { -offset } else { offset };
        assert_eq!(seconds - offset, 4 * 3600 + 5 * 60 + 6, "{text}");
        let short = moment.rfc3164();
        assert!(short.len() == 15 && short.starts_with("Feb  ") && short.ends_with(&text[11..19]), "{short}");
    }

    #[test]
    fn local_time_is_within_a_day_of_utc() {
        let difference = HostClock::Local.now() - HostClock::Utc.now();
        assert!(difference.abs() <= 15 * 3600, "{difference} s");
    }
}
