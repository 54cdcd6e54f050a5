//! Nonsense.

use proptest::prelude::*;

use super::{maps::sem_record, *};

fn any_what() -> impl Strategy<Value = EventKind> {
    let set = (0..3_i32, 0..2_u32).prop_map(|(semid, ns)| SemId {
        ns: IpcNs(ns),
        semid,
    });
    let key = prop::sample::select(vec![Key(0), Key(5), KEY, Key(0x0d4d_0001)]);
    let errno = prop::sample::select(vec![0, 0, 4, 11, 22, 28, 43, i32::MAX]);
    let ops = prop::collection::vec(
        (0..2_u16, any::<i16>(), any::<i16>()).prop_map(|(num, op, flg)| Operation {
            num,
            op,
            flg,
        }),
        0..4,
    );
    (0..10, set, key, errno, ops, any::<i32>()).prop_map(|(kind, sem, key, errno, ops, n)| {
        match kind {
            0 | 1 => EventKind::Created {
                sem,
                key,
                nsems: n as u32,
                semflg: n as u32,
            },
            2 => EventKind::CreateFailed {
                ns: sem.ns,
                key,
                errno,
            },
            3 => EventKind::SetVal {
                sem,
                key,
                value: n,
                errno,
            },
            4 => EventKind::Op {
                sem,
                key,
                ops,
                errno,
            },
            5 => EventKind::WaitBegin { sem, key, ops },
            6 | 7 => EventKind::Destroyed { sem, key },
            8 => EventKind::Exit {
                status: ExitStatus::from_wait(n),
            },
            _ if n < 0 => EventKind::LookupFailed {
                ns: sem.ns,
                key,
                errno,
            },
            _ => EventKind::Process(Box::<ProcessImage>::default()),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever the kernel side says, in whatever order: the books stay in balance.
    #[test]
    fn nonsense_does_no_harm(
        events in prop::collection::vec((0..40_u64, 0..4_u32, any::<u8>(), any_what()), 0..60)
    ) {
        let mut ledger = Ledger::new();
        for (at, tgid, flags, what) in events {
            let mut event = event_at(at, tgid, what);
            event.quality.untracked = flags & 1 != 0;
            event.quality.ns_teardown = flags & 14 == 0;
            event.quality.no_result = flags & 48 == 0;
            ledger.apply(&event);
            prop_assert_eq!(ledger.check_invariants(), Ok(()));
            if flags > 250 {
                ledger.reconcile(&snapshot_of(at, &[(1, KEY, i32::from(flags))]));
            } else if flags > 240 {
                let state = u32::from(flags) << 2 & 0x7f;
                ledger.adopt_record(sem_id(1), &sem_record(state));
            }
            prop_assert_eq!(ledger.check_invariants(), Ok(()));
        }
        for set in ledger.live_sets().chain(ledger.closed_cookies()) {
            if let Some(cookie) = &set.cookie {
                cookie.phase();
            }
        }
    }
}
