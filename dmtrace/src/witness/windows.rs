//! The seconds that matter: around those in which cookies were made and last touched.

use dmtrace_core::witness::CookieMoment;

/// Before a stamp, and behind it: a log comes later than what it tells.
const BEFORE: i64 = 5;
const AFTER: i64 = 10;

/// Windows that are no further apart are one.
const MERGED: i64 = 30;

/// Spans of the wall clock, both ends included, oldest first, apart.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Windows(Vec<(i64, i64)>);

impl Windows {
    pub(super) fn around(moments: &[CookieMoment]) -> Self {
        let stamps = moments.iter().flat_map(|it| [it.ctime.0, it.otime.0]);
        let mut stamps: Vec<i64> = stamps.filter(|&stamp| stamp > 0).collect();
        stamps.sort_unstable();
        stamps.dedup();
        let mut windows: Vec<(i64, i64)> = Vec::new();
        for stamp in stamps {
            let (from, to) = (stamp.saturating_sub(BEFORE), stamp.saturating_add(AFTER));
            match windows.last_mut() {
                Some(last) if from.saturating_sub(last.1) <= MERGED => last.1 = to,
                _ => windows.push((from, to)),
            }
        }
        Self(windows)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (i64, i64)> + ExactSizeIterator {
        self.0.iter().copied()
    }

    /// The first second of all.
    pub(super) fn first(&self) -> i64 {
        self.0.first().map_or(0, |it| it.0)
    }

    /// Whether a second matters.
    pub(super) fn contains(&self, at: i64) -> bool {
        self.overlaps(at, at)
    }

    /// Whether any second of a span matters.
    pub(super) fn overlaps(&self, from: i64, to: i64) -> bool {
        let place = self.0.partition_point(|it| it.1 < from);
        self.0.get(place).is_some_and(|it| it.0 <= to)
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::ids::UnixTime;

    use super::*;

    #[test]
    fn close_moments_are_one_window() {
        let moment = |ctime, otime| CookieMoment {
            ctime: UnixTime(ctime),
            otime: UnixTime(otime),
            ..CookieMoment::default()
        };
        let windows = Windows::around(&[moment(5000, 0), moment(1000, 1030), moment(-7, 0)]);
        let all: Vec<_> = windows.iter().collect();
        assert_eq!(all, [(995, 1040), (4995, 5010)]);
        assert!(windows.contains(1020) && windows.contains(5010));
        assert!(!windows.contains(1041) && windows.overlaps(1041, 4995));
        assert_eq!(windows.first(), 995);
        assert!(Windows::around(&[]).is_empty());
    }
}
