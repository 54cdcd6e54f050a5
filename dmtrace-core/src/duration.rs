//! Durations for people, in one form everywhere.

use std::{fmt, time::Duration};

/// A duration with its two largest units, rounded down: `350ms`, `12s`, `4m12s`, `2h05m`, `3d04h`.
/// Options that take a duration read this form, too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span(pub Duration);

impl Span {
    /// Of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match seconds {
            0 if self.0.as_millis() > 0 => write!(f, "{}ms", self.0.as_millis()),
            0..60 => write!(f, "{seconds}s"),
            60..3600 => write!(f, "{minutes}m{:02}s", seconds % 60),
            3600..86_400 => write!(f, "{hours}h{minutes:02}m"),
            _ => write!(f, "{days}d{hours:02}h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let text = |seconds| Span::from_secs(seconds).to_string();
        assert_eq!(text(0), "0s");
        assert_eq!(text(59), "59s");
        assert_eq!(text(252), "4m12s");
        assert_eq!(text(7500), "2h05m");
        assert_eq!(text(273_600), "3d04h");
        assert_eq!(Span(Duration::from_millis(350)).to_string(), "350ms");
        assert_eq!(Span(Duration::from_micros(350)).to_string(), "0s");
        assert_eq!(Span(Duration::from_millis(1999)).to_string(), "1s");
    }

    #[test]
    fn what_is_printed_is_read_by_options() {
        for seconds in [0, 1, 59, 60, 252, 3599, 3600, 7500, 86_400, 273_600] {
            let text = Span::from_secs(seconds).to_string();
            let read = humantime::parse_duration(&text).expect("a duration");
            assert!(read.as_secs() <= seconds, "{text}");
            assert_eq!(Span(read).to_string(), text);
        }
    }
}
