//! Changes in the order in which they came about.
//!
//! Whoever completes the last operation of a cookie wakes its waiter, which may be seen to go on,
//! and to remove the cookie, before the return of the completion is seen. The books know that it is
//! still to come ([`Ledger::awaits_decrements`]); what would be told of that cookie waits for it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dmtrace_core::{
    ids::SemId,
    ledger::{Change, Ledger},
};

/// A program that stands between its operation and its message does not stand longer than this,
/// unless the host does nothing else. Then the order of the lines is lost, but no line.
const MAX_REORDER_WAIT: Duration = Duration::from_millis(500);

/// Changes that wait for an earlier one.
#[derive(Debug, Default)]
pub(super) struct ChangeOrder {
    held: BTreeMap<SemId, (Instant, Vec<Change>)>,
}

impl ChangeOrder {
    /// Takes out of `changes` what has to wait, and puts in what has waited and need not any more.
    pub(super) fn arrange_changes(&mut self, changes: &mut Vec<Change>, ledger: &Ledger) {
        let waits = |sem: &SemId| ledger.awaits_decrements(*sem);
        if self.held.is_empty() && !changes.iter().any(|change| waits(&change.sem)) {
            return;
        }
        for change in std::mem::take(changes) {
            let sem = change.sem;
            if !self.held.contains_key(&sem) && !waits(&sem) {
                changes.push(change);
                continue;
            }
            let (_, held) = self
                .held
                .entry(sem)
                .or_insert_with(|| (Instant::now(), Vec::new()));
            held.push(change);
            if !waits(&sem)
                && let Some((_, held)) = self.held.remove(&sem)
            {
                changes.extend(in_time(held));
            }
        }
    }

    /// What has waited too long, or everything.
    pub(super) fn give_up(&mut self, everything: bool) -> Vec<Change> {
        let over = |since: &Instant| everything || since.elapsed() >= MAX_REORDER_WAIT;
        let old: Vec<SemId> = self
            .held
            .iter()
            .filter(|(_, (since, _))| over(since))
            .map(|(&sem, _)| sem)
            .collect();
        let old = old.into_iter().filter_map(|sem| self.held.remove(&sem));
        old.flat_map(|(_, held)| in_time(held)).collect()
    }
}

fn in_time(mut changes: Vec<Change>) -> Vec<Change> {
    // Stable: what has the same time stays as it was told.
    changes.sort_by_key(|change| change.at);
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmtrace_core::{
        event::{Actor, Event, EventKind, Operation, Quality},
        ids::{BootTime, IpcNs, Key, ProcId},
        ledger::ChangeKind,
    };

    const KEY: Key = Key(0x0d4d_1234);
    const SEM: SemId = SemId {
        ns: IpcNs::HOST,
        semid: 5,
    };

    fn event_at(at: u64, began: u64, tgid: u32, what: EventKind) -> Event {
        Event {
            at: BootTime(at),
            began: Some(BootTime(began)),
            actor: Actor {
                id: ProcId {
                    tgid,
                    start: BootTime(1),
                },
                tid: tgid,
                ..Actor::default()
            },
            quality: Quality::default(),
            what,
        }
    }

    fn op_event(at: u64, began: u64, tgid: u32, op: i16) -> Event {
        let what = EventKind::Op {
            sem: SEM,
            key: KEY,
            ops: vec![Operation { num: 0, op, flg: 0 }],
            errno: 0,
        };
        event_at(at, began, tgid, what)
    }

    /// What one cookie with two uevents goes through, by the time at which it takes effect.
    fn cookie_life() -> Vec<Event> {
        let (sem, key) = (SEM, KEY);
        let ops = vec![Operation {
            num: 0,
            op: 0,
            flg: 0,
        }];
        vec![
            event_at(
                10,
                10,
                2,
                EventKind::Created {
                    sem,
                    key,
                    nsems: 1,
                    semflg: 0o600,
                },
            ),
            event_at(
                20,
                19,
                2,
                EventKind::SetVal {
                    sem,
                    key,
                    value: 1,
                    errno: 0,
                },
            ),
            op_event(30, 29, 2, 1),
            op_event(40, 39, 2, 1),
            op_event(50, 49, 2, -1),
            event_at(60, 60, 2, EventKind::WaitBegin { sem, key, ops }),
            // Told at 95 and 99, with the cookie gone at 90.
            op_event(95, 70, 8, -1),
            op_event(99, 75, 9, -1),
            op_event(80, 60, 2, 0),
            event_at(90, 90, 2, EventKind::Destroyed { sem, key }),
        ]
    }

    /// What is told when the messages come in this order.
    fn reported_changes(order: &[usize]) -> Vec<Change> {
        let (mut ledger, mut sorted, mut all) = (Ledger::new(), ChangeOrder::default(), Vec::new());
        let events = cookie_life();
        for &index in order {
            let mut changes = ledger.apply(&events[index]);
            sorted.arrange_changes(&mut changes, &ledger);
            all.extend(changes);
        }
        all.extend(sorted.give_up(true));
        all
    }

    #[test]
    fn whenever_completions_are_told_each_step_is_shown_in_its_order() {
        let steps = |changes: &[Change]| -> Vec<(&'static str, Option<i32>)> {
            let step = |change: &Change| match &change.kind {
                ChangeKind::Created { .. } => ("created", None),
                ChangeKind::Set { to } => ("set", Some(*to)),
                ChangeKind::Up { to } => ("up", *to),
                ChangeKind::Down { to, .. } => ("down", *to),
                ChangeKind::Waiting { value } => ("waiting", *value),
                ChangeKind::Released => ("released", None),
                ChangeKind::Destroyed { .. } => ("destroyed", None),
                other => panic!("{other:?}"),
            };
            changes.iter().map(step).collect()
        };
        let expected = steps(&reported_changes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(expected.len(), 10);
        let late = [
            [0, 1, 2, 3, 4, 5, 6, 8, 7, 9],
            [0, 1, 2, 3, 4, 5, 6, 8, 9, 7],
            [0, 1, 2, 3, 4, 5, 8, 6, 7, 9],
            [0, 1, 2, 3, 4, 5, 8, 6, 9, 7],
            [0, 1, 2, 3, 4, 5, 8, 9, 6, 7],
        ];
        for order in late {
            assert_eq!(steps(&reported_changes(&order)), expected, "{order:?}");
        }
    }

    #[test]
    fn what_is_never_told_delays_the_rest_and_takes_none_of_it() {
        let all = reported_changes(&[0, 1, 2, 3, 4, 5, 6, 8, 9]);
        assert_eq!(all.len(), 9);
        assert!(matches!(all[8].kind, ChangeKind::Destroyed { .. }));
    }
}
