//! Who made what no trace saw, by witnesses on this host.

use std::collections::{BTreeMap, BTreeSet};

use dmtrace_core::{
    ids::SemId,
    verdict::{Class, Undecided},
    witness::{Answer, CookieMoment, Inquiry},
};

use super::Case;
use crate::{
    host::Roots,
    witness::{self, Limits, Witnesses},
};

/// What was heard of all cookies that no trace saw being made. All of them are asked about, also for
/// one of them: who fits several can have left one only.
pub(crate) struct HeardWitnesses<'a> {
    case: &'a Case,
    moments: Vec<CookieMoment>,
    witnesses: Witnesses,
}

impl Case {
    /// Hears the witnesses on this host; `None` if a trace saw all cookies being made.
    pub(crate) fn hear_witnesses(&self) -> Option<HeardWitnesses<'_>> {
        let unseen: BTreeSet<SemId> = self
            .judge_all()
            .iter()
            .filter(|it| it.semaphore.is_live() && is_unseen(it.verdict.class))
            .map(|it| it.semaphore.id)
            .collect();
        if unseen.is_empty() {
            return None;
        }
        let mut moments = witness::moments_of(&self.snapshot);
        moments.retain(|it| unseen.contains(&it.sem));
        let witnesses = witness::call_witnesses(&moments, &Roots::host(), &Limits::default());
        Some(HeardWitnesses {
            case: self,
            moments,
            witnesses,
        })
    }
}

impl HeardWitnesses<'_> {
    pub(crate) const fn witnesses(&self) -> &Witnesses {
        &self.witnesses
    }

    /// What the kernel keeps of a cookie, if no trace saw it being made.
    pub(crate) fn moment(&self, sem: SemId) -> Option<&CookieMoment> {
        self.moments.iter().find(|it| it.sem == sem)
    }

    /// What is said, put together with what a search has found.
    pub(crate) fn inquire(&self) -> Inquiry<'_> {
        let mut inquiry = self.witnesses.inquire(&self.case.facts);
        if let Some(mark) = self.case.completeness.marks.last() {
            for moment in &self.moments {
                for (process, _) in mark.search.holders(moment.key) {
                    inquiry.add_holder(moment.sem, process);
                }
            }
        }
        inquiry
    }

    /// Who made each of the cookies.
    pub(crate) fn weigh_all(&self, inquiry: &Inquiry<'_>) -> BTreeMap<SemId, Answer> {
        inquiry.weigh_all(&self.moments)
    }

    /// Who could not be heard, and why.
    pub(crate) fn unread_texts(&self) -> Vec<String> {
        let unread = self.witnesses.unread.iter();
        unread
            .map(|it| format!("{}: {}", it.what, it.why))
            .collect()
    }
}

/// Whether nobody saw who made such a cookie.
const fn is_unseen(class: Class) -> bool {
    matches!(
        class,
        Class::Orphaned(_)
            | Class::Unknown(
                Undecided::CreatorUnknown(_) | Undecided::PossibleOwners | Undecided::ClockSet
            )
    )
}
