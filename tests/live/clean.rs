//! `dmtrace clean` on real semaphores: what it removes, what it keeps, and what it says.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{KernelSem, TestNeed, dmtrace_bin, new_trial, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, audit_lines, grow_up, outcome_of, planned_semids},
    tracer::{dmtrace_at, dmtrace_json, run_dmtrace},
};

/// A terminal to ask on.
const TERMINAL: &[TestNeed] = &[TestNeed::Root, TestNeed::Program("script")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("clean::only_proven_leaks_go", NEEDS, only_proven_leaks_go),
        new_trial(
            "clean::nothing_is_proven_without_a_trace",
            NEEDS,
            nothing_is_proven_without_a_trace,
        ),
        new_trial(
            "clean::limits_may_be_exhausted",
            NEEDS,
            limits_may_be_exhausted,
        ),
        new_trial("clean::the_fuse_blows", NEEDS, the_fuse_blows),
        new_trial("clean::no_audit_no_removal", NEEDS, no_audit),
        new_trial("clean::a_full_disk_ends_the_work", NEEDS, full_disk),
        new_trial("clean::asks_on_a_terminal", TERMINAL, asks_on_a_terminal),
        new_trial("clean::usage_and_privilege", NEEDS, usage_and_privilege),
    ]
}

fn only_proven_leaks_go() -> Result<()> {
    Scene::run_in(true, |scene| {
        let mut leaked = Vec::new();
        for step in ["after-semget", "after-setval", "after-complete"] {
            leaked.push(scene.leak_at(step)?);
        }
        let hold = |step| ["cycle", "--stop-at", step, "--how", "hold"];
        let kept = [
            scene.play_actor(&hold("after-setval"), "created")?,
            scene.play_actor(&hold("after-inc"), "created")?,
            scene.play_actor(&hold("in-wait"), "waiting")?,
            scene.play_actor(
                &["foreign", "--nsems", "3", "--key", "0x0d4d0001"],
                "created",
            )?,
            scene.play_actor(
                &["foreign", "--mode", "0666", "--key", "0x0d4d0002"],
                "created",
            )?,
            // As `dmsetup udevcreatecookie`: its owner exits by design.
            scene.play_actor(&["create"], "set")?,
        ];
        grow_up();
        let wanted: BTreeSet<i64> = leaked.iter().map(|it| it.semid.into()).collect();
        let (plan, code) = scene.run_clean(&[])?;
        ensure!(
            code == 1 && planned_semids(&plan) == wanted,
            "{code}: {plan}"
        );
        ensure!(
            plan["type"] == "clean_plan" && plan["complete"] == true,
            "{plan}"
        );
        let audit = scene.file_path("audit");
        let text = dmtrace_at(Some(80), &scene.clean_args(&audit, &[]))?;
        let text = String::from_utf8(text.stdout)?;
        ensure!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        ensure!(
            text.matches("would remove  ").count() == leaked.len(),
            "{text}"
        );
        ensure!(text.matches("\nkept ").count() == kept.len(), "{text}");
        ensure!(text.contains("--apply"), "{text}");
        ensure!(!Path::new(&audit).exists(), "a dry run has an audit record");
        ensure!(
            leaked.iter().chain(&kept).all(|it| it.exists()),
            "a dry run removes"
        );
        let (result, code) = scene.run_clean(&["--apply", "--yes"])?;
        ensure!(
            code == 0 && result["type"] == "clean_result",
            "{code}: {result}"
        );
        for cookie in &leaked {
            ensure!(outcome_of(&result, *cookie) == Some("removed"), "{result}");
            ensure!(!cookie.exists(), "{cookie:?} is left");
        }
        for cookie in &kept {
            ensure!(cookie.exists(), "{cookie:?} is gone");
            ensure!(outcome_of(&result, *cookie).is_none(), "{result}");
        }
        check_audit(&scene.read_audit()?, leaked.len())?;
        let (result, code) = scene.run_clean(&["--apply", "--yes"])?;
        ensure!(code == 0 && result["planned"] == 0, "{code}: {result}");
        Ok(())
    })
}

/// The audit record of a run that came to its end.
fn check_audit(audit: &[Value], removed: usize) -> Result<()> {
    let kinds: Vec<&str> = audit
        .iter()
        .filter_map(|line| line["type"].as_str())
        .collect();
    let mut expected = vec!["clean_begin"];
    for _ in 0..removed {
        expected.extend(["clean_intent", "clean_outcome"]);
    }
    expected.push("clean_end");
    ensure!(kinds == expected, "{kinds:?}");
    let who = &audit[0]["who"];
    ensure!(who["uid"] == 0 && who["pid"].is_u64(), "{who}");
    ensure!(
        who["command_line"]
            .as_array()
            .is_some_and(|words| words.len() > 3),
        "{who}"
    );
    ensure!(audit[0]["plan"]["entries"].is_array(), "no plan");
    for line in audit.iter().filter(|line| line["type"] == "clean_intent") {
        ensure!(line["set"]["semid"] == line["semid"], "{line}");
        ensure!(line["verdict"]["evidence"].is_array(), "{line}");
    }
    Ok(())
}

fn nothing_is_proven_without_a_trace() -> Result<()> {
    Scene::run_in(false, |scene| {
        let old = scene.leak_at("after-setval")?;
        let other = scene.leak_at("after-complete")?;
        let held = scene.play_actor(
            &["cycle", "--stop-at", "in-wait", "--how", "hold"],
            "waiting",
        )?;
        let open = scene.play_actor(
            &["cycle", "--stop-at", "after-inc", "--how", "hold"],
            "armed",
        )?;
        let foreign = scene.play_actor(&["foreign", "--nsems", "2"], "created")?;
        grow_up();
        let (plan, code) = scene.run_clean(&["--no-trace"])?;
        ensure!(
            code == 4 && planned_semids(&plan).is_empty(),
            "{code}: {plan}"
        );
        let force = |cookie: Cookie| -> Result<(Value, i32)> {
            let semid = cookie.semid.to_string();
            // This very process has the numbers in its memory.
            let args = [
                "--no-trace",
                "--search",
                "no",
                "--force-unknown",
                "--semid",
                &semid,
            ];
            scene.run_clean(&[&args[..], &["--apply", "--yes"]].concat())
        };
        // Of the one whose last user lives and does not wait, nobody can tell.
        for (kept, expected) in [(held, 0), (open, 4), (foreign, 0)] {
            let (result, code) = force(kept)?;
            ensure!(
                code == expected && result["planned"] == 0,
                "{kept:?} {code}: {result}"
            );
            ensure!(kept.exists(), "{kept:?} is gone");
        }
        let (result, code) = force(old)?;
        ensure!(
            code == 0 && outcome_of(&result, old) == Some("removed"),
            "{code}: {result}"
        );
        ensure!(!old.exists() && other.exists(), "the wrong one is gone");
        // By default what nobody saw must be ten minutes old.
        let (key, audit) = (other.text(), scene.file_path("audit"));
        let (plan, code) = dmtrace_json(&[
            "clean",
            "--audit",
            &audit,
            "--no-trace",
            "--search",
            "no",
            "--force-unknown",
            "--key",
            &key,
            "--ipc-ns",
            &scene.ns,
        ])?;
        ensure!(
            code == 4 && planned_semids(&plan).is_empty(),
            "{code}: {plan}"
        );
        Ok(())
    })
}

fn limits_may_be_exhausted() -> Result<()> {
    Scene::run_in(true, |scene| {
        let cookies = [
            scene.leak_at("after-setval")?,
            scene.leak_at("after-setval")?,
        ];
        let _limit = KernelSem::set_semmni(2)?;
        let mut victim = start_actor(&["victim"])?;
        let errno = victim.read_until("victim")?.number("errno")?;
        ensure!(errno == i64::from(libc::ENOSPC), "errno {errno}");
        grow_up();
        let (result, code) = scene.run_clean(&["--apply", "--yes"])?;
        ensure!(code == 0, "{code}: {result}");
        ensure!(!cookies.iter().any(|it| it.exists()), "{result}");
        let mut victim = start_actor(&["victim"])?;
        ensure!(victim.read_until("victim")?.number("errno")? == 0);
        Ok(())
    })
}

fn the_fuse_blows() -> Result<()> {
    Scene::run_in(true, |scene| {
        let cookies = [
            scene.leak_at("after-setval")?,
            scene.leak_at("after-setval")?,
        ];
        grow_up();
        let audit = scene.file_path("audit");
        let mut args = scene.clean_args(&audit, &["--apply", "--yes", "--max", "1"]);
        let output = run_dmtrace(&args)?;
        one_line(&output.stderr)?;
        ensure!(output.status.code() == Some(5), "{output:?}");
        ensure!(
            cookies.iter().all(|it| it.exists()),
            "the fuse did not hold"
        );
        args.retain(|&arg| arg != "--apply" && arg != "--yes");
        let output = run_dmtrace(&args)?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.code() == Some(1)
                && text.contains("more than --max 1;")
                && text.contains("--max 2"),
            "{text}"
        );
        Ok(())
    })
}

/// One line on standard error, besides where the attribution is from.
fn one_line(stderr: &[u8]) -> Result<String> {
    let text = String::from_utf8(stderr.to_vec())?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("owners are known from"))
        .collect();
    ensure!(
        lines.len() == 1 && lines[0].starts_with("dmtrace: "),
        "{text}"
    );
    Ok(lines[0].to_owned())
}

fn no_audit() -> Result<()> {
    Scene::run_in(true, |scene| {
        let cookie = scene.leak_at("after-setval")?;
        let open = scene.file_path("open");
        fs::write(&open, "")?;
        fs::set_permissions(&open, fs::Permissions::from_mode(0o666))?;
        let nowhere = scene.file_path("no/such/directory");
        grow_up();
        for audit in [&nowhere, &open, "/dev/full", "/dev/null", "/proc/version"] {
            let output = run_dmtrace(&scene.clean_args(audit, &["--apply", "--yes"]))?;
            let line = one_line(&output.stderr)?;
            ensure!(
                matches!(output.status.code(), Some(3 | 5)),
                "{audit}: {output:?}"
            );
            ensure!(line.contains(audit) && line.contains("audit"), "{line}");
            ensure!(cookie.exists(), "{audit}: removed without an audit record");
        }
        Ok(())
    })
}

fn full_disk() -> Result<()> {
    Scene::run_in(true, |scene| {
        let mut cookies = Vec::new();
        for _ in 0..12 {
            cookies.push(scene.leak_at("after-setval")?);
        }
        grow_up();
        // There is something to ask, and nobody who could answer.
        let audit = scene.file_path("audit-asked");
        let output = run_dmtrace(&scene.clean_args(&audit, &["--apply"]))?;
        ensure!(output.status.code() == Some(2), "{output:?}");
        ensure!(one_line(&output.stderr)?.contains("--yes"), "{output:?}");
        // A limit on the size of files, in KiB, stands for a disk that fills up.
        let mut left = cookies.len();
        for limit in ["0", "1", "16"] {
            let name = format!("audit-{limit}");
            let audit = scene.file_path(&name);
            let args = scene.clean_args(&audit, &["--apply", "--yes"]);
            let output = Command::new("bash")
                .args(["-c", "ulimit -f $0; trap '' XFSZ; exec \"$@\"", limit])
                .arg(dmtrace_bin()?)
                .args(args)
                .stdin(Stdio::null())
                .output()?;
            let now: Vec<&Cookie> = cookies.iter().filter(|it| it.exists()).collect();
            let audit = audit_lines(&fs::read_to_string(&audit)?)?;
            let intents: BTreeSet<i64> = audit
                .iter()
                .filter(|line| line["type"] == "clean_intent")
                .filter_map(|line| line["semid"].as_i64())
                .collect();
            ensure!(output.status.code() == Some(5), "{limit}: {output:?}");
            ensure!(
                left - now.len() <= intents.len(),
                "{limit}: {left} - {} with {intents:?}",
                now.len()
            );
            if limit == "0" || limit == "1" {
                ensure!(now.len() == left, "removed with a full disk");
            }
            left = now.len();
        }
        ensure!(
            left > 0 && left < cookies.len(),
            "{left} left where there was room for some"
        );
        Ok(())
    })
}

fn asks_on_a_terminal() -> Result<()> {
    Scene::run_in(true, |scene| {
        let cookie = scene.leak_at("after-setval")?;
        grow_up();
        let audit = scene.file_path("audit");
        for (answer, code, exists) in [("n\n", 1, true), ("\n", 1, true), ("y\n", 0, false)] {
            let mut command = vec![dmtrace_bin()?.display().to_string()];
            command.extend(
                scene
                    .clean_args(&audit, &["--apply"])
                    .into_iter()
                    .map(str::to_owned),
            );
            let mut child = Command::new("script")
                .args(["-qefc", &command.join(" "), "/dev/null"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().context("no standard input")?;
            stdin.write_all(answer.as_bytes())?;
            let output = child.wait_with_output()?;
            drop(stdin);
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(text.contains("remove 1 cookie? [y/N]"), "{text}");
            ensure!(output.status.code() == Some(code), "{answer:?}: {text}");
            ensure!(cookie.exists() == exists, "{answer:?}: {text}");
        }
        Ok(())
    })
}

fn usage_and_privilege() -> Result<()> {
    Scene::run_in(false, |scene| {
        let audit = scene.file_path("audit");
        for (args, code) in [
            (&["--yes"][..], 2),
            (&["--force-unknown"], 2),
            (
                &["--force-unknown", "--semid", "1", "--key", "0x0d4d0001"],
                2,
            ),
            (&["--apply", "--yes", "--plan", "/no/such/plan"], 3),
            (&["--max", "many"], 2),
        ] {
            let output = run_dmtrace(&scene.clean_args(&audit, args))?;
            ensure!(output.status.code() == Some(code), "{args:?}: {output:?}");
        }
        let both = ["clean", "--apply", "--yes", "--plan", "x", "--abandoned"];
        let output = run_dmtrace(&both)?;
        ensure!(output.status.code() == Some(2), "{output:?}");
        one_line(&output.stderr)?;
        // Where an ordinary user may read it.
        let bin = scene.dir.path().join("dmtrace");
        fs::copy(dmtrace_bin()?, &bin)?;
        fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755))?;
        let nobody = |args: &[&str]| {
            Command::new("setpriv")
                .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
                .arg(&bin)
                .args(args)
                .stdin(Stdio::null())
                .output()
        };
        let output = nobody(&["clean", "--apply", "--yes"])?;
        ensure!(output.status.code() == Some(3), "{output:?}");
        ensure!(one_line(&output.stderr)?.contains("root"), "{output:?}");
        let cookie = scene.leak_at("after-setval")?;
        let output = nobody(&["clean", "--ipc-ns", &scene.ns])?;
        ensure!(output.status.code() == Some(4), "{output:?}");
        ensure!(cookie.exists());
        ensure!(cookie.exists());
        Ok(())
    })
}
