//! The case that the tool exists for: the limit is reached, who did it?

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{KernelSem, Running, actor, in_private_ns, ns_of, test};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{Tracer, dmtrace, dmtrace_json},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "seed::culprits_are_named_and_victims_are_not_blamed",
            NEEDS,
            culprits,
        ),
        test(
            "seed::an_owner_that_became_another_program_is_still_named",
            NEEDS,
            replaced,
        ),
    ]
}

/// What is there, by semid.
fn semids() -> Result<Vec<i32>> {
    let table = std::fs::read_to_string("/proc/sysvipc/sem")?;
    let rows = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1));
    rows.map(|semid| Ok(semid.parse()?)).collect()
}

/// Removes what is proven to be leaked.
fn clean(ns: u32) -> Result<(u64, i32)> {
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
fn cleaning(ns: u32, daemon: &mut Running, live: &[&Running]) -> Result<()> {
    let before = semids()?.len();
    let (removed, code) = clean(ns)?;
    ensure!(
        removed == 10 && code == 0,
        "{removed} removed, exit code {code}"
    );
    ensure!(
        semids()?.len() == before - 10,
        "{} sets are left",
        semids()?.len()
    );
    // Creation works again.
    let victim = ended(&["create"])?;
    ensure!(
        semids()?.len() == before - 9,
        "the victim of before still cannot create"
    );
    daemon.kill();
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
    let output = dmtrace(&[&few[..], &["--ipc-ns", &ns_text]].concat())?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(5), "{text}");
    ensure!(text.contains("--max 114"), "{text}");
    let (removed, code) = clean(ns)?;
    ensure!(
        removed == 114 && code == 0,
        "{removed} removed, exit code {code}"
    );
    // Two foreign sets, one that waits, one that is held, and the open transaction.
    let left = semids()?;
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
fn ended(args: &[&str]) -> Result<Running> {
    let mut actor = actor(args)?;
    let _status = actor.finish()?;
    Ok(actor)
}

fn culprits() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let _limit = KernelSem::set_semmni(128)?;
        let tracer = Tracer::start(&["--ipc-ns", &ns.to_string()])?;
        // Not cookies, though their keys look like it.
        let _big = ended(&["foreign", "--nsems", "3"])?;
        let _open = ended(&["foreign", "--mode", "666"])?;
        // In order: one waits, one holds its cookie.
        let mut waiting = actor(&["cycle", "--delay-ms", "60000"])?;
        waiting.until("waiting")?;
        let mut holding = actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        holding.until("armed")?;
        // Killed: ten, at two steps.
        let mut killed = Vec::new();
        for step in ["after-setval", "after-inc"].iter().cycle().take(10) {
            killed.push(ended(&["cycle", "--stop-at", step])?);
        }
        // The daemon takes all that is left and lives on.
        let mut daemon = actor(&["moby", "--until-enospc", "--hold"])?;
        let made = daemon.until("exhausted")?.number("made")?;
        ensure!(made == 128 - 14, "the daemon made {made}");
        let mut victim = actor(&["victim"])?;
        let (lines, _) = victim.finish()?;
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
        cleaning(ns, &mut daemon, &[&waiting, &holding])?;
        drop(tracer);
        Ok(())
    })?
}

/// A process makes a cookie, becomes `sleep`, and ends.
fn replaced() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = Tracer::start(&["--ipc-ns", &ns.to_string()])?;
        let actor = ended(&["exec-chain", "--seconds", "1"])?;
        let patience = std::time::Duration::from_secs(20);
        let finding = tracer.until(|object| object["type"] == "finding", patience)?;
        ensure!(finding["culprit"]["id"]["tgid"] == actor.pid(), "{finding}");
        ensure!(finding["confidence"] == "observed", "{finding}");
        let said = tracer.stop()?;
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
