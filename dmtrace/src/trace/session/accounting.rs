//! "No leak" is only said when these numbers add up.

use dmtrace_common::{KINDS, Kind};
use dmtrace_core::{
    ledger::{Reconciliation, Totals},
    verdict::BookLosses,
};
use serde::Serialize;

use crate::{
    probe::{KernelCounts, KindCounts, SkippedRuns},
    wording::count_noun,
};

/// Messages that came out of the ring.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct ReceivedCounts {
    /// By kind.
    #[serde(skip)]
    pub kinds: [u64; KINDS],
    /// Messages that could not be decoded.
    pub undecodable: u64,
}

impl ReceivedCounts {
    pub(super) fn count_message(&mut self, header: Option<&[u8; 2]>) {
        if let Some(kind) = kind_of(header) {
            self.kinds[kind as usize] += 1;
        }
    }

    /// All of them; stacks have a ring of their own.
    pub(crate) fn total_count(&self) -> u64 {
        let stacks = self.kinds[Kind::Stack as usize];
        self.kinds.iter().sum::<u64>() - stacks + self.undecodable
    }
}

/// The balance of a trace.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct Accounting {
    /// What the probes had to report.
    pub seen: u64,
    /// What went into the ring.
    pub submitted: u64,
    /// What found the ring full; the maps made it good unless `lost` says otherwise.
    pub dropped: u64,
    /// What came out of the ring.
    pub received: u64,
    /// Stacks of those who made cookies; what was dropped here is not made good.
    pub stacks: KindCounts,
    /// Of these, not worked off: the call sites of those cookies are unknown.
    pub stacks_lost: u64,
    /// Sets made, by the kernel side's count.
    pub created_seen: u64,
    /// Sets that found the semaphore map full.
    pub sem_map_full: u64,
    /// Processes that found the process map full.
    pub proc_map_full: u64,
    /// Calls that found the call map full.
    pub call_map_full: u64,
    /// Records dropped before userspace could read them.
    pub history_lost: u64,
    /// Runs of a probe that the kernel skipped, and no other probe made good.
    pub skipped_runs: u64,
    /// Runs that it skipped, and another probe made good.
    pub skipped_made_good: u64,
    /// Sets in the books at the last comparison.
    pub ledger_sets: u64,
    /// Sets in the kernel's tables at the last comparison, in the namespaces that could be read.
    pub kernel_sets: u64,
    /// Differences between books and kernel found since the start, all corrected.
    pub drift: u64,
    /// Namespaces that could not be compared.
    pub unreadable: usize,
    /// Sums that do not add up, in words; empty when everything does.
    pub deficits: Vec<String>,
    /// What verdicts on the books may lack.
    pub losses: BookLosses,
}

impl Accounting {
    pub(super) fn from_counts(
        counts: &KernelCounts,
        received: &ReceivedCounts,
        totals: &Totals,
        last: Option<&Reconciliation>,
        drift: u64,
        skipped: SkippedRuns,
        programs: &[&str],
    ) -> Self {
        let total = counts.total_counts();
        let mut deficits = Vec::new();
        // A call site that is lost makes no leak uncertain.
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Stack) {
            let count = counts.counts_of(kind);
            if count.seen != count.submitted + count.dropped {
                deficits.push(format!(
                    "{kind:?}: seen {} is not submitted {} + dropped {}",
                    count.seen, count.submitted, count.dropped
                ));
            }
            let got = received.kinds[kind as usize];
            if count.submitted != got {
                deficits.push(format!(
                    "{kind:?}: submitted {} is not received {got}",
                    count.submitted
                ));
            }
        }
        deficits.extend(lost_texts(counts, received, skipped, programs));
        if !totals.sets.is_balanced() {
            deficits.push("the books are out of balance; please report this as a bug".to_owned());
        }
        let unreadable = last.map_or(0, |last| last.unreadable.len());
        if unreadable > 0 {
            deficits.push(format!(
                "{} could not be read",
                count_noun(unreadable, "IPC namespace", "IPC namespaces")
            ));
        }
        // Of the moment of the last comparison; what was in flight then is in neither.
        let both = last.map_or(0, |last| last.matched + last.preexisting + last.rekeyed);
        let ledger_sets = both + last.map_or(0, |last| last.vanished);
        let kernel_sets = both + last.map_or(0, |last| last.unknown);
        let vanished = last.map_or(0, Reconciliation::drift_count);
        if last.is_none() {
            deficits.push("the books were not compared with the kernel".to_owned());
        } else if vanished > 0 {
            deficits.push(format!(
                "{} between books and kernel at the end",
                count_noun(vanished, "difference", "differences")
            ));
        }
        Self {
            seen: total.seen,
            submitted: total.submitted,
            dropped: total.dropped,
            received: received.total_count(),
            stacks: counts.counts_of(Kind::Stack),
            stacks_lost: counts
                .counts_of(Kind::Stack)
                .seen
                .saturating_sub(received.kinds[Kind::Stack as usize]),
            created_seen: counts.counts_of(Kind::Created).seen,
            sem_map_full: counts.sem_map_full,
            proc_map_full: counts.proc_map_full,
            call_map_full: counts.call_map_full,
            history_lost: counts.history_lost,
            skipped_runs: skipped.lost,
            skipped_made_good: skipped.made_good,
            ledger_sets,
            kernel_sets,
            drift,
            unreadable,
            deficits,
            losses: BookLosses::default(),
        }
    }

    /// Whether everything adds up.
    pub(crate) const fn is_exact(&self) -> bool {
        self.deficits.is_empty()
    }

    pub(crate) fn summary_line(&self) -> String {
        let ring = format!(
            "seen {} = submitted {} + dropped {}",
            self.seen, self.submitted, self.dropped
        );
        let books = format!(
            "ledger {} = kernel {}",
            self.ledger_sets,
            count_noun(self.kernel_sets, "set", "sets")
        );
        let ring = match self.stacks_lost {
            0 => ring,
            lost => format!(
                "{ring}; {} lost, raise --ring",
                count_noun(lost, "call site", "call sites")
            ),
        };
        if self.is_exact() {
            format!("{ring}; {books}; drift {}", self.drift)
        } else {
            format!(
                "{ring}; ledger {}, kernel {}; NOT EXACT",
                self.ledger_sets,
                count_noun(self.kernel_sets, "set", "sets")
            )
        }
    }
}

/// What is lost for good, in words: these sums hold at any moment.
pub(super) fn lost_texts(
    counts: &KernelCounts,
    received: &ReceivedCounts,
    skipped: SkippedRuns,
    programs: &[&str],
) -> Vec<String> {
    let mut deficits = Vec::new();
    if received.undecodable > 0 {
        deficits.push(format!(
            "{} could not be decoded",
            count_noun(received.undecodable, "message", "messages")
        ));
    }
    if counts.sem_map_full > 0 {
        deficits.push(format!(
            "{} found the semaphore map full; raise --max-semaphores",
            count_noun(counts.sem_map_full, "set", "sets")
        ));
    }
    if counts.proc_map_full > 0 {
        deficits.push(format!(
            "{} found the process map full: known by pid, start time and name only; raise \
             --max-processes",
            count_noun(counts.proc_map_full, "process", "processes")
        ));
    }
    if counts.call_map_full > 0 {
        deficits.push(format!(
            "{} not followed",
            count_noun(
                counts.call_map_full,
                "call in flight was",
                "calls in flight were"
            )
        ));
    }
    if counts.history_lost > 0 {
        deficits.push(format!(
            "{} dropped; raise --ring",
            count_noun(
                counts.history_lost,
                "record of an ended set or process was",
                "records of ended sets and processes were"
            )
        ));
    }
    if skipped.lost > 0 {
        deficits.push(format!(
            "the kernel skipped {} ({}), interrupted on the same processor: what happened \
             then is known by comparing only",
            count_noun(skipped.lost, "run of a probe", "runs of probes"),
            programs.join(", ")
        ));
    }
    deficits
}

/// Kind of a message from its first bytes.
fn kind_of(header: Option<&[u8; 2]>) -> Option<Kind> {
    Kind::from_u16(u16::from_ne_bytes(*header?))
}
