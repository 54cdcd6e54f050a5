//! One truth: every verb says the same of a leak at the same moment, what `explain` advises works,
//! the cause stays when the culprit is killed, and the evidence is there after the repair.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{RunningActor, in_private_ns, new_trial, ns_of, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    recordings::Recording,
    service::Service,
    tracer::{WatchProcess, dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "one_truth::of_a_daemon_that_lives_and_is_killed",
            NEEDS,
            of_a_daemon_that_lives_and_is_killed,
        ),
        new_trial(
            "one_truth::of_a_wait_that_was_given_up",
            NEEDS,
            of_a_wait_that_was_given_up,
        ),
        new_trial("one_truth::of_a_service", NEEDS, of_a_service),
        new_trial(
            "one_truth::a_recording_that_is_written_is_asked_for_at_its_trace",
            NEEDS,
            a_recording_that_is_written_is_asked_for_at_its_trace,
        ),
        new_trial(
            "one_truth::a_trace_that_does_not_answer_is_said",
            NEEDS,
            a_trace_that_does_not_answer_is_said,
        ),
    ]
}

const COUNT: usize = 12;

/// A daemon that leaves its cookies behind and lives on.
fn start_daemon() -> Result<RunningActor> {
    let count = COUNT.to_string();
    let mut actor = start_actor(&["moby", "--count", &count, "--every-ms", "5", "--hold"])?;
    actor.read_until("holding")?;
    Ok(actor)
}

fn own_ns() -> Result<String> {
    Ok(ns_of("thread-self")?.to_string())
}

/// The leaked ones of a list of rows: semid, cause, and how sure.
fn leaked_of(rows: &Value) -> BTreeSet<(i64, String, String)> {
    let rows = rows.as_array().into_iter().flatten();
    let leaked = rows.filter(|row| row["verdict"]["class"]["class"] == "leaked");
    let words = |row: &Value| {
        let word = |name: &str| row["verdict"][name].as_str().unwrap_or("-").to_owned();
        let semid = row["semid"].as_i64().unwrap_or(-1);
        (semid, word("text"), word("confidence"))
    };
    leaked.map(words).collect()
}

/// Asks each verb, and checks that all say the same; returns it.
fn ask_all(source: &[&str]) -> Result<BTreeSet<(i64, String, String)>> {
    let ns = own_ns()?;
    let ask = |verb: &str, more: &[&str]| -> Result<Value> {
        let mut args = vec![verb, "--json", "--ipc-ns", &ns];
        args.extend(more);
        Ok(dmtrace_json(&args)?.0)
    };
    let list = leaked_of(&ask("list", source)?["semaphores"]);
    let report = leaked_of(&ask("report", &[])?["leaked"]);
    let story = ask("explain", source)?;
    let plan = ask("clean", source)?;
    let again = leaked_of(&ask("list", source)?["semaphores"]);
    if list != again {
        // Time has passed over a limit: ask once more.
        return ask_all(source);
    }
    ensure!(list == report, "list {list:?}, report {report:?}");
    let worst = &story["explanations"][0]["cookie"];
    let told = leaked_of(&Value::Array(vec![worst.clone()]));
    ensure!(
        list.is_empty() || told.is_subset(&list),
        "explain: {told:?}"
    );
    let entries = plan["plan"]["entries"].as_array().context("no plan")?;
    for (semid, text, confidence) in &list {
        let entry = entries.iter().find(|it| it["semid"] == *semid);
        let entry = entry.with_context(|| format!("clean does not know {semid}"))?;
        let verdict = &entry["verdict"];
        ensure!(verdict["text"] == *text, "clean: {verdict}, list: {text}");
        ensure!(
            verdict["observed"] == (confidence == "observed"),
            "{verdict}"
        );
    }
    Ok(list)
}

/// Asks until so many leaks are known to everybody.
fn wait_leaks(count: usize, source: &[&str]) -> Result<BTreeSet<(i64, String, String)>> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let leaks = ask_all(source)?;
        if leaks.len() == count {
            return Ok(leaks);
        }
        ensure!(Instant::now() < deadline, "{count} leaks, not: {leaks:?}");
        sleep(Duration::from_millis(300));
    }
}

const NEVER_WAITED: &str = "leaked: owner moved on and never waited";

/// What `explain` advises for its worst cookie, as words of a command.
fn advised_command(source: &[&str]) -> Result<Vec<String>> {
    let ns = own_ns()?;
    let mut args = vec!["explain", "--json", "--ipc-ns", &ns];
    args.extend(source);
    let (story, _) = dmtrace_json(&args)?;
    let remedies = story["explanations"][0]["remedies"].to_string();
    let command = remedies
        .split('`')
        .find(|it| it.starts_with("dmtrace clean "));
    let command = command.with_context(|| format!("no command in {remedies}"))?;
    let words = command.split(' ').skip(1);
    Ok(words.map(str::to_owned).collect())
}

/// Carries out a clean-up of what is as young as in a test; what it printed.
fn clean_now(words: &[String], dir: &Path) -> Result<String> {
    let audit = dir.join("audit.jsonl").display().to_string();
    let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
    args.extend(["--older-than", "1s", "--apply", "--yes", "--audit", &audit]);
    let output = run_dmtrace(&args)?;
    Ok(String::from_utf8(output.stdout)?)
}

fn of_a_daemon_that_lives_and_is_killed() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("t.dmt");
        let path = file.display().to_string();
        let ns = own_ns()?;
        let recording = Recording::start(&file, &[])?;
        let mut daemon = start_daemon()?;
        // All but the last one: for that it may still wait.
        let leaks = wait_leaks(COUNT - 1, &[])?;
        ensure!(
            leaks.iter().all(|(_, text, _)| text == NEVER_WAITED),
            "{leaks:?}"
        );
        let (list, _) = dmtrace_json(&["list", "--json", "--ipc-ns", &ns])?;
        ensure!(
            list.to_string().contains("owner_silent"),
            "not pending: {list}"
        );

        // What is advised works when it is typed, and so does the same for all of them.
        let output = clean_now(&advised_command(&[])?, dir.path())?;
        ensure!(output.contains("1 of 1 cookie removed"), "{output}");
        sleep(Duration::from_secs(2));
        let all = ["clean", "--abandoned", "--ipc-ns", &ns].map(str::to_owned);
        let output = clean_now(&all, dir.path())?;
        let removed = leaks
            .iter()
            .filter(|(_, _, sure)| sure == "observed")
            .count();
        ensure!(output.contains(&format!("{} of", removed - 1)), "{output}");
        let kept = wait_leaks(COUNT - 1 - removed, &[])?;

        // Its end changes no cause, but for the one of which nothing was known.
        daemon.kill_group();
        let killed = wait_leaks(COUNT - removed, &[])?;
        for (semid, text, sure) in &killed {
            let known = kept.iter().any(|(other, ..)| other == semid);
            ensure!((text == NEVER_WAITED) == known, "{semid}: {text}");
            ensure!(sure == "observed", "{semid}: {sure}");
        }
        let rest = ["clean", "--ipc-ns", &ns].map(str::to_owned);
        sleep(Duration::from_secs(2));
        clean_now(&rest, dir.path())?;
        wait_leaks(0, &[])?;
        recording.end(libc::SIGINT)?;

        // After the repair all of it is told.
        let (report, code) = dmtrace_json(&["report", "--json", "--ipc-ns", &ns, &path])?;
        ensure!(code == 1, "exit code {code}");
        let removed = report["removed"].as_array().context("no removed leaks")?;
        ensure!(removed.len() == COUNT, "{} removed", removed.len());
        for row in removed {
            let culprit = &row["verdict"]["culprit"];
            ensure!(culprit["id"]["tgid"] == daemon.pid(), "{row}");
            ensure!(
                row["verdict"].to_string().contains("dmtrace["),
                "who removed it: {row}"
            );
            let semid = row["semid"].to_string();
            let told = run_dmtrace(&["explain", &semid, &path, "--ipc-ns", &ns])?;
            let told = String::from_utf8(told.stdout)?;
            ensure!(
                told.contains("moby --count") && told.contains("removes it"),
                "{told}"
            );
        }
        let bug = run_dmtrace(&["report", "--bug", "--ipc-ns", &ns, &path])?;
        let bug = String::from_utf8(bug.stdout)?;
        ensure!(bug.contains(&format!("{COUNT} cookies")), "{bug}");
        ensure!(bug.contains("call site"), "{bug}");
        Ok(())
    })?
}

fn of_a_wait_that_was_given_up() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let _tracer = WatchProcess::start(&[])?;
        let mut actor = start_actor(&["eintr", "--then-cycle", "--hold"])?;
        let line = actor.read_until("abandoned")?;
        actor.read_until("holding")?;
        let given_up = "leaked: owner's wait was interrupted and not resumed";
        let only = |leaks: BTreeSet<(i64, String, String)>| -> Result<()> {
            let (_, text, sure) = leaks.first().context("none")?;
            ensure!(text == given_up && sure == "observed", "{text} ({sure})");
            Ok(())
        };
        only(wait_leaks(1, &[])?)?;
        // A completion that comes late changes nothing.
        let key = line.key()?.to_string();
        let mut late = start_actor(&["complete", "--key", &key])?;
        late.read_to_end()?;
        only(wait_leaks(1, &[])?)?;
        sleep(Duration::from_secs(2));
        let command = advised_command(&[])?;
        ensure!(
            command.iter().any(|word| word == "--abandoned"),
            "{command:?}"
        );
        let output = clean_now(&command, dir.path())?;
        ensure!(output.contains("1 of 1 cookie removed"), "{output}");
        Ok(())
    })?
}

/// The number of leaked cookies in the text file of the metrics.
fn leaked_metric(dir: &Path) -> Result<Option<usize>> {
    let text = fs::read_to_string(dir.join("dmtrace.prom"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("dmtrace_cookies{state=\"leaked\"} "));
    Ok(line.and_then(|number| number.parse().ok()))
}

fn of_a_service() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let history = dir.path().join("history").display().to_string();
        let place = dir.path().display().to_string();
        let service = Service::start(&["--history", &history, "--metrics-textfile", &place])?;
        let mut daemon = start_daemon()?;
        let leaks = wait_leaks(COUNT - 1, &[])?;
        let status = service.status()?;
        ensure!(status["findings"]["standing"] == leaks.len(), "{status}");
        let listed = leaked_of(&status["findings"]["list"]);
        ensure!(listed == leaks, "status {listed:?}, list {leaks:?}");
        let metric = leaked_metric(dir.path())?;
        ensure!(metric == Some(leaks.len()), "{metric:?}");
        daemon.kill_group();
        wait_leaks(COUNT, &[])?;
        sleep(Duration::from_secs(2));
        let ns = own_ns()?;
        clean_now(&["clean", "--ipc-ns", &ns].map(str::to_owned), dir.path())?;
        wait_leaks(0, &[])?;
        let status = service.status()?;
        ensure!(status["findings"]["standing"] == 0, "{status}");
        ensure!(leaked_metric(dir.path())? == Some(0), "the metric stays");
        // Each counts once, whatever became of it.
        let (past, _) = dmtrace_json(&["report", "--since", "1h", "--json"])?;
        let leaked = past["leaked"].as_array().context("no leaks")?;
        ensure!(leaked.len() == COUNT, "{} in the history", leaked.len());
        ensure!(
            past["judged_otherwise"] == Value::Array(Vec::new()),
            "{past}"
        );
        let bug = run_dmtrace(&["report", "--since", "1h", "--bug"])?;
        let bug = String::from_utf8(bug.stdout)?;
        ensure!(bug.contains(&format!("{COUNT} cookies")), "{bug}");
        Ok(())
    })?
}

fn a_recording_that_is_written_is_asked_for_at_its_trace() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("t.dmt");
        let _recording = Recording::start(&file, &[])?;
        let _daemon = start_daemon()?;
        let source = ["--trace", &file.display().to_string()];
        wait_leaks(COUNT - 1, &source)?;
        sleep(Duration::from_secs(2));
        let command = advised_command(&source)?;
        ensure!(command.contains(&"--trace".to_owned()), "{command:?}");
        let output = clean_now(&command, dir.path())?;
        ensure!(output.contains("1 of 1 cookie removed"), "{output}");
        Ok(())
    })?
}

/// A trace that is stopped: its maps must do, and that is said.
fn a_trace_that_does_not_answer_is_said() -> Result<()> {
    in_private_ns(|| {
        let tracer = WatchProcess::start(&[])?;
        let mut actor = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        actor.read_to_end()?;
        // Old enough to be told.
        sleep(Duration::from_secs(2));
        tracer.send_signal(libc::SIGSTOP)?;
        let output = run_dmtrace(&["list", "--ipc-ns", &own_ns()?]);
        tracer.send_signal(libc::SIGCONT)?;
        let output = output?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(said.contains("is stopped"), "{said}");
        let shown = String::from_utf8(output.stdout)?;
        ensure!(shown.contains("leaked"), "{shown}");
        Ok(())
    })?
}
