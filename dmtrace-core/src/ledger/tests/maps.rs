//! Map records and snapshots into the books.

use dmtrace_common::{
    ProcKey, ProcRecord, SEM_ANNOUNCED, SEM_COOKIE, SEM_MISSED, SEM_OPS_DROPPED, SEM_PREEXISTING,
    SEM_TOMBSTONE, SemKey, SemRecord,
};

use super::*;

pub(super) fn sem_record(state: u32) -> SemRecord {
    SemRecord {
        created: 10,
        last_op: 30,
        creator: ProcKey {
            start: 2,
            tgid: 2,
            exec: 0,
        },
        key: KEY.0,
        nsems: 1,
        semflg: 0o600,
        state: state | SEM_COOKIE,
        value: 2,
        owner_inc: 1,
        setvals: 1,
        ..SemRecord::default()
    }
}

#[test]
fn a_record_replaces_lost_messages_and_once_only() {
    let mut ledger = Ledger::new();
    let changes = ledger.adopt_record(sem_id(1), &sem_record(SEM_OPS_DROPPED));
    assert_eq!(changes.len(), 1);
    assert!(
        ledger
            .adopt_record(sem_id(1), &sem_record(SEM_OPS_DROPPED))
            .is_empty()
    );
    // What the record contains already is not counted again; what came after is.
    ledger.apply(&created_event(10, 2, 1, KEY));
    ledger.apply(&op_event(30, 2, 1, 1));
    ledger.apply(&op_event(40, 9, 1, -1));
    let set = ledger.semaphore(sem_id(1)).unwrap();
    let cookie = set.cookie.as_ref().unwrap();
    assert_eq!(cookie.value(), Some(1));
    assert_eq!((cookie.counts.owner_inc, cookie.counts.other_dec), (1, 1));
    assert_eq!(set.origin, Origin::Map);
    assert_eq!(ledger.totals().sets.created, 1);
    assert_eq!(ledger.check_invariants(), Ok(()));
}

#[test]
fn a_record_is_the_whole_story_from_the_creation_on() {
    // The owner was killed; the messages of what it did were dropped, known or not.
    for announced in [false, true] {
        let mut ledger = Ledger::new();
        if announced {
            ledger.apply(&created_event(10, 2, 1, KEY));
        }
        ledger.adopt_record(sem_id(1), &sem_record(SEM_OPS_DROPPED | SEM_ANNOUNCED));
        let cookie = ledger
            .semaphore(sem_id(1))
            .unwrap()
            .cookie
            .as_ref()
            .unwrap();
        assert!(!cookie.gaps.affects_verdicts());
        assert_eq!(cookie.counts.owner_inc, 1);
        assert_eq!(cookie.users.first().unwrap().stage, UserStage::Armed);
    }
    // Of one that is older than the tracer there is more than the record knows.
    let mut old = sem_record(SEM_OPS_DROPPED | SEM_PREEXISTING);
    old.created = 0;
    let mut ledger = Ledger::new();
    ledger.adopt_record(sem_id(1), &old);
    let cookie = ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap();
    assert!(cookie.gaps.operations);
}

#[test]
fn sums_do_not_tell_how_far_a_transaction_has_come() {
    // +1 −1 +1 or +1 +1 −1: its ioctl may still run. With one of each there is one order.
    for (incs, unclear) in [(1, false), (2, true)] {
        let mut sums = sem_record(SEM_ANNOUNCED);
        (sums.owner_inc, sums.owner_dec) = (incs, 1);
        let mut ledger = Ledger::new();
        ledger.adopt_record(sem_id(1), &sums);
        let cookie = ledger
            .semaphore(sem_id(1))
            .unwrap()
            .cookie
            .as_ref()
            .unwrap();
        assert_eq!(cookie.gaps.order, unclear);
        assert!(!cookie.gaps.affects_verdicts());
    }
}

#[test]
fn found_later_is_not_older_than_the_trace() {
    for (state, why) in [
        (0, WhyUnknown::BeforeTracer),
        (SEM_MISSED, WhyUnknown::Missed),
    ] {
        let mut found = sem_record(SEM_PREEXISTING | state);
        (found.created, found.creator) = (0, ProcKey::default());
        let mut ledger = Ledger::new();
        ledger.adopt_record(sem_id(1), &found);
        let set = ledger.semaphore(sem_id(1)).unwrap();
        assert_eq!(set.creator, Creator::Unknown(why));
    }
}

#[test]
fn a_tombstone_that_comes_long_after_the_removal_is_not_counted_again() {
    for (told, state) in [
        (true, SEM_ANNOUNCED | SEM_OPS_DROPPED | SEM_TOMBSTONE),
        (false, SEM_TOMBSTONE),
    ] {
        let mut tombstone = sem_record(state);
        tombstone.closed = 50;
        tombstone.closer = tombstone.creator;
        let mut ledger = Ledger::new();
        ledger.apply(&created_event(9, 2, 100, KEY));
        if told {
            ledger.apply(&created_event(10, 2, 1, KEY));
        }
        ledger.apply(&destroyed_event(50, 2, 1, KEY));
        for semid in 101..10_000 {
            ledger.apply(&created_event(60, 2, semid, Key(5)));
            ledger.apply(&destroyed_event(61, 2, semid, Key(5)));
        }
        let changes = ledger.adopt_record(sem_id(1), &tombstone);
        // Who made it is told, if that was not known.
        let made: Vec<u32> = changes
            .iter()
            .filter(|change| matches!(change.kind, ChangeKind::Created { .. }))
            .filter_map(|change| Some(change.who.as_ref()?.image.id.tgid))
            .collect();
        assert_eq!(made, if told { vec![] } else { vec![2] });
        let sets = ledger.totals().cookies;
        assert_eq!((sets.created, sets.found, sets.destroyed), (2, 0, 1));
        assert_eq!(ledger.check_invariants(), Ok(()));
    }
}

#[test]
fn a_tombstone_from_before_the_first_event_is_news() {
    let mut tombstone = sem_record(SEM_ANNOUNCED | SEM_OPS_DROPPED | SEM_TOMBSTONE);
    tombstone.closed = 50;
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(60, 2, 100, KEY));
    assert_eq!(ledger.adopt_record(sem_id(1), &tombstone).len(), 2);
}

#[test]
fn a_tombstone_opens_and_closes_once_only() {
    let mut tombstone = sem_record(SEM_TOMBSTONE);
    tombstone.closed = 50;
    tombstone.closer = tombstone.creator;
    for key in [KEY.0, 5] {
        tombstone.key = key;
        let mut ledger = Ledger::new();
        for _ in 0..3 {
            ledger.adopt_record(sem_id(1), &tombstone);
        }
        let sets = ledger.totals().sets;
        assert_eq!((sets.created, sets.destroyed, sets.live), (1, 1, 0));
        // Its messages may still arrive.
        ledger.apply(&created_event(10, 2, 1, Key(key)));
        ledger.apply(&destroyed_event(50, 2, 1, Key(key)));
        assert_eq!(ledger.totals().sets, sets);
        assert_eq!(ledger.check_invariants(), Ok(()));
    }
}

#[test]
fn a_known_set_keeps_its_story_when_its_record_is_read() {
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(10, 2, 1, KEY));
    ledger.apply(&setval_event(20, 2, 1));
    ledger.apply(&op_event(30, 2, 1, 1));
    let before = serde_json::to_string(ledger.semaphore(sem_id(1)).unwrap()).unwrap();
    assert!(
        ledger
            .adopt_record(sem_id(1), &sem_record(SEM_ANNOUNCED))
            .is_empty()
    );
    let after = serde_json::to_string(ledger.semaphore(sem_id(1)).unwrap()).unwrap();
    assert_eq!(before, after);
}

#[test]
fn each_difference_from_a_snapshot_is_reported() {
    let mut ledger = Ledger::new();
    let first = ledger.reconcile(&snapshot_of(5, &[(7, Key(1), 0)]));
    assert_eq!((first.preexisting, first.drift_count()), (1, 0));
    for semid in [1, 2, 3] {
        ledger.apply(&created_event(10, 2, semid, KEY));
    }
    ledger.apply(&created_event(105, 2, 4, KEY));
    // 1 has vanished, 2 has another key, 3 another value, 7 is there, 9 is new, 4 is younger than
    // the snapshot.
    let sets = [
        (2, Key(0x0d4d_5555), 0),
        (3, KEY, 2),
        (7, Key(1), 0),
        (9, KEY, 1),
    ];
    let report = ledger.reconcile(&snapshot_of(100, &sets));
    assert_eq!(
        (report.vanished, report.rekeyed, report.revalued),
        (1, 1, 1)
    );
    assert_eq!((report.unknown, report.in_flight), (1, 1));
    assert_eq!(report.drift_count(), 4);
    assert_eq!(report.drifts.len(), 4);
    assert!(serde_json::to_string(&report).unwrap().contains("revalued"));
    let live: Vec<i32> = ledger.live_sets().map(|set| set.id.semid).collect();
    assert_eq!(live, [2, 3, 4, 7, 9]);
    assert_eq!(ledger.check_invariants(), Ok(()));
    let again = ledger.reconcile(&snapshot_of(200, &[(2, Key(0x0d4d_5555), 0), (3, KEY, 2)]));
    assert_eq!((again.vanished, again.drift_count()), (3, 3));
}

#[test]
fn a_namespace_that_is_gone_closes_its_sets() {
    let mut ledger = Ledger::new();
    ledger.reconcile(&snapshot_of(1, &[]));
    assert!(!ledger.misses_namespaces(&snapshot_of(2, &[])));
    let other = IpcNs(77);
    let hidden = IpcNs(78);
    for ns in [other, hidden] {
        let mut event = created_event(10, 2, 1, KEY);
        event.what = EventKind::Created {
            sem: SemId { ns, semid: 1 },
            key: KEY,
            nsems: 1,
            semflg: 0o600,
        };
        ledger.apply(&event);
    }
    let mut now = snapshot_of(100, &[]);
    now.unreadable.push((hidden, "no way in".to_owned()));
    assert!(ledger.misses_namespaces(&now));
    let report = ledger.reconcile(&now);
    assert!(!ledger.misses_namespaces(&now));
    assert_eq!(report.namespaces_gone, [(other, 1)]);
    assert_eq!(report.unreadable, [hidden]);
    assert_eq!(ledger.live_in(hidden).count(), 1);
    assert_eq!(ledger.live_in(other).count(), 0);
    // Where namespaces may have been overlooked, absence says nothing.
    let mut now = snapshot_of(200, &[]);
    now.incomplete.push("not root".to_owned());
    assert!(!ledger.misses_namespaces(&now));
    assert!(ledger.reconcile(&now).namespaces_gone.is_empty());
    // A snapshot of nothing at all says nothing.
    assert_eq!(ledger.reconcile(&Snapshot::default()).drift_count(), 0);
    assert_eq!(ledger.totals().sets.live, 1);
}

#[test]
fn a_late_end_corrects_an_inferred_one() {
    let mut ledger = Ledger::new();
    ledger.reconcile(&snapshot_of(1, &[]));
    ledger.apply(&created_event(10, 2, 1, KEY));
    assert_eq!(ledger.reconcile(&snapshot_of(100, &[])).vanished, 1);
    ledger.apply(&destroyed_event(90, 2, 1, KEY));
    let sets = ledger.totals().sets;
    assert_eq!((sets.destroyed, sets.vanished), (1, 0));
    assert_eq!(ledger.check_invariants(), Ok(()));
}

#[test]
fn the_record_of_one_killed_in_its_wait_tells_that_it_waited() {
    const SECOND: u64 = 1_000_000_000;
    let mut killed = sem_record(0);
    killed.last_op = 5 * SECOND;
    killed.owner_dec = 1;
    killed.value = 1;
    (killed.waits, killed.waits_done) = (1, 1);
    killed.waiter = killed.creator;
    killed.last_actor = killed.creator;
    killed.last_error = -libc::EINTR;
    let mut ledger = Ledger::new();
    ledger.adopt_record(sem_id(1), &killed);
    let status = ExitStatus::Signal(9);
    ledger.apply(&event_at(5 * SECOND + 1000, 2, EventKind::Exit { status }));
    let cookie = ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap();
    assert!(cookie.users[0].exit.is_some());
    assert_eq!(cookie.user_stage(&cookie.users[0]), UserStage::Waiting);
}

#[test]
fn creators_that_have_ended_keep_their_end_however_many_there_are() {
    const OWNERS: u32 = 40;
    let key = |tgid: u32| ProcKey {
        start: u64::from(tgid),
        tgid,
        exec: 0,
    };
    let mut processes = Vec::new();
    let mut sets = Vec::new();
    for tgid in 1..=OWNERS {
        // SAFETY: a plain struct of integers; zeros are valid.
        let mut process: ProcRecord = unsafe { std::mem::zeroed() };
        process.header.actor = key(tgid);
        process.header.ts = 5;
        process.exited = 40;
        process.exit_code = 9;
        processes.push((key(tgid), process));
        let mut set = sem_record(SEM_ANNOUNCED);
        set.creator = key(tgid);
        let sem = SemKey {
            ns: 1,
            semid: tgid as i32,
        };
        sets.push((sem, set));
    }
    // Of somebody without a record.
    let stranger = SemKey { ns: 1, semid: 99 };
    sets.push((stranger, sem_record(SEM_ANNOUNCED | SEM_PREEXISTING)));
    let mut ledger = Ledger::with_retention(Retention {
        closed: 4,
        removed: 4,
        idle: 4,
    });
    for record in in_order(processes, sets) {
        match record {
            MapRecord::Process(_, record) => ledger.adopt_process(&record),
            MapRecord::Set(key, record) => ledger.adopt_record(key.into(), &record),
        };
    }
    assert_eq!(ledger.live_sets().count(), OWNERS as usize + 1);
    for set in ledger.live_sets().filter(|set| set.id != stranger.into()) {
        let owner = ledger.process(set.creator.image().unwrap()).unwrap();
        assert!(owner.image.is_some() && owner.exit.is_some(), "{owner:?}");
        let cookie = set.cookie.as_ref().unwrap();
        assert!(cookie.users[0].exit.is_some());
    }
}

fn cookie_of(ledger: &Ledger) -> &Cookie {
    ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap()
}

#[test]
fn a_record_completes_a_cookie_whose_creation_was_dropped() {
    // The first message that came through is that of an operation; those after it, too, or not.
    for state in [0, SEM_OPS_DROPPED] {
        let mut ledger = Ledger::new();
        ledger.apply(&op_event(30, 2, 1, 1));
        assert!(cookie_of(&ledger).gaps.operations);
        ledger.adopt_record(sem_id(1), &sem_record(state));
        let cookie = cookie_of(&ledger);
        assert!(
            !cookie.gaps.affects_verdicts(),
            "{state:#x}: {:?}",
            cookie.gaps
        );
        assert_eq!(cookie.value(), Some(2));
        assert_eq!((cookie.counts.owner_inc, cookie.counts.setvals), (1, 1));
        // What comes later is counted as ever.
        ledger.apply(&op_event(40, 9, 1, -1));
        assert_eq!(cookie_of(&ledger).value(), Some(1));
    }
}

#[test]
fn a_record_completes_a_cookie_that_a_snapshot_has_shown_first() {
    let mut ledger = Ledger::new();
    ledger.reconcile(&snapshot_of(1, &[]));
    ledger.reconcile(&snapshot_of(50, &[(1, KEY, 2)]));
    assert!(cookie_of(&ledger).gaps.operations);
    ledger.adopt_record(sem_id(1), &sem_record(0));
    assert!(!cookie_of(&ledger).gaps.affects_verdicts());
    assert_eq!(ledger.check_invariants(), Ok(()));
}

#[test]
fn what_the_kernel_side_has_missed_is_in_no_record() {
    // Used while no probe was in its place.
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(10, 2, 1, KEY));
    ledger.was_blind();
    ledger.adopt_record(sem_id(1), &sem_record(SEM_OPS_DROPPED | SEM_ANNOUNCED));
    assert!(cookie_of(&ledger).gaps.operations);
    // The kernel has another value than all messages make.
    let mut ledger = Ledger::new();
    ledger.reconcile(&snapshot_of(1, &[]));
    ledger.apply(&created_event(10, 2, 1, KEY));
    ledger.apply(&setval_event(20, 2, 1));
    ledger.apply(&op_event(30, 2, 1, 1));
    assert_eq!(
        ledger.reconcile(&snapshot_of(50, &[(1, KEY, 3)])).revalued,
        1
    );
    ledger.adopt_record(sem_id(1), &sem_record(SEM_OPS_DROPPED | SEM_ANNOUNCED));
    assert!(cookie_of(&ledger).gaps.operations);
    // Of a set that was there before a record has the later part only.
    let mut ledger = Ledger::new();
    ledger.apply(&op_event(30, 2, 1, 1));
    ledger.adopt_record(sem_id(1), &sem_record(SEM_OPS_DROPPED | SEM_PREEXISTING));
    assert!(cookie_of(&ledger).gaps.operations);
}
