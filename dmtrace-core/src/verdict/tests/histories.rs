//! Random histories: what must hold whatever happens.
//!
//! `DMTRACE_CASES` sets the number of histories for each property.

use std::time::Duration;

use proptest::{prelude::*, test_runner::TestCaseResult};

use super::play::Play;
use crate::{
    cleanup::{
        plan::{Plan, PlanOptions},
        recheck::recheck_entry,
    },
    event::Event,
    facts::{HostFacts, Snapshot},
    ids::SemId,
    ledger::{Cookie, Ledger, Semaphore},
    verdict::{
        Class, Completeness, Confidence, Context, Evidence, Healthy, RemovalRules, Thresholds,
        Undecided, Verdict, survey_cookies,
    },
};

pub(super) fn config_of_cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("DMTRACE_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(default);
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

pub(super) fn any_choices() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(any::<u32>(), 1..160)
}

/// Time from the last step to the verdict.
fn any_delay() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0, 2, 70, 300, 1200, 18_000])
}

fn any_losses() -> impl Strategy<Value = Vec<bool>> {
    prop::collection::vec(prop::bool::weighted(0.2), 1..60)
}

/// What the tests look at.
pub(super) struct View {
    pub snapshot: Snapshot,
    pub facts: HostFacts,
}

pub(super) fn view_of(play: &Play) -> View {
    let threads = |index: usize| {
        let thread = &play.threads[index];
        (play.world.procs[thread.proc].id.tgid, thread.tid)
    };
    View {
        snapshot: play.world.snapshot(),
        facts: play.world.facts(threads),
    }
}

pub(super) fn feed_events(ledger: &mut Ledger, events: &[Event]) {
    let mut changes = Vec::new();
    for event in events {
        changes.clear();
        ledger.apply_into(event, &mut changes);
    }
}

/// The books show the sets that are there, and add up.
fn check_books(play: &Play, ledger: &Ledger) -> TestCaseResult {
    prop_assert_eq!(ledger.check_invariants(), Ok(()));
    let kernel: Vec<SemId> = play.world.sems.keys().copied().collect();
    let books: Vec<SemId> = ledger.live_sets().map(|set| set.id).collect();
    prop_assert_eq!(books, kernel);
    Ok(())
}

/// No cookie that is needed is called leaked or planned for removal.
fn check_safe(
    play: &Play,
    ledger: &Ledger,
    view: &View,
    completeness: &Completeness,
    may_guess: bool,
) -> TestCaseResult {
    let thresholds = Thresholds::default();
    let context = Context {
        facts: &view.facts,
        completeness,
        thresholds: &thresholds,
    };
    let judged = survey_cookies(ledger, Some(&view.snapshot), &context);
    for cookie in &judged {
        let sem = cookie.semaphore.id;
        let verdict = &cookie.verdict;
        let text = || format!("{sem:?} {verdict:?} {:?}", cookie.semaphore);
        let waiters = play.world.sems.get(&sem).map_or(0, |set| set.waiters.len());
        let leaked = matches!(verdict.class, Class::Leaked(_));
        prop_assert!(!(waiters > 0 && leaked), "waited for: {}", text());
        let guess = may_guess && verdict.confidence != Confidence::Observed;
        prop_assert!(
            !(play.is_needed(sem) && leaked && !guess),
            "needed: {}",
            text()
        );
        if let Some(culprit) = &verdict.culprit {
            let known = ledger.process(culprit.who.image).is_some();
            prop_assert!(known, "names a stranger: {}", text());
        }
    }
    for inferred in [false, true] {
        let options = PlanOptions {
            rules: RemovalRules {
                inferred,
                older_than: Duration::from_secs(2),
            },
            ..PlanOptions::default()
        };
        let plan = Plan::build(&judged, ledger, &context, options);
        for entry in plan.pending() {
            let guess = inferred && may_guess && view.facts.processes_complete;
            let needed = play.is_needed(entry.sem) && !guess;
            prop_assert!(!needed, "planned: {:#?}", entry);
            let set = view
                .snapshot
                .namespaces
                .iter()
                .filter(|ns| ns.ns == entry.sem.ns)
                .flat_map(|ns| &ns.sets)
                .find(|set| set.semid == entry.sem.semid);
            let Some(set) = set else {
                return Err(TestCaseError::fail("planned and not there"));
            };
            prop_assert_eq!(recheck_entry(entry, set, &view.facts), Ok(()));
        }
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
    Ok(())
}

/// With nothing missing, every leak is called a leak, every waiter one, every accident one.
fn check_exact(play: &Play, ledger: &Ledger, view: &View, settled: bool) -> TestCaseResult {
    let thresholds = Thresholds::default();
    let completeness = Completeness::default();
    let context = Context {
        facts: &view.facts,
        completeness: &completeness,
        thresholds: &thresholds,
    };
    for cookie in survey_cookies(ledger, Some(&view.snapshot), &context) {
        let sem = cookie.semaphore.id;
        let Some(set) = play.world.sems.get(&sem) else {
            return Err(TestCaseError::fail("not there"));
        };
        let verdict = &cookie.verdict;
        let text = || format!("{sem:?} {verdict:?} {:?}", cookie.semaphore);
        let quiet = view.facts.now.0.saturating_sub(set.touched) / 1_000_000_000;
        let book = cookie.semaphore.cookie.as_deref();
        prop_assert_eq!(book.and_then(Cookie::value), Some(set.value), "{}", text());
        prop_assert_eq!(book.map_or(0, |book| book.waiters.len()), set.waiters.len());
        if !set.waiters.is_empty() {
            let fine = matches!(
                verdict.class,
                Class::Healthy(Healthy::Waiting | Healthy::SlowUdev) | Class::Stuck(_)
            );
            prop_assert!(fine, "waited for: {}", text());
            continue;
        }
        // Ends of processes are given a moment, too.
        let found = matches!(verdict.class, Class::Leaked(_) | Class::OverCompleted);
        // A script may carry the same number, from a cookie that has gone.
        let carried = view.facts.carriers.contains_key(&set.key);
        let suspected = verdict.class == Class::Unknown(Undecided::PossibleOwners)
            && may_be_forked(cookie.semaphore, verdict, &view.facts);
        if settled && play.is_deserted(sem) && quiet > 1100 && !carried && !suspected {
            prop_assert!(found, "deserted: {}", text());
        }
        if play.left_behind(sem) && quiet > 2 {
            prop_assert!(found, "left behind: {}", text());
            prop_assert_eq!(verdict.confidence, Confidence::Observed, "{}", text());
        }
    }
    for &sem in &play.accidents {
        let Some(closed) = ledger.closed_cookie(sem) else {
            return Err(TestCaseError::fail("an accident was forgotten"));
        };
        let subject = crate::verdict::Subject {
            ledger,
            semaphore: closed,
            set: None,
            taken: view.snapshot.began,
        };
        let verdict = crate::verdict::judge_set(&subject, &context);
        prop_assert_eq!(verdict.class, Class::Accident, "{:#?}", closed);
    }
    Ok(())
}

/// Whether those who are said to may own a cookie live, and are younger than one of its users.
fn may_be_forked(set: &Semaphore, verdict: &Verdict, facts: &HostFacts) -> bool {
    let users = set.cookie.iter().flat_map(|cookie| &cookie.users);
    let Some(first) = users.map(|user| user.who.image.id.start_ticks()).min() else {
        return false;
    };
    verdict.evidence.iter().any(|fact| {
        matches!(fact, Evidence::Candidate { pid, .. }
            if facts.processes.get(pid).is_some_and(|live| live.start_ticks >= first))
    })
}

/// Feeds what came since the last time, reconciles, and checks.
struct Progress {
    ledger: Ledger,
    read: usize,
}

impl Progress {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(),
            read: 0,
        }
    }

    fn feed_new(&mut self, play: &Play) {
        feed_events(&mut self.ledger, &play.world.ring[self.read..]);
        self.read = play.world.ring.len();
    }
}

proptest! {
    #![proptest_config(config_of_cases(400))]

    /// Nothing missing: the books are exact without correction, and so are the verdicts.
    #[test]
    fn complete(choices in any_choices(), delay in any_delay()) {
        let mut play = Play::new(Vec::new());
        let mut progress = Progress::new();
        progress.ledger.reconcile(&play.world.snapshot());
        for part in choices.chunks(50) {
            for &choice in part {
                play.play_step(choice);
            }
            progress.feed_new(&play);
            check_books(&play, &progress.ledger)?;
            let view = view_of(&play);
            check_exact(&play, &progress.ledger, &view, false)?;
            check_safe(&play, &progress.ledger, &view, &Completeness::default(), false)?;
        }
        play.pass_time(delay * 1_000_000_000);
        progress.feed_new(&play);
        let view = view_of(&play);
        let ledger = &mut progress.ledger;
        let report = ledger.reconcile(&view.snapshot);
        prop_assert_eq!((report.drift_count(), report.in_flight), (0, 0), "{:#?}", report);
        prop_assert_eq!(report.namespaces_gone.len(), 0);
        check_books(&play, ledger)?;
        check_exact(&play, ledger, &view, delay > 1)?;
        check_safe(&play, ledger, &view, &Completeness::default(), false)?;
        let totals = ledger.totals();
        prop_assert_eq!(totals.sets.created, play.world.created);
        prop_assert_eq!(totals.sets.destroyed, play.world.removed);
        prop_assert_eq!(totals.enospc_failures, play.world.enospc_failures);
        prop_assert_eq!(totals.sets.found + totals.sets.vanished + totals.late, 0);
        let programs = ledger.program_tallies();
        let created: u64 = programs.values().map(|tally| tally.created).sum();
        prop_assert_eq!(created, play.world.created);
    }

    /// Messages lost, and known to be lost, and nothing done about it.
    #[test]
    fn lossy(choices in any_choices(), delay in any_delay(), losses in any_losses()) {
        let mut play = Play::new(losses);
        let mut progress = Progress::new();
        progress.ledger.reconcile(&play.world.snapshot());
        for &choice in &choices {
            play.play_step(choice);
        }
        play.pass_time(delay * 1_000_000_000);
        progress.feed_new(&play);
        let mut completeness = Completeness::default();
        completeness.lost.add(play.world.lost);
        let view = view_of(&play);
        // Also before the books are corrected.
        check_safe(&play, &progress.ledger, &view, &completeness, false)?;
        progress.ledger.reconcile(&view.snapshot);
        progress.ledger.observe_exits(&view.facts);
        check_books(&play, &progress.ledger)?;
        check_safe(&play, &progress.ledger, &view, &completeness, false)?;
    }

    /// Messages lost, the maps adopted now and then.
    #[test]
    fn adopted(choices in any_choices(), delay in any_delay(), losses in any_losses()) {
        let mut play = Play::new(losses);
        let mut progress = Progress::new();
        progress.ledger.reconcile(&play.world.snapshot());
        for part in choices.chunks(40) {
            for &choice in part {
                play.play_step(choice);
            }
            progress.feed_new(&play);
            let ledger = &mut progress.ledger;
            for _twice in 0..2 {
                for record in play.world.proc_records.values() {
                    ledger.adopt_process(record);
                }
                for (&sem, record) in &play.world.records {
                    ledger.adopt_record(sem, record);
                }
            }
            play.world.records.retain(|_, record| record.closed == 0);
            check_books(&play, ledger)?;
            let totals = ledger.totals();
            prop_assert_eq!(totals.sets.created, play.world.created);
            prop_assert_eq!(totals.sets.destroyed, play.world.removed);
            check_safe(&play, ledger, &view_of(&play), &Completeness::default(), false)?;
        }
        play.world.advance_clock(delay * 1_000_000_000);
        let view = view_of(&play);
        let report = progress.ledger.reconcile(&view.snapshot);
        prop_assert_eq!(report.drift_count(), 0, "{:#?}", report);
        check_safe(&play, &progress.ledger, &view, &Completeness::default(), false)?;
        // `list`, which joins this trace, has the maps only.
        let mut joined = Ledger::new();
        for record in play.world.proc_records.values() {
            joined.adopt_process(record);
        }
        for (&sem, record) in &play.world.records {
            joined.adopt_record(sem, record);
        }
        joined.reconcile(&view.snapshot);
        check_books(&play, &joined)?;
        check_safe(&play, &joined, &view, &Completeness::default(), false)?;
    }

    /// The tracer starts in the middle.
    #[test]
    fn joined_late(
        before in any_choices(), after in any_choices(), delay in any_delay(), wait in any_delay()
    ) {
        let mut play = Play::new(Vec::new());
        play.world.traced = false;
        for &choice in &before {
            play.play_step(choice);
        }
        play.pass_time(wait * 1_000_000_000);
        play.world.traced = true;
        play.world.seed_map();
        let mut progress = Progress::new();
        let first = progress.ledger.reconcile(&play.world.snapshot());
        prop_assert_eq!(first.drift_count(), 0);
        // A script that was there before looks like nothing at all: only a person can tell.
        let guess = !play.shells.is_empty();
        check_safe(&play, &progress.ledger, &view_of(&play), &Completeness::default(), guess)?;
        for &choice in &after {
            play.play_step(choice);
        }
        play.pass_time(delay * 1_000_000_000);
        progress.feed_new(&play);
        let view = view_of(&play);
        let report = progress.ledger.reconcile(&view.snapshot);
        prop_assert_eq!(report.drift_count(), 0, "{:#?}", report);
        check_books(&play, &progress.ledger)?;
        check_safe(&play, &progress.ledger, &view, &Completeness::default(), guess)?;
    }

    /// Events of different CPUs arrive in the wrong order.
    #[test]
    fn disordered(
        choices in any_choices(), delay in any_delay(), order in prop::collection::vec(0_usize..4, 1..50)
    ) {
        let mut play = Play::new(Vec::new());
        let mut ledger = Ledger::new();
        ledger.reconcile(&play.world.snapshot());
        for &choice in &choices {
            play.play_step(choice);
        }
        play.pass_time(delay * 1_000_000_000);
        let mut events = play.world.ring.clone();
        for (index, distance) in order.iter().cycle().enumerate().take(events.len()) {
            let other = (index + distance).min(events.len() - 1);
            events.swap(index, other);
        }
        for event in &events {
            ledger.apply(event);
            prop_assert_eq!(ledger.check_invariants(), Ok(()));
        }
        let view = view_of(&play);
        check_safe(&play, &ledger, &view, &Completeness::default(), false)?;
        ledger.reconcile(&view.snapshot);
        check_books(&play, &ledger)?;
        check_safe(&play, &ledger, &view, &Completeness::default(), false)?;
    }

    /// The process list is not complete.
    #[test]
    fn unreadable(choices in any_choices(), delay in any_delay(), hidden in any::<u64>()) {
        let mut play = Play::new(Vec::new());
        let mut progress = Progress::new();
        for &choice in &choices {
            play.play_step(choice);
        }
        play.pass_time(delay * 1_000_000_000);
        progress.feed_new(&play);
        let mut view = view_of(&play);
        view.facts.processes_complete = false;
        view.facts.carriers_complete = false;
        view.facts.processes.retain(|pid, _| hidden >> (pid % 64) & 1 == 0);
        view.facts.carriers.clear();
        // A fork may be hidden: a leak is inferred then, and nothing is removed.
        check_safe(&play, &progress.ledger, &view, &Completeness::default(), true)?;
    }
}

/// `cargo test --release -- --ignored --nocapture coverage`: what the histories reach.
#[test]
#[ignore = "a measurement"]
fn coverage() {
    let mut seen: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    let mut seed = 1_u64;
    for round in 0..5000_u64 {
        let mut play = Play::new(Vec::new());
        let mut progress = Progress::new();
        progress.ledger.reconcile(&play.world.snapshot());
        for _ in 0..120 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            play.play_step((seed >> 32) as u32);
        }
        play.pass_time([2, 70, 1200][round as usize % 3] * 1_000_000_000);
        progress.feed_new(&play);
        let view = view_of(&play);
        let thresholds = Thresholds::default();
        let completeness = Completeness::default();
        let context = Context {
            facts: &view.facts,
            completeness: &completeness,
            thresholds: &thresholds,
        };
        let judged = survey_cookies(&progress.ledger, Some(&view.snapshot), &context);
        for cookie in &judged {
            let truth = match cookie.semaphore.id {
                sem if play.is_needed(sem) => "needed",
                sem if play.left_behind(sem) => "left behind",
                sem if play.is_deserted(sem) => "deserted",
                _ => "undecided",
            };
            let verdict = &cookie.verdict;
            let class = format!("{truth:11} {:?} {:?}", verdict.class, verdict.confidence);
            *seen.entry(class).or_default() += 1;
        }
        let options = PlanOptions::default();
        let plan = Plan::build(&judged, &progress.ledger, &context, options);
        *seen.entry("planned".to_owned()).or_default() += plan.pending().count() as u64;
        for closed in progress.ledger.closed_cookies() {
            let subject = crate::verdict::Subject {
                ledger: &progress.ledger,
                semaphore: closed,
                set: None,
                taken: view.snapshot.began,
            };
            let class = crate::verdict::judge_set(&subject, &context).class;
            *seen.entry(format!("closed: {class:?}")).or_default() += 1;
        }
    }
    for (class, count) in seen {
        println!("{count:8} {class}");
    }
}
