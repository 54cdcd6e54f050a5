//! `dmtrace doctor` where something is missing: one clear line, and what to do.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{
    KernelSem, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{WatchProcess, dmtrace_at, dmtrace_json},
    unmounted::UNMOUNT,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("doctor::a_machine_that_works", NEEDS, a_machine_that_works),
        new_trial("doctor::not_root", NEEDS, not_root),
        new_trial("doctor::no_btf", NEEDS, no_btf),
        new_trial("doctor::lockdown", NEEDS, lockdown),
        new_trial("doctor::no_tracefs", NEEDS, no_tracefs),
        new_trial(
            "doctor::nothing_passes_that_could_not_be_read",
            NEEDS,
            nothing_passes_that_could_not_be_read,
        ),
        new_trial("doctor::tight_limits", NEEDS, tight_limits),
        new_trial(
            "doctor::is_udevcomplete_all_safe",
            NEEDS,
            is_udevcomplete_all_safe,
        ),
    ]
}

/// In a mount namespace of its own: nothing of the kernel's is mounted, and root may mount nothing.
const MAY_NOT_MOUNT: &str = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin";

fn check_named<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    report["checks"]
        .as_array()
        .and_then(|checks| checks.iter().find(|check| check["check"] == name))
        .with_context(|| format!("no check {name} in {report}"))
}

/// Runs `doctor --json` in a mount namespace of its own, after `setup`.
fn in_mount_ns(setup: &str) -> Result<(Value, i32)> {
    in_mount_ns_by(setup, "")
}

/// The same, run by another program, or with other options.
fn in_mount_ns_by(setup: &str, by: &str) -> Result<(Value, i32)> {
    let attach = if by.is_empty() { "" } else { "--no-attach" };
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec"])
        .arg(format!(
            "{UNMOUNT}\n{setup}\nexec {by} \"$0\" --json doctor {attach}"
        ))
        .arg(dmtrace_bin()?)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let report = serde_json::from_str(&text)
        .with_context(|| format!("{text} {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((report, output.status.code().unwrap_or(-1)))
}

fn a_machine_that_works() -> Result<()> {
    let output = dmtrace_at(Some(80), &["doctor"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}");
    for line in text.lines() {
        ensure!(line.chars().count() <= 80, "{line}");
        let word = line.get(..6).unwrap_or(line);
        ensure!(
            matches!(word, "pass  " | "warn  " | "fail  " | "      "),
            "{line}"
        );
    }
    let sets = || fs::read_to_string("/proc/sysvipc/sem");
    let before = sets()?;
    let (report, code) = dmtrace_json(&["doctor"])?;
    ensure!(code == 0 && report["type"] == "doctor", "{code}: {report}");
    ensure!(
        report["tracing"] == true && report["backend"].is_string(),
        "{report}"
    );
    ensure!(
        check_named(&report, "self_test")?["status"] == "pass",
        "{report}"
    );
    ensure!(
        report["self_test"]["missed"] == serde_json::json!([]),
        "{report}"
    );
    ensure!(sets()? == before, "the self-test left something");
    let tracer = WatchProcess::start(&[])?;
    let (report, _) = dmtrace_json(&["doctor", "--no-attach"])?;
    let running = check_named(&report, "traces")?["text"]
        .as_str()
        .unwrap_or_default();
    ensure!(running.contains(&tracer.pid().to_string()), "{running}");
    Ok(())
}

fn not_root() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bin = dir.path().join("dmtrace");
    fs::copy(dmtrace_bin()?, &bin)?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&bin)
        .args(["--json", "doctor"])
        .stdin(Stdio::null())
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    let capabilities = check_named(&report, "capabilities")?;
    ensure!(capabilities["status"] == "fail", "{capabilities}");
    let text = capabilities.to_string();
    ensure!(text.contains("CAP_BPF") && text.contains("sudo"), "{text}");
    // What to do is what lets it trace, not what can be done without.
    let attach = check_named(&report, "attach")?;
    let fix = attach["fix"].as_str().unwrap_or_default();
    ensure!(
        fix.contains("run as root") && !fix.contains("list"),
        "{attach}"
    );
    // The directory is for root: whether a trace runs is not for others to know.
    let tracer = WatchProcess::start(&[])?;
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&bin)
        .args(["--json", "doctor"])
        .stdin(Stdio::null())
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    drop(tracer);
    let traces = check_named(&report, "traces")?;
    ensure!(
        traces["status"] == "warn" && traces["text"].to_string().contains("cannot tell"),
        "{traces}"
    );
    ensure!(report["running_traces"].is_null(), "{report}");
    Ok(())
}

fn no_btf() -> Result<()> {
    let (report, code) = in_mount_ns("mount -t tmpfs none /sys/kernel/btf")?;
    ensure!(code == 3, "{code}: {report}");
    let btf = check_named(&report, "btf")?;
    ensure!(btf["status"] == "fail" && btf["fix"].is_string(), "{btf}");
    ensure!(
        check_named(&report, "capabilities")?["status"] == "pass",
        "{report}"
    );
    Ok(())
}

fn lockdown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("lockdown");
    for (mode, status, code) in [
        ("[none] integrity confidentiality\n", "pass", 0),
        ("none [integrity] confidentiality\n", "pass", 0),
        ("none integrity [confidentiality]\n", "fail", 3),
    ] {
        fs::write(&file, mode)?;
        let security = "/sys/kernel/security";
        let (report, got) = in_mount_ns(&format!(
            "mount -t securityfs none {security}\nmount --bind {} {security}/lockdown",
            file.display()
        ))?;
        let found = check_named(&report, "lockdown")?;
        ensure!(
            found["status"] == status && got == code,
            "{mode}{got}: {found}"
        );
    }
    // Another file system in its place says nothing, and is not believed.
    let lie = "mount -t tmpfs none /sys/kernel/security\n\
               echo 'none integrity [confidentiality]' >/sys/kernel/security/lockdown";
    let (report, code) = in_mount_ns(lie)?;
    let found = check_named(&report, "lockdown")?;
    ensure!(found["status"] == "pass" && code == 0, "{code}: {found}");
    let (report, _) = in_mount_ns_by(lie, MAY_NOT_MOUNT)?;
    let found = check_named(&report, "lockdown")?;
    let fix = found["fix"].as_str().unwrap_or_default();
    ensure!(
        found["status"] == "warn" && fix.contains("mount -t securityfs"),
        "{found}"
    );
    Ok(())
}

fn no_tracefs() -> Result<()> {
    let (report, code) = in_mount_ns("")?;
    let found = check_named(&report, "tracefs")?;
    ensure!(
        found["status"] == "pass" && report["environment"]["tracefs"] == "private",
        "{report}"
    );
    ensure!(code == 0 && report["tracing"] == true, "{code}: {report}");
    let (report, _) = in_mount_ns_by("", MAY_NOT_MOUNT)?;
    let found = check_named(&report, "tracefs")?;
    let fix = found["fix"].as_str().unwrap_or_default();
    ensure!(
        found["status"] == "warn" && fix.contains("mount -t tracefs"),
        "{found}"
    );
    ensure!(report["environment"]["tracefs"].is_null(), "{report}");
    Ok(())
}

/// The kind: a check that could not look must not be told as one that found nothing.
fn nothing_passes_that_could_not_be_read() -> Result<()> {
    let (report, _) = in_mount_ns_by("mount -t tmpfs none /proc", "env")?;
    for name in [
        "limits",
        "own_namespace",
        "perf_event_paranoid",
        "udevcomplete_all",
        "udevd",
    ] {
        let found = check_named(&report, name)?;
        ensure!(found["status"] != "pass", "{found}");
    }
    let all = report["checks"].as_array().context("no checks")?;
    let read = |name| {
        all.iter()
            .any(|it| it["check"] == name && it["status"] == "pass")
    };
    ensure!(!read("namespaces"), "{report}");
    // What the kernel itself tells is known all the same, and so are traces: by their locks.
    ensure!(read("kernel") && read("capabilities"), "{report}");
    ensure!(read("traces"), "{report}");
    ensure!(report["udevcomplete_all"]["safe"] == false, "{report}");
    Ok(())
}

fn tight_limits() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let _limit = KernelSem::set_semmni(10)?;
        let warning = || -> Result<String> {
            let (report, _) = dmtrace_json(&["doctor", "--no-attach"])?;
            let checks = report["checks"].as_array().context("no checks")?;
            let texts = checks
                .iter()
                .filter(|check| check["check"] == "limits" && check["status"] == "warn")
                .filter_map(|check| check["text"].as_str());
            let ours: Vec<&str> = texts.filter(|text| text.contains(&ns)).collect();
            Ok(ours.join("\n"))
        };
        let text = warning()?;
        ensure!(text.contains("no more than 10"), "{text}");
        let mut leaks = start_actor(&["moby", "--count", "8"])?;
        leaks.read_to_end()?;
        let text = warning()?;
        ensure!(text.contains("8 of 10"), "{text}");
        Ok(())
    })?
}

fn is_udevcomplete_all_safe() -> Result<()> {
    in_private_ns(|| {
        let _tracer = WatchProcess::start(&[])?;
        let safe = || -> Result<Value> {
            let (report, _) = dmtrace_json(&["doctor", "--no-attach"])?;
            Ok(report["udevcomplete_all"].clone())
        };
        ensure!(safe()?["safe"] == true);
        let mut leak = start_actor(&["cycle", "--stop-at", "after-wait", "--how", "kill"])?;
        leak.read_to_end()?;
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let found = safe()?;
        ensure!(found["safe"] == true && found["leaked"] == 1, "{found}");
        let mut live = start_actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
        live.read_until("waiting")?;
        let found = safe()?;
        ensure!(found["safe"] == false && found["live"] == 1, "{found}");
        live.kill_group();
        let mut foreign = start_actor(&["foreign", "--nsems", "2"])?;
        foreign.read_to_end()?;
        let found = safe()?;
        ensure!(found["safe"] == false && found["foreign"] == 1, "{found}");
        Ok(())
    })?
}
