//! The books against what the kernel shows: every difference is a drift, and is reported.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    Change, ChangeKind, Creator, EndKind, Ledger, Origin, WhyUnknown, all_of, apply::NewSet,
};
use crate::{
    facts::{NsSnapshot, SetSnapshot, Snapshot},
    ids::{BootTime, IpcNs, Key, SemId},
};

/// Differences that are listed one by one; the counts are always exact.
pub(super) const MAX_LISTED_DRIFTS: usize = 256;

/// Result of comparing the books with a snapshot.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reconciliation {
    /// Sets in the snapshot that the books have too, with the same key.
    pub matched: u64,
    /// Differences explained by events around the time of the snapshot.
    pub in_flight: u64,
    /// Sets older than the tracer, entered by the first snapshot: no drift.
    pub preexisting: u64,
    /// Sets in the snapshot that the books did not know.
    pub unknown: u64,
    /// Sets in the books that are no longer there.
    pub vanished: u64,
    /// Semids that now belong to a set with another key.
    pub rekeyed: u64,
    /// Cookies with another value than the books say.
    pub revalued: u64,
    /// Namespaces that are no longer found, with the number of sets closed by that.
    pub namespaces_gone: Vec<(IpcNs, u64)>,
    /// Namespaces that were not compared because they could not be read.
    pub unreadable: Vec<IpcNs>,
    /// The differences, a bounded number.
    pub drifts: Vec<Drift>,
    /// What changed in the books.
    pub changes: Vec<Change>,
}

impl Reconciliation {
    /// Number of differences that events should have told.
    pub fn drift_count(&self) -> u64 {
        self.unknown + self.vanished + self.rekeyed + self.revalued
    }

    fn note_drift(&mut self, sem: SemId, key: Key, kind: DriftKind) {
        if self.drifts.len() < MAX_LISTED_DRIFTS {
            self.drifts.push(Drift { sem, key, kind });
        }
    }
}

/// One difference.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Drift {
    /// The set.
    pub sem: SemId,
    /// Its key in the snapshot, or in the books if it is not in the snapshot.
    pub key: Key,
    /// In what it differs.
    #[serde(flatten)]
    pub kind: DriftKind,
}

/// In what the books and a snapshot differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "drift")]
pub enum DriftKind {
    /// Not in the books.
    Unknown,
    /// Not in the snapshot.
    Vanished,
    /// Its key was another.
    Rekeyed {
        /// The key in the books.
        was: Key,
    },
    /// Its value was another.
    Revalued {
        /// The value in the books.
        was: i32,
        /// The value in the snapshot.
        is: i32,
    },
}

impl Ledger {
    /// Compares the books with a snapshot and corrects them.
    ///
    /// Apply every event up to [`Snapshot::ended`] before: what is newer in the books than
    /// [`Snapshot::began`] counts as in flight and is left alone. An event that arrives later all
    /// the same finds its place.
    ///
    /// The snapshot must cover every namespace: the sets of one that is neither read, nor known
    /// to be unreadable, nor possibly overlooked ([`Snapshot::incomplete`]) are closed.
    pub fn reconcile(&mut self, snapshot: &Snapshot) -> Reconciliation {
        let mut report = Reconciliation {
            unreadable: snapshot.unreadable.iter().map(|(ns, _)| *ns).collect(),
            ..Reconciliation::default()
        };
        // A snapshot without any namespace is a failure to read, not an empty world.
        if snapshot.namespaces.is_empty() {
            return report;
        }
        for ns in &snapshot.namespaces {
            if report.unreadable.contains(&ns.ns) {
                continue;
            }
            let present: BTreeSet<i32> = ns.sets.iter().map(|set| set.semid).collect();
            self.close_absent(ns.ns, &present, snapshot.began, &mut report);
            self.reconcile_present(ns, snapshot, &mut report);
        }
        if snapshot.incomplete.is_empty() {
            self.absent_namespaces(snapshot, &mut report);
        }
        self.reconciled = true;
        report
    }

    fn reconcile_present(
        &mut self,
        ns: &NsSnapshot,
        snapshot: &Snapshot,
        report: &mut Reconciliation,
    ) {
        for set in &ns.sets {
            let sem = SemId {
                ns: ns.ns,
                semid: set.semid,
            };
            match self.live.get(&sem) {
                Some(known) if known.key == set.key => {
                    report.matched += 1;
                    self.confirm_set(sem, set, snapshot, report);
                }
                Some(known) if known.last_seen >= snapshot.began => report.in_flight += 1,
                Some(known) => {
                    report.rekeyed += 1;
                    report.note_drift(sem, set.key, DriftKind::Rekeyed { was: known.key });
                    let changes = &mut report.changes;
                    self.close_set(sem, snapshot.began, EndKind::Vanished, None, changes);
                    self.enter_found(sem, set, WhyUnknown::Missed, snapshot, report);
                }
                None if self.marks.get(sem).is_some_and(|mark| {
                    mark.key == set.key && mark.observed && mark.closed >= snapshot.began
                }) =>
                {
                    report.in_flight += 1;
                }
                None if self.reconciled => {
                    report.unknown += 1;
                    report.note_drift(sem, set.key, DriftKind::Unknown);
                    self.enter_found(sem, set, WhyUnknown::Missed, snapshot, report);
                }
                None => {
                    report.preexisting += 1;
                    self.enter_found(sem, set, WhyUnknown::BeforeTracer, snapshot, report);
                }
            }
        }
    }

    /// Enters a set that only the snapshot knows.
    fn enter_found(
        &mut self,
        sem: SemId,
        set: &SetSnapshot,
        why: WhyUnknown,
        snapshot: &Snapshot,
        report: &mut Reconciliation,
    ) {
        self.enter_set(NewSet {
            id: sem,
            key: set.key,
            nsems: set.nsems,
            semflg: None,
            origin: Origin::Snapshot,
            created: None,
            seen: snapshot.ended,
            creator: Creator::Unknown(why),
        });
        if let Some(cookie) = self.cookie_mut(sem) {
            cookie.gaps.operations = true;
            cookie.base = set.first.map(|first| first.value);
            cookie.synced = snapshot.began;
        }
        report.changes.push(Change {
            at: snapshot.ended,
            sem,
            key: set.key,
            who: None,
            kind: ChangeKind::Found,
        });
    }

    /// A set that both have: completes and compares it.
    fn confirm_set(
        &mut self,
        sem: SemId,
        set: &SetSnapshot,
        snapshot: &Snapshot,
        report: &mut Reconciliation,
    ) {
        let Some(known) = self.live.get_mut(&sem) else {
            return;
        };
        let busy = known.last_seen >= snapshot.began;
        known.last_seen = known.last_seen.max(snapshot.began);
        if known.nsems == 0 {
            known.nsems = set.nsems;
        }
        if !self.reconciled && known.created.is_none() && known.creator.image().is_none() {
            // Used between the start of the tracer and its first snapshot.
            known.creator = Creator::Unknown(WhyUnknown::BeforeTracer);
        }
        let (Some(cookie), Some(first)) = (known.cookie.as_deref_mut(), set.first) else {
            return;
        };
        let was = cookie.value();
        if was == Some(first.value) {
            return;
        }
        if busy {
            report.in_flight += 1;
            return;
        }
        cookie.base = Some(first.value);
        cookie.sum = 0;
        cookie.first_op = None;
        cookie.clear_owed();
        cookie.synced = cookie.synced.max(snapshot.began);
        cookie.gaps.operations = true;
        // A drift. Without a value in the books messages are missing, and a record has them all.
        cookie.doubt |= was.is_some();
        if let Some(was) = was {
            report.revalued += 1;
            let is = first.value;
            report.note_drift(sem, set.key, DriftKind::Revalued { was, is });
        }
    }

    /// Closes the sets of a namespace that the snapshot does not show.
    fn close_absent(
        &mut self,
        ns: IpcNs,
        present: &BTreeSet<i32>,
        began: BootTime,
        report: &mut Reconciliation,
    ) {
        let missing: Vec<SemId> = self
            .live
            .range(all_of(ns))
            .filter(|(sem, _)| !present.contains(&sem.semid))
            .map(|(&sem, _)| sem)
            .collect();
        for sem in missing {
            let Some(known) = self.live.get(&sem) else {
                continue;
            };
            if known.last_seen >= began {
                report.in_flight += 1;
                continue;
            }
            report.vanished += 1;
            report.note_drift(sem, known.key, DriftKind::Vanished);
            let changes = &mut report.changes;
            self.close_set(sem, began, EndKind::Vanished, None, changes);
        }
    }

    /// Whether [`reconcile`](Self::reconcile) would close sets because their namespace is not
    /// found any more. Whoever can see namespaces end may rather wait for that: the kernel removes
    /// the sets some time after the last process has left (`ipc/namespace.c:free_ipc`).
    pub fn misses_namespaces(&self, snapshot: &Snapshot) -> bool {
        snapshot.incomplete.is_empty()
            && self
                .of_missing_namespaces(snapshot)
                .any(|(_, last_seen)| last_seen < snapshot.began)
    }

    /// Sets of namespaces that a snapshot neither shows nor failed to read, and when they were
    /// last seen.
    fn of_missing_namespaces(
        &self,
        snapshot: &Snapshot,
    ) -> impl Iterator<Item = (SemId, BootTime)> {
        let unreadable = snapshot.unreadable.iter().map(|(ns, _)| *ns);
        let kept: BTreeSet<IpcNs> = snapshot
            .namespaces
            .iter()
            .map(|ns| ns.ns)
            .chain(unreadable)
            .collect();
        self.live
            .values()
            .filter(move |known| !snapshot.namespaces.is_empty() && !kept.contains(&known.id.ns))
            .map(|known| (known.id, known.last_seen))
    }

    /// Closes the sets of namespaces that are not found any more.
    fn absent_namespaces(&mut self, snapshot: &Snapshot, report: &mut Reconciliation) {
        let missing: Vec<(SemId, BootTime)> = self.of_missing_namespaces(snapshot).collect();
        for (sem, last_seen) in missing {
            if last_seen >= snapshot.began {
                report.in_flight += 1;
                continue;
            }
            match report.namespaces_gone.last_mut() {
                Some((ns, count)) if *ns == sem.ns => *count += 1,
                _ => report.namespaces_gone.push((sem.ns, 1)),
            }
            let changes = &mut report.changes;
            self.close_set(sem, snapshot.began, EndKind::NamespaceGone, None, changes);
        }
    }
}
