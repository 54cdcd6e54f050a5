//! Holders that are hard, slow or dangerous to look at: a search ends in time, and doubt keeps.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{RunningActor, dmtrace_bin, in_private_ns, new_trial, start_actor};
use libtest_mimic::Trial;

use crate::NEEDS;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "hostile::every_holder_is_named",
            NEEDS,
            every_holder_is_named,
        ),
        new_trial(
            "hostile::a_process_that_nobody_can_read_stops_nothing",
            NEEDS,
            a_process_that_nobody_can_read_stops_nothing,
        ),
        new_trial(
            "hostile::a_search_takes_little_memory",
            NEEDS,
            a_search_takes_little_memory,
        ),
    ]
}

/// Generous: the binary may be built without optimisation, and the machine busy.
const LIMIT: Duration = Duration::from_secs(120);

/// A holder, or `None` where this kernel cannot have it.
fn hide(place: &str, more: &[&str]) -> Result<Option<RunningActor>> {
    let mut actor = start_actor(&[&["hide", "--in", place], more].concat())?;
    match actor.read_until("hidden") {
        Ok(_) => Ok(Some(actor)),
        // Its cookie is made last: nothing is left of one that failed.
        Err(_) if actor.read_to_end().is_ok() => {
            println!("no {place} here: not tested");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What a command prints, which must end in time.
fn run_in_time(args: &[&str]) -> Result<String> {
    let mut child = Command::new(dmtrace_bin()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    let reader = thread::spawn(move || std::io::read_to_string(&mut stdout));
    let end = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            let _killed = child.kill();
            let _ended = child.wait();
            anyhow::bail!("dmtrace {args:?} does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let text = reader.join().ok().context("reader")??;
    Ok(text)
}

fn every_holder_is_named() -> Result<()> {
    in_private_ns(|| {
        let places = [
            ("beside-fuse", "holds its number (memory, binary)"),
            (
                "fuse-page",
                "could not be searched: it has written to a file that it maps, on a file system that may not answer",
            ),
            ("userfault", "holds its number (memory, binary)"),
            (
                "secret",
                "could not be searched: it has memory that nobody else can read",
            ),
            ("lazy", "holds its number (memory, binary)"),
            ("dead-leader", "holds its number (memory, binary)"),
            ("no-access", "holds its number (memory, binary)"),
        ];
        let mut holders = BTreeMap::new();
        for (place, expected) in places {
            if let Some(actor) = hide(place, &[])? {
                holders.insert(place, (actor, expected));
            }
        }
        ensure!(holders.len() >= 3, "{:?}", holders.keys());
        let text = run_in_time(&["clean", "--search", "fast", "--json"])?;
        for (place, (actor, expected)) in &holders {
            let reason = format!("cookie-actor[{}] {expected}", actor.pid());
            ensure!(text.contains(&reason), "{place}: no {reason:?}: {text}");
        }
        Ok(())
    })?
}

/// Not even `ps` ends then.
fn a_process_that_nobody_can_read_stops_nothing() -> Result<()> {
    in_private_ns(|| {
        let Some(holder) = hide("behind-lock", &[])? else {
            return Ok(());
        };
        for verb in [&["list", "--search", "fast"][..], &["report"], &["explain"]] {
            run_in_time(verb)?;
        }
        let text = run_in_time(&["clean", "--search", "fast", "--json"])?;
        ensure!(text.contains(&holder.pid().to_string()), "{text}");
        Ok(())
    })?
}

/// The most memory that a command and its readers had of their own, in KiB.
fn peak_memory(args: &[&str]) -> Result<u64> {
    let mut child = Command::new(dmtrace_bin()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let anonymous = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|it| it.strip_prefix("Pss_Anon:"));
        line.and_then(|it| it.trim().split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let readers = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let readers = readers.unwrap_or_default();
        let sum: u64 = readers.split_whitespace().map(anonymous).sum();
        peak = peak.max(sum + anonymous(&pid.to_string()));
        thread::sleep(Duration::from_millis(2));
    }
    ensure!(peak > 0, "dmtrace was gone before anybody looked");
    Ok(peak)
}

/// 5 MB, whatever there is to search.
fn a_search_takes_little_memory() -> Result<()> {
    in_private_ns(|| {
        let lazy = hide("lazy", &[])?;
        let crowd = hide("crowd", &["--procs", "2000"])?;
        ensure!(lazy.is_some() && crowd.is_some());
        let without = peak_memory(&["list", "--search", "no"])?;
        let with = peak_memory(&["list", "--search", "fast"])?;
        println!("{without} KiB without a search, {with} KiB with one");
        ensure!(
            with < without + 5000,
            "{without} KiB without a search, {with} KiB with one"
        );
        Ok(())
    })?
}
