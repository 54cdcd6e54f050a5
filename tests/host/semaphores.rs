//! Sets, waiters, limits of one namespace.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dmtrace::host::{self, NsSession, Roots, Scope, semaphores};
use dmtrace_core::ids::{IpcNs, Key, SemId};
use dmtrace_tests::{
    harness::{
        KernelSem, RunningActor, TestNeed, Trial, in_private_ns, new_trial, ns_of, start_actor,
    },
    sysv,
};

use crate::{become_nobody, ns_in, set_in};

const PRIVATE: &[TestNeed] = &[TestNeed::IpcNamespaces];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        private_test("states_of_every_step", states_of_every_step),
        private_test("a_waiter_has_a_name", a_waiter_has_a_name),
        private_test("foreign_sets_are_not_cookies", foreign_sets_are_not_cookies),
        private_test("an_ordinary_user_sees_sets_without_values", ordinary_user),
        private_test("carriers_have_a_name", carriers_have_a_name),
        private_test(
            "exhausted_limits_do_not_matter",
            exhausted_limits_do_not_matter,
        ),
        private_test(
            "a_session_sees_a_set_change_and_go",
            a_session_sees_a_set_change_and_go,
        ),
        private_test("thirty_two_thousand_sets", thirty_two_thousand_sets),
        private_test(
            "a_healthy_cycle_leaves_nothing",
            a_healthy_cycle_leaves_nothing,
        ),
        private_test(
            "an_interrupted_wait_leaves_its_set",
            an_interrupted_wait_leaves_its_set,
        ),
    ]
}

fn private_test(name: &str, body: fn() -> anyhow::Result<()>) -> Trial {
    new_trial(name, PRIVATE, move || in_private_ns(body)?)
}

/// The namespace that the test is in.
fn private_scope() -> anyhow::Result<(Scope, u32)> {
    let ns = ns_of("thread-self")?;
    let scope = Scope {
        namespaces: [IpcNs(ns)].into(),
        ..Scope::default()
    };
    Ok((scope, ns))
}

/// Leak classes of a cookie with two uevents: step, value, whether a `semop` has happened.
fn states_of_every_step() -> anyhow::Result<()> {
    for (step, value, ops) in [
        ("after-semget", 0, false),
        ("after-setval", 1, false),
        ("after-inc", 3, true),
        ("after-complete", 1, true),
        ("in-wait", 2, true),
        ("after-wait", 0, true),
    ] {
        for how in ["kill", "exit"] {
            let args = ["cycle", "--events", "2", "--stop-at", step, "--how", how];
            let mut running = start_actor(&args)?;
            let created = running.read_until("created")?;
            running.read_to_end()?;
            let (scope, ns) = private_scope()?;
            let (snapshot, facts) = host::gather_facts(&scope);
            let namespace = ns_in(&snapshot, ns)?;
            let set = set_in(namespace, created.semid()?).context(step)?;
            ensure!(
                set.key == Key(created.key()?) && set.looks_like_cookie(),
                "{set:?}"
            );
            let state = set.first.context("not read")?;
            ensure!(
                state.value == value && state.zcnt == 0,
                "{step} {how}: {state:?}"
            );
            ensure!((set.otime.0 != 0) == ops, "{step} {how}: {set:?}");
            ensure!(set.ctime.0 > 0 && set.ctime <= snapshot.wall, "{set:?}");
            ensure!(
                !facts.processes.contains_key(&created.pid),
                "{step} {how}: owner lives"
            );
        }
    }
    Ok(())
}

fn start_sleeper(args: &[&str]) -> anyhow::Result<(RunningActor, i32)> {
    let mut running = start_actor(args)?;
    let semid = running.read_until("waiting")?.semid()?;
    let patience = Instant::now() + Duration::from_secs(30);
    while sysv::count_waiters(semid)? == 0 {
        ensure!(Instant::now() < patience, "nobody waits");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((running, semid))
}

fn a_waiter_has_a_name() -> anyhow::Result<()> {
    for abi in ["semop", "semtimedop"] {
        let args = [
            "cycle",
            "--abi",
            abi,
            "--stop-at",
            "in-wait",
            "--how",
            "hold",
        ];
        let (running, semid) = start_sleeper(&args)?;
        let (scope, ns) = private_scope()?;
        let (snapshot, facts) = host::gather_facts(&scope);
        let set = set_in(ns_in(&snapshot, ns)?, semid).context("no set")?;
        ensure!(set.first.is_some_and(|state| state.zcnt == 1), "{set:?}");
        let sem = SemId {
            ns: IpcNs(ns),
            semid,
        };
        let waiters = facts.waiters.get(&sem).context("no waiter")?;
        ensure!(
            waiters.len() == 1 && waiters[0].tgid == running.pid(),
            "{abi}: {waiters:?}"
        );
        ensure!(facts.processes_complete, "{:?}", facts.incomplete);
    }
    Ok(())
}

fn foreign_sets_are_not_cookies() -> anyhow::Result<()> {
    let mut three = start_actor(&["foreign", "--nsems", "3", "--key", "0x0d4d0003"])?;
    let mut open = start_actor(&["foreign", "--mode", "0666", "--key", "0x0d4d0666"])?;
    let (three, open) = (
        three.read_until("created")?.semid()?,
        open.read_until("created")?.semid()?,
    );
    let (scope, ns) = private_scope()?;
    let snapshot = host::take_snapshot(&scope);
    let namespace = ns_in(&snapshot, ns)?;
    let three = set_in(namespace, three).context("no set of three")?;
    let open = set_in(namespace, open).context("no set for all")?;
    ensure!(three.nsems == 3 && !three.looks_like_cookie(), "{three:?}");
    ensure!(open.mode == 0o666 && !open.looks_like_cookie(), "{open:?}");
    Ok(())
}

/// Root's cookie, seen by somebody else: the set and no value, and no claim to completeness.
fn ordinary_user() -> anyhow::Result<()> {
    let mut running = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
    let semid = running.read_until("armed")?.semid()?;
    let (scope, ns) = private_scope()?;
    let (snapshot, facts) = std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            become_nobody()?;
            anyhow::Ok(host::gather_facts(&scope))
        });
        reader.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;
    let namespace = ns_in(&snapshot, ns)?;
    let set = set_in(namespace, semid).context("no set")?;
    ensure!(set.looks_like_cookie() && set.first.is_none(), "{set:?}");
    ensure!(namespace.limits.semmni > 0, "{:?}", namespace.limits);
    ensure!(
        !snapshot.incomplete.is_empty(),
        "claims to know all namespaces"
    );
    ensure!(!facts.carriers_complete && facts.carriers_unread.contains(&running.pid()));
    ensure!(facts.processes_complete && facts.processes.contains_key(&running.pid()));
    Ok(())
}

fn carriers_have_a_name() -> anyhow::Result<()> {
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .env("DM_UDEV_COOKIE", "0x0d4d0c0c")
        .spawn()?;
    let (scope, _) = private_scope()?;
    let patience = Instant::now() + Duration::from_secs(30);
    let found = loop {
        let (_, facts) = host::gather_facts(&scope);
        let carriers = facts.carriers.get(&Key(0x0d4d_0c0c));
        if carriers.is_some_and(|pids| pids == &[child.id()]) {
            break (facts.carriers_complete, facts.incomplete);
        }
        if Instant::now() > patience {
            break (false, vec!["not found".to_owned()]);
        }
    };
    child.kill()?;
    child.wait()?;
    ensure!(found.0, "{:?}", found.1);
    Ok(())
}

fn exhausted_limits_do_not_matter() -> anyhow::Result<()> {
    let _limit = KernelSem::set_semmni(5)?;
    let mut leaker = start_actor(&["moby", "--until-enospc", "--hold"])?;
    let made = leaker.read_until("exhausted")?.number("made")?;
    ensure!(made == 5, "{made} made");
    let mut victim = start_actor(&["victim"])?;
    let errno = victim.read_until("victim")?.number("errno")?;
    ensure!(errno == i64::from(libc::ENOSPC), "errno {errno}");
    let (scope, ns) = private_scope()?;
    let (snapshot, facts) = host::gather_facts(&scope);
    let namespace = ns_in(&snapshot, ns)?;
    ensure!(namespace.limits.semmni == 5, "{:?}", namespace.limits);
    ensure!(namespace.sets.len() == 5, "{} sets", namespace.sets.len());
    for set in &namespace.sets {
        let state = set.first.context("not read")?;
        ensure!(state.value == 1 && state.pid == leaker.pid(), "{state:?}");
    }
    ensure!(
        facts.processes.contains_key(&leaker.pid()),
        "owner not alive"
    );
    Ok(())
}

fn a_session_sees_a_set_change_and_go() -> anyhow::Result<()> {
    let mut running = start_actor(&["create"])?;
    let created = running.read_until("set")?;
    let (key, semid) = (created.key()?, created.semid()?);
    running.read_to_end()?;
    let session = NsSession::find(&Roots::host(), IpcNs(ns_of("thread-self")?))?;
    let read = || session.run(move |inside| semaphores::read_one(inside, semid));
    let first = read()??.context("no set")?;
    ensure!(
        first.key == Key(key) && first.first.is_some_and(|state| state.value == 1),
        "{first:?}"
    );
    start_actor(&["inc", "--key", &key.to_string()])?.read_until("inc")?;
    let second = read()??.context("no set")?;
    let state = second.first.context("not read")?;
    ensure!(state.value == 2 && second.otime.0 > 0, "{second:?}");
    sysv::remove_set(semid)?;
    ensure!(read()??.is_none(), "still there");
    Ok(())
}

fn thirty_two_thousand_sets() -> anyhow::Result<()> {
    for base in 1..=32_000 {
        let semid = sysv::get_set(0x0d4d_0000 | base, 1, 0o600 | libc::IPC_CREAT)?;
        sysv::set_value(semid, 1)?;
    }
    let (scope, ns) = private_scope()?;
    let began = Instant::now();
    let snapshot = host::take_snapshot(&scope);
    let took = began.elapsed();
    let read = ns_in(&snapshot, ns)?;
    ensure!(read.sets.len() == 32_000, "{} sets", read.sets.len());
    let values = read.sets.iter().filter_map(|set| set.first);
    ensure!(values.filter(|state| state.value == 1).count() == 32_000);
    // The other source must tell the same.
    let lines = std::fs::read("/proc/sysvipc/sem")?;
    let mut listed = semaphores::parse_sets(&lines);
    for (set, read) in listed.iter_mut().zip(&read.sets) {
        set.first = read.first;
    }
    ensure!(
        listed == read.sets,
        "SEM_STAT_ANY and /proc/sysvipc/sem differ"
    );
    eprintln!("32,000 sets in {took:?}");
    // The goal is 150 ms; a debug build on a busy machine gets more.
    ensure!(took < Duration::from_secs(3), "{took:?}");
    Ok(())
}

fn a_healthy_cycle_leaves_nothing() -> anyhow::Result<()> {
    let mut running = start_actor(&["cycle", "--events", "3", "--count", "2", "--delay-ms", "5"])?;
    let (lines, status) = running.read_to_end()?;
    ensure!(status.success(), "{status}");
    let count = |step: &str| lines.iter().filter(|line| line.step == step).count();
    ensure!(
        count("udev-completed") == 6 && count("destroyed") == 2,
        "{lines:?}"
    );
    let (lines, _) = start_actor(&["over-complete"])?.read_to_end()?;
    ensure!(
        lines.iter().any(|line| line.step == "over-completed"),
        "{lines:?}"
    );
    let (lines, _) = start_actor(&[
        "churn", "--tag", "t", "--procs", "20", "--sets", "3", "--keyed",
    ])?
    .read_to_end()?;
    ensure!(
        lines.iter().filter(|line| line.step == "churned").count() == 20,
        "{lines:?}"
    );
    let (scope, ns) = private_scope()?;
    let snapshot = host::take_snapshot(&scope);
    let left = &ns_in(&snapshot, ns)?.sets;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn an_interrupted_wait_leaves_its_set() -> anyhow::Result<()> {
    let mut running = start_actor(&["eintr", "--hold"])?;
    let line = running.read_until("abandoned")?;
    ensure!(line.number("errno")? == i64::from(libc::EINTR), "{line:?}");
    let (scope, ns) = private_scope()?;
    let (snapshot, facts) = host::gather_facts(&scope);
    let set = set_in(ns_in(&snapshot, ns)?, line.semid()?).context("no set")?;
    let state = set.first.context("not read")?;
    ensure!(state.value == 1 && state.zcnt == 0, "{state:?}");
    ensure!(facts.waiters.is_empty(), "{:?}", facts.waiters);
    Ok(())
}
