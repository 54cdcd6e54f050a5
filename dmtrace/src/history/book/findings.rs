//! Findings, from the first note of each to its end.

use dmtrace_core::ids::{Key, SemId};

use super::{ActiveFinding, Book, STANDING};
use crate::history::{
    record::{FindingEnd, HistoryRecord, HowGone, StoredFinding},
    tallies::Tallies,
};

impl Book {
    pub(super) fn add_finding(&mut self, finding: StoredFinding) {
        let place = (finding.sem, finding.key);
        if let Some(standing) = self.active_findings.get_mut(&place) {
            if standing.state == finding.state {
                standing.reported = true;
                if finding.state == "leaked" {
                    // An earlier run has counted it.
                    self.counted_leaks.add_leak(place);
                }
                if let Some(told) = standing.told.filter(|_| finding.gone.is_none()) {
                    let (id, mut revised) = (standing.id, finding);
                    revised.found = told;
                    self.put_record(id, HistoryRecord::Finding(Box::new(revised)));
                }
                return;
            }
            let id = standing.id;
            self.active_findings.remove(&place);
            let gone = FindingEnd {
                at: finding.found,
                how: HowGone::OtherVerdict,
                by: None,
            };
            self.end_finding(id, &gone);
        }
        let (state, stands) = (finding.state.clone(), finding.gone.is_none());
        let told = finding.found;
        let found = told.boot;
        if state == "leaked" {
            if self.counted_leaks.add_leak(place) {
                self.add_tallies(finding.found, Tallies::of_leak(&finding.program));
            } else if !stands {
                // It was told while it was there, and its end has been noted.
                return;
            }
        }
        let program = finding.program.clone();
        let id = self.add_record(HistoryRecord::Finding(Box::new(finding)));
        if stands && self.active_findings.len() < STANDING {
            let standing = ActiveFinding {
                id,
                state,
                program,
                found,
                reported: true,
                told: Some(told),
                verdict: None,
            };
            self.active_findings.insert(place, standing);
        }
    }

    /// A leak stands no longer: it stays counted, unless it was none after all.
    pub(super) fn settle_leak(
        &mut self,
        place: (SemId, Key),
        standing: &ActiveFinding,
        how: HowGone,
    ) {
        if standing.state != "leaked" {
            return;
        }
        if how != HowGone::OtherVerdict {
            self.counted_leaks.add_leak(place);
        } else if self.counted_leaks.withdraw_leak(place) {
            self.uncount_leak(&standing.program);
        }
    }

    pub(super) fn end_finding(&mut self, id: u64, gone: &FindingEnd) {
        let json = serde_json::to_vec(gone).unwrap_or_default();
        self.endings.insert(id, (gone.at.wall_ms, json));
        // A number and a line each; a finding whose end is forgotten is shown as standing, until
        // the next start finds that it is not.
        while self.endings.len() > STANDING {
            self.endings.pop_first();
        }
    }
}
