//! What a storm came to.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    cleaner::CleanedCounts,
    trace::{AuditCheck, SeenCookies},
};

/// The numbers of a storm.
#[derive(Debug)]
pub struct StormSummary {
    pub(super) cleaner: &'static str,
    pub(super) seed: u64,
    pub(super) workers: usize,
    pub(super) seconds: u64,
    pub(super) begin: u64,
    pub(super) peak: u64,
    pub(super) left: u64,
    pub(super) suspended: usize,
    pub(super) harms: BTreeMap<String, u64>,
    pub(super) counts: BTreeMap<String, u64>,
    pub(super) audit: AuditCheck,
    pub(super) cleaned: CleanedCounts,
    /// By the trace, if there was one.
    pub(super) seen: Option<SeenCookies>,
}

impl StormSummary {
    /// As JSON: `xtask/src/scenario/storm.rs` judges it.
    pub fn to_json(&self) -> Value {
        let cleaned = &self.cleaned;
        let rounds = cleaned.rounds.max(1);
        let seen = self.seen.as_ref();
        json!({
            "cleaner": self.cleaner,
            "seed": self.seed,
            "workers": self.workers,
            "seconds": self.seconds,
            "operations": self.counts_of("operation "),
            "kills": self.counts_of("kill "),
            "harm": self.harms,
            "rounds": cleaned.rounds,
            "rounds_killed": cleaned.killed,
            "round_ms": cleaned.time.as_millis() as u64 / rounds,
            "outcomes": cleaned.outcomes,
            "cleaner_errors": cleaned.errors,
            "begin": self.begin,
            "peak": self.peak,
            "left": self.left,
            "suspended": self.suspended,
            "removed": self.audit.removed,
            "removed_in_use": self.audit.live,
            "removed_in_use_by_others": self.audit.live_by_others,
            "unannounced": self.audit.unannounced,
            "untrue": self.audit.untrue,
            "calls": seen.map(|it| it.calls),
            "cookies": seen.map(|it| it.cookies),
            "exact": seen.map(|it| it.exact),
        })
    }

    /// Counts of one kind, by the rest of their names.
    fn counts_of(&self, kind: &str) -> BTreeMap<&str, u64> {
        let counts = self.counts.iter();
        counts
            .filter_map(|(name, &count)| Some((name.strip_prefix(kind)?, count)))
            .collect()
    }
}
