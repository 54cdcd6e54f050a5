//! What userspace writes into the maps: sets that the programs have not seen come, and records that
//! it has taken in.

use dmtrace_common::{
    CookieKey, PREFILTER_SLOTS, PROC_TOMBSTONE, SEM_ANNOUNCED, SEM_COOKIE, SEM_MISSED,
    SEM_PREEXISTING, SEM_TOMBSTONE, SemKey, SemRecord, control,
};
use dmtrace_core::facts::Snapshot;

use super::{
    tracer::{Tracer, proc_tombstones, sem_tombstones},
    undisturbed::call_undisturbed,
};

/// Why the kernel side does not know a set of a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SeedReason {
    /// It is older than the trace.
    Older,
    /// Its creation was not seen.
    Missed,
}

impl Tracer {
    /// Enters the sets of a snapshot that the kernel side does not know, so that their operations
    /// and removals are followed. Returns how many were entered.
    pub(crate) fn seed_sets(&mut self, snapshot: &Snapshot, why: SeedReason) -> usize {
        let missed = match why {
            SeedReason::Older => 0,
            SeedReason::Missed => SEM_MISSED,
        };
        let mut entered = 0;
        for ns in &snapshot.namespaces {
            for set in &ns.sets {
                let cookie = set.key.has_cookie_magic();
                let record = SemRecord {
                    key: set.key.0,
                    nsems: set.nsems,
                    semflg: set.mode,
                    value: set.first.map_or(0, |first| first.value),
                    state: SEM_PREEXISTING
                        | SEM_ANNOUNCED
                        | missed
                        | if cookie { SEM_COOKIE } else { 0 },
                    ..SemRecord::default()
                };
                // Counted before it is entered, in case this process is killed in between: a
                // count that is too high costs time only.
                let slot = set.semid as u32 & (PREFILTER_SLOTS - 1);
                if cookie {
                    self.prefilter.add32(slot, 1);
                }
                if self.maps.seed_record(
                    SemKey {
                        ns: ns.ns.0,
                        semid: set.semid,
                    },
                    record,
                ) {
                    entered += 1;
                    if cookie {
                        let name = CookieKey {
                            ns: ns.ns.0,
                            key: set.key.0,
                        };
                        // Full: the books join by the key.
                        let _joined_later =
                            call_undisturbed(|| self.keys.insert(&name, &set.semid, 0));
                    }
                } else if cookie {
                    self.prefilter.add32(slot, u32::MAX);
                }
            }
        }
        entered
    }

    /// Removes records that userspace has taken in.
    pub(crate) fn reap_tombstones(&mut self, sems: &[SemKey], procs: &[dmtrace_common::ProcKey]) {
        let sems = sems
            .iter()
            .filter(|key| self.maps.remove_sem(**key))
            .count();
        self.control.sub64(control::TOMBSTONES, sems as u64);
        let procs = procs
            .iter()
            .filter(|key| self.maps.remove_proc(**key))
            .count();
        self.control.sub64(control::PROC_TOMBSTONES, procs as u64);
    }

    /// Removes the record of a set whose removal the kernel side did not see.
    pub(crate) fn forget_set(&mut self, key: SemKey) {
        let Some(record) = self.maps.sem_record(key) else {
            return;
        };
        if record.state & SEM_TOMBSTONE == 0
            && self.maps.remove_sem(key)
            && record.state & SEM_COOKIE != 0
        {
            let name = CookieKey {
                ns: key.ns,
                key: record.key,
            };
            if call_undisturbed(|| self.keys.get(&name, 0)).ok() == Some(key.semid) {
                let _gone_already = call_undisturbed(|| self.keys.remove(&name));
            }
            self.prefilter
                .add32(key.semid as u32 & (PREFILTER_SLOTS - 1), u32::MAX);
        }
    }

    /// Whether so many records of what is gone wait to be taken in that there may soon be no room
    /// for more.
    pub(crate) fn tombstones_crowded(&self) -> bool {
        self.control.get64(control::TOMBSTONES) > u64::from(sem_tombstones(self.max_sems)) / 4
            || self.proc_tombstones_crowded()
    }

    /// Whether records of ended processes take more than half of the room that they have.
    pub(crate) fn proc_tombstones_crowded(&self) -> bool {
        self.control.get64(control::PROC_TOMBSTONES)
            > u64::from(proc_tombstones(self.max_procs)) / 2
    }

    /// Processes that can be kept at the same time.
    pub(crate) const fn max_procs(&self) -> u32 {
        self.max_procs
    }

    /// Removes the record of a process whose end the kernel side could not connect with it.
    pub(crate) fn forget_process(&mut self, key: dmtrace_common::ProcKey) {
        self.maps.remove_proc(key);
    }

    /// Corrects the numbers of tombstones: a process that was killed while it collected them has
    /// removed records that are still counted.
    pub(crate) fn recount_tombstones(&self) {
        let before = self.control.get64(control::TOMBSTONES);
        let sems = self.maps.sem_records();
        let sems = sems
            .iter()
            .filter(|(_, record)| record.state & SEM_TOMBSTONE != 0)
            .count() as u64;
        // Changed meanwhile: the next process may do it.
        if self.control.get64(control::TOMBSTONES) == before {
            self.control
                .sub64(control::TOMBSTONES, before.saturating_sub(sems));
        }
        let before = self.control.get64(control::PROC_TOMBSTONES);
        let procs = self.maps.proc_records();
        let procs = procs
            .iter()
            .filter(|(_, record)| record.state & PROC_TOMBSTONE != 0)
            .count() as u64;
        if self.control.get64(control::PROC_TOMBSTONES) == before {
            self.control
                .sub64(control::PROC_TOMBSTONES, before.saturating_sub(procs));
        }
    }

    /// Records of removed sets that wait to be taken in.
    pub(crate) fn tombstone_count(&self) -> u64 {
        self.control.get64(control::TOMBSTONES) + self.control.get64(control::PROC_TOMBSTONES)
    }
}
