//! Every semaphore is attributed, and every number adds up: also when nobody listens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::{
    harness::{in_private_ns, new_trial, ns_of, start_actor},
    load,
};
use libtest_mimic::Trial;

use crate::{
    NEEDS,
    tracer::{TracerOutput, WatchProcess},
};

/// For what a tracer says soon.
const CHURN_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("accounting::all_23_are_attributed", NEEDS, || {
            attributed(23, 1)
        }),
        new_trial("accounting::all_997_are_attributed", NEEDS, || {
            attributed(997, 1)
        }),
        new_trial("accounting::all_100000_are_attributed", NEEDS, || {
            attributed(2000, 50)
        }),
        new_trial(
            "accounting::a_stopped_consumer_with_a_tiny_ring_attributes_all",
            NEEDS,
            stopped_few,
        ),
        new_trial(
            "accounting::a_stopped_consumer_and_100000_sets_say_what_is_missing",
            NEEDS,
            stopped_many,
        ),
        new_trial(
            "accounting::a_consumer_that_never_catches_up_ends_at_ctrl_c",
            NEEDS,
            never_catches_up,
        ),
        new_trial("accounting::a_full_map_is_said", NEEDS, full_map),
        new_trial(
            "accounting::sets_that_stay_equal_the_kernels_table",
            NEEDS,
            those_that_stay,
        ),
    ]
}

/// Makes and removes `procs * sets` sets by `procs` processes, each with a command line of its own.
fn churn_sets(tag: &str, procs: u32, sets: u32) -> Result<BTreeSet<i64>> {
    let (procs, sets) = (procs.to_string(), sets.to_string());
    let mut actor = start_actor(&["churn", "--tag", tag, "--procs", &procs, "--sets", &sets])?;
    let (lines, status) = actor.read_to_end()?;
    ensure!(status.success(), "churn: {status}");
    lines
        .iter()
        .filter(|line| line.step == "churned")
        .map(|line| line.number("pid"))
        .collect()
}

fn attributed(procs: u32, sets: u32) -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--all", "--ipc-ns", &ns.to_string()])?;
        let tag = format!("t{}", tracer.pid());
        let pids = churn_sets(&tag, procs, sets)?;
        ensure!(
            pids.len() == procs as usize,
            "{} processes instead of {procs}",
            pids.len()
        );
        let said = tracer.stop_trace()?;
        check_accounts(&said, ns, &tag, &pids, sets)?;
        said.check_identities()?;
        ensure!(said.summary["exact"] == true, "not exact: {}", said.summary);
        ensure!(
            said.account_number("drift")? == 0,
            "drift: {}",
            said.summary
        );
        ensure!(said.code == 0, "exit code {}", said.code);
        Ok(())
    })?
}

/// Each process made `sets` sets, under its number and its command line, and removed them.
fn check_accounts(
    said: &TracerOutput,
    ns: u32,
    tag: &str,
    pids: &BTreeSet<i64>,
    sets: u32,
) -> Result<()> {
    let commands = said.command_lines();
    for kind in ["created", "destroyed"] {
        let mut by_pid: BTreeMap<i64, u32> = BTreeMap::new();
        for change in said.changes_of(kind, ns) {
            let pid = change["who"]["id"]["tgid"]
                .as_i64()
                .with_context(|| change.to_string())?;
            *by_pid.entry(pid).or_default() += 1;
        }
        let told: BTreeSet<i64> = by_pid.keys().copied().collect();
        ensure!(
            told == *pids,
            "{kind}: other processes than those that did: {:?} more, {:?} less, of {}: {}",
            told.difference(pids).take(5).collect::<Vec<_>>(),
            pids.difference(&told).take(5).collect::<Vec<_>>(),
            pids.len(),
            said.summary
        );
        for (pid, count) in by_pid {
            ensure!(
                count == sets,
                "{kind}: process {pid}: {count} instead of {sets}: {}",
                said.summary
            );
        }
    }
    let mut tags = BTreeSet::new();
    for pid in pids {
        let command = commands
            .get(&u64::try_from(*pid)?)
            .with_context(|| format!("process {pid} was never introduced"))?;
        let own = command
            .split(' ')
            .skip_while(|word| *word != "--tag")
            .nth(1)
            .with_context(|| command.clone())?;
        let number = own
            .strip_prefix(tag)
            .and_then(|rest| rest.strip_prefix('-'))
            .with_context(|| command.clone())?;
        tags.insert(number.parse::<usize>()?);
    }
    ensure!(
        tags.into_iter().eq(0..pids.len()),
        "two processes under one command line"
    );
    Ok(())
}

/// The consumer sleeps, the ring holds almost nothing: the maps still have it all.
fn stopped_few() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--all", "--ring", "4", "--ipc-ns", &ns.to_string()])?;
        let tag = format!("t{}", tracer.pid());
        tracer.send_signal(libc::SIGSTOP)?;
        let pids = churn_sets(&tag, 997, 1)?;
        tracer.send_signal(libc::SIGCONT)?;
        let said = tracer.stop_trace()?;
        said.check_identities()?;
        ensure!(
            said.account_number("dropped")? > 0,
            "nothing was dropped: {}",
            said.summary
        );
        ensure!(
            said.account_number("created_seen")? >= 997,
            "{}",
            said.summary
        );
        check_accounts(&said, ns, &tag, &pids, 1)?;
        ensure!(said.summary["exact"] == true, "not exact: {}", said.summary);
        Ok(())
    })?
}

/// More than the maps keep for a consumer that never comes: counted, and said.
fn stopped_many() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--all", "--ring", "4", "--ipc-ns", &ns.to_string()])?;
        tracer.send_signal(libc::SIGSTOP)?;
        churn_sets("many", 1000, 100)?;
        tracer.send_signal(libc::SIGCONT)?;
        let said = tracer.stop_trace()?;
        said.check_identities()?;
        ensure!(
            said.account_number("created_seen")? >= 100_000,
            "{}",
            said.summary
        );
        ensure!(
            said.account_number("history_lost")? > 0,
            "nothing was lost: {}",
            said.summary
        );
        let made = said.summary["totals"]["sets"]["created"]
            .as_u64()
            .unwrap_or(0);
        // Each lost record is one set, or one process; what is not lost is attributed.
        ensure!(
            made + said.account_number("history_lost")? >= 100_000,
            "{made} made: {}",
            said.summary
        );
        ensure!(
            said.summary["exact"] == false,
            "called exact: {}",
            said.summary
        );
        ensure!(
            said.code == 4,
            "exit code {} instead of 4: incomplete",
            said.code
        );
        Ok(())
    })?
}

/// More comes into the ring than the consumer takes out, without a pause: it still hears Ctrl-C, and
/// its numbers hold.
fn never_catches_up() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        let enough = AtomicBool::new(false);
        let said = thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !enough.load(Ordering::Relaxed) {
                        let _lives = load::play_cookies(None, Duration::from_millis(200), 1);
                    }
                });
            }
            let told = tracer.wait_object(|object| object["change"] == "destroyed", CHURN_TIMEOUT);
            let said = told.and_then(|_| {
                // The ring fills.
                thread::sleep(Duration::from_secs(2));
                tracer.stop_trace()
            });
            enough.store(true, Ordering::Relaxed);
            said
        })?;
        let (seen, sum) = (
            said.account_number("seen")?,
            said.account_number("submitted")? + said.account_number("dropped")?,
        );
        ensure!(seen == sum, "seen {seen} is not {sum}: {}", said.summary);
        ensure!(
            said.account_number("submitted")? == said.account_number("received")?,
            "{}",
            said.summary
        );
        Ok(())
    })?
}

fn full_map() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--max-semaphores", "8", "--ipc-ns", &ns.to_string()])?;
        let mut daemon = start_actor(&["moby", "--count", "20", "--hold"])?;
        daemon.read_until("done")?;
        let said = tracer.stop_trace()?;
        ensure!(
            said.account_number("sem_map_full")? >= 12,
            "{}",
            said.summary
        );
        ensure!(
            said.summary["exact"] == false,
            "called exact: {}",
            said.summary
        );
        let deficits = said.summary["accounting"]["deficits"].to_string();
        ensure!(
            deficits.contains("--max-semaphores"),
            "the knob is not named: {deficits}"
        );
        // The ring told of all twenty.
        ensure!(
            said.changes_of("created", ns).count() == 20,
            "not all are told of"
        );
        daemon.kill_group();
        Ok(())
    })?
}

fn those_that_stay() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = WatchProcess::start(&["--all", "--ipc-ns", &ns.to_string()])?;
        let mut daemon = start_actor(&["moby", "--count", "40", "--hold"])?;
        daemon.read_until("done")?;
        tracer.wait_object(|object| object["change"] == "down", Duration::from_secs(20))?;
        let table = fs::read_to_string("/proc/sysvipc/sem")?;
        let there = table.lines().count() - 1;
        ensure!(there == 40, "{there} sets in the namespace");
        let said = tracer.stop_trace()?;
        said.check_identities()?;
        let removed = said.changes_of("destroyed", ns).count();
        ensure!(
            said.changes_of("created", ns).count() - removed == there,
            "ledger and /proc/sysvipc/sem differ"
        );
        daemon.kill_group();
        Ok(())
    })?
}
