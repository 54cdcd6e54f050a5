//! Counts: taken over into records that grow while they go on.

use std::{collections::BTreeMap, time::Duration};

use dmtrace_core::ids::IpcNs;

use super::Book;
use crate::history::{
    record::{Loss, Rates, Record, Stamp, Starved},
    tallies::{Failures, Tallies, slot},
};

/// Failures that follow one another within this time are one record.
const BURST: Duration = Duration::from_secs(60);

impl Book {
    pub(super) fn tallies(&mut self, now: Stamp, tallies: Tallies) {
        if !tallies.lives.is_empty() {
            let hour = |stamp: Stamp| stamp.wall_ms.div_euclid(3_600_000);
            let (id, mut rates) = match self.rates.take() {
                Some((id, rates)) if hour(rates.from) == hour(now) => (id, rates),
                _ => {
                    let rates = Rates {
                        from: now,
                        to: now,
                        programs: BTreeMap::new(),
                    };
                    (self.number(), rates)
                }
            };
            rates.to = now;
            for (program, lives) in &tallies.lives {
                slot(&mut rates.programs, program).add(lives);
            }
            self.put(id, Record::Rates(rates.clone()));
            self.rates = Some((id, rates));
        }
        for (ns, failures) in tallies.starved {
            self.starve(ns, failures);
        }
        for (what, failures) in tallies.lost {
            let known = self.losses.remove(what);
            let known = known.filter(|(_, loss)| goes_on(loss.to, failures.from));
            let (id, mut loss) = known.unwrap_or_else(|| {
                let loss = Loss {
                    from: failures.from,
                    to: failures.to,
                    count: 0,
                    what: what.to_owned(),
                };
                (self.number(), loss)
            });
            loss.to = failures.to;
            loss.count += failures.count;
            self.put(id, Record::Loss(loss.clone()));
            self.losses.insert(what, (id, loss));
        }
    }

    fn starve(&mut self, ns: IpcNs, failures: Failures) {
        self.starved
            .retain(|_, (_, burst)| goes_on(burst.to, failures.from));
        let (id, mut burst) = self.starved.remove(&ns).unwrap_or_else(|| {
            let burst = Starved {
                ipc_ns: ns,
                from: failures.from,
                to: failures.to,
                count: 0,
                programs: BTreeMap::new(),
            };
            (self.number(), burst)
        });
        burst.to = failures.to;
        burst.count += failures.count;
        for (program, count) in failures.programs {
            *slot(&mut burst.programs, &program) += count;
        }
        self.put(id, Record::Starved(burst.clone()));
        self.starved.insert(ns, (id, burst));
    }
}

fn goes_on(last: Stamp, next: Stamp) -> bool {
    next.boot.duration_since(last.boot) < BURST
}
