//! What happens between the check and the removal, step by step: a witness that is asked at the
//! last instant does it itself.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace::{
    cleanup::{
        apply::{CleanupOutcome, apply_plan},
        audit::Audit,
        witness::{NoWitness, Sighting, Witness},
    },
    host::{NsSession, Roots, clock, semaphores},
};
use dmtrace_core::{
    cleanup::plan::{
        CookieIdentity, Plan, PlanEntry, PlanOptions, PlannedAction, VERSION, VerdictSummary,
    },
    facts::SetSnapshot,
    ids::{BootTime, IpcNs, SemId},
    verdict::Touched,
};
use dmtrace_tests::{
    harness::{RunningActor, new_trial, ns_of, start_actor},
    sysv::{self, Abi},
};
use libtest_mimic::Trial;

use crate::{NEEDS, clean_scene::Scene};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "clean::nothing_moves_and_it_goes",
            NEEDS,
            nothing_moves_and_it_goes,
        ),
        new_trial(
            "clean::a_carrier_while_the_audit_record_is_synced",
            NEEDS,
            a_carrier_during_the_sync,
        ),
        new_trial(
            "clean::an_operation_at_the_last_instant",
            NEEDS,
            an_operation_at_the_last_instant,
        ),
        new_trial(
            "clean::a_waiter_at_the_last_instant",
            NEEDS,
            a_waiter_at_the_last_instant,
        ),
        new_trial(
            "clean::another_set_at_the_last_instant",
            NEEDS,
            another_set_at_the_last_instant,
        ),
        new_trial(
            "clean::other_rights_at_the_last_instant",
            NEEDS,
            other_rights_at_the_last_instant,
        ),
        new_trial(
            "clean::a_trace_that_sees_more",
            NEEDS,
            a_trace_that_sees_more,
        ),
        new_trial("clean::a_trace_that_sees_it_too_late", NEEDS, too_late),
    ]
}

type Deed = Box<dyn Fn() + Send + Sync>;

/// When it is asked for the first time, the facts about processes are gathered.
const BEFORE_THE_SYNC: u32 = 0;
/// And the second time: after the audit record is written, right before the last reading.
const AT_THE_LAST_INSTANT: u32 = 1;

/// Does something when it is asked.
struct Meddler {
    asked: AtomicU32,
    when: u32,
    deed: Deed,
}

impl Witness for Meddler {
    fn sighting_of(&self, _: SemId) -> Option<Sighting> {
        if self.asked.fetch_add(1, Ordering::Relaxed) == self.when {
            (self.deed)();
        }
        None
    }
}

/// Answers from a list.
struct SightingScript(Mutex<Vec<Sighting>>);

impl Witness for SightingScript {
    fn sighting_of(&self, _: SemId) -> Option<Sighting> {
        let mut answers = self.0.lock().ok()?;
        if answers.len() > 1 {
            Some(answers.remove(0))
        } else {
            answers.first().copied()
        }
    }
}

fn plan_for(set: &SetSnapshot) -> Result<Plan> {
    let ns = IpcNs(ns_of("thread-self")?);
    Ok(Plan {
        version: VERSION,
        made: clock::wall_now(),
        made_boot: clock::boot_now(),
        options: PlanOptions::default(),
        over_limit: false,
        excess: None,
        entries: vec![PlanEntry {
            sem: SemId {
                ns,
                semid: set.semid,
            },
            identity: CookieIdentity::from(set),
            owner: None,
            gone: Vec::new(),
            parents: Vec::new(),
            touched: Touched::default(),
            verdict: VerdictSummary {
                class: "leaked".to_owned(),
                text: "leaked".to_owned(),
                brief: String::new(),
                observed: true,
                evidence: Vec::new(),
            },
            orphan: None,
            action: PlannedAction::Destroy,
        }],
    })
}

fn read_set(semid: i32) -> Result<SetSnapshot> {
    let session = NsSession::find(&Roots::host(), IpcNs(ns_of("thread-self")?))?;
    let set = session.run(move |inside| semaphores::read_one(inside, semid))??;
    set.context("no set")
}

/// A leaked cookie, and what comes of a plan to remove it with this witness.
fn expect_outcome(
    witness: impl FnOnce(i32) -> Result<Arc<dyn Witness>> + Send,
    check: impl FnOnce(&CleanupOutcome, i32) -> Result<()> + Send,
) -> Result<()> {
    Scene::run_in(false, |scene| {
        let cookie = scene.leak_at("after-setval")?;
        let plan = plan_for(&read_set(cookie.semid)?)?;
        let path = scene.file_path("audit");
        let mut audit = Audit::open(path.as_ref())?;
        let stop = AtomicBool::new(false);
        let witness = witness(cookie.semid)?;
        let report = apply_plan(&plan, &mut audit, witness, &stop, &mut |_| {});
        let applied = report.applied.first().context("no outcome")?;
        check(&applied.outcome, cookie.semid)?;
        let last = scene.read_audit()?;
        let outcome = last.iter().find(|line| line["type"] == "clean_outcome");
        let outcome = outcome.context("no outcome in the audit record")?;
        ensure!(outcome["outcome"] == applied.outcome.label(), "{outcome}");
        Ok(())
    })
}

fn meddling_witness(when: u32, deed: impl Fn() + Send + Sync + 'static) -> Arc<dyn Witness> {
    Arc::new(Meddler {
        asked: AtomicU32::new(0),
        when,
        deed: Box::new(deed),
    })
}

/// The deed was done, and the set is still there.
fn expect_moved(outcome: &CleanupOutcome, semid: i32) -> Result<()> {
    ensure!(matches!(outcome, CleanupOutcome::Moved(_)), "{outcome:?}");
    ensure!(sysv::get_key(semid).is_ok(), "it is gone");
    Ok(())
}

fn nothing_moves_and_it_goes() -> Result<()> {
    expect_outcome(
        |_| Ok(Arc::new(NoWitness)),
        |outcome, semid| {
            ensure!(matches!(outcome, CleanupOutcome::Removed), "{outcome:?}");
            ensure!(sysv::get_key(semid).is_err(), "it is left");
            Ok(())
        },
    )
}

fn a_carrier_during_the_sync() -> Result<()> {
    let carrier: Arc<Mutex<Option<std::process::Child>>> = Arc::default();
    let keep = Arc::clone(&carrier);
    let done = expect_outcome(
        move |semid| {
            let key = format!("{:#010x}", sysv::get_key(semid)?);
            Ok(meddling_witness(BEFORE_THE_SYNC, move || {
                let child = std::process::Command::new("sleep")
                    .arg("60")
                    .env("DM_UDEV_COOKIE", &key)
                    .spawn();
                if let (Ok(child), Ok(mut keep)) = (child, keep.lock()) {
                    *keep = Some(child);
                }
                // Longer than facts are good for: the sync comes after this.
                std::thread::sleep(std::time::Duration::from_millis(1200));
            }))
        },
        |outcome, semid| {
            expect_moved(outcome, semid)?;
            let why = outcome.detail().unwrap_or_default();
            ensure!(why.contains("carriers"), "{why}");
            Ok(())
        },
    );
    if let Ok(mut carrier) = carrier.lock()
        && let Some(mut child) = carrier.take()
    {
        child.kill()?;
        child.wait()?;
    }
    done
}

fn an_operation_at_the_last_instant() -> Result<()> {
    expect_outcome(
        |semid| {
            Ok(meddling_witness(AT_THE_LAST_INSTANT, move || {
                let _done = sysv::semop_one(Abi::SemTimedOp, semid, 1, 0);
            }))
        },
        expect_moved,
    )
}

fn a_waiter_at_the_last_instant() -> Result<()> {
    let waiting: Arc<Mutex<Option<RunningActor>>> = Arc::default();
    let keep = Arc::clone(&waiting);
    expect_outcome(
        move |semid| {
            let key = format!("{:#010x}", sysv::get_key(semid)?);
            Ok(meddling_witness(AT_THE_LAST_INSTANT, move || {
                let _armed = sysv::semop_one(Abi::SemTimedOp, semid, 1, 0);
                if let (Ok(mut waiter), Ok(mut keep)) =
                    (start_actor(&["release", "--key", &key]), keep.lock())
                {
                    let _waits = waiter.read_until("waiting");
                    while sysv::count_waiters(semid).is_ok_and(|count| count == 0) {
                        std::thread::yield_now();
                    }
                    *keep = Some(waiter);
                }
            }))
        },
        |outcome, semid| {
            ensure!(sysv::count_waiters(semid)? == 1, "nobody waits");
            expect_moved(outcome, semid)
        },
    )?;
    drop(waiting);
    Ok(())
}

fn another_set_at_the_last_instant() -> Result<()> {
    let new = Arc::new(Mutex::new(None));
    let made = Arc::clone(&new);
    expect_outcome(
        move |semid| {
            let key = sysv::get_key(semid)?;
            Ok(meddling_witness(AT_THE_LAST_INSTANT, move || {
                let _gone = sysv::remove_set(semid);
                if let Ok(mut made) = made.lock() {
                    *made = sysv::get_set(key, 1, 0o600 | libc::IPC_CREAT | libc::IPC_EXCL).ok();
                }
            }))
        },
        move |outcome, _| {
            ensure!(matches!(outcome, CleanupOutcome::Gone), "{outcome:?}");
            let new = new.lock().ok().and_then(|new| *new).context("not made")?;
            ensure!(sysv::get_key(new).is_ok(), "the new one is gone");
            sysv::remove_set(new)?;
            Ok(())
        },
    )
}

fn other_rights_at_the_last_instant() -> Result<()> {
    expect_outcome(
        |semid| {
            Ok(meddling_witness(AT_THE_LAST_INSTANT, move || {
                let _done = sysv::set_mode(semid, 0o666);
            }))
        },
        expect_moved,
    )
}

fn a_trace_that_sees_more() -> Result<()> {
    let in_use = |outcome: &CleanupOutcome, semid: i32| {
        ensure!(matches!(outcome, CleanupOutcome::InUse), "{outcome:?}");
        ensure!(sysv::get_key(semid).is_ok(), "it is gone");
        Ok(())
    };
    // After the plan was made.
    let late = Sighting {
        last_op: BootTime(u64::MAX),
        ..Sighting::default()
    };
    expect_outcome(
        |_| Ok(Arc::new(SightingScript(Mutex::new(vec![late])))),
        in_use,
    )?;
    // Between the check and the removal, without a mark in the set.
    let quiet = Sighting::default();
    for now in [
        Sighting { waits: 1, ..quiet },
        Sighting {
            failed_decrements: 1,
            ..quiet
        },
    ] {
        let answers = vec![quiet, now];
        expect_outcome(
            |_| Ok(Arc::new(SightingScript(Mutex::new(answers)))),
            in_use,
        )?;
    }
    Ok(())
}

fn too_late() -> Result<()> {
    let quiet = Sighting::default();
    let late = Sighting { waits: 1, ..quiet };
    expect_outcome(
        |_| {
            Ok(Arc::new(SightingScript(Mutex::new(vec![
                quiet, quiet, late,
            ]))))
        },
        |outcome, _| {
            ensure!(
                matches!(outcome, CleanupOutcome::RemovedLate(_)),
                "{outcome:?}"
            );
            Ok(())
        },
    )
}
