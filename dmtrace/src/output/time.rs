//! Times: for people local time with its offset from UTC, in JSON RFC 3339 in UTC.
//!
//! People get `2026-11-20 17:34:15 +01:00`. Where many moments stand one below the other there is
//! the time of day only, and the heading names the [`zone_now`]. With `--utc` all of it is in UTC.
//! Nothing else in dmtrace knows calendars.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dmtrace_core::{
    duration::Span,
    ids::{BootTime, UnixTime},
};
use jiff::{Timestamp, ZonedDateTime, civil, tz::TimeZone};

use crate::host::clock;

/// Set by [`show_utc`].
static UTC: AtomicBool = AtomicBool::new(false);

/// From now on people get UTC, too: `--utc`.
pub(crate) fn show_utc() {
    UTC.store(true, Ordering::Relaxed);
}

/// The zone that people get their times in: `TZ`, else `/etc/localtime`, else UTC.
fn local_zone() -> &'static TimeZone {
    static LOCAL: OnceLock<TimeZone> = OnceLock::new();
    if UTC.load(Ordering::Relaxed) {
        return const { &TimeZone::UTC };
    }
    LOCAL.get_or_init(|| {
        TimeZone::try_system().unwrap_or_else(|_| {
            // Without the variable and without the file it is UTC by convention.
            if let Some(name) = std::env::var_os("TZ") {
                eprintln!(
                    "dmtrace: TZ={}: no such time zone here, times are in UTC; install tzdata, or \
                     correct it",
                    name.to_string_lossy()
                );
            }
            TimeZone::UTC
        })
    })
}

/// A moment on the wall clock.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Moment(Timestamp);

impl Moment {
    pub fn now() -> Self {
        Self(Timestamp::now())
    }

    /// From milliseconds since 1970.
    pub fn of_ms(wall_ms: i64) -> Self {
        Self(Timestamp::from_millisecond(wall_ms).unwrap_or_default())
    }

    /// From a time of the kernel; `None` for 0, which it uses for "never".
    pub fn of_unix(at: UnixTime) -> Option<Self> {
        (at.0 != 0)
            .then(|| Timestamp::from_second(at.0).ok())
            .flatten()
            .map(Self)
    }

    /// From RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    /// Milliseconds since 1970.
    pub fn as_millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Whole seconds since 1970, and nanoseconds beyond them.
    pub fn as_parts(self) -> (UnixTime, u32) {
        let nanos = self.0.subsec_nanosecond().unsigned_abs();
        (UnixTime(self.0.as_second()), nanos)
    }

    /// RFC 3339 in UTC, with so many digits of a second: for JSON.
    pub fn to_rfc3339(self, digits: usize) -> String {
        format!("{:.digits$}", self.0)
    }

    /// `17:34:15.123`, in the [`zone_now`] that the heading names.
    pub fn time_of_day(self) -> String {
        let at = self.to_zoned();
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        format!("{hour:02}:{minute:02}:{second:02}.{:03}", at.millisecond())
    }

    /// `2026-11-20`, in the [`zone_now`].
    pub fn date_text(self) -> String {
        self.to_zoned().date().to_string()
    }

    /// The [`zone_now`] at this moment: `+01:00`, or `UTC`.
    pub fn zone_text(self) -> String {
        zone_of(&self.to_zoned())
    }

    fn to_zoned(self) -> ZonedDateTime {
        self.0.to_zoned_datetime(local_zone().clone())
    }
}

/// `2026-11-20 17:34:15 +01:00`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.to_zoned();
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        let zone = zone_of(&at);
        write!(f, "{} {hour:02}:{minute:02}:{second:02} {zone}", at.date())
    }
}

fn zone_of(at: &ZonedDateTime) -> String {
    let seconds = at.offset().seconds();
    if seconds == 0
        && (at.time_zone() == &TimeZone::UTC || at.time_zone().iana_name().is_some_and(is_utc))
    {
        return "UTC".to_owned();
    }
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.unsigned_abs() / 60;
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

fn is_utc(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    matches!(name, "UTC" | "UCT" | "Universal" | "Zulu")
}

/// The zone of now, for a heading: `+01:00`, or `UTC`.
pub(crate) fn zone_now() -> String {
    Moment::now().zone_text()
}

/// A date and a time without a zone, as people write them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Civil(civil::DateTime);

impl Civil {
    /// `2026-11-20`, which is its midnight, or `2026-11-20 14:00`.
    pub fn parse(text: &str) -> Option<Self> {
        let civil: civil::DateTime = text.parse().ok()?;
        civil.to_zoned_datetime(TimeZone::UTC).ok()?;
        Some(Self(civil))
    }

    /// In the zone that people get their times in.
    pub fn to_moment(self) -> Moment {
        let zoned = self.0.to_zoned_datetime(local_zone().clone());
        // Only at the ends of the calendar can a zone make it impossible.
        let zoned = zoned.or_else(|_| self.0.to_zoned_datetime(TimeZone::UTC));
        Moment(zoned.map(|at| at.timestamp()).unwrap_or_default())
    }
}

/// Relates boot time to the wall clock, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    boot: BootTime,
    wall: Timestamp,
}

impl Clock {
    pub fn now() -> Self {
        Self {
            boot: clock::boot_now(),
            wall: Timestamp::now(),
        }
    }

    /// That of another machine or moment: at `boot` it was `wall` and so many nanoseconds.
    pub fn relating(boot: BootTime, wall: UnixTime, nanos: u32) -> Self {
        let nanos = i32::try_from(nanos).unwrap_or(0);
        Self {
            boot,
            wall: Timestamp::new(wall.0, nanos).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// The wall clock at a boot time; the clock may have been set in between.
    pub fn moment_at(&self, at: BootTime) -> Moment {
        let nanos = i128::from(at.0) - i128::from(self.boot.0);
        let total = self.wall.as_nanosecond() + nanos;
        Moment(Timestamp::from_nanosecond(total).unwrap_or(self.wall))
    }

    /// `17:34:15.123`, in the [`zone_now`] that the heading names.
    pub fn time_of_day(&self, at: BootTime) -> String {
        self.moment_at(at).time_of_day()
    }

    /// RFC 3339 in UTC with microseconds: for JSON.
    pub fn rfc3339_at(&self, at: BootTime) -> String {
        self.moment_at(at).to_rfc3339(6)
    }
}

/// A moment for people, from milliseconds since 1970.
pub(crate) fn moment_text(wall_ms: i64) -> String {
    Moment::of_ms(wall_ms).to_string()
}

/// An age, as [`Span`] prints it.
pub(crate) fn age_text(age: Duration) -> String {
    Span(age).to_string()
}

/// RFC 3339 in UTC, for JSON; `None` for 0, which the kernel uses for "never".
pub(crate) fn unix_rfc3339(at: UnixTime) -> Option<String> {
    Moment::of_unix(at).map(|at| at.to_rfc3339(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_times_become_wall_times() {
        let clock = Clock::relating(
            BootTime(10_000_000_000),
            UnixTime(1_000_000_000),
            250_000_000,
        );
        assert_eq!(
            clock.rfc3339_at(BootTime(9_500_000_000)),
            "2001-09-09T01:46:39.750000Z"
        );
        assert_eq!(
            clock.rfc3339_at(BootTime(11_000_001_000)),
            "2001-09-09T01:46:41.250001Z"
        );
    }

    #[test]
    fn never_is_not_1970() {
        assert_eq!(unix_rfc3339(UnixTime(0)), None);
        assert_eq!(
            unix_rfc3339(UnixTime(1)).as_deref(),
            Some("1970-01-01T00:00:01Z")
        );
    }

    #[test]
    fn the_offset_is_that_of_the_moment_and_utc_has_its_name() {
        let at = |text: &str, zone: &str| {
            let posix = TimeZone::posix(zone).expect("a zone");
            let at = text.parse::<Timestamp>().expect("a time");
            zone_of(&at.to_zoned_datetime(posix))
        };
        let new_york = "EST5EDT,M3.2.0,M11.1.0";
        assert_eq!(at("2026-11-20T12:00:00Z", new_york), "-05:00");
        assert_eq!(at("2026-07-20T12:00:00Z", new_york), "-04:00");
        assert_eq!(at("2026-07-20T12:00:00Z", "IST-5:30"), "+05:30");
        // London in winter is not UTC, though its offset is.
        let london = "GMT0BST,M3.5.0/1,M10.5.0";
        assert_eq!(at("2026-11-20T12:00:00Z", london), "+00:00");
        let utc = Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC);
        assert_eq!(zone_of(&utc), "UTC");
    }
}
