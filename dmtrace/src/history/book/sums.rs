//! Counts: taken over into records that grow while they go on.

use std::{collections::BTreeMap, time::Duration};

use dmtrace_core::ids::IpcNs;

use super::Book;
use crate::history::{
    record::{EnospcRecord, HistoryRecord, LossRecord, RatesRecord, Stamp},
    tallies::{FailureSpan, Tallies, program_slot},
};

/// Failures that follow one another within this time are one record.
const BURST: Duration = Duration::from_secs(60);

impl Book {
    pub(super) fn add_tallies(&mut self, now: Stamp, tallies: Tallies) {
        if !tallies.lives.is_empty() {
            let hour = |stamp: Stamp| stamp.wall_ms.div_euclid(3_600_000);
            let (id, mut rates) = match self.rates.take() {
                Some((id, rates)) if hour(rates.from) == hour(now) => (id, rates),
                _ => {
                    let rates = RatesRecord {
                        from: now,
                        to: now,
                        programs: BTreeMap::new(),
                    };
                    (self.next_number(), rates)
                }
            };
            rates.to = now;
            for (program, lives) in &tallies.lives {
                program_slot(&mut rates.programs, program).add_counts(lives);
            }
            self.put_record(id, HistoryRecord::Rates(rates.clone()));
            self.rates = Some((id, rates));
        }
        for (ns, failures) in tallies.enospc_failures {
            self.add_enospc(ns, failures);
        }
        for (what, failures) in tallies.lost {
            let known = self.losses.remove(what);
            let known = known.filter(|(_, loss)| is_continued(loss.to, failures.from));
            let (id, mut loss) = known.unwrap_or_else(|| {
                let loss = LossRecord {
                    from: failures.from,
                    to: failures.to,
                    count: 0,
                    what: what.to_owned(),
                };
                (self.next_number(), loss)
            });
            loss.to = failures.to;
            loss.count += failures.count;
            self.put_record(id, HistoryRecord::Loss(loss.clone()));
            self.losses.insert(what, (id, loss));
        }
    }

    /// A leak that was counted in this hour was none after all.
    pub(super) fn uncount_leak(&mut self, program: &str) {
        let Some((id, rates)) = &mut self.rates else {
            return;
        };
        let Some(lives) = rates.programs.get_mut(program) else {
            return;
        };
        lives.leaked = lives.leaked.saturating_sub(1);
        let (id, rates) = (*id, rates.clone());
        self.put_record(id, HistoryRecord::Rates(rates));
    }

    fn add_enospc(&mut self, ns: IpcNs, failures: FailureSpan) {
        self.enospc_records
            .retain(|_, (_, burst)| is_continued(burst.to, failures.from));
        let (id, mut burst) = self.enospc_records.remove(&ns).unwrap_or_else(|| {
            let burst = EnospcRecord {
                ipc_ns: ns,
                from: failures.from,
                to: failures.to,
                count: 0,
                programs: BTreeMap::new(),
            };
            (self.next_number(), burst)
        });
        burst.to = failures.to;
        burst.count += failures.count;
        for (program, count) in failures.programs {
            *program_slot(&mut burst.programs, &program) += count;
        }
        self.put_record(id, HistoryRecord::CreationsFailed(burst.clone()));
        self.enospc_records.insert(ns, (id, burst));
    }
}

fn is_continued(last: Stamp, next: Stamp) -> bool {
    next.boot.duration_since(last.boot) < BURST
}
