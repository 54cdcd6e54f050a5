//! Bounds, order and repetition; the protocol itself is tested with the verdicts.

mod chaos;
mod devices;
mod maps;

use super::*;
use crate::{
    event::{Actor, Event, EventKind, ExitStatus, Operation, ProcessImage, Quality},
    facts::{NsSnapshot, SemState, SetSnapshot, Snapshot},
};

const KEY: Key = Key(0x0d4d_1234);

fn sem_id(semid: i32) -> SemId {
    SemId {
        ns: IpcNs::HOST,
        semid,
    }
}

fn event_at(at: u64, tgid: u32, what: EventKind) -> Event {
    Event {
        at: BootTime(at),
        began: None,
        actor: Actor {
            id: ProcId {
                tgid,
                start: BootTime(u64::from(tgid)),
            },
            exec: 0,
            tid: tgid,
            comm: "lvm".to_owned(),
        },
        quality: Quality::default(),
        what,
    }
}

fn created_event(at: u64, tgid: u32, semid: i32, key: Key) -> Event {
    let what = EventKind::Created {
        sem: sem_id(semid),
        key,
        nsems: 1,
        semflg: 0o600,
    };
    event_at(at, tgid, what)
}

fn destroyed_event(at: u64, tgid: u32, semid: i32, key: Key) -> Event {
    let sem = sem_id(semid);
    event_at(at, tgid, EventKind::Destroyed { sem, key })
}

fn op_event(at: u64, tgid: u32, semid: i32, op: i16) -> Event {
    let what = EventKind::Op {
        sem: sem_id(semid),
        key: KEY,
        ops: vec![Operation { num: 0, op, flg: 0 }],
        errno: 0,
    };
    event_at(at, tgid, what)
}

fn setval_event(at: u64, tgid: u32, semid: i32) -> Event {
    let what = EventKind::SetVal {
        sem: sem_id(semid),
        key: KEY,
        value: 1,
        errno: 0,
    };
    event_at(at, tgid, what)
}

fn exit_event(at: u64, tgid: u32) -> Event {
    let status = ExitStatus::Code(0);
    event_at(at, tgid, EventKind::Exit { status })
}

fn snapshot_of(began: u64, sets: &[(i32, Key, i32)]) -> Snapshot {
    Snapshot {
        began: BootTime(began),
        ended: BootTime(began + 10),
        namespaces: vec![NsSnapshot {
            ns: IpcNs::HOST,
            sets: sets
                .iter()
                .map(|&(semid, key, value)| SetSnapshot {
                    semid,
                    key,
                    nsems: 1,
                    first: Some(SemState {
                        value,
                        ..SemState::default()
                    }),
                    ..SetSnapshot::default()
                })
                .collect(),
            ..NsSnapshot::default()
        }],
        ..Snapshot::default()
    }
}

#[test]
fn many_lifecycles_need_little_memory() {
    let mut ledger = Ledger::new();
    let mut changes = Vec::new();
    for n in 0..60_000_u32 {
        let at = u64::from(n) * 100;
        let key = if n % 4 == 0 { KEY } else { Key(0) };
        for event in [
            created_event(at, n + 2, n as i32, key),
            destroyed_event(at + 1, n + 2, n as i32, key),
            exit_event(at + 2, n + 2),
        ] {
            ledger.apply_into(&event, &mut changes);
            changes.clear();
        }
    }
    assert_eq!(ledger.check_invariants(), Ok(()));
    assert_eq!(ledger.totals().sets.created, 60_000);
    assert_eq!(ledger.totals().cookies.destroyed, 15_000);
    assert!(ledger.closed_cookies().count() <= Retention::FULL.closed);
    assert!(ledger.processes_kept() < 4096 + Retention::FULL.closed + 8);
    let programs = ledger.program_tallies();
    assert_eq!(programs["lvm"].created, 60_000);
    assert_eq!(programs["lvm"].destroyed, 60_000);
}

#[test]
fn processes_without_an_end_are_bounded_too() {
    let mut ledger = Ledger::new();
    for n in 0..80_000_u32 {
        ledger.apply(&created_event(u64::from(n), n + 2, n as i32, Key(0)));
        ledger.apply(&destroyed_event(u64::from(n), n + 2, n as i32, Key(0)));
    }
    assert!(
        ledger.processes_kept() <= 65_537,
        "{}",
        ledger.processes_kept()
    );
    assert_eq!(ledger.program_tallies()["lvm"].created, 80_000);
    assert_eq!(ledger.check_invariants(), Ok(()));
}

#[test]
fn a_long_story_keeps_its_beginning_and_its_end() {
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(1, 2, 1, KEY));
    ledger.apply(&setval_event(2, 2, 1));
    for n in 0..1000 {
        ledger.apply(&op_event(10 + n, 2, 1, 1));
        ledger.apply(&op_event(5000 + n, 1000 + n as u32, 1, -1));
    }
    let cookie = ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap();
    assert_eq!(cookie.value(), Some(1));
    assert_eq!(cookie.phase(), Phase::Done);
    assert_eq!(cookie.counts.completions, 1000);
    assert_eq!(cookie.counts.outstanding_increments(), 0);
    assert_eq!(cookie.timeline.head().len(), HEAD_STEPS);
    assert_eq!(cookie.timeline.tail().count(), TAIL_STEPS);
    assert_eq!(
        cookie.timeline.skipped(),
        2002 - (HEAD_STEPS + TAIL_STEPS) as u64
    );
    assert_eq!(cookie.completers.len(), MAX_COMPLETERS);
}

#[test]
fn many_users_make_it_crowded() {
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(1, 2, 1, KEY));
    for n in 0..40 {
        ledger.apply(&op_event(10 + n, 100 + n as u32, 1, 1));
    }
    let cookie = ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap();
    assert!(cookie.gaps.crowded);
    assert_eq!(cookie.users.len(), MAX_USERS);
    assert_eq!(cookie.users[0].who.image.id.tgid, 2, "the creator stays");
    // Users that have ended make room.
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(1, 2, 1, KEY));
    for n in 0..40 {
        ledger.apply(&op_event(10 + n, 100 + n as u32, 1, 1));
        ledger.apply(&exit_event(10 + n, 100 + n as u32));
    }
    let cookie = ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap();
    assert!(!cookie.gaps.crowded);
}

#[test]
fn the_beginning_may_arrive_last() {
    let events = [
        created_event(1, 2, 1, KEY),
        setval_event(2, 2, 1),
        op_event(3, 2, 1, 1),
        op_event(4, 9, 1, -1),
    ];
    let mut order = vec![0, 1, 2, 3];
    for _ in 0..24 {
        let mut ledger = Ledger::new();
        for &index in &order {
            ledger.apply(&events[index]);
            assert_eq!(ledger.check_invariants(), Ok(()));
        }
        let set = ledger.semaphore(sem_id(1)).unwrap();
        assert_eq!(set.created, Some(BootTime(1)), "{order:?}");
        assert_eq!(set.creator.image().map(|image| image.id.tgid), Some(2));
        let cookie = set.cookie.as_ref().unwrap();
        assert_eq!(cookie.value(), Some(1), "{order:?} {cookie:#?}");
        assert_eq!(cookie.counts.owner_inc, 1, "{order:?}");
        assert_eq!(ledger.totals().sets.found, 0);
        // Next permutation, by Narayana.
        let Some(k) = (0..3).rev().find(|&k| order[k] < order[k + 1]) else {
            break;
        };
        let l = (0..4).rev().find(|&l| order[k] < order[l]).unwrap();
        order.swap(k, l);
        order[k + 1..].reverse();
    }
}

#[test]
fn the_end_may_arrive_first() {
    for key in [KEY, Key(0)] {
        let mut ledger = Ledger::new();
        ledger.apply(&destroyed_event(9, 2, 1, key));
        assert_eq!(ledger.totals().sets.found, 1);
        ledger.apply(&created_event(1, 2, 1, key));
        assert_eq!(ledger.check_invariants(), Ok(()));
        let sets = ledger.totals().sets;
        assert_eq!((sets.created, sets.found, sets.live), (1, 0, 0));
        assert_eq!(ledger.program_tallies()["lvm"].destroyed, 1);
        // The same semid, much later, is another set.
        ledger.apply(&created_event(99, 2, 1, key));
        assert_eq!(ledger.totals().sets.live, 1);
    }
}

#[test]
fn a_used_semid_replaces_what_had_it() {
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(1, 2, 1, KEY));
    let changes = ledger.apply(&created_event(50, 3, 1, Key(0x0d4d_9999)));
    assert_eq!(changes.len(), 2);
    assert_eq!(ledger.totals().sets.vanished, 1);
    let set = ledger.semaphore(sem_id(1)).unwrap();
    assert_eq!(set.key, Key(0x0d4d_9999));
    assert_eq!(ledger.with_key(KEY).count(), 0);
    // A late operation on the old one does not touch the new one.
    ledger.apply(&op_event(20, 2, 1, 1));
    let cookie = ledger
        .semaphore(sem_id(1))
        .unwrap()
        .cookie
        .as_ref()
        .unwrap();
    assert_eq!(cookie.value(), Some(0));
    assert_eq!(ledger.check_invariants(), Ok(()));
}

#[test]
fn a_repeated_creation_changes_nothing() {
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(1, 2, 1, KEY));
    assert!(ledger.apply(&created_event(1, 2, 1, KEY)).is_empty());
    ledger.apply(&destroyed_event(5, 2, 1, KEY));
    assert!(ledger.apply(&destroyed_event(5, 2, 1, KEY)).is_empty());
    assert_eq!(ledger.totals().sets.created, 1);
    assert_eq!(ledger.totals().sets.destroyed, 1);
}

#[test]
fn exits_are_learnt_from_the_process_list() {
    let mut ledger = Ledger::new();
    ledger.apply(&created_event(10, 2, 1, KEY));
    let mut facts = HostFacts {
        now: BootTime(100),
        ..HostFacts::default()
    };
    assert!(
        ledger.observe_exits(&facts).is_empty(),
        "the list is not complete"
    );
    facts.processes_complete = true;
    let changes = ledger.observe_exits(&facts);
    assert!(matches!(
        changes[0].kind,
        ChangeKind::OwnerExited {
            status: None,
            stage: UserStage::Created
        }
    ));
    // The event itself may come later and says more.
    ledger.apply(&exit_event(50, 2));
    let process = ledger
        .images_of(ProcId {
            tgid: 2,
            start: BootTime(2),
        })
        .next();
    let exit = process.and_then(|process| process.exit);
    assert_eq!(exit.and_then(|exit| exit.status), Some(ExitStatus::Code(0)));
    // For its cookies too: the verdicts rest on these.
    let set = ledger.live_sets().next();
    let cookie = set.and_then(|set| set.cookie.as_deref());
    let user = cookie.and_then(|cookie| cookie.users.first());
    let exit = user.and_then(|user| user.exit);
    assert_eq!(exit.map(|exit| exit.at), Some(BootTime(50)));
    assert_eq!(exit.and_then(|exit| exit.status), Some(ExitStatus::Code(0)));
}

#[test]
fn a_victim_of_the_limits_is_counted() {
    let mut ledger = Ledger::new();
    for errno in [libc::ENOSPC, libc::ENOSPC, libc::ENOMEM] {
        let what = EventKind::CreateFailed {
            ns: IpcNs::HOST,
            key: KEY,
            errno,
        };
        let changes = ledger.apply(&event_at(1, 2, what));
        assert_eq!(changes[0].kind, ChangeKind::CreateFailed { errno });
    }
    assert_eq!(
        (ledger.totals().enospc_failures, ledger.totals().failed),
        (2, 1)
    );
    let tally = ledger.program_tallies()["lvm"];
    assert_eq!((tally.enospc_failures, tally.failed), (2, 1));
}

#[test]
fn changes_have_json() {
    let mut ledger = Ledger::new();
    let mut all = ledger.apply(&created_event(1, 2, 1, KEY));
    all.extend(ledger.apply(&setval_event(2, 2, 1)));
    all.extend(ledger.apply(&op_event(3, 2, 1, 1)));
    all.extend(ledger.apply(&op_event(4, 9, 1, -1)));
    all.extend(ledger.apply(&exit_event(5, 2)));
    all.extend(ledger.apply(&destroyed_event(6, 9, 1, KEY)));
    let names: Vec<String> = all
        .iter()
        .map(|change| serde_json::to_value(change).unwrap()["change"].to_string())
        .collect();
    let expected = ["created", "set", "up", "down", "owner_exited", "destroyed"];
    assert_eq!(names, expected.map(|name| format!("{name:?}")));
}

/// `cargo test --release -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement"]
fn speed() {
    for (name, key, background) in [
        ("ordinary sets", Key(0), 0),
        ("ordinary sets, 30,000 live", Key(0), 30_000),
        ("cookies", KEY, 0),
        ("cookies, 30,000 live", KEY, 30_000),
    ] {
        let mut ledger = Ledger::new();
        for n in 0..background {
            ledger.apply(&created_event(1, 2, 1_000_000 + n, key));
        }
        let mut events = Vec::new();
        for n in 0..100_000_i32 {
            let at = 10 + n as u64 * 10;
            let completer = 10 + n as u32;
            events.push(created_event(at, 3, n, key));
            if key == KEY {
                events.push(setval_event(at + 1, 3, n));
                events.push(op_event(at + 2, 3, n, 1));
                events.push(op_event(at + 3, completer, n, -1));
                events.push(exit_event(at + 4, completer));
                events.push(op_event(at + 5, 3, n, -1));
            }
            events.push(destroyed_event(at + 6, 3, n, key));
        }
        let mut changes = Vec::new();
        let begin = std::time::Instant::now();
        for event in &events {
            changes.clear();
            ledger.apply_into(event, &mut changes);
        }
        let time = begin.elapsed();
        println!(
            "{name}: {} events, {} ns each",
            events.len(),
            time.as_nanos() / events.len() as u128
        );
    }
}
