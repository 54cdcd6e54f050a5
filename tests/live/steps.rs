//! `watch` shows every step of a cookie's life, and in its order, whatever is seen late.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{in_private_ns, new_trial, ns_of, start_actor};
use libtest_mimic::Trial;

use crate::{NEEDS, tracer::WatchProcess};

/// Cookies of each program, programs, uevents of each cookie.
const CYCLES: usize = 25;
const PROGRAMS: usize = 4;
const EVENTS: usize = 3;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "steps::watch_shows_what_was_done_and_in_its_order",
            NEEDS,
            watch_shows_what_was_done_and_in_its_order,
        ),
        new_trial(
            "steps::watch_tells_findings_on_cookies_that_are_gone",
            NEEDS,
            watch_tells_findings_on_cookies_that_are_gone,
        ),
    ]
}

/// Waiters remove their cookies as soon as the last completion is made: before its return is seen,
/// now and then.
fn watch_shows_what_was_done_and_in_its_order() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        let (cycles, events) = (CYCLES.to_string(), EVENTS.to_string());
        let line = ["cycle", "--events", &events, "--count", &cycles];
        let mut programs = Vec::new();
        for _ in 0..PROGRAMS {
            programs.push(start_actor(&line)?);
        }
        for mut program in programs {
            let (_, status) = program.read_to_end()?;
            ensure!(status.success(), "cycle: {status}");
        }
        let said = tracer.stop_trace()?;
        ensure!(said.summary["exact"] == true, "not exact: {}", said.summary);
        let mut lives: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
        let changes = said
            .objects
            .iter()
            .filter(|object| object["type"] == "change" && object["sem"]["ns"] == ns);
        for change in changes {
            let semid = change["sem"]["semid"].as_i64().context("no semid")?;
            let step = change["change"].as_str().context("no change")?;
            lives.entry(semid).or_default().push(step);
        }
        ensure!(lives.len() == CYCLES * PROGRAMS, "{} cookies", lives.len());
        for (semid, steps) in lives {
            in_order(&steps).with_context(|| format!("semid {semid}: {steps:?}"))?;
        }
        Ok(())
    })?
}

/// The last look is not the only one: each is told once, and counted, however short the cookie lives.
fn watch_tells_findings_on_cookies_that_are_gone() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        for pause in [Duration::from_secs(2), Duration::ZERO] {
            let (_, status) = start_actor(&["over-complete"])?.read_to_end()?;
            ensure!(status.success(), "over-complete: {status}");
            sleep(pause);
        }
        let said = tracer.stop_trace()?;
        let found: Vec<_> = said
            .objects
            .iter()
            .filter(|object| object["type"] == "finding")
            .map(|object| object["verdict"]["class"].as_str().unwrap_or_default())
            .collect();
        ensure!(found == ["over_completed"; 2], "{found:?}");
        ensure!(said.summary["findings_told"] == 2, "{}", said.summary);
        ensure!(said.code == 1, "exit code {}", said.code);
        Ok(())
    })?
}

/// The steps of one life: the completions and the entry into the wait are made by different
/// processors, in any order.
fn in_order(steps: &[&str]) -> Result<()> {
    let (middle, end) = (2 + EVENTS, 2 + EVENTS + EVENTS + 2);
    ensure!(steps.len() == end + 2, "{} steps", steps.len());
    ensure!(steps[..2] == ["created", "set"], "the beginning");
    ensure!(
        steps[2..middle].iter().all(|step| *step == "up"),
        "the increments"
    );
    let mut between: Vec<&str> = steps[middle..end].to_vec();
    between.sort_unstable();
    let downs = between.iter().filter(|step| **step == "down").count();
    ensure!(
        downs == EVENTS + 1 && between.last() == Some(&"waiting"),
        "the decrements"
    );
    ensure!(steps[end..] == ["released", "destroyed"], "the end");
    Ok(())
}
