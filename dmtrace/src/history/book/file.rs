//! The file: opened, taken over, and given up for a while.

use std::{collections::BTreeMap, ops::ControlFlow};

use dmtrace_core::ids::BootTime;

use super::{ActiveFinding, Book, PENDING, RETRY};
use crate::history::{
    layout::{PackedRecord, StoreError},
    record::{
        DowntimeReason, DowntimeRecord, FindingEnd, HistoryEntry, HistoryQuery, HistoryRecord,
        HowGone, Stamp,
    },
    store::Store,
};

impl Book {
    /// Opens the file, and takes over what is in it.
    pub(super) fn reopen_file(&mut self, now: Stamp) {
        match Store::open(&self.options.path, self.options.limit) {
            Ok((store, told)) => {
                if let Some(told) = told {
                    (self.warn)(&told);
                }
                if self.trouble.take().is_some() {
                    let text = format!("{}: can be written again", self.options.path.display());
                    (self.warn)(&text);
                }
                self.retry.1 = RETRY.0;
                self.adopt_store(store, now);
            }
            Err(trouble) => self.detach_file(now, &trouble),
        }
    }

    fn adopt_store(&mut self, store: Store, now: Stamp) {
        let base = store.meta.next;
        if self.adopted {
            // One that was begun anew knows nothing of the numbers given so far; none may be
            // given twice.
            self.next = self.next.max(base);
            self.store = Some(store);
            return;
        }
        self.renumber_records(base);
        let standing = HistoryQuery {
            since_ms: Some(i64::MAX),
            ..HistoryQuery::default()
        };
        let mut found = Vec::new();
        let boot_id = self.options.boot_id.clone();
        let mut take = |entry: HistoryEntry| {
            if let HistoryRecord::Finding(finding) = entry.record {
                let here = !boot_id.is_empty() && entry.boot_id == boot_id;
                found.push((entry.id, here, finding));
            }
            ControlFlow::Continue(())
        };
        if let Err(trouble) = store.read_entries(&standing, &mut take) {
            self.detach_file(now, &trouble);
            return;
        }
        self.adopted = true;
        self.store = Some(store);
        for (id, here, finding) in found {
            let (sem, key, state) = (finding.sem, finding.key, finding.state);
            let how = match self.active_findings.get(&(sem, key)) {
                _ if !here => HowGone::Rebooted,
                // Told again while there was no file: the record of then is the one of now.
                Some(known) if known.state != state => HowGone::OtherVerdict,
                Some(_) => HowGone::Unseen,
                None => {
                    let standing = ActiveFinding {
                        id,
                        state,
                        program: String::new(),
                        found: finding.found.boot,
                        reported: false,
                        told: None,
                        verdict: finding.story.cookie.verdict.map(Box::new),
                    };
                    self.active_findings.insert((sem, key), standing);
                    continue;
                }
            };
            let gone = FindingEnd {
                at: now,
                how,
                by: None,
            };
            self.end_finding(id, &gone);
        }
        self.end_untold(now);
        if let Some((_, run)) = &self.run {
            let began = run.began;
            self.note_gap(began);
        }
    }

    /// What was numbered before the file could be read comes after what is in it.
    fn renumber_records(&mut self, base: u64) {
        let shift =
            |map: BTreeMap<u64, PackedRecord>| map.into_iter().map(|(id, it)| (id + base, it));
        self.pending = shift(std::mem::take(&mut self.pending)).collect();
        let endings = std::mem::take(&mut self.endings).into_iter();
        self.endings = endings.map(|(id, it)| (id + base, it)).collect();
        for standing in self.active_findings.values_mut() {
            standing.id += base;
        }
        let numbers = self.run.iter_mut().map(|(id, _)| id);
        let numbers = numbers.chain(self.last_run.iter_mut());
        let numbers = numbers.chain(self.rates.iter_mut().map(|(id, _)| id));
        let numbers = numbers.chain(self.enospc_records.values_mut().map(|(id, _)| id));
        for id in numbers.chain(self.losses.values_mut().map(|(id, _)| id)) {
            *id += base;
        }
        self.next += base;
    }

    /// Between the last run in the file and this one tracing was down.
    pub(super) fn note_gap(&mut self, began: Stamp) {
        let Some(store) = &self.store else {
            return;
        };
        let meta = store.meta;
        let last = meta
            .last_run
            .checked_sub(1)
            .map(|id| store.read_summary(id));
        let Some(Ok(Some(entry))) = last else {
            return;
        };
        let HistoryRecord::Run(mut run) = entry.record else {
            return;
        };
        let rebooted = entry.boot_id != self.options.boot_id;
        let alive = Stamp {
            wall_ms: i64::try_from(meta.alive.0).unwrap_or_default(),
            boot: BootTime(meta.alive.1),
        };
        let why = match run.ended {
            _ if rebooted => DowntimeReason::Rebooted,
            Some(_) => DowntimeReason::Stopped,
            None => DowntimeReason::Killed,
        };
        let continuous = self.continuous && !rebooted;
        let from = run.ended.unwrap_or(alive);
        if run.ended.is_none() {
            run.ended = Some(if continuous { began } else { alive });
            self.put_of(entry.id, entry.boot_id, HistoryRecord::Run(run));
        }
        if !continuous {
            self.add_record(HistoryRecord::Gap(DowntimeRecord {
                from,
                to: began,
                why,
            }));
        }
    }

    /// Goes on without the file, and says so once.
    pub(super) fn detach_file(&mut self, now: Stamp, trouble: &StoreError) {
        self.store = None;
        if self.trouble.is_none() {
            let text = format!(
                "{}: {trouble}; the history is kept in memory, the last {} KiB of it, until the \
                 file can be written again",
                self.options.path.display(),
                PENDING >> 10
            );
            (self.warn)(&text);
        }
        self.trouble = Some(format!("{}: {trouble}", self.options.path.display()));
        let pause = u64::try_from(self.retry.1.as_nanos()).unwrap_or(u64::MAX);
        self.retry = (
            BootTime(now.boot.0.saturating_add(pause)),
            (self.retry.1 * 2).min(RETRY.1),
        );
    }

    /// What an earlier run left standing and this one has not found is gone.
    pub(super) fn end_untold(&mut self, now: Stamp) {
        if !(self.settled && self.adopted) {
            return;
        }
        let mut gone = Vec::new();
        let left = &self.left_standing;
        self.active_findings.retain(|place, standing| {
            let stands = standing.reported || left.contains(place);
            if !stands {
                gone.push(standing.id);
            }
            stands
        });
        for id in gone {
            let gone = FindingEnd {
                at: now,
                how: HowGone::Unseen,
                by: None,
            };
            self.end_finding(id, &gone);
        }
    }
}
