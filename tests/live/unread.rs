//! Whatever could not be read makes the answer incomplete: exit code 4, and one line that says
//! what. A cookie is there each time, and none of these places shows everything.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{Trial, dmtrace_bin, in_private_ns, new_trial, start_actor};
use serde_json::Value;

use crate::NEEDS;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("incomplete_in_a_pid_namespace", NEEDS, || {
            check_everywhere(&["unshare", "-p", "-f", "--mount-proc"])
        }),
        new_trial("incomplete_without_proc", NEEDS, || {
            check_everywhere(&[
                "unshare",
                "-m",
                "sh",
                "-c",
                "mount -t tmpfs none /proc; exec \"$@\"",
                "-",
            ])
        }),
        new_trial("incomplete_in_a_chroot", NEEDS, incomplete_in_a_chroot),
        new_trial("incomplete_for_nobody", NEEDS, || {
            check_everywhere(&[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ])
        }),
        new_trial("incomplete_traces_say_so", NEEDS, incomplete_traces_say_so),
        new_trial(
            "incomplete_service_says_so",
            NEEDS,
            incomplete_service_says_so,
        ),
        new_trial(
            "complete_for_root_on_the_host",
            NEEDS,
            complete_for_root_on_the_host,
        ),
    ]
}

/// Verbs that need no tracing.
const VERBS: [&[&str]; 5] = [
    &["list"],
    &["report"],
    &["explain"],
    &["clean"],
    &["doctor", "--no-attach"],
];

/// The program where everybody may run it.
fn shared_program(dir: &Path) -> Result<PathBuf> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let path = dir.join("dmtrace");
    fs::copy(dmtrace_bin()?, &path)?;
    Ok(path)
}

fn run_program(place: &[&str], program: &Path, words: &[&str]) -> Result<Output> {
    Command::new(place[0])
        .args(&place[1..])
        .arg(program)
        .args(words)
        .output()
        .with_context(|| place[0].to_owned())
}

fn check_everywhere(place: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = shared_program(dir.path())?;
    in_private_ns(|| {
        let mut there = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "hold"])?;
        there.read_until("armed")?;
        VERBS
            .iter()
            .try_for_each(|verb| check_one(place, &program, verb))
    })?
}

fn check_one(place: &[&str], program: &Path, verb: &[&str]) -> Result<()> {
    let output = run_program(place, program, verb)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = format!("{verb:?} in {place:?}: {text}{errors}");
    // Without the rights to trace at all, doctor says so first.
    let code = output.status.code();
    let doctor = verb[0] == "doctor";
    ensure!(
        code == Some(4) || doctor && code == Some(3),
        "{:?}: {said}",
        output.status
    );
    ensure!(!text.contains("No cookie is leaked."), "{said}");
    ensure!(!text.contains("No cookie is there"), "{said}");
    if !doctor {
        let lines = errors
            .lines()
            .filter(|line| line.contains("not everything could be read"));
        ensure!(lines.count() == 1, "{said}");
    }
    let words = [&["--json"], verb].concat();
    let output = run_program(place, program, &words)?;
    let value: Value = serde_json::from_slice(&output.stdout).with_context(|| said.clone())?;
    ensure!(value["complete"] == false, "{said}: {value}");
    Ok(())
}

fn incomplete_in_a_chroot() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("root");
    fs::create_dir(&root)?;
    let script = format!(
        "mount --rbind / {root} && umount -l {root}/proc && exec chroot {root} \"$@\"",
        root = root.display()
    );
    check_everywhere(&["unshare", "-m", "sh", "-c", &script, "-"])
}

fn incomplete_traces_say_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = shared_program(dir.path())?;
    let place = ["unshare", "-p", "-f", "--mount-proc"];
    in_private_ns(|| {
        let output = run_program(&place, &program, &["watch", "--json", "-d", "1s"])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().with_context(|| errors.to_string())?;
        let summary: Value = serde_json::from_str(last)?;
        ensure!(summary["complete"] == false, "{summary}");
        ensure!(summary["unread"].is_string(), "{summary}");
        ensure!(matches!(output.status.code(), Some(1 | 4)), "{output:?}");
        let output = run_program(&place, &program, &["exec", "--", "true"])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(4), "{errors}");
        ensure!(errors.contains("not everything could be read"), "{errors}");
        Ok(())
    })?
}

/// At its start and at its end, with the reason.
fn incomplete_service_says_so() -> Result<()> {
    let script = "mount -t tmpfs none /proc; exec timeout -s TERM 5 \"$@\"";
    let place = ["unshare", "-m", "sh", "-c", script, "-"];
    in_private_ns(|| {
        let output = run_program(&place, &dmtrace_bin()?, &["serve", "--no-history"])?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = errors.lines().filter(|line| {
            line.contains("not everything could be read: /proc") && line.contains("warning")
        });
        ensure!(said.count() == 2, "{errors}");
        Ok(())
    })?
}

/// The other way round: this machine can be read, and nothing is called incomplete.
fn complete_for_root_on_the_host() -> Result<()> {
    let output = Command::new(dmtrace_bin()?)
        .args(["list", "--json"])
        .output()?;
    let value: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(value["complete"] == true, "{}", value["notes"]);
    Ok(())
}
