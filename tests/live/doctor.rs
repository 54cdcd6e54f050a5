//! `dmtrace doctor` where something is missing: one clear line, and what to do.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{KernelSem, actor, dmtrace_bin, in_private_ns, ns_of, test};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{Tracer, dmtrace_at, dmtrace_json},
};

pub fn tests() -> Vec<Trial> {
    vec![
        test("doctor::a_machine_that_works", NEEDS, works),
        test("doctor::not_root", NEEDS, nobody),
        test("doctor::no_btf", NEEDS, no_btf),
        test("doctor::lockdown", NEEDS, lockdown),
        test("doctor::no_tracefs", NEEDS, no_tracefs),
        test("doctor::tight_limits", NEEDS, limits),
        test("doctor::is_udevcomplete_all_safe", NEEDS, accident),
    ]
}

fn check<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    report["checks"]
        .as_array()
        .and_then(|checks| checks.iter().find(|check| check["check"] == name))
        .with_context(|| format!("no check {name} in {report}"))
}

/// Runs `doctor --json` in a mount namespace of its own, after `setup`.
fn in_mount_ns(setup: &str) -> Result<(Value, i32)> {
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec"])
        .arg(format!("{setup}\nexec \"$0\" --json doctor"))
        .arg(dmtrace_bin()?)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let report = serde_json::from_str(&text)
        .with_context(|| format!("{text} {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((report, output.status.code().unwrap_or(-1)))
}

fn works() -> Result<()> {
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
    ensure!(check(&report, "self_test")?["status"] == "pass", "{report}");
    ensure!(
        report["self_test"]["missed"] == serde_json::json!([]),
        "{report}"
    );
    ensure!(sets()? == before, "the self-test left something");
    let tracer = Tracer::start(&[])?;
    let (report, _) = dmtrace_json(&["doctor", "--no-attach"])?;
    let running = check(&report, "traces")?["text"]
        .as_str()
        .unwrap_or_default();
    ensure!(running.contains(&tracer.pid().to_string()), "{running}");
    Ok(())
}

fn nobody() -> Result<()> {
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
    let capabilities = check(&report, "capabilities")?;
    ensure!(capabilities["status"] == "fail", "{capabilities}");
    let text = capabilities.to_string();
    ensure!(text.contains("CAP_BPF") && text.contains("sudo"), "{text}");
    Ok(())
}

fn no_btf() -> Result<()> {
    let (report, code) = in_mount_ns("mount -t tmpfs none /sys/kernel/btf")?;
    ensure!(code == 3, "{code}: {report}");
    let btf = check(&report, "btf")?;
    ensure!(btf["status"] == "fail" && btf["fix"].is_string(), "{btf}");
    ensure!(
        check(&report, "capabilities")?["status"] == "pass",
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
            "mount -t tmpfs none {security}\n: > {security}/lsm\ncp {} {security}/lockdown",
            file.display()
        ))?;
        let found = check(&report, "lockdown")?;
        ensure!(
            found["status"] == status && got == code,
            "{mode}{got}: {found}"
        );
    }
    let (report, code) = in_mount_ns("mount -t tmpfs none /sys/kernel/security")?;
    let found = check(&report, "lockdown")?;
    ensure!(found["status"] == "warn" && code == 0, "{code}: {found}");
    Ok(())
}

fn no_tracefs() -> Result<()> {
    let (report, code) = in_mount_ns(
        "mount -t tmpfs none /sys/kernel/tracing\nmount -t tmpfs none /sys/kernel/debug || true",
    )?;
    let found = check(&report, "tracefs")?;
    let fix = found["fix"].as_str().unwrap_or_default();
    ensure!(
        found["status"] == "warn" && fix.starts_with("mount"),
        "{found}"
    );
    // Only where the last resort is needed is that the end.
    let expected = if report["tracing"] == true { 0 } else { 3 };
    ensure!(code == expected, "{code}: {report}");
    Ok(())
}

fn limits() -> Result<()> {
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
        let mut leaks = actor(&["moby", "--count", "8"])?;
        leaks.finish()?;
        let text = warning()?;
        ensure!(text.contains("8 of 10"), "{text}");
        Ok(())
    })?
}

fn accident() -> Result<()> {
    in_private_ns(|| {
        let _tracer = Tracer::start(&[])?;
        let safe = || -> Result<Value> {
            let (report, _) = dmtrace_json(&["doctor", "--no-attach"])?;
            Ok(report["udevcomplete_all"].clone())
        };
        ensure!(safe()?["safe"] == true);
        let mut leak = actor(&["cycle", "--stop-at", "after-wait", "--how", "kill"])?;
        leak.finish()?;
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let found = safe()?;
        ensure!(found["safe"] == true && found["leaked"] == 1, "{found}");
        let mut live = actor(&["cycle", "--stop-at", "in-wait", "--how", "hold"])?;
        live.until("waiting")?;
        let found = safe()?;
        ensure!(found["safe"] == false && found["live"] == 1, "{found}");
        live.kill();
        let mut foreign = actor(&["foreign", "--nsems", "2"])?;
        foreign.finish()?;
        let found = safe()?;
        ensure!(found["safe"] == false && found["foreign"] == 1, "{found}");
        Ok(())
    })?
}
