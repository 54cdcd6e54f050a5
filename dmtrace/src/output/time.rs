//! Times and ages for people, and for JSON.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    event::recording::Start,
    host::clock,
    ids::{BootTime, UnixTime},
};

/// Relates boot time to the wall clock, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    boot: BootTime,
    wall: Timestamp,
}

impl Clock {
    /// This machine, now.
    pub fn now() -> Self {
        Self {
            boot: clock::boot_now(),
            wall: Timestamp::now(),
        }
    }

    /// As a recording says.
    pub fn of(start: &Start) -> Self {
        let nanos = i32::try_from(start.wall_nanos).unwrap_or(0);
        Self {
            boot: start.began,
            wall: Timestamp::new(start.wall.0, nanos).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// The wall clock at a boot time; the clock may have been set in between.
    pub fn timestamp(&self, at: BootTime) -> Timestamp {
        let nanos = i128::from(at.0) - i128::from(self.boot.0);
        let total = self.wall.as_nanosecond() + nanos;
        Timestamp::from_nanosecond(total).unwrap_or(self.wall)
    }

    /// `17:34:15.123` in local time.
    pub fn time_of_day(&self, at: BootTime) -> String {
        local::time_of_day(self.timestamp(at))
    }

    /// RFC 3339 in UTC with microseconds.
    pub fn rfc3339(&self, at: BootTime) -> String {
        format!("{:.6}", self.timestamp(at))
    }
}

/// Times in the local zone.
pub mod local {
    use jiff::{Timestamp, ZonedDateTime, tz::TimeZone};

    fn zoned(at: Timestamp) -> ZonedDateTime {
        at.to_zoned_datetime(TimeZone::system())
    }

    /// `17:34:15.123`.
    pub fn time_of_day(at: Timestamp) -> String {
        let at = zoned(at);
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        format!("{hour:02}:{minute:02}:{second:02}.{:03}", at.millisecond())
    }

    /// `2026-11-20 17:34`, from milliseconds since 1970.
    pub fn minute(wall_ms: i64) -> String {
        let at = zoned(Timestamp::from_millisecond(wall_ms).unwrap_or_default());
        format!("{} {:02}:{:02}", at.date(), at.hour(), at.minute())
    }
}

/// RFC 3339 in UTC; `None` for 0, which the kernel uses for "never".
pub fn unix(at: UnixTime) -> Option<String> {
    (at.0 != 0)
        .then(|| Timestamp::from_second(at.0).ok())
        .flatten()
        .map(|time| time.to_string())
}

/// An age in one unit and a half: `3s`, `4m12s`, `2h05m`, `3d04h`.
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let text = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(text(0), "0s");
        assert_eq!(text(59), "59s");
        assert_eq!(text(252), "4m12s");
        assert_eq!(text(7500), "2h05m");
        assert_eq!(text(273_600), "3d04h");
    }

    #[test]
    fn boot_times_become_wall_times() {
        let clock = Clock::of(&Start {
            began: BootTime(10_000_000_000),
            wall: UnixTime(1_000_000_000),
            wall_nanos: 250_000_000,
            ..Start::default()
        });
        assert_eq!(
            clock.rfc3339(BootTime(9_500_000_000)),
            "2001-09-09T01:46:39.750000Z"
        );
        assert_eq!(
            clock.rfc3339(BootTime(11_000_001_000)),
            "2001-09-09T01:46:41.250001Z"
        );
    }

    #[test]
    fn never_is_not_1970() {
        assert_eq!(unix(UnixTime(0)), None);
        assert_eq!(unix(UnixTime(1)).as_deref(), Some("1970-01-01T00:00:01Z"));
    }
}
