//! Days of the calendar, for entries of cron and timers. Time zones are somebody else's: what comes in
//! here is local already.

use serde::{Deserialize, Serialize};

use crate::ids::UnixTime;

/// Minutes of a day.
pub(super) const DAY: u16 = 1440;

/// A moment, and what the clock on the wall shows then.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct LocalMoment {
    /// When.
    pub at: UnixTime,
    /// Seconds by which the local time is ahead of UTC then.
    pub offset: i32,
}

impl LocalMoment {
    fn local(self) -> i64 {
        self.at.0.saturating_add(i64::from(self.offset))
    }

    /// Local days since 1970.
    pub const fn day(self) -> i64 {
        self.at
            .0
            .saturating_add(self.offset as i64)
            .div_euclid(86_400)
    }

    /// The minute of the local day.
    pub fn minute(self) -> u16 {
        u16::try_from(self.local().rem_euclid(86_400) / 60).unwrap_or(0)
    }
}

/// A day of the calendar.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CivilDay {
    /// The year,
    pub year: i64,
    /// the month, from 1,
    pub month: u8,
    /// the day of the month, from 1,
    pub day: u8,
    /// and the day of the week; 0 is Sunday.
    pub weekday: u8,
}

impl CivilDay {
    /// From days since 1970, by the Gregorian calendar.
    pub fn from_days(days: i64) -> Self {
        let small = |number: i64| u8::try_from(number).unwrap_or(0);
        // Years that begin in March: the leap day is the last one.
        let shifted = days.saturating_add(719_468);
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: year + era * 400 + i64::from(month <= 2),
            month: small(month),
            day: small(day),
            weekday: small(days.saturating_add(4).rem_euclid(7)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_the_calendar() {
        for (days, expected) in [
            (0, (1970, 1, 1, 4)),
            (11_016, (2000, 2, 29, 2)),
            (20_787, (2026, 11, 30, 1)),
            (-1, (1969, 12, 31, 3)),
        ] {
            let day = CivilDay::from_days(days);
            assert_eq!((day.year, day.month, day.day, day.weekday), expected);
        }
        let moment = LocalMoment {
            at: UnixTime(86_400 - 60),
            offset: 3600,
        };
        assert_eq!((moment.day(), moment.minute()), (1, 59));
    }
}
