//! What is not decided yet, and what will decide it.

use dmtrace_core::verdict::Pending;
use serde::Serialize;

use crate::wording::{count_noun, of_number};

/// How many verdicts are not final.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct PendingCounts {
    /// Time decides, within seconds.
    pub(crate) maturing: usize,
    /// A living owner that has done its part may still wait.
    pub(crate) owner_silent: usize,
}

impl PendingCounts {
    pub(crate) const fn any(self) -> bool {
        self.maturing + self.owner_silent > 0
    }

    /// A line for each kind.
    pub(crate) fn lines(self) -> Vec<String> {
        let Self {
            maturing,
            owner_silent: silent,
        } = self;
        let mut lines = Vec::new();
        if maturing > 0 {
            let verdicts = count_noun(maturing, "verdict", "verdicts");
            lines.push(format!(
                "{verdicts} pending: decided within seconds, look again."
            ));
        }
        if silent > 0 {
            let cookies = count_noun(silent, "cookie is", "cookies are");
            let owner = of_number(
                &silent,
                "its owner has done its",
                "their owners have done their",
            );
            lines.push(format!(
                "{cookies} pending: {owner} part and may still wait, or never; decided when {} goes on or \
                 ends.",
                of_number(&silent, "it", "one of them")
            ));
        }
        lines
    }
}

impl FromIterator<Pending> for PendingCounts {
    fn from_iter<I: IntoIterator<Item = Pending>>(all: I) -> Self {
        let mut counts = Self::default();
        for it in all {
            match it {
                Pending::Maturing => counts.maturing += 1,
                Pending::OwnerSilent => counts.owner_silent += 1,
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_what_decides_it() {
        let counts: PendingCounts = [Pending::Maturing, Pending::OwnerSilent, Pending::Maturing]
            .into_iter()
            .collect();
        let lines = counts.lines();
        assert!(lines[0].starts_with("2 verdicts pending"), "{lines:?}");
        assert!(
            lines[1].starts_with("1 cookie is pending: its owner"),
            "{lines:?}"
        );
        assert!(!PendingCounts::default().any());
    }
}
