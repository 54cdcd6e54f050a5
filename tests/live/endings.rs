//! How `watch` and `record` end: signals, closed pipes, full disks, recordings cut short.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor};
use libtest_mimic::Trial;

use crate::{
    NEEDS,
    tracer::{WatchProcess, dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("endings::a_closed_pipe_is_no_error", NEEDS, closed_pipe),
        new_trial(
            "endings::sigterm_ends_like_ctrl_c",
            NEEDS,
            sigterm_ends_like_ctrl_c,
        ),
        new_trial(
            "endings::count_ends_after_so_many_lines",
            NEEDS,
            count_ends_after_so_many_lines,
        ),
        new_trial(
            "endings::a_recording_tells_what_the_trace_told",
            NEEDS,
            a_recording_tells_what_the_trace_told,
        ),
        new_trial(
            "endings::a_recording_cut_short_says_so",
            NEEDS,
            a_recording_cut_short_says_so,
        ),
        new_trial(
            "endings::a_full_disk_keeps_what_was_recorded",
            NEEDS,
            full_disk,
        ),
        new_trial(
            "endings::without_root_one_line_says_what_is_missing",
            NEEDS,
            without_root_one_line_says_what_is_missing,
        ),
    ]
}

fn closed_pipe() -> Result<()> {
    in_private_ns(|| {
        let script = format!(
            "{} watch --all -d 20s 2>/dev/null | head -n 2; echo ${{PIPESTATUS[0]}}",
            dmtrace_bin()?.display()
        );
        let mut noise = start_actor(&["moby", "--count", "1000", "--every-ms", "20"])?;
        let output = Command::new("bash")
            .args(["-c", &script])
            .output()
            .context("bash")?;
        noise.kill_group();
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.lines().last() == Some("0"), "{text}");
        ensure!(text.lines().count() == 3, "{text}");
        Ok(())
    })?
}

fn sigterm_ends_like_ctrl_c() -> Result<()> {
    in_private_ns(|| {
        // What others have left on this machine is a finding, too.
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        tracer.send_signal(libc::SIGTERM)?;
        let said = tracer.stop_trace()?;
        ensure!(said.code == 0, "exit code {}", said.code);
        Ok(())
    })?
}

fn count_ends_after_so_many_lines() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let tracer = WatchProcess::start(&["-n", "3", "--ipc-ns", &ns.to_string()])?;
        start_actor(&["cycle", "--count", "5"])?.read_to_end()?;
        let said = tracer.stop_trace()?;
        let lines = said
            .objects
            .iter()
            .filter(|object| object["type"] == "change")
            .count();
        ensure!(lines == 3, "{lines} lines");
        Ok(())
    })?
}

/// Records the deaths of some actors.
fn record_deaths(path: &str) -> Result<String> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let mut tracer = Command::new(dmtrace_bin()?)
            .args(["record", "--force", "-d", "4s", path])
            .spawn()?;
        // The recording exists from the start, and has its first entry once probes are attached.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while fs::metadata(path).map_or(0, |file| file.len()) == 0
            && std::time::Instant::now() < deadline
        {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mut actors = Vec::new();
        for step in ["after-setval", "after-inc", "after-inc"] {
            let mut actor = start_actor(&["cycle", "--stop-at", step])?;
            let _killed = actor.read_to_end()?;
            actors.push(actor);
        }
        let status = tracer.wait()?;
        ensure!(status.code() == Some(1), "record: {status}");
        Ok(ns)
    })?
}

fn a_recording_tells_what_the_trace_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("a.dmt").display().to_string();
    let ns = record_deaths(&path)?;
    let (report, code) = dmtrace_json(&["report", "--ipc-ns", &ns, &path])?;
    ensure!(code == 1, "exit code {code}");
    let leaked = report["leaked"].as_array().context("no list")?;
    ensure!(leaked.len() == 3, "{} leaks: {report}", leaked.len());
    for leak in leaked {
        ensure!(leak["verdict"]["confidence"] == "observed", "{leak}");
        ensure!(
            leak["process"]["cmdline"].to_string().contains("--stop-at"),
            "{leak}"
        );
    }
    ensure!(report["complete"] == true, "{report}");
    // The same file, once more: refuses to overwrite.
    let output = run_dmtrace(&["record", "-d", "1s", &path])?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("--force"),
        "{output:?}"
    );
    Ok(())
}

fn a_recording_cut_short_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("a.dmt").display().to_string();
    record_deaths(&path)?;
    let whole = fs::read(&path)?;
    let short = dir.path().join("b.dmt").display().to_string();
    for part in [whole.len() - 1, whole.len() / 2, whole.len() / 3] {
        fs::write(&short, &whole[..part])?;
        let (report, code) = dmtrace_json(&["report", &short])?;
        ensure!(report["complete"] == false, "{report}");
        ensure!(
            report["notes"].to_string().contains("was not closed"),
            "{report}"
        );
        ensure!(code == 1 || code == 4, "exit code {code}");
    }
    fs::write(&short, &whole[..5])?;
    let output = run_dmtrace(&["report", &short])?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(
        output.stderr.iter().filter(|&&byte| byte == b'\n').count() == 1,
        "{output:?}"
    );
    Ok(())
}

fn full_disk() -> Result<()> {
    // A file system of 64 KiB in a mount namespace of its own.
    let script = format!(
        "mount -t tmpfs -o size=64k small /mnt || exit
         {bin} watch --all --record /mnt/a.dmt 2> >(tee /dev/shm/$$ >&2) & tracer=$!
         until grep -q tracing /dev/shm/$$; do sleep 0.1; done
         {actor} churn --tag y --procs 400 >/dev/null
         kill -INT $tracer; wait $tracer; rm /dev/shm/$$
         {bin} report /mnt/a.dmt; echo code $?",
        bin = dmtrace_bin()?.display(),
        actor = dmtrace_tests::harness::actor_bin()?.display(),
    );
    let output = Command::new("unshare")
        .args(["-m", "-i", "bash", "-c", &script])
        .output()
        .context("unshare")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(errors.contains("No space left on device"), "{errors}");
    // The trace went on to its own end, and what was recorded is readable.
    let made = text.lines().find_map(|line| {
        let (before, _) = line.split_once(" sets made")?;
        before.rsplit(' ').next()?.parse::<u32>().ok()
    });
    ensure!(made.is_some_and(|made| made >= 400), "{text}{errors}");
    ensure!(text.contains("code 4"), "{text}{errors}");
    Ok(())
}

fn without_root_one_line_says_what_is_missing() -> Result<()> {
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ])
        .arg(dmtrace_bin()?)
        .args(["watch", "-d", "1s"])
        .output()
        .context("setpriv")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(
        text.lines().count() == 1 && text.contains("CAP_BPF") && text.contains("root"),
        "{text}"
    );
    Ok(())
}
