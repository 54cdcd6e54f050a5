//! The time zone in which logs of the host and its crontabs are written.

use dmtrace_core::ids::UnixTime;
use jiff::{Timestamp, civil, tz::TimeZone};

/// A time zone.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// That of this machine, else UTC.
    pub fn of_machine() -> Self {
        Self(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// No zone at all.
    pub const fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// Seconds by which it is ahead of UTC at a moment.
    pub(crate) fn offset_at(&self, at: UnixTime) -> i32 {
        Timestamp::from_second(at.0).map_or(0, |it| self.0.to_offset(it).seconds())
    }

    /// The year at a moment.
    pub(crate) fn year_at(&self, at: UnixTime) -> i16 {
        Timestamp::from_second(at.0).map_or(1970, |it| self.0.to_datetime(it).year())
    }

    /// The moment at which clocks here show a date (year, month, day) and a time of day.
    pub(crate) fn moment_of(
        &self,
        (year, month, day): (i16, i8, i8),
        (hour, minute, second): (i8, i8, i8),
    ) -> Option<UnixTime> {
        let date = civil::DateTime::new(year, month, day, hour, minute, second.min(59), 0);
        let at = self.0.to_timestamp(date.ok()?).ok()?;
        Some(UnixTime(at.as_second()))
    }

    /// The moment of `2026-11-30T21:54:52`.
    pub(crate) fn parse_local(&self, text: &str) -> Option<UnixTime> {
        let local: civil::DateTime = text.parse().ok()?;
        let at = self.0.to_timestamp(local).ok()?;
        Some(UnixTime(at.as_second()))
    }

    /// The moment of `2026-11-30T21:54:52.5+01:00`.
    pub(crate) fn parse_absolute(text: &str) -> Option<UnixTime> {
        let at: Timestamp = text.parse().ok()?;
        Some(UnixTime(at.as_second()))
    }
}
