//! What a service costs that has nothing to do, and how soon it speaks when it has.
//!
//! Others use this machine, too: what they do is told apart by the counters of the kernel side, and
//! of several attempts to be soon the best one counts.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dmtrace_tests::harness::{dmtrace_bin, in_private_ns, new_trial, start_actor};
use libtest_mimic::Trial;

use crate::{NEEDS, pins::BpfFs, service::Service};

const ATTEMPTS: u32 = 12;
const WINDOW: Duration = Duration::from_secs(3);
/// After a question of the test the service is awake for a moment.
const SETTLED: Duration = Duration::from_millis(300);
/// Times that others may spoil.
const BUSY: u32 = 40;
/// Looks with pauses of less than two windows between them.
const LOOKS: usize = 3;
/// After this time the binaries of a call site are not in memory any more.
const FORGOTTEN: Duration = Duration::from_secs(3);
/// KiB of memory of its own, that no file is behind.
const OWN: u64 = 6 << 10;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "serve_quiet::no_wake_up_while_nothing_happens",
            NEEDS,
            no_wake_up_while_nothing_happens,
        ),
        new_trial("serve_quiet::it_is_small", NEEDS, it_is_small),
        new_trial(
            "serve_quiet::a_leak_is_told_within_a_second",
            NEEDS,
            a_leak_is_told_within_a_second,
        ),
    ]
}

/// Sum of a line of all threads' status.
fn of_threads(pid: u32, name: &str) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        sum += status_number(&status, name)?;
    }
    Ok(sum)
}

fn status_number(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse()?)
}

/// What the kernel side has seen, and how many sets are there: if neither changes, nobody has made,
/// used or removed any, on the whole machine.
fn seen_events(service: &Service) -> Result<(u64, u64)> {
    let status = service.status()?;
    let seen = status["health"]["seen"].as_u64().context("no number")?;
    let sets = status["totals"]["sets"]["live"].as_u64();
    Ok((seen, sets.context("no number")?))
}

/// Waits for a time without a wake-up. Times in which others have used semaphores do not count.
/// While sets are there, a few looks fall due, ever more rarely; while there are none, nothing.
fn wait_asleep(service: &Service) -> Result<()> {
    let wakes = || of_threads(service.pid(), "voluntary_ctxt_switches:");
    let (mut seen, mut busy) = (Vec::new(), 0);
    while busy < BUSY {
        let before = seen_events(service)?;
        sleep(SETTLED);
        let woken = wakes()?;
        sleep(WINDOW);
        let woken = wakes()? - woken;
        if woken == 0 {
            return Ok(());
        }
        if seen_events(service)? != before {
            busy += 1;
            continue;
        }
        seen.push(woken);
        let allowed = if before.1 == 0 { 1 } else { LOOKS };
        ensure!(
            seen.len() <= allowed,
            "it never slept for {WINDOW:?}, with {} sets, while nothing happened; wake-ups: {seen:?}",
            before.1
        );
    }
    bail!("others use semaphores all the time: {busy} times of {WINDOW:?}")
}

fn no_wake_up_while_nothing_happens() -> Result<()> {
    let bpf = BpfFs::mount()?;
    let service = Service::start(&["--pins", &bpf.pins_arg()])?;
    wait_asleep(&service)?;
    service.stop_service()?;
    // With a finding that stands.
    in_private_ns(|| {
        let mut service = Service::start(&["--pins", &bpf.pins_arg()])?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        leaker.read_to_end()?;
        service.wait_line(&format!("by cookie-actor[{}]", leaker.pid()))?;
        wait_asleep(&service)
    })?
}

/// The limit of resident memory, in KiB: 12 MiB. Without optimization the code that is in use takes
/// more than that alone, up to 18 MiB instead of 6.
fn memory_limit() -> Result<u64> {
    let unoptimized = dmtrace_bin()?.iter().any(|part| part == "debug");
    Ok(if unoptimized { 28 << 10 } else { 12 << 10 })
}

fn it_is_small() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let pins = bpf.pins_arg();
        // As it is installed, with a history.
        let dir = tempfile::tempdir()?;
        let history = dir.path().join("history.redb").display().to_string();
        // With something to tell, and as the successor of another.
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        for _ in 0..2 {
            let mut service = Service::start(&["--pins", &pins, "--history", &history])?;
            leaker.read_to_end()?;
            let mut other = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
            let pid = other.pid();
            other.read_to_end()?;
            service.wait_line(&format!("by cookie-actor[{pid}]"))?;
            service.status()?;
            let resident = || -> Result<(u64, u64)> {
                let status = fs::read_to_string(format!("/proc/{}/status", service.pid()))?;
                let (all, own) = (
                    status_number(&status, "VmRSS:")?,
                    status_number(&status, "RssAnon:")?,
                );
                println!("resident: {all} KiB, of these its own: {own}");
                ensure!(all < memory_limit()?, "resident: {all} KiB");
                Ok((all, own))
            };
            resident()?;
            // What was read to name the calls of the leak is forgotten soon.
            sleep(FORGOTTEN);
            let (_, own) = resident()?;
            ensure!(own < OWN, "its own: {own} KiB");
            service.kill_service()?;
        }
        Ok(())
    })?
}

fn a_leak_is_told_within_a_second() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let mut service = Service::start(&["--pins", &bpf.pins_arg()])?;
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            let mut leaker = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "kill"])?;
            let by = format!("by cookie-actor[{}]", leaker.pid());
            leaker.read_to_end()?;
            let ended = Instant::now();
            service.wait_line(&by)?;
            let took = ended.elapsed();
            if took < Duration::from_secs(1) {
                return Ok(());
            }
            seen.push(took);
        }
        bail!("never within a second: {seen:?}")
    })?
}
