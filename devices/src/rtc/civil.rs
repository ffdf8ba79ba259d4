//! Civil time from seconds since 1970-01-01 and back, in the proleptic Gregorian calendar, with no time zone.

const DAY: i64 = 86_400;
/// Days of 400 Gregorian years: 97 of them are leap years.
const CYCLE: i64 = 146_097;
/// Days from 0000-03-01, where the arithmetic starts (leap day last), to 1970-01-01.
const EPOCH: i64 = 719_468;
/// 0000-01-01 and the last second of 9999, the years that four BCD digits can say.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

/// A moment as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

impl Civil {
    /// The moment `seconds` after the epoch, or the nearest one in the years 0 to 9999.
    pub(super) fn from_epoch(seconds: i64) -> Self {
        let seconds = seconds.clamp(FIRST, LAST);
        let days = seconds.div_euclid(DAY) + EPOCH;
        let time = seconds.rem_euclid(DAY);
        let cycle = days.div_euclid(CYCLE);
        let day_of_cycle = days.rem_euclid(CYCLE);
        // A leap day ends every 4th year, but not every 100th, but every 400th (the cycle's last day).
        let year_of_cycle =
            (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
        let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        // From March the months run 31 30 31 30 31, 31 30 31 30 31, 31 (28): 153 days in five.
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Civil {
            year: 400 * cycle + year_of_cycle + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * march_month + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Seconds since the epoch. Fields out of range (a 31st of February, a 99th minute) are brought to the nearest
    /// value that a field of that kind can have; a day past the month's end counts on into the next month.
    pub(super) fn to_epoch(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let march_month = (month + 9) % 12;
        let year = self.year.clamp(0, 9999) - i64::from(month <= 2);
        let year_of_cycle = year.rem_euclid(400);
        let day_of_year = (153 * march_month + 2) / 5 + self.day.clamp(1, 31) - 1;
        let days = year.div_euclid(400) * CYCLE + 365 * year_of_cycle + year_of_cycle / 4
            - year_of_cycle / 100
            + day_of_year
            - EPOCH;
        days * DAY + self.hour.clamp(0, 23) * 3600 + self.minute.clamp(0, 59) * 60 + self.second.clamp(0, 59)
    }

    /// 1 for Sunday to 7 for Saturday, as the MC146818 counts.
    pub(super) fn weekday(self) -> i64 {
        // The epoch was a Thursday.
        (self.to_epoch().div_euclid(DAY) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        // `date -u -d @N` says the same.
        for (seconds, (year, month, day, hour, minute, second), weekday) in [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (1_709_251_199, (2024, 2, 29, 23, 59, 59), 5),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
            (-1, (1969, 12, 31, 23, 59, 59), 4),
            (FIRST, (0, 1, 1, 0, 0, 0), 7),
            (LAST, (9999, 12, 31, 23, 59, 59), 6),
        ] {
            let civil = Civil::from_epoch(seconds);
            assert_eq!(civil, Civil { year, month, day, hour, minute, second });
            assert_eq!((civil.to_epoch(), civil.weekday()), (seconds, weekday), "{civil:?}");
        }
    }

    #[test]
    fn times_past_the_calendar_stop_at_its_ends() {
        assert_eq!(Civil::from_epoch(i64::MAX), Civil::from_epoch(LAST));
        assert_eq!(Civil::from_epoch(i64::MIN), Civil::from_epoch(FIRST));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in FIRST..=LAST) {
            prop_assert_eq!(Civil::from_epoch(seconds).to_epoch(), seconds);
        }

        #[test]
        fn the_next_day_is_one_later(seconds in FIRST..LAST - DAY) {
            let (today, tomorrow) = (Civil::from_epoch(seconds), Civil::from_epoch(seconds + DAY));
            prop_assert!(tomorrow.day == today.day + 1 || (tomorrow.day == 1 && today.day >= 28));
        }
    }
}
