//! What a service costs that has nothing to do, and how soon it speaks when it has.
//!
//! Others use this machine, too: of several attempts the best one counts.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dmtrace_tests::harness::{actor, in_private_ns, test};
use libtest_mimic::Trial;

use crate::{NEEDS, pins::BpfFs, service::Service};

const ATTEMPTS: u32 = 12;
const WINDOW: Duration = Duration::from_secs(3);

pub fn tests() -> Vec<Trial> {
    vec![
        test("serve_quiet::no_wake_up_while_nothing_happens", NEEDS, idle),
        test("serve_quiet::it_is_small", NEEDS, small),
        test("serve_quiet::a_leak_is_told_within_a_second", NEEDS, soon),
    ]
}

/// Sum of a line of all threads' status.
fn of_threads(pid: u32, name: &str) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        sum += line(&status, name)?;
    }
    Ok(sum)
}

fn line(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse()?)
}

fn idle() -> Result<()> {
    let bpf = BpfFs::mount()?;
    let service = Service::start(&["--pins", &bpf.pins()])?;
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let wakes = || of_threads(service.pid(), "voluntary_ctxt_switches:");
        let before = wakes()?;
        sleep(WINDOW);
        let woken = wakes()? - before;
        if woken == 0 {
            return Ok(());
        }
        seen.push(woken);
    }
    bail!("it never slept for {WINDOW:?}; wake-ups: {seen:?}")
}

fn small() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let pins = bpf.pins();
        // With something to tell, and as the successor of another.
        let mut leaker = actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        for _ in 0..2 {
            let mut service = Service::start(&["--pins", &pins])?;
            leaker.finish()?;
            let mut other = actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
            let pid = other.pid();
            other.finish()?;
            service.until(&format!("by cookie-actor[{pid}]"))?;
            service.status()?;
            let status = fs::read_to_string(format!("/proc/{}/status", service.pid()))?;
            let (all, own) = (line(&status, "VmRSS:")?, line(&status, "RssAnon:")?);
            println!("resident: {all} KiB, of these its own: {own}");
            // Programs without optimization are larger.
            let limit = if cfg!(debug_assertions) { 28 } else { 12 };
            ensure!(all < limit * 1024, "resident: {all} KiB");
            ensure!(own < 7 * 1024, "its own: {own} KiB");
            service.kill()?;
        }
        Ok(())
    })?
}

fn soon() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let mut service = Service::start(&["--pins", &bpf.pins()])?;
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            let mut leaker = actor(&["cycle", "--stop-at", "in-wait", "--how", "kill"])?;
            let by = format!("by cookie-actor[{}]", leaker.pid());
            leaker.finish()?;
            let ended = Instant::now();
            service.until(&by)?;
            let took = ended.elapsed();
            if took < Duration::from_secs(1) {
                return Ok(());
            }
            seen.push(took);
        }
        bail!("never within a second: {seen:?}")
    })?
}
