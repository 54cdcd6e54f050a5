//! Plans in files: carried out as they are, or refused.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace::host::{self, Scope};
use dmtrace_tests::{
    harness::{dmtrace_bin, new_trial, start_actor},
    sysv,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, grow_up, outcome_of, planned_semids},
    tracer::{dmtrace_json, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("clean::plans_in_files", NEEDS, plan_files),
        new_trial(
            "clean::forged_plans_destroy_nothing",
            NEEDS,
            forged_plans_destroy_nothing,
        ),
        new_trial(
            "clean::abandoned_by_a_living_owner",
            NEEDS,
            abandoned_by_a_living_owner,
        ),
        new_trial(
            "clean::a_namespace_without_processes",
            NEEDS,
            a_namespace_without_processes,
        ),
    ]
}

/// Cleaned like any other, and not kept alive.
fn a_namespace_without_processes() -> Result<()> {
    Scene::run_in(true, |scene| {
        let hold = ["--stop-at", "after-setval", "--how", "hold"];
        let mut maker = start_actor(&[&["cycle", "--new-ipc-ns"], &hold[..]].concat())?;
        let ns = maker.read_until("namespace")?.number("ns")?;
        let cookie = Cookie::from_line(&maker.read_until("set")?)?;
        let path = format!("/proc/{}/ns/ipc", maker.pid());
        let mut pin = start_actor(&["hold-file", "--path", &path, "--hold"])?;
        pin.read_until("holding")?;
        maker.kill_group();
        grow_up();
        let (audit, number) = (scene.file_path("audit"), ns.to_string());
        let mut args = vec!["clean", "--apply", "--yes", "--audit", &audit];
        args.extend(["--older-than", "0s", "--ipc-ns", &number]);
        let (result, code) = dmtrace_json(&args)?;
        let told = outcome_of(&result, cookie);
        ensure!(code == 0 && told == Some("removed"), "{code}: {result}");
        let sets = || {
            let snapshot = host::take_snapshot(&Scope::default());
            let mut spaces = snapshot.namespaces.into_iter();
            spaces
                .find(|space| i64::from(space.ns.0) == ns)
                .map(|space| space.sets.len())
        };
        ensure!(sets() == Some(0), "{:?} sets are left", sets());
        pin.kill_group();
        let deadline = Instant::now() + Duration::from_secs(30);
        while sets().is_some() {
            ensure!(Instant::now() < deadline, "the namespace is kept alive");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })
}

fn plan_files() -> Result<()> {
    Scene::run_in(true, |scene| {
        let [used, waited, again, reset, carried, gone, plain] = [
            scene.leak_at("after-setval")?,
            scene.leak_at("after-setval")?,
            scene.leak_at("after-complete")?,
            scene.leak_at("after-setval")?,
            scene.leak_at("after-setval")?,
            scene.leak_at("after-setval")?,
            scene.leak_at("after-complete")?,
        ];
        grow_up();
        let file = scene.file_path("plan");
        let (plan, code) = scene.run_clean(&["--plan", &file])?;
        ensure!(
            code == 1 && planned_semids(&plan).len() == 7,
            "{code}: {plan}"
        );
        let written: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        ensure!(written == plan, "another plan: {written}");
        // Made after the plan, and not in it.
        let later = scene.leak_at("after-setval")?;
        scene.play_actor(&["inc", "--key", &used.text()], "inc")?;
        start_actor(&["inc", "--key", &waited.text()])?.read_to_end()?;
        let mut waiter = start_actor(&["release", "--key", &waited.text()])?;
        waiter.read_until("waiting")?;
        sysv::remove_set(again.semid)?;
        let again_now = Cookie {
            key: again.key,
            semid: sysv::get_set(again.key, 1, 0o600 | libc::IPC_CREAT)?,
        };
        sysv::set_value(reset.semid, 1)?;
        sysv::remove_set(gone.semid)?;
        let mut carrier = Command::new("sleep")
            .arg("1000")
            .env("DM_UDEV_COOKIE", carried.key.to_string())
            .spawn()?;
        let done = scene.run_clean(&["--apply", "--yes", "--plan", &file]);
        let _ended = carrier.kill();
        let _reaped = carrier.wait();
        let (result, code) = done?;
        ensure!(code == 5, "{code}: {result}");
        for (cookie, expected) in [
            (used, "moved"),
            (waited, "moved"),
            (again, "gone"),
            (reset, "moved"),
            (carried, "moved"),
            (gone, "gone"),
            (plain, "removed"),
        ] {
            ensure!(
                outcome_of(&result, cookie) == Some(expected),
                "{cookie:?}: {result}"
            );
        }
        for cookie in [used, waited, again_now, reset, carried, later] {
            ensure!(cookie.exists(), "{cookie:?} is gone: {result}");
        }
        ensure!(!plain.exists(), "{result}");
        waiter.kill_group();
        for cookie in [reset, again_now, carried] {
            let _gone = sysv::remove_set(cookie.semid);
        }
        Ok(())
    })
}

fn forged_plans_destroy_nothing() -> Result<()> {
    Scene::run_in(true, |scene| {
        let live = scene.play_actor(
            &["cycle", "--stop-at", "in-wait", "--how", "hold"],
            "waiting",
        )?;
        let foreign = scene.play_actor(&["foreign", "--mode", "0640"], "created")?;
        let leaked = scene.leak_at("after-setval")?;
        grow_up();
        let file = scene.file_path("plan");
        let (plan, _) = scene.run_clean(&["--plan", &file])?;
        let apply = |plan: &Value| -> Result<(String, i32)> {
            let forged = scene.file_path("forged");
            fs::write(&forged, plan.to_string())?;
            fs::set_permissions(&forged, fs::Permissions::from_mode(0o600))?;
            let audit = scene.file_path("audit");
            let output =
                run_dmtrace(&scene.clean_args(&audit, &["--apply", "--yes", "--plan", &forged]))?;
            let text = [output.stdout, output.stderr].concat();
            Ok((String::from_utf8(text)?, output.status.code().unwrap_or(-1)))
        };
        let mut boot = plan.clone();
        boot["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
        let mut version = plan.clone();
        version["plan"]["version"] = 99.into();
        let mut kind = plan.clone();
        kind["type"] = "list".into();
        for other in [&boot, &version, &kind, &Value::Null] {
            let (text, code) = apply(other)?;
            ensure!(code == 3 && text.lines().count() == 1, "{code}: {text}");
        }
        let mut destroy = plan;
        for entry in destroy["plan"]["entries"]
            .as_array_mut()
            .context("no entries")?
        {
            entry["action"] = serde_json::json!({"action": "destroy"});
            // As if nobody had waited.
            entry["identity"]["state"]["zcnt"] = 0.into();
        }
        let (text, code) = apply(&destroy)?;
        ensure!(code == 5, "{code}: {text}");
        ensure!(
            live.exists() && foreign.exists() && !leaked.exists(),
            "{text}"
        );
        Ok(())
    })
}

/// That a process went on is in the events, not in the maps of the trace.
fn abandoned_by_a_living_owner() -> Result<()> {
    Scene::run_in(false, |scene| {
        let file = scene.file_path("trace");
        let mut recorder = Command::new(dmtrace_bin()?)
            .args(["record", &file, "--ring", "65536"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = recorder.stderr.take().context("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        // It says so when it is attached.
        lines.next().context("dmtrace record says nothing")??;
        let mut owner = start_actor(&["eintr", "--then-cycle", "--hold"])?;
        let left = Cookie::from_line(&owner.read_until("abandoned")?)?;
        owner.read_until("destroyed")?;
        let open = scene.play_actor(
            &["cycle", "--stop-at", "after-inc", "--how", "hold"],
            "armed",
        )?;
        grow_up();
        let pid = i32::try_from(recorder.id())?;
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0);
        for line in lines {
            line?;
        }
        recorder.wait()?;
        let trace = ["--trace", &file, "--no-trace"];
        let clean = |more: &[&str]| scene.run_clean(&[&trace[..], more].concat());
        let (plan, code) = clean(&[])?;
        ensure!(
            code == 0 && planned_semids(&plan).is_empty(),
            "{code}: {plan}"
        );
        let (plan, code) = clean(&["--abandoned"])?;
        ensure!(
            code == 1 && planned_semids(&plan) == [left.semid.into()].into(),
            "{code}: {plan}"
        );
        let (result, code) = clean(&["--abandoned", "--apply", "--yes"])?;
        ensure!(code == 0 && !left.exists(), "{code}: {result}");
        ensure!(open.exists(), "{open:?} is gone");
        owner.kill_group();
        Ok(())
    })
}
