//! `--since` and `--until`: a time, or how long ago.

use crate::output::time::{Civil, Moment};

/// A moment on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// So many milliseconds before now.
    Ago(i64),
    /// Milliseconds since 1970 in UTC.
    At(i64),
    /// In local time, or in UTC with `--utc`.
    Civil(Civil),
}

impl When {
    /// Milliseconds since 1970 in UTC, `now` being now.
    pub fn wall_ms(self, now: i64) -> i64 {
        match self {
            Self::Ago(ms) => now.saturating_sub(ms),
            Self::At(ms) => ms,
            Self::Civil(civil) => civil.to_moment().as_millis(),
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
                .map_err(|_| "that is longer ago than any history goes".to_owned());
        }
        if let Some(moment) = Moment::parse(&as_rfc3339(text)) {
            return Ok(Self::At(moment.as_millis()));
        }
        Civil::parse(text).map(Self::Civil).ok_or_else(|| {
            if is_dated(text) {
                return "there is no such day or time".to_owned();
            }
            "give how long ago (7d, 12h) or a time (2026-11-20, 2026-11-20 14:00)".to_owned()
        })
    }
}

/// Whether it has the form of a day, perhaps with more behind it.
fn is_dated(text: &str) -> bool {
    let day = text.get(..10).unwrap_or_default();
    let rest = text.get(10..).unwrap_or_default();
    let form = day.chars().enumerate().all(|(at, c)| match at {
        4 | 7 => c == '-',
        _ => c.is_ascii_digit(),
    });
    !day.is_empty()
        && form
        && rest
            .chars()
            .all(|c| c.is_ascii_digit() || " T:.Z+-".contains(c))
}

/// The form that dmtrace prints (`2026-11-20 17:34:15 +01:00`, `… UTC`) as RFC 3339.
fn as_rfc3339(text: &str) -> String {
    match text.rsplit_once(' ') {
        Some((time, "UTC")) => format!("{time}Z"),
        Some((time, offset)) if offset.starts_with(['+', '-']) => format!("{time}{offset}"),
        _ => text.to_owned(),
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

    #[test]
    fn a_day_that_does_not_exist_is_told_from_what_is_no_day() {
        let refused = |text: &str| text.parse::<When>().unwrap_err();
        for text in [
            "2026-11-31",
            "2026-13-01",
            "2026-02-30 10:00",
            "2026-11-20 25:00",
        ] {
            assert_eq!(refused(text), "there is no such day or time", "{text}");
        }
        for text in ["", "yesterday", "2026-11", "20.11.2026", "2026-11-2x"] {
            assert!(refused(text).starts_with("give how long ago"), "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read() {
        let at = Ok(When::At(1_000_000_000_000));
        assert_eq!("2001-09-09 01:46:40 UTC".parse(), at);
        assert_eq!("2001-09-09 03:46:40 +02:00".parse(), at);
        assert_eq!("2001-09-08 20:46:40 -05:00".parse(), at);
        let printed = Moment::of_ms(1_000_000_000_000).to_string();
        assert_eq!(printed.parse(), at, "{printed}");
    }
}
