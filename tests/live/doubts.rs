//! Cookies that nobody saw being made: no verb gives a clean bill over them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{
    KernelSem, RunningActor, in_private_ns, new_trial, ns_of, start_actor,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    pins::BpfFs,
    service::Service,
    tracer::{WatchProcess, dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "doubts::no_verb_gives_a_clean_bill",
            NEEDS,
            no_verb_gives_a_clean_bill,
        ),
        new_trial(
            "doubts::a_victim_that_holds_older_cookies_is_told_so",
            NEEDS,
            a_victim_that_holds_older_cookies_is_told_so,
        ),
        new_trial(
            "doubts::a_service_searches_once_and_on_request",
            NEEDS,
            a_service_searches_once_and_on_request,
        ),
    ]
}

/// A cookie whose maker has ended, and one whose maker lives: both are older than any trace.
fn make_older_cookies() -> Result<[RunningActor; 2]> {
    let mut gone = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
    gone.read_to_end()?;
    let mut held = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
    held.read_until("holding")?;
    Ok([gone, held])
}

/// Whether a text says that nothing is leaked.
fn is_clean_bill(text: &str) -> bool {
    let lines = text.lines().map(str::trim);
    lines.into_iter().any(|line| {
        line.starts_with("No cookie is leaked")
            || line.starts_with("No cookie is stuck")
            || line.starts_with("no leak")
                && !line.starts_with("no leak proven")
                && !line.starts_with("no leak seen")
            || line == "no active findings"
            || line.contains("there is nothing to report")
    })
}

fn no_verb_gives_a_clean_bill() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let _actors = make_older_cookies()?;
        let filter = ["--ipc-ns", ns.as_str()];
        let verbs: [&[&str]; 8] = [
            &["list"],
            &["report", "--search", "no"],
            &["report", "--search", "fast"],
            &["report", "--bug", "--search", "no"],
            &["explain", "--search", "no"],
            &["clean", "--search", "no"],
            &["clean", "--search", "fast"],
            &["watch", "-d", "1s"],
        ];
        for verb in verbs {
            let output = run_dmtrace(&[verb, &filter[..]].concat())?;
            let text = String::from_utf8(output.stdout)?;
            let code = output.status.code();
            ensure!(code == Some(4), "{verb:?}: exit code {code:?}: {text}");
            ensure!(!is_clean_bill(&text), "{verb:?}: {text}");
            // The story of one cookie says it in its own words.
            let told = text.to_lowercase().contains("cannot tell");
            ensure!(told || verb[0] == "explain", "{verb:?}: {text}");
        }
        let (list, code) = dmtrace_json(&["list", "--ipc-ns", &ns])?;
        ensure!(code == 4 && list["doubts"]["older"] == 2, "{code}: {list}");
        // Nothing of that where there is no cookie.
        let other = ["list", "--key", "0x0d4dffff", "--ipc-ns", &ns];
        let output = run_dmtrace(&other)?;
        ensure!(output.status.code() == Some(0), "{output:?}");
        Ok(())
    })?
}

/// A daemon that leaks and fails for want of sets, and of which a trace sees the failure only.
fn a_victim_that_holds_older_cookies_is_told_so() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let limit = KernelSem::set_semmni(3)?;
        let daemon = ["moby", "--until-enospc", "--every-ms", "5000", "--hold"];
        let mut daemon = start_actor(&daemon)?;
        for _ in 0..3 {
            daemon.read_until("leaked")?;
        }
        let tracer = WatchProcess::start(&["--ipc-ns", &ns])?;
        daemon.read_until("exhausted")?;
        let (report, _) = dmtrace_json(&["report", "--search", "no", "--ipc-ns", &ns])?;
        let victim = &report["victims"][0];
        ensure!(victim["pid"] == daemon.pid(), "{report}");
        // Where the wall clock was set, nobody can tell whether it is the same process.
        let held = &victim["holds_older"];
        let held = [&held["certain"], &held["possible"]].map(|it| it.as_u64().unwrap_or(0));
        ensure!(held[0] + held[1] == 3, "{victim}");
        let output = run_dmtrace(&["report", "--search", "no", "--ipc-ns", &ns])?;
        let text = String::from_utf8(output.stdout)?;
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let told = [
            "it holds 3 older cookies: it may be the one that leaks them",
            "it may hold 3 older cookies, and be the one that leaks them",
        ];
        ensure!(told.iter().any(|told| words.contains(told)), "{text}");
        tracer.stop_trace()?;
        drop(limit);
        Ok(())
    })?
}

/// Waits for a status of the service.
fn wait_status(service: &Service, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let status = service.status()?;
        if wanted(&status) {
            return Ok(status);
        }
        ensure!(Instant::now() < until, "it stays so: {status}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn a_service_searches_once_and_on_request() -> Result<()> {
    in_private_ns(|| {
        let _actors = make_older_cookies()?;
        let bpf = BpfFs::mount()?;
        let service = Service::start(&["--pins", &bpf.pins_arg()])?;
        let is_over = |status: &Value| {
            let search = &status["search"];
            search["running"] == false && search["made"].as_u64() > Some(0)
        };
        let status = wait_status(&service, is_over)?;
        let search = &status["search"];
        ensure!(search["made"] == 1, "once: {status}");
        ensure!(search["failure"].is_null(), "{status}");
        ensure!(search["seconds_ago"].is_u64(), "{status}");
        ensure!(search["orphaned"].is_u64(), "{status}");
        // The one that lives holds its number.
        ensure!(search["held"].as_u64() >= Some(1), "{status}");
        let output = run_dmtrace(&["serve", "--search"])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.contains("last search for holders"), "{text}");
        ensure!(!is_clean_bill(&text), "{text}");
        let code = output.status.code().context("a code")?;
        ensure!(matches!(code, 1 | 4), "exit code {code}: {text}");
        let status = service.status()?;
        ensure!(status["search"]["made"] == 2, "on request: {status}");
        service.stop_service()?;
        Ok(())
    })?
}
