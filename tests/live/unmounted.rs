//! A fresh machine: nothing has mounted tracefs, debugfs, securityfs or a BPF file system.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{actor_bin, dmtrace_bin, new_trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::NEEDS;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "unmounted::watch_needs_no_mount",
            NEEDS,
            watch_needs_no_mount,
        ),
        new_trial("unmounted::exec_needs_no_mount", NEEDS, exec_needs_no_mount),
        new_trial(
            "unmounted::record_needs_no_mount",
            NEEDS,
            record_needs_no_mount,
        ),
        new_trial(
            "unmounted::serve_without_pins_says_so",
            NEEDS,
            serve_without_pins_says_so,
        ),
        new_trial(
            "unmounted::a_mounted_one_is_used",
            NEEDS,
            a_mounted_one_is_used,
        ),
        new_trial(
            "unmounted::where_nothing_helps_one_line_says_it",
            NEEDS,
            where_nothing_helps_one_line_says_it,
        ),
    ]
}

/// For a shell in a mount namespace of its own.
pub(crate) const UNMOUNT: &str = "\
    types='tracefs|debugfs|securityfs|bpf'\n\
    for point in $(grep -E -- \" - ($types) \" /proc/self/mountinfo | cut -d' ' -f5 | tac); do\n\
        umount -l \"$point\"\n\
    done\n\
    if grep -qE -- \" - ($types) \" /proc/self/mountinfo; then exit 99; fi";

/// Runs a script of bash in a mount namespace and an IPC namespace of its own, from which they are
/// unmounted. `$dmtrace` and `$actor` are the programs; the mounts have to be as before at its end
/// and, with `same_mounts`, meanwhile.
fn on_fresh_machine(script: &str) -> Result<Output> {
    let script = format!(
        "{UNMOUNT}\n\
         before=$(cat /proc/self/mountinfo)\n\
         same_mounts() {{ [ \"$before\" = \"$(cat /proc/self/mountinfo)\" ] || exit 98; }}\n\
         {script}\n\
         same_mounts"
    );
    let dir = tempfile::tempdir()?;
    let output = Command::new("unshare")
        .args(["-m", "-i", "bash", "-ec", &script])
        .env("dmtrace", dmtrace_bin()?)
        .env("actor", actor_bin()?)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .context("unshare")?;
    let code = output.status.code();
    ensure!(code != Some(99), "something is mounted: {output:?}");
    ensure!(code != Some(98), "the mounts are not as before: {output:?}");
    Ok(output)
}

fn output_texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// After `watch` or `record` was started: waits until it traces, lets an owner die, and ends it when
/// that has been long enough ago for a verdict.
const LEAK: &str = "\
    until grep -qs . said; do kill -0 $! || exit 97; sleep 0.1; done\n\
    same_mounts\n\
    $actor cycle --stop-at after-inc --how kill >/dev/null || true\n\
    same_mounts\n\
    sleep 2\n\
    kill -INT $!\n\
    wait $! || [ $? = 1 ]";

fn watch_needs_no_mount() -> Result<()> {
    // The tracepoint backend is the one that cannot do without tracefs.
    for backend in ["", "--backend tracepoint"] {
        let output = on_fresh_machine(&format!(
            "$dmtrace watch --json {backend} >said &\n{LEAK}\ncat said"
        ))?;
        let (said, errors) = output_texts(&output);
        ensure!(output.status.success(), "{said}{errors}");
        let objects: Vec<Value> = said
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        for change in ["created", "owner_exited"] {
            ensure!(
                objects.iter().any(|it| it["change"] == change),
                "no {change}: {said}"
            );
        }
    }
    Ok(())
}

fn exec_needs_no_mount() -> Result<()> {
    let output = on_fresh_machine(
        "code=0; $dmtrace exec --grace 0s -- $actor cycle --stop-at after-inc --how kill || code=$?\n\
         [ $code = 1 ]",
    )?;
    let (said, errors) = output_texts(&output);
    ensure!(output.status.success(), "{said}{errors}");
    ensure!(errors.contains("1 cookie left by this command"), "{errors}");
    Ok(())
}

fn record_needs_no_mount() -> Result<()> {
    let output = on_fresh_machine(&format!(
        "$dmtrace record leak.dmt 2>said &\n{LEAK}\n\
         code=0; $dmtrace report leak.dmt || code=$?; [ $code = 1 ]"
    ))?;
    let (said, errors) = output_texts(&output);
    ensure!(output.status.success(), "{said}{errors}");
    ensure!(said.contains("WHO LEAKS"), "{said}{errors}");
    Ok(())
}

/// A private BPF file system would end with the service. It traces without one, and says what is
/// missing: a warning for who has asked for more.
fn serve_without_pins_says_so() -> Result<()> {
    for (keep, level) in [("", "notice"), ("--keep", "warning")] {
        let output = on_fresh_machine(&format!(
            "$dmtrace serve --no-history {keep} 2>said &\n\
             until grep -q 'will pause' said; do kill -0 $! || exit 97; sleep 0.1; done\n\
             same_mounts\n\
             kill -TERM $!; wait $!; cat said"
        ))?;
        let (said, errors) = output_texts(&output);
        ensure!(output.status.success(), "{said}{errors}");
        let line = said.lines().find(|line| line.contains("will pause"));
        let line = line.context("no line")?;
        ensure!(line.contains(level), "{line}");
        ensure!(line.contains("mount -t bpf bpf /sys/fs/bpf"), "{line}");
        let ended = said.contains("tracing has ended with the service, in spite of --keep");
        ensure!(ended != keep.is_empty(), "{said}");
        ensure!(said.contains("accounting"), "{said}");
    }
    Ok(())
}

/// Who may not mount can still trace with what is mounted, wherever that is.
fn a_mounted_one_is_used() -> Result<()> {
    for place in ["/sys/kernel/tracing", "/mnt/a place"] {
        let output = on_fresh_machine(&format!(
            "mount -t tmpfs none /mnt; mkdir -p '{place}'; mount -t tracefs tracefs '{place}'\n\
             before=$(cat /proc/self/mountinfo)\n\
             # It cannot read everything, and says so.\n\
             code=0; {MAY_NOT_MOUNT} $dmtrace doctor --json --no-attach || code=$?; [ $code = 4 ]\n\
             code=0; {MAY_NOT_MOUNT} $dmtrace watch --backend tracepoint -d 1s >&2 || code=$?\n\
             # It cannot enter the IPC namespace of the host.\n\
             [ $code = 4 ]"
        ))?;
        let (said, errors) = output_texts(&output);
        ensure!(output.status.success(), "{said}{errors}");
        ensure!(errors.contains("tracing (tracepoint backend)"), "{errors}");
        let report: Value = serde_json::from_str(&said)?;
        ensure!(report["environment"]["tracefs"] == place, "{report}");
    }
    // Who may mount does not, either.
    let output = on_fresh_machine(
        "mount -t tracefs tracefs /sys/kernel/tracing; before=$(cat /proc/self/mountinfo)\n\
         $dmtrace doctor --json --no-attach",
    )?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let place = &report["environment"]["tracefs"];
    ensure!(place == "/sys/kernel/tracing", "{report}");
    Ok(())
}

/// Root in all but the right to mount.
const MAY_NOT_MOUNT: &str = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin";

fn where_nothing_helps_one_line_says_it() -> Result<()> {
    let output = on_fresh_machine(&format!(
        "code=0; {MAY_NOT_MOUNT} $dmtrace watch --backend tracepoint -d 1s || code=$?\n[ $code = 3 ]"
    ))?;
    let (said, errors) = output_texts(&output);
    ensure!(output.status.success(), "{said}{errors}");
    ensure!(errors.lines().count() == 1, "{errors}");
    for part in [
        "tracefs is not mounted",
        "a private mount is refused",
        "run as root",
        "mount -t tracefs tracefs /sys/kernel/tracing",
    ] {
        ensure!(errors.contains(part), "{part}: {errors}");
    }
    Ok(())
}
