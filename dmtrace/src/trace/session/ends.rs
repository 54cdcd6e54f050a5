//! Ends that take their time: of namespaces, and of processes.
//!
//! # Processes
//!
//! Whether the end of each was seen, where programs that tell of it were skipped.
//!
//! How often they were skipped says too much: three programs tell of each end, and each of them is
//! skipped now and then without the others. Whether an end was missed is seen by comparing: then
//! the map has the record of a process that has not ended, and there is no such process.

use std::{
    thread,
    time::{Duration, Instant},
};

use dmtrace_common::{ProcKey, ProcRecord};
use dmtrace_core::{backend::BlindSpot, facts::Snapshot, ids::ProcId};

use super::{ChangeSink, Session};
use crate::{
    host::{self, processes::ProcessList},
    probe::SkippedRuns,
};

/// What the table of probes calls the subject.
const SUBJECT: &str = "exit";

/// Longest wait for the kernel to remove the sets of a namespace that has gone: its worker waits
/// for all processors first (`synchronize_rcu`), which on a busy host takes tenths of a second.
const TEARDOWN: Duration = Duration::from_secs(1);
const TEARDOWN_STEP: Duration = Duration::from_millis(10);

impl Session {
    /// Lets the probes tell of the sets that go with their namespace, where they can: that is then
    /// observed, and not inferred from the namespace's absence.
    pub(super) fn await_teardown(&mut self, snapshot: &Snapshot, sink: ChangeSink<'_>) {
        let hidden = self.tracer.backend().blind_spots();
        if hidden.contains(&BlindSpot::NamespaceTeardown) {
            return;
        }
        let begun = Instant::now();
        while self.ledger.misses_namespaces(snapshot) && begun.elapsed() < TEARDOWN {
            thread::sleep(TEARDOWN_STEP);
            self.drain_all(sink);
        }
    }

    /// Of the skipped runs of programs that tell of the ends of processes: those of which it is
    /// certain that nothing was missed. For as long as the programs are in their places.
    pub(super) fn ends_made_good(&self) -> u64 {
        // Before the look: what is skipped later it does not prove.
        let skipped = self.tracer.skipped_by_subject();
        let lost = skipped.get(SUBJECT).map_or(0, |runs| runs.lost);
        if lost == 0 || self.ends_missed > 0 {
            return 0;
        }
        let list = host::processes::list_processes(&self.scope.roots);
        let procs = self.tracer.maps().proc_records();
        let missed = missed_ends(&list, procs, |key| self.tracer.maps().proc_record(key));
        if missed == Some(0) { lost } else { 0 }
    }
}

/// Records of processes that are gone and whose end is not in the map; `None` where the list of
/// processes does not tell.
///
/// The list is older than the records: what it does not have may have begun since, or has ended
/// before it was made. `again` reads a record once more: the end is in it before the process leaves
/// the list, if it was seen at all.
fn missed_ends(
    list: &ProcessList,
    procs: Vec<(ProcKey, ProcRecord)>,
    again: impl Fn(ProcKey) -> Option<ProcRecord>,
) -> Option<u64> {
    if list.incomplete.is_some() {
        return None;
    }
    let gone = |key: ProcKey| {
        let id = ProcId::from(key);
        list.processes
            .get(&id.tgid)
            .is_none_or(|process| process.live.start_ticks != id.start_ticks())
    };
    let open = |record: &ProcRecord| record.exited == 0;
    let suspects = procs.into_iter().filter(|(_, record)| open(record));
    let missed =
        suspects.filter(|&(key, _)| gone(key) && again(key).is_some_and(|record| open(&record)));
    Some(missed.count() as u64)
}

/// Takes what was made good from what was lost.
pub(super) fn subtract_made_good(skipped: SkippedRuns, made_good: u64) -> SkippedRuns {
    let made_good = made_good.min(skipped.lost);
    SkippedRuns {
        lost: skipped.lost - made_good,
        made_good: skipped.made_good + made_good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::processes::RunningProcess;
    use dmtrace_core::{facts::LiveProcess, ids::BootTime};

    fn ended_record(tgid: u32, exited: u64) -> (ProcKey, ProcRecord) {
        let key = ProcKey {
            start: 1_000_000_000,
            tgid,
            exec: 0,
        };
        // SAFETY: integers only; all zeros are a valid record.
        let mut record: ProcRecord = unsafe { std::mem::zeroed() };
        record.header.actor = key;
        record.exited = exited;
        (key, record)
    }

    fn process_list(alive: &[u32]) -> ProcessList {
        let start = ProcId {
            tgid: 1,
            start: BootTime(1_000_000_000),
        };
        let process = RunningProcess {
            live: LiveProcess {
                start_ticks: start.start_ticks(),
                ..LiveProcess::default()
            },
            ..RunningProcess::default()
        };
        ProcessList {
            processes: alive.iter().map(|&pid| (pid, process.clone())).collect(),
            ..ProcessList::default()
        }
    }

    #[test]
    fn an_end_was_missed_if_the_map_has_a_living_record_of_nobody() {
        let procs = vec![
            ended_record(10, 0),
            ended_record(11, 55),
            ended_record(12, 0),
        ];
        let unchanged = |key: ProcKey| Some(ended_record(key.tgid, 0).1);
        assert_eq!(
            missed_ends(&process_list(&[10, 12]), procs.clone(), unchanged),
            Some(0)
        );
        assert_eq!(
            missed_ends(&process_list(&[10]), procs.clone(), unchanged),
            Some(1)
        );
        // It ended between the two looks, and that was seen.
        let ended = |key: ProcKey| Some(ended_record(key.tgid, 77).1);
        assert_eq!(
            missed_ends(&process_list(&[10]), procs.clone(), ended),
            Some(0)
        );
        assert_eq!(
            missed_ends(&process_list(&[10]), procs.clone(), |_| None),
            Some(0)
        );
        // Another process has its number.
        let mut reused = process_list(&[10, 12]);
        if let Some(process) = reused.processes.get_mut(&12) {
            process.live.start_ticks += 1;
        }
        assert_eq!(missed_ends(&reused, procs.clone(), unchanged), Some(1));
        let partial = ProcessList {
            incomplete: Some("hidepid".to_owned()),
            ..process_list(&[10, 12])
        };
        assert_eq!(missed_ends(&partial, procs, unchanged), None);
    }

    #[test]
    fn only_what_is_proven_is_made_good() {
        let runs = |lost, made_good| SkippedRuns { lost, made_good };
        assert_eq!(subtract_made_good(runs(3, 1), 2), runs(1, 3));
        assert_eq!(subtract_made_good(runs(3, 1), 9), runs(0, 4));
        assert_eq!(subtract_made_good(runs(3, 1), 0), runs(3, 1));
    }
}
