//! `--since` and `--until`: a time, or how long ago.

use jiff::{Timestamp, civil, tz::TimeZone};

/// A moment on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// So many milliseconds before now.
    Ago(i64),
    /// Milliseconds since 1970 in UTC.
    At(i64),
}

impl When {
    /// Milliseconds since 1970 in UTC, `now` being now.
    pub const fn wall_ms(self, now: i64) -> i64 {
        match self {
            Self::Ago(ms) => now.saturating_sub(ms),
            Self::At(ms) => ms,
        }
    }
}

impl std::str::FromStr for When {
    type Err = String;

    /// `7d`, `2h 30m`; `2026-11-20`, `2026-11-20 14:00` (local time), `2026-11-20T14:00:00Z`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return i64::try_from(ago.as_millis())
                .map(Self::Ago)
                .map_err(|_| "so long ago is before every history".to_owned());
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::At(time.as_millisecond()));
        }
        // A date alone is its midnight.
        let civil = text.parse::<civil::DateTime>();
        let zoned = civil.and_then(|civil| civil.to_zoned_datetime(TimeZone::system()));
        zoned
            .map(|zoned| Self::At(zoned.timestamp().as_millisecond()))
            .map_err(|_| {
                "give how long ago (7d, 12h) or a time (2026-11-20, 2026-11-20 14:00)".to_owned()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_people_write_them() {
        let of = |text: &str| text.parse::<When>();
        assert_eq!(of("7d"), Ok(When::Ago(7 * 86_400_000)));
        assert_eq!(of("1h 30m"), Ok(When::Ago(5_400_000)));
        assert_eq!(of("2001-09-09T01:46:40Z"), Ok(When::At(1_000_000_000_000)));
        let midnight = of("2026-11-20").unwrap();
        assert_eq!(of("2026-11-20 00:00"), Ok(midnight));
        assert_eq!(of("2026-11-20T00:00:00"), Ok(midnight));
        assert_eq!(
            of("2026-11-20 14:30").unwrap().wall_ms(0) - midnight.wall_ms(0),
            52_200_000
        );
        for wrong in ["", "yesterday", "7", "2026-13-01", "-7d"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
