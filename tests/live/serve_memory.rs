//! What a service remembers, and what it does by itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::{
    harness::{RunningActor, dmtrace_bin, in_private_ns, new_trial, start_actor},
    sysv,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{NEEDS, pins::BpfFs, service::Service};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "serve_memory::a_leak_of_the_past_is_told",
            NEEDS,
            a_leak_of_the_past_is_told,
        ),
        new_trial(
            "serve_memory::what_an_earlier_run_has_told_is_not_told_again",
            NEEDS,
            what_an_earlier_run_has_told_is_not_told_again,
        ),
        new_trial(
            "serve_memory::an_accident_is_told",
            NEEDS,
            an_accident_is_told,
        ),
        new_trial(
            "serve_memory::a_leak_stands_over_a_restart_until_it_is_gone",
            NEEDS,
            a_leak_stands_over_a_restart_until_it_is_gone,
        ),
        new_trial(
            "serve_memory::leaks_stay_unless_told",
            NEEDS,
            leaks_stay_unless_told,
        ),
        new_trial(
            "serve_memory::leaks_are_removed_if_told",
            NEEDS,
            leaks_are_removed_if_told,
        ),
    ]
}

/// What `report --since` says; with `file`, read directly.
fn run_report(file: Option<&Path>) -> Result<String> {
    let mut command = Command::new(dmtrace_bin()?);
    command.args(["report", "--since", "1h", "--json"]);
    if let Some(file) = file {
        command.arg("--history").arg(file);
    }
    let output = command.output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8(output.stdout)?;
    let _: Value = serde_json::from_str(&text).context(error)?;
    Ok(text)
}

/// Somebody leaks a cookie, and the service says so: who, the key, and the semid.
fn leak_and_hear(service: &mut Service) -> Result<(RunningActor, String, i32)> {
    let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
    let (lines, _) = leaker.read_to_end()?;
    let line = lines.last().context("no line")?;
    service.wait_line(&format!("by cookie-actor[{}]", leaker.pid()))?;
    Ok((leaker, format!("{:#010x}", line.key()?), line.semid()?))
}

/// What `explain` says of a cookie, and its exit code.
fn explain_cookie(key: &str) -> Result<(String, Option<i32>)> {
    let output = Command::new(dmtrace_bin()?)
        .args(["explain", key])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((text, output.status.code()))
}

fn a_leak_of_the_past_is_told() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("history.redb");
        let shown = file.display().to_string();
        let args = ["--pins", &bpf.pins_arg(), "--history", &shown];
        let mut service = Service::start(&args)?;
        let (leaker, key, semid) = leak_and_hear(&mut service)?;
        let pid = leaker.pid();
        sysv::remove_set(semid)?;
        service.wait_line(&format!("{key} semid {semid}: was leaked, is gone"))?;
        let told = |text: &str| text.contains(&key) && text.contains("cookie-actor");
        // By the service, then without it: it is killed once everything is on disk.
        let text = run_report(None)?;
        ensure!(told(&text), "the service does not tell of {key}: {text}");
        let (text, _) = explain_cookie(&key)?;
        ensure!(text.contains(&format!("cookie-actor[{pid}]")), "{text}");
        sleep(Duration::from_secs(3));
        service.kill_service()?;
        let text = run_report(Some(&file))?;
        ensure!(told(&text), "the file does not tell of {key}: {text}");
        // Its successor goes on with both.
        let service = Service::start(&args)?;
        let text = run_report(None)?;
        ensure!(told(&text), "the successor does not tell of {key}: {text}");
        let status = service.status()?;
        ensure!(status["history"]["on_disk"] == true, "{status}");
        service.stop_service()?;
        Ok(())
    })?
}

/// Its successor has not seen it being made: it cannot find it again, and must not call it gone.
fn a_leak_stands_over_a_restart_until_it_is_gone() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let dir = tempfile::tempdir()?;
        let file = show_file(&dir.path().join("history.redb"));
        let args = ["--pins", &bpf.pins_arg(), "--history", &file];
        let mut service = Service::start(&args)?;
        let (leaker, key, semid) = leak_and_hear(&mut service)?;
        let pid = leaker.pid();
        service.stop_service()?;
        let mut service = Service::start(&args)?;
        service.wait_line("finding reported before this start is still active")?;
        let standing = || -> Result<Value> {
            let status = service.status()?;
            Ok(status["findings"]["standing"].clone())
        };
        ensure!(standing()? == 1, "{}", standing()?);
        let of_key = || -> Result<(Value, Value)> {
            let told: Value = serde_json::from_str(&run_report(None)?)?;
            let cookies = told["leaked"].as_array().context("no list")?;
            let found = cookies.iter().find(|it| it["key"] == key.as_str());
            let found = found.with_context(|| format!("{key} is not there: {told}"))?;
            Ok((found["gone"].clone(), found.clone()))
        };
        let (gone, found) = of_key()?;
        ensure!(gone.is_null(), "{found}");
        let (text, code) = explain_cookie(&key)?;
        ensure!(text.contains("owner killed by SIGKILL"), "{text}");
        ensure!(text.contains(&format!("cookie-actor[{pid}]")), "{text}");
        ensure!(code == Some(1), "{text}");
        sysv::remove_set(semid)?;
        wait_until(|| Ok(!of_key()?.0.is_null()))?;
        ensure!(standing()? == 0, "{}", standing()?);
        let (gone, found) = of_key()?;
        ensure!(gone["how"] == "removed", "{found}");
        service.stop_service()?;
        Ok(())
    })?
}

fn what_an_earlier_run_has_told_is_not_told_again() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("history.redb");
        let told = dir.path().join("told");
        let script = dir.path().join("hook");
        let text = format!("#!/bin/sh\necho $DMTRACE_PID >> {}\n", told.display());
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let (pins, file, script) = (bpf.pins_arg(), show_file(&file), show_file(&script));
        let args = ["--pins", &pins, "--history", &file, "--on-leak", &script];
        // Others may leak, too.
        let hooked = |pid: u32| -> usize {
            let told = fs::read_to_string(&told).unwrap_or_default();
            told.lines().filter(|line| *line == pid.to_string()).count()
        };
        let leak = |service: &mut Service| -> Result<_> {
            let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
            let pid = leaker.pid();
            leaker.read_to_end()?;
            service.wait_line(&format!("by cookie-actor[{pid}]"))?;
            wait_until(|| Ok(hooked(pid) == 1))?;
            Ok((pid, leaker))
        };
        let mut service = Service::start(&args)?;
        let (first, _first) = leak(&mut service)?;
        // On disk: a service that is killed before that tells it again.
        wait_until(|| {
            let history = &service.status()?["history"];
            Ok(history["on_disk"] == true && history["pending"] == 0)
        })?;
        service.kill_service()?;
        let mut service = Service::start(&args)?;
        service.wait_line("reported before this start")?;
        let _second = leak(&mut service)?;
        let status = service.status()?;
        ensure!(
            status["findings"]["standing"].as_u64() >= Some(2),
            "{status}"
        );
        let (_, said) = service.stop_service()?;
        ensure!(!said.contains(&format!("cookie-actor[{first}]")), "{said}");
        ensure!(hooked(first) == 1, "the hook was told again");
        Ok(())
    })?
}

fn show_file(path: &Path) -> String {
    path.display().to_string()
}

/// Waits until something is so.
fn wait_until(holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds()? {
        ensure!(Instant::now() < deadline, "it never came to that");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Its cookie is taken away from somebody who waits for it.
fn an_accident_is_told() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let mut service = Service::start(&["--pins", &bpf.pins_arg()])?;
        let mut victim = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        let semid = victim.read_until("armed")?.semid()?;
        sysv::remove_set(semid)?;
        let line = service.wait_line("removed while in use")?;
        ensure!(line.contains(&format!("semid {semid}")), "{line}");
        victim.kill_group();
        Ok(())
    })?
}

fn leaks_stay_unless_told() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let mut service = Service::start(&["--pins", &bpf.pins_arg()])?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        let (lines, _) = leaker.read_to_end()?;
        let semid = lines.last().context("no line")?.semid()?;
        service.wait_line(&format!("by cookie-actor[{}]", leaker.pid()))?;
        sleep(Duration::from_secs(6));
        ensure!(sysv::get_key(semid).is_ok(), "it was removed");
        ensure!(
            !service.stderr_text()?.contains("clean-up"),
            "it cleaned up"
        );
        Ok(())
    })?
}

fn leaks_are_removed_if_told() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let dir = tempfile::tempdir()?;
        let audit = dir.path().join("audit.jsonl");
        let shown = audit.display().to_string();
        let pins = bpf.pins_arg();
        let args = ["--pins", &pins, "--auto-clean", "1s", "--audit", &shown];
        let mut service = Service::start(&args)?;
        // One that is in use stays.
        let mut user = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        let used = user.read_until("armed")?.semid()?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        let (lines, _) = leaker.read_to_end()?;
        let semid = lines.last().context("no line")?.semid()?;
        service.wait_line(&format!("semid {semid}: was leaked, is gone"))?;
        service.wait_line("clean-up: ")?;
        ensure!(sysv::get_key(semid).is_err(), "it is there");
        ensure!(sysv::get_key(used).is_ok(), "a cookie in use is gone");
        let audit = fs::read_to_string(audit)?;
        ensure!(audit.contains(&semid.to_string()), "{audit}");
        user.kill_group();
        Ok(())
    })?
}
