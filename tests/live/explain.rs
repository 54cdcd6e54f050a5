//! `dmtrace explain`: what an administrator reads about one cookie.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{
    ActorLine, RunningActor, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{WatchProcess, dmtrace_at, dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "explain::a_leak_and_its_culprit",
            NEEDS,
            a_leak_and_its_culprit,
        ),
        new_trial(
            "explain::the_worst_is_a_waiter",
            NEEDS,
            the_worst_is_a_waiter,
        ),
        new_trial(
            "explain::an_accident_names_both_sides",
            NEEDS,
            an_accident_names_both_sides,
        ),
        new_trial(
            "explain::a_cookie_older_than_the_trace",
            NEEDS,
            a_cookie_older_than_the_trace,
        ),
        new_trial(
            "explain::a_recording_needs_no_root",
            NEEDS,
            a_recording_needs_no_root,
        ),
        new_trial(
            "explain::what_is_not_there_is_one_line",
            NEEDS,
            what_is_not_there_is_one_line,
        ),
        new_trial(
            "explain::a_bug_report_of_a_leaker",
            NEEDS,
            a_bug_report_of_a_leaker,
        ),
    ]
}

/// The only explanation of an object.
fn only_story(object: &Value) -> Result<&Value> {
    let list = object["explanations"].as_array().context("no list")?;
    ensure!(list.len() == 1, "{object}");
    Ok(&list[0])
}

/// An actor that dies after its increment, with what it said of it. Keep it: its sets go with it.
fn dead_actor() -> Result<(RunningActor, ActorLine)> {
    let mut actor = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
    let (lines, _) = actor.read_to_end()?;
    let line = lines.into_iter().find(|line| line.step == "armed");
    Ok((actor, line.context("never armed")?))
}

/// Explains until the verdict is of this class: a verdict may wait for time to pass.
fn explain_until(args: &[&str], class: &str) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (object, _) = dmtrace_json(args)?;
        let story = object["explanations"][0].clone();
        if story["cookie"]["verdict"]["class"]["class"] == class {
            return Ok(only_story(&object)?.clone());
        }
        ensure!(Instant::now() < deadline, "never {class}: {object}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn field_text(story: &Value, field: &str) -> String {
    let lines = story[field].as_array().into_iter().flatten();
    let lines = lines.map(|line| match line.as_str() {
        Some(line) => line.to_owned(),
        None => line["text"]
            .as_str()
            .or(line["what"].as_str())
            .unwrap_or_default()
            .to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn a_leak_and_its_culprit() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.dmt").display().to_string();
        let _tracer = WatchProcess::start(&["--record", &path])?;
        let (_actor, made) = dead_actor()?;
        let key = format!("{:#010x}", made.key()?);
        let story = explain_until(&["explain", &key], "leaked")?;
        ensure!(story["missing"]["step"] == "wait", "{story}");
        let culprit = &story["cookie"]["verdict"]["culprit"];
        ensure!(culprit["id"]["tgid"] == made.pid, "{story}");
        ensure!(story["victims"] == serde_json::json!([]), "{story}");
        let life = field_text(&story, "life");
        for step in ["makes it", "sets it", "+1", "ends: killed by SIGKILL"] {
            ensure!(life.contains(step), "no {step} in {life}");
        }
        let fault = field_text(&story, "fault");
        ensure!(fault.contains("--stop-at after-inc"), "{fault}");
        ensure!(fault.contains("call site"), "{fault}");
        let semid = made.semid()?.to_string();
        let clean = format!("dmtrace clean {:#010x} ", made.key()?);
        ensure!(field_text(&story, "remedies").contains(&clean), "{story}");
        let avoid = story["avoid_codes"].to_string();
        ensure!(avoid.contains("complete_all"), "{avoid}");
        // The same by its semid, for people, on a terminal of 80 columns.
        let ns = ns_of("thread-self")?.to_string();
        let output = dmtrace_at(Some(80), &["explain", &semid, "--ipc-ns", &ns])?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        let shown = String::from_utf8(output.stdout)?;
        for line in shown.lines() {
            ensure!(line.chars().count() <= 80, "{line}");
        }
        for heading in [
            "WHAT HAPPENED",
            "WHAT IS MISSING",
            "WHOSE FAULT",
            "WHAT NOT TO DO",
        ] {
            ensure!(shown.contains(heading), "{shown}");
        }
        Ok(())
    })?
}

fn the_worst_is_a_waiter() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let _tracer = WatchProcess::start(&[])?;
        let _leak = dead_actor()?;
        let mut waiter = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
        let line = waiter.read_until("waiting")?;
        // Where no udevd runs a waiter is stuck at once; elsewhere the leak is the worst.
        let (doctor, _) = dmtrace_json(&["doctor", "--no-attach"])?;
        let down = doctor.to_string().contains("udevd is not running");
        let class = if down { "stuck" } else { "leaked" };
        let story = explain_until(&["explain", "--ipc-ns", &ns], class)?;
        if down {
            ensure!(story["missing"]["step"] == "completion", "{story}");
            let victims = story["victims"].as_array().context("no victims")?;
            ensure!(
                victims.len() == 1 && victims[0]["pid"] == line.pid,
                "{story}"
            );
            ensure!(victims[0]["seconds"].is_u64(), "{story}");
            ensure!(field_text(&story, "victims").contains("in-wait"), "{story}");
            ensure!(story["cookie"]["verdict"]["culprit"].is_null(), "{story}");
            ensure!(
                story["avoid_codes"].to_string().contains("kill_waiter"),
                "{story}"
            );
        }
        waiter.kill_group();
        Ok(())
    })?
}

fn an_accident_names_both_sides() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.dmt").display().to_string();
        let tracer = WatchProcess::start(&["--record", &path])?;
        let mut waiter = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
        let line = waiter.read_until("waiting")?;
        let semid = line.semid()?.to_string();
        let mut admin = Command::new("ipcrm").args(["-s", &semid]).spawn()?;
        let pid = admin.id();
        ensure!(admin.wait()?.success(), "ipcrm");
        let key = format!("{:#010x}", line.key()?);
        // While the trace runs: its recording remembers what is gone.
        let story = explain_until(&["explain", &key], "accident")?;
        let check = |story: &Value| -> Result<()> {
            let culprit = &story["cookie"]["verdict"]["culprit"];
            ensure!(culprit["role"] == "remover", "{story}");
            ensure!(culprit["id"]["tgid"] == pid, "{story}");
            let victims = story["victims"].as_array().context("no victims")?;
            ensure!(
                victims.len() == 1 && victims[0]["pid"] == line.pid,
                "{story}"
            );
            ensure!(
                field_text(story, "evidence").contains("1 operation not completed"),
                "{story}"
            );
            Ok(())
        };
        check(&story)?;
        waiter.kill_group();
        tracer.stop_trace()?;
        let (object, code) = dmtrace_json(&["explain", &key, &path])?;
        ensure!(code == 1, "{code}: {object}");
        check(only_story(&object)?)?;
        let (report, code) = dmtrace_json(&["report", &path])?;
        let accidents = report["accidents"].as_array().context("no accidents")?;
        let ours = accidents.iter().filter(|row| row["key"] == key.as_str());
        ensure!(ours.count() == 1 && code == 1, "{report}");
        Ok(())
    })?
}

fn a_cookie_older_than_the_trace() -> Result<()> {
    in_private_ns(|| {
        let (_leak, made) = dead_actor()?;
        let mut waiter = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
        let waiting = waiter.read_until("waiting")?;
        // What was touched a moment ago may be used again: open.
        thread::sleep(Duration::from_millis(2100));
        let explain = |line: u32| -> Result<Value> {
            let key = format!("{line:#010x}");
            let (object, _) = dmtrace_json(&["explain", "--no-trace", &key])?;
            Ok(only_story(&object)?.clone())
        };
        let story = explain(made.key()?)?;
        let verdict = &story["cookie"]["verdict"];
        ensure!(verdict["confidence"] == "unknown", "{story}");
        ensure!(
            verdict["culprit"].is_null() && story["cookie"]["owner"].is_null(),
            "{story}"
        );
        ensure!(verdict["reason"].is_string(), "{story}");
        // Who waits is named all the same, with what it runs.
        let story = explain(waiting.key()?)?;
        let victims = story["victims"].as_array().context("no victims")?;
        ensure!(
            victims.len() == 1 && victims[0]["pid"] == waiting.pid,
            "{story}"
        );
        ensure!(
            field_text(&story, "victims").contains("--stop-at in-wait"),
            "{story}"
        );
        waiter.kill_group();
        Ok(())
    })?
}

fn a_recording_needs_no_root() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.dmt");
        let shown = path.display().to_string();
        let ns = ns_of("thread-self")?.to_string();
        let tracer = WatchProcess::start(&["--record", &shown])?;
        let (leak, _) = dead_actor()?;
        thread::sleep(Duration::from_millis(1200));
        tracer.stop_trace()?;
        drop(leak);
        use std::os::unix::fs::PermissionsExt as _;
        for open in [dir.path(), &path] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o755))?;
        }
        let bin = dir.path().join("dmtrace");
        fs::copy(dmtrace_bin()?, &bin)?;
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&bin)
            .args(["--json", "explain", "--ipc-ns", &ns, &shown])
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        let object: Value = serde_json::from_slice(&output.stdout)?;
        let story = only_story(&object)?;
        ensure!(story["headline"].to_string().contains("SIGKILL"), "{story}");
        ensure!(object["recording"]["kernel"].is_string(), "{object}");
        Ok(())
    })?
}

fn what_is_not_there_is_one_line() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        for (args, code) in [
            (vec!["explain", "--no-trace", "--ipc-ns", &ns], 0),
            (
                vec!["explain", "--no-trace", "0x0d4d0001", "--ipc-ns", &ns],
                0,
            ),
        ] {
            let output = run_dmtrace(&args)?;
            ensure!(output.status.code() == Some(code), "{output:?}");
            let text = String::from_utf8(output.stdout)?;
            ensure!(text.lines().count() == 1, "{text}");
        }
        for wrong in ["nonsense", "0x12345678", "-1"] {
            let output = run_dmtrace(&["explain", wrong])?;
            ensure!(output.status.code() == Some(2), "{wrong}: {output:?}");
            let text = String::from_utf8(output.stderr)?;
            ensure!(text.lines().count() == 1, "{text}");
        }
        Ok(())
    })?
}

fn a_bug_report_of_a_leaker() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.dmt").display().to_string();
        let ns = ns_of("thread-self")?.to_string();
        let tracer = WatchProcess::start(&["--record", &path])?;
        let mut daemon = start_actor(&["moby", "--count", "3", "--every-ms", "10", "--hold"])?;
        daemon.read_until("holding")?;
        thread::sleep(Duration::from_millis(7000));
        tracer.stop_trace()?;
        daemon.kill_group();
        let (report, _) = dmtrace_json(&["report", &path, "--ipc-ns", &ns])?;
        let bugs = report["bugs"].as_array().context("no bugs")?;
        ensure!(bugs.len() == 1, "{report}");
        let bug = &bugs[0];
        // The last of three: nothing shows yet that the daemon has left it.
        ensure!(bug["leaked"].as_u64() >= Some(2), "{bug}");
        ensure!(bug["program"].to_string().contains("cookie-actor"), "{bug}");
        ensure!(
            bug["package"].is_null() && bug["package_unknown"].is_string(),
            "{bug}"
        );
        ensure!(bug["missing"].to_string().contains("dm_udev_wait"), "{bug}");
        ensure!(bug["limit"].as_u64() > Some(0), "{bug}");
        // Seven seconds make no rate.
        ensure!(bug["leaks_per_hour"].is_null(), "{bug}");
        let output = run_dmtrace(&["report", "--bug", &path, "--ipc-ns", &ns])?;
        ensure!(output.status.code() == Some(1), "{:?}", output.status);
        let text = String::from_utf8(output.stdout)?;
        for part in [
            "package      unknown",
            "call site",
            "rate",
            "in use",
            "moby --count 3",
        ] {
            ensure!(text.contains(part), "no {part} in {text}");
        }
        Ok(())
    })?
}
