//! The case that the tool exists for: the limit is reached, who did it?

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{
    KernelSem, RunningActor, in_private_ns, new_trial, ns_of, start_actor,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{WatchProcess, dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "seed::culprits_are_named_and_victims_are_not_blamed",
            NEEDS,
            culprits_are_named_and_victims_are_not_blamed,
        ),
        new_trial(
            "seed::an_owner_that_became_another_program_is_still_named",
            NEEDS,
            an_owner_that_became_another_program_is_still_named,
        ),
    ]
}

/// What is there, by semid.
fn list_semids() -> Result<Vec<i32>> {
    let table = std::fs::read_to_string("/proc/sysvipc/sem")?;
    let rows = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1));
    rows.map(|semid| Ok(semid.parse()?)).collect()
}

/// Removes what is proven to be leaked.
fn run_clean(ns: u32) -> Result<(u64, i32)> {
    let ns = ns.to_string();
    let audit = tempfile::NamedTempFile::new()?;
    let audit = audit.path().to_str().context("path")?;
    let options = ["clean", "--apply", "--yes", "--older-than", "0s"];
    let (result, code) =
        dmtrace_json(&[&options[..], &["--ipc-ns", &ns, "--audit", audit]].concat())?;
    let cookies = result["cookies"]
        .as_array()
        .with_context(|| result.to_string())?;
    let removed = cookies
        .iter()
        .filter(|cookie| cookie["outcome"] == "removed")
        .count();
    Ok((removed as u64, code))
}

/// The killed ones' cookies go, then the daemon's once it has ended; all others stay.
fn clean_until(ns: u32, daemon: &mut RunningActor, live: &[&RunningActor]) -> Result<()> {
    let before = list_semids()?.len();
    let (removed, code) = run_clean(ns)?;
    ensure!(
        removed == 10 && code == 0,
        "{removed} removed, exit code {code}"
    );
    ensure!(
        list_semids()?.len() == before - 10,
        "{} sets are left",
        list_semids()?.len()
    );
    // Creation works again.
    let victim = run_to_end(&["create"])?;
    ensure!(
        list_semids()?.len() == before - 9,
        "the victim of before still cannot create"
    );
    daemon.kill_group();
    std::thread::sleep(std::time::Duration::from_secs(2));
    // A number that was given rules, and the refusal says what lifts it.
    let ns_text = ns.to_string();
    let few = [
        "clean",
        "--apply",
        "--yes",
        "--older-than",
        "0",
        "--max",
        "113",
    ];
    let output = run_dmtrace(&[&few[..], &["--ipc-ns", &ns_text]].concat())?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(5), "{text}");
    ensure!(text.contains("--max 114"), "{text}");
    let (removed, code) = run_clean(ns)?;
    ensure!(
        removed == 114 && code == 0,
        "{removed} removed, exit code {code}"
    );
    // Two foreign sets, one that waits, one that is held, and the open transaction.
    let left = list_semids()?;
    ensure!(left.len() == 5, "{left:?}");
    for actor in live {
        let pid = actor.pid().to_string();
        let (list, _) = dmtrace_json(&["list", "--pid", &pid])?;
        ensure!(
            list["semaphores"]
                .as_array()
                .is_some_and(|sets| sets.len() == 1),
            "{list}"
        );
    }
    drop(victim);
    Ok(())
}

/// Runs an actor to its end, and keeps it for the clean-up.
fn run_to_end(args: &[&str]) -> Result<RunningActor> {
    let mut actor = start_actor(args)?;
    let _status = actor.read_to_end()?;
    Ok(actor)
}

fn culprits_are_named_and_victims_are_not_blamed() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let _limit = KernelSem::set_semmni(128)?;
        let tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        // Not cookies, though their keys look like it.
        let _big = run_to_end(&["foreign", "--nsems", "3"])?;
        let _open = run_to_end(&["foreign", "--mode", "666"])?;
        // In order: one waits, one holds its cookie.
        let mut waiting = start_actor(&["cycle", "--delay-ms", "60000"])?;
        waiting.read_until("waiting")?;
        let mut holding = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        holding.read_until("armed")?;
        // Killed: ten, at two steps.
        let mut killed = Vec::new();
        for step in ["after-setval", "after-inc"].iter().cycle().take(10) {
            killed.push(run_to_end(&["cycle", "--stop-at", step])?);
        }
        // The daemon takes all that is left and lives on.
        let mut daemon = start_actor(&["moby", "--until-enospc", "--hold"])?;
        let made = daemon.read_until("exhausted")?.number("made")?;
        ensure!(made == 128 - 14, "the daemon made {made}");
        let mut victim = start_actor(&["victim"])?;
        let (lines, _) = victim.read_to_end()?;
        ensure!(
            lines
                .iter()
                .any(|line| line.number("errno").is_ok_and(|errno| errno == 28)),
            "no ENOSPC: {lines:?}"
        );
        std::thread::sleep(std::time::Duration::from_secs(6));

        let (report, code) = dmtrace_json(&["report", "--ipc-ns", &ns.to_string()])?;
        ensure!(code == 1, "exit code {code}");
        let groups = report["by_process"].as_array().context("no groups")?;
        let count_of = |pid: u32| -> u64 {
            groups
                .iter()
                .filter(|group| group["process"]["id"]["tgid"] == pid)
                .filter_map(|group| group["leaked"].as_u64())
                .sum()
        };
        for actor in &killed {
            ensure!(
                count_of(actor.pid()) == 1,
                "killed process {} is not named with 1: {report}",
                actor.pid()
            );
        }
        // Its last cookie is followed by the failed attempt; the map does not keep that.
        let daemons = count_of(daemon.pid());
        ensure!(
            daemons >= u64::try_from(made)? - 1,
            "the daemon is named with {daemons} of {made}"
        );
        for innocent in [waiting.pid(), holding.pid(), victim.pid()] {
            ensure!(
                count_of(innocent) == 0,
                "process {innocent} is blamed: {report}"
            );
        }
        let victims = report["victims"].as_array().context("no victims")?;
        let is_victim = |pid: u32, also: bool| {
            victims
                .iter()
                .any(|victim| victim["pid"] == pid && victim["also_culprit"] == also)
        };
        ensure!(
            is_victim(victim.pid(), false),
            "the victim is missing: {report}"
        );
        ensure!(
            is_victim(daemon.pid(), true),
            "the daemon is not told from its victims: {report}"
        );
        let full = &report["namespaces"]
            .as_array()
            .context("no namespaces")?
            .iter()
            .find(|it| it["ipc_ns"] == ns)
            .context("no namespace")?
            .clone();
        ensure!(full["sets"] == 128 && full["limit"] == 128, "{full}");

        let (list, _) = dmtrace_json(&["list", "--ipc-ns", &ns.to_string()])?;
        let state = |pid: u32| -> Option<Value> {
            let sets = list["semaphores"].as_array()?;
            sets.iter()
                .find(|set| set["owner"]["pid"] == pid)
                .map(|set| set["state"].clone())
        };
        ensure!(
            state(waiting.pid()).is_some_and(|state| state == "waiting"
                || state == "slow-udev"
                || state == "stuck"),
            "{list}"
        );
        ensure!(
            state(holding.pid()).is_some_and(|state| state == "open"),
            "{list}"
        );
        let foreign = list["semaphores"]
            .as_array()
            .context("no list")?
            .iter()
            .filter(|set| set["state"] == "foreign")
            .count();
        ensure!(foreign == 2, "{foreign} foreign sets");
        clean_until(ns, &mut daemon, &[&waiting, &holding])?;
        drop(tracer);
        Ok(())
    })?
}

/// A process makes a cookie, becomes `sleep`, and ends.
fn an_owner_that_became_another_program_is_still_named() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        let actor = run_to_end(&["exec-chain", "--seconds", "1"])?;
        let patience = std::time::Duration::from_secs(20);
        let finding = tracer.wait_object(|object| object["type"] == "finding", patience)?;
        ensure!(finding["culprit"]["id"]["tgid"] == actor.pid(), "{finding}");
        ensure!(finding["confidence"] == "observed", "{finding}");
        let said = tracer.stop_trace()?;
        let command = said.command_lines().remove(&u64::from(actor.pid()));
        ensure!(
            command
                .as_deref()
                .is_some_and(|command| command.contains("exec-chain")),
            "{command:?} instead of the program that made the cookie"
        );
        Ok(())
    })?
}
