//! Cookies that were gone before a look at the whole could judge them.

use dmtrace_core::{
    ids::BootTime,
    ledger::{EndKind, Ledger},
    verdict::{Class, Context, Judged, survey_closed_after},
};

/// Judges each ended cookie once, for all who want to know: what is reported is what is kept.
#[derive(Debug, Default)]
pub(crate) struct EndedCookies {
    /// Those that ended up to here were judged.
    judged_until: BootTime,
}

impl EndedCookies {
    /// The findings among those that have ended since the last call, in the order of their ends:
    /// accidents, what was completed too often, and leaks that were removed.
    pub(crate) fn take_findings<'a>(
        &mut self,
        ledger: &'a Ledger,
        context: &Context<'_>,
    ) -> Vec<Judged<'a>> {
        let mut judged = survey_closed_after(ledger, context, self.judged_until);
        let ends = judged.iter().filter_map(ended_at);
        self.judged_until = ends.fold(self.judged_until, BootTime::max);
        judged.retain(|it| it.verdict.class.is_finding() || is_removed_leak(it));
        judged
    }

    /// Whether a cookie has ended since the last call in a way that may be a finding.
    pub(crate) fn has_unjudged(&self, ledger: &Ledger) -> bool {
        let newest_first = ledger.closed_cookies().rev();
        let ended = newest_first.filter_map(|it| Some((it.ending.as_ref()?, it.cookie.as_ref()?)));
        ended
            .take_while(|(ending, _)| ending.at > self.judged_until)
            .any(|(ending, cookie)| {
                matches!(ending.kind, EndKind::WhileLive | EndKind::ByOther)
                    || cookie.counts.failed_decrements > 0
            })
    }
}

/// Whether it is a leak that somebody has removed.
pub(crate) const fn is_removed_leak(judged: &Judged<'_>) -> bool {
    matches!(judged.verdict.class, Class::CleanedUp(_))
}

/// When a cookie ended.
pub(crate) fn ended_at(judged: &Judged<'_>) -> Option<BootTime> {
    judged.semaphore.ending.as_ref().map(|ending| ending.at)
}
