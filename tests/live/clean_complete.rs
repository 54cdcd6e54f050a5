//! `dmtrace clean --complete`: lost completions are made good, exactly as many as are lost.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use dmtrace_tests::{
    harness::{RunningActor, actor_bin, in_private_ns, new_trial, start_actor},
    sysv,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, grow_up, outcome_of, planned_semids},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "clean::completes_exactly_what_is_lost",
            NEEDS,
            completes_exactly_what_is_lost,
        ),
        new_trial(
            "clean::completes_nothing_that_moved",
            NEEDS,
            completes_nothing_that_moved,
        ),
    ]
}

/// Somebody who waits for two completions.
fn start_waiter(scene: &mut Scene) -> Result<(Cookie, RunningActor)> {
    let cookie = scene.play_actor(&["create"], "set")?;
    for _ in 0..2 {
        start_actor(&["inc", "--key", &cookie.text()])?.read_to_end()?;
    }
    let mut waiter = start_actor(&["release", "--key", &cookie.text()])?;
    waiter.read_until("waiting")?;
    Ok((cookie, waiter))
}

/// udev's `dmsetup` completes in an IPC namespace where there is no such cookie.
fn completed_elsewhere(scene: &Scene, cookie: Cookie) -> Result<()> {
    let dmsetup = scene.file_path("dmsetup");
    fs::copy(actor_bin()?, &dmsetup)?;
    let status = in_private_ns(|| {
        Command::new(&dmsetup)
            .args(["complete", "--key", &cookie.text()])
            .status()
    })??;
    ensure!(!status.success(), "it was found");
    Ok(())
}

fn planned_action(plan: &Value, cookie: Cookie) -> Value {
    let entries = plan["plan"]["entries"].as_array();
    let ours = |entry: &&Value| entry["semid"] == cookie.semid;
    entries
        .into_iter()
        .flatten()
        .find(ours)
        .map_or(Value::Null, |entry| entry["action"].clone())
}

fn completes_exactly_what_is_lost() -> Result<()> {
    Scene::run_in(true, |scene| {
        let (cookie, mut waiter) = start_waiter(scene)?;
        let (other, mut other_waiter) = start_waiter(scene)?;
        completed_elsewhere(scene, cookie)?;
        grow_up();
        let key = cookie.text();
        let forced = ["--complete", "--force-unknown", "--key", &key];
        let (plan, _) = scene.run_clean(&["--key", &key])?;
        ensure!(planned_action(&plan, cookie)["action"] == "keep", "{plan}");
        // Nobody has seen device-mapper, so what udev had to do is not known.
        let (plan, _) = scene.run_clean(&["--complete", "--key", &key])?;
        let why = &planned_action(&plan, cookie)["because"][0]["obstacle"];
        ensure!(why == "nodes_unknown", "{plan}");
        let (plan, code) = scene.run_clean(&forced)?;
        let wanted = planned_action(&plan, cookie);
        ensure!(
            code == 1 && planned_semids(&plan).is_empty(),
            "{code}: {plan}"
        );
        ensure!(
            wanted["action"] == "complete" && wanted["value"] == 2 && wanted["count"] == 1,
            "{plan}"
        );
        ensure!(sysv::get_value(cookie.semid)? == 2, "a dry run completes");

        let apply: Vec<&str> = forced.iter().copied().chain(["--apply", "--yes"]).collect();
        let (result, code) = scene.run_clean(&apply)?;
        ensure!(code == 0, "{code}: {result}");
        ensure!(outcome_of(&result, cookie) == Some("completed"), "{result}");
        ensure!(sysv::get_value(cookie.semid)? == 1, "not exactly one");
        let (plan, code) = scene.run_clean(&forced)?;
        ensure!(
            code == 0 && planned_action(&plan, cookie)["action"] == "keep",
            "the same completion twice: {code}: {plan}"
        );
        let audit = scene.read_audit()?;
        let intent = audit.iter().find(|line| line["type"] == "clean_intent");
        ensure!(
            intent.is_some_and(|line| line["act"]["action"] == "complete"),
            "{audit:?}"
        );

        completed_elsewhere(scene, cookie)?;
        thread::sleep(Duration::from_millis(300));
        let (result, code) = scene.run_clean(&apply)?;
        ensure!(code == 0, "{code}: {result}");
        waiter.read_until("destroyed")?;
        let (_, status) = waiter.read_to_end()?;
        ensure!(status.success() && !cookie.exists(), "{status}");
        ensure!(
            sysv::get_value(other.semid)? == 2,
            "another cookie is touched"
        );
        for _ in 0..2 {
            start_actor(&["complete", "--key", &other.text()])?.read_to_end()?;
        }
        other_waiter.read_to_end()?;
        Ok(())
    })
}

fn completes_nothing_that_moved() -> Result<()> {
    Scene::run_in(true, |scene| {
        let (cookie, mut waiter) = start_waiter(scene)?;
        completed_elsewhere(scene, cookie)?;
        grow_up();
        let (key, file) = (cookie.text(), scene.file_path("plan"));
        let forced = ["--complete", "--force-unknown", "--key", &key];
        let with_plan: Vec<&str> = forced.iter().copied().chain(["--plan", &file]).collect();
        let (plan, code) = scene.run_clean(&with_plan)?;
        ensure!(
            code == 1 && planned_action(&plan, cookie)["action"] == "complete",
            "{plan}"
        );
        // udev was only slow, after all.
        start_actor(&["complete", "--key", &key])?.read_to_end()?;
        let (result, code) = scene.run_clean(&["--apply", "--yes", "--plan", &file])?;
        ensure!(
            code == 5 && outcome_of(&result, cookie) == Some("moved"),
            "{code}: {result}"
        );
        ensure!(sysv::get_value(cookie.semid)? == 1, "it is completed twice");
        start_actor(&["complete", "--key", &key])?.read_to_end()?;
        let (_, status) = waiter.read_to_end()?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
}
