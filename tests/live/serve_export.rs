//! What a service tells others: Prometheus, node_exporter, the hook.

use std::{
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, in_private_ns, new_trial, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{NEEDS, service::Service};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("serve_export::a_scrape_adds_up", NEEDS, a_scrape_adds_up),
        new_trial(
            "serve_export::the_textfile_follows",
            NEEDS,
            the_textfile_follows,
        ),
        new_trial(
            "serve_export::the_hook_is_told_who_leaked",
            NEEDS,
            the_hook_is_told_who_leaked,
        ),
        new_trial(
            "serve_export::what_cannot_work_is_refused",
            NEEDS,
            what_cannot_work_is_refused,
        ),
    ]
}

/// A page of metrics.
struct Page(String);

impl Page {
    /// From a socket in the file system.
    fn scrape_socket(path: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        Ok(Self(body.to_owned()))
    }

    /// Sum of all samples of a metric whose labels contain this text.
    fn sum_samples(&self, name: &str, labels: &str) -> f64 {
        let samples = self.0.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (own, rest) = sample.split_once('{').unwrap_or((sample, ""));
            (own == name && rest.contains(labels)).then(|| value.parse::<f64>().ok())?
        });
        samples.sum()
    }
}

fn a_scrape_adds_up() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("metrics.sock");
        let service = Service::start(&["--metrics", &path.display().to_string()])?;
        ensure!(std::fs::metadata(&path)?.mode() & 0o777 == 0o600, "mode");
        let before = Page::scrape_socket(&path)?;
        // A number that nobody arrives at by chance.
        for _ in 0..23 {
            let mut owner = start_actor(&["cycle"])?;
            owner.read_to_end()?;
        }
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        leaker.read_to_end()?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let after = loop {
            let page = Page::scrape_socket(&path)?;
            let leaked = page.sum_samples("dmtrace_cookies_leaked_total", "");
            if leaked > before.sum_samples("dmtrace_cookies_leaked_total", "") {
                break page;
            }
            ensure!(Instant::now() < deadline, "no leak: {}", page.0);
            sleep(Duration::from_millis(200));
        };
        // Others may make cookies on this machine, too.
        let grown = |name: &str, least: f64| -> Result<()> {
            let grown = after.sum_samples(name, "") - before.sum_samples(name, "");
            ensure!(grown >= least, "{name} grew by {grown}: {}", after.0);
            Ok(())
        };
        grown("dmtrace_cookies_created_total", 24.0)?;
        grown("dmtrace_cookies_completed_total", 23.0)?;
        grown("dmtrace_cookie_udev_wait_seconds_count", 23.0)?;
        grown("dmtrace_events_seen_total", 24.0 * 4.0)?;
        ensure!(after.sum_samples("dmtrace_cookies", "state=\"leaked\"") >= 1.0);
        ensure!(after.sum_samples("dmtrace_semaphore_sets", "other") >= 1.0);
        ensure!(after.sum_samples("dmtrace_probe_attached", "create") >= 1.0);
        let lost = after.sum_samples("dmtrace_events_lost_total", "map_full");
        ensure!(lost.abs() < 0.5, "{}", after.0);
        // What was seen went into the ring or is counted as dropped.
        let seen = after.sum_samples("dmtrace_events_seen_total", "");
        let submitted = after.sum_samples("dmtrace_events_submitted_total", "");
        let dropped = after.sum_samples("dmtrace_events_lost_total", "ring_full");
        ensure!((seen - submitted - dropped).abs() < 0.5, "{}", after.0);
        let (status, said) = service.stop_service()?;
        ensure!(status.success(), "{said}");
        ensure!(!path.exists(), "the socket is left");
        Ok(())
    })?
}

fn the_textfile_follows() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("dmtrace.prom");
        let _service = Service::start(&["--metrics-textfile", &dir.path().display().to_string()])?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        leaker.read_to_end()?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let page = Page(std::fs::read_to_string(&file).unwrap_or_default());
            if page.sum_samples("dmtrace_cookies", "leaked") >= 1.0 {
                break;
            }
            ensure!(Instant::now() < deadline, "no leak: {}", page.0);
            sleep(Duration::from_millis(100));
        }
        ensure!(std::fs::metadata(&file)?.mode() & 0o777 == 0o644, "mode");
        Ok(())
    })?
}

fn the_hook_is_told_who_leaked() -> Result<()> {
    in_private_ns(|| {
        let dir = tempfile::tempdir()?;
        let told = dir.path().join("told");
        let script = dir.path().join("hook");
        let text = format!(
            "#!/bin/sh\n{{ echo \"$DMTRACE_PID $DMTRACE_STATE $DMTRACE_COMM\"; cat; }} >> {}\n",
            told.display()
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let service = Service::start(&["--on-leak", &script.display().to_string()])?;
        let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
        let pid = leaker.pid();
        leaker.read_to_end()?;
        let head = format!("{pid} leaked cookie-actor");
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let finding: Value = loop {
            let text = std::fs::read_to_string(&told).unwrap_or_default();
            let mut lines = text.lines().skip_while(|line| *line != head).skip(1);
            if let Some(line) = lines.next()
                && let Ok(finding) = serde_json::from_str(line)
            {
                break finding;
            }
            ensure!(Instant::now() < deadline, "not told: {text}");
            sleep(Duration::from_millis(50));
        };
        ensure!(finding["type"] == "finding", "{finding}");
        ensure!(finding["owner"]["pid"] == pid, "{finding}");
        let class = &finding["verdict"]["class"]["class"];
        ensure!(class == "leaked", "{finding}");
        let (_, said) = service.stop_service()?;
        ensure!(!said.contains("hook"), "{said}");
        // Once, however often it was looked at.
        let text = std::fs::read_to_string(&told)?;
        ensure!(text.matches(&head).count() == 1, "{text}");
        Ok(())
    })?
}

fn what_cannot_work_is_refused() -> Result<()> {
    for (args, why) in [
        (["--metrics", "0.0.0.0:0"], "not a loopback address"),
        (["--metrics", "everywhere"], "give ADDRESS:PORT"),
        (["--on-leak", "logger leak"], "absolute path"),
        (["--on-leak", "/nonexistent/hook"], "no executable file"),
    ] {
        let output = Command::new(dmtrace_bin()?)
            .arg("serve")
            .args(args)
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{args:?} was accepted");
        ensure!(error.contains(why), "{args:?}: {error}");
    }
    // A port that is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let mut command = Command::new(dmtrace_bin()?);
    let output = command
        .args(["serve", "--metrics", &address.to_string()])
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("metrics cannot be served there"), "{error}");

    Ok(())
}
