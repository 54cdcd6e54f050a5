//! Cookies of which nobody can tell whether they are leaked, in words: they are said wherever "no leak"
//! might be.

use dmtrace_core::verdict::Doubt;
use serde::{Deserialize, Serialize};

use crate::wording::count_noun;

/// How many cookies that are there are in doubt.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct DoubtCounts {
    /// Older than any trace, and nothing is proven of them.
    pub(crate) older: usize,
    /// Not decided for another reason.
    pub(crate) undecided: usize,
}

impl DoubtCounts {
    pub(crate) const fn all(self) -> usize {
        self.older + self.undecided
    }

    pub(crate) const fn any(self) -> bool {
        self.all() > 0
    }

    /// Without a full stop, and without the next command; `None` where there is no doubt. `scope`: the
    /// words on the filters.
    pub(crate) fn sentence(self, scope: &str) -> Option<String> {
        let older = || count_noun(self.older, "cookie is", "cookies are");
        let undecided = || count_noun(self.undecided, "cookie is", "cookies are");
        match (self.older, self.undecided) {
            (0, 0) => None,
            (_, 0) => Some(format!(
                "cannot tell: {} older than any trace{scope}",
                older()
            )),
            (0, _) => Some(format!("cannot tell: {} undecided{scope}", undecided())),
            (_, more) => Some(format!(
                "cannot tell: {} older than any trace, {more} undecided{scope}",
                older()
            )),
        }
    }

    /// The same with the command that says more: of this machine `report`, which searches for who
    /// has their numbers.
    pub(crate) fn line(self, scope: &str, next: &str) -> Option<String> {
        Some(format!("{}: {next}", self.sentence(scope)?))
    }
}

impl FromIterator<Doubt> for DoubtCounts {
    fn from_iter<I: IntoIterator<Item = Doubt>>(all: I) -> Self {
        let mut counts = Self::default();
        for it in all {
            match it {
                Doubt::OlderThanTrace => counts.older += 1,
                Doubt::NotDecided => counts.undecided += 1,
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_doubt_is_left_unsaid() {
        let counts = |older, undecided| DoubtCounts { older, undecided };
        assert_eq!(counts(0, 0).sentence(""), None);
        let one = counts(1, 0).line(" matching the filters", "dmtrace report");
        assert_eq!(
            one.as_deref(),
            Some(
                "cannot tell: 1 cookie is older than any trace matching the filters: dmtrace report"
            )
        );
        assert_eq!(
            counts(0, 2).sentence("").as_deref(),
            Some("cannot tell: 2 cookies are undecided")
        );
        assert_eq!(
            counts(128, 2).sentence("").as_deref(),
            Some("cannot tell: 128 cookies are older than any trace, 2 undecided")
        );
        let of: DoubtCounts = [Doubt::OlderThanTrace, Doubt::NotDecided]
            .into_iter()
            .collect();
        assert_eq!(of, counts(1, 1));
    }
}
