//! `dmtrace clean --complete`: lost completions are made good, exactly as many as are lost.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use dmtrace_tests::{
    harness::{Running, actor, actor_bin, in_private_ns, test},
    sysv,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, grow_up, outcome, planned},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("clean::completes_exactly_what_is_lost", NEEDS, exactly),
        test("clean::completes_nothing_that_moved", NEEDS, moved),
    ]
}

/// Somebody who waits for two completions.
fn waiter(scene: &mut Scene) -> Result<(Cookie, Running)> {
    let cookie = scene.play(&["create"], "set")?;
    for _ in 0..2 {
        actor(&["inc", "--key", &cookie.text()])?.finish()?;
    }
    let mut waiter = actor(&["release", "--key", &cookie.text()])?;
    waiter.until("waiting")?;
    Ok((cookie, waiter))
}

/// udev's `dmsetup` completes in an IPC namespace where there is no such cookie.
fn completed_elsewhere(scene: &Scene, cookie: Cookie) -> Result<()> {
    let dmsetup = scene.path("dmsetup");
    fs::copy(actor_bin()?, &dmsetup)?;
    let status = in_private_ns(|| {
        Command::new(&dmsetup)
            .args(["complete", "--key", &cookie.text()])
            .status()
    })??;
    ensure!(!status.success(), "it was found");
    Ok(())
}

fn action(plan: &Value, cookie: Cookie) -> Value {
    let entries = plan["plan"]["entries"].as_array();
    let ours = |entry: &&Value| entry["semid"] == cookie.semid;
    entries
        .into_iter()
        .flatten()
        .find(ours)
        .map_or(Value::Null, |entry| entry["action"].clone())
}

fn exactly() -> Result<()> {
    Scene::run(true, |scene| {
        let (cookie, mut waiter) = waiter(scene)?;
        let (other, mut other_waiter) = self::waiter(scene)?;
        completed_elsewhere(scene, cookie)?;
        grow_up();
        let key = cookie.text();
        let forced = ["--complete", "--force-unknown", "--key", &key];
        let (plan, _) = scene.clean(&["--key", &key])?;
        ensure!(action(&plan, cookie)["action"] == "keep", "{plan}");
        // Nobody has seen device-mapper, so what udev had to do is not known.
        let (plan, _) = scene.clean(&["--complete", "--key", &key])?;
        let why = &action(&plan, cookie)["because"][0]["obstacle"];
        ensure!(why == "nodes_unknown", "{plan}");
        let (plan, code) = scene.clean(&forced)?;
        let wanted = action(&plan, cookie);
        ensure!(code == 1 && planned(&plan).is_empty(), "{code}: {plan}");
        ensure!(
            wanted["action"] == "complete" && wanted["value"] == 2 && wanted["count"] == 1,
            "{plan}"
        );
        ensure!(sysv::value(cookie.semid)? == 2, "a dry run completes");

        let apply: Vec<&str> = forced.iter().copied().chain(["--apply", "--yes"]).collect();
        let (result, code) = scene.clean(&apply)?;
        ensure!(code == 0, "{code}: {result}");
        ensure!(outcome(&result, cookie) == Some("completed"), "{result}");
        ensure!(sysv::value(cookie.semid)? == 1, "not exactly one");
        let (plan, code) = scene.clean(&forced)?;
        ensure!(
            code == 0 && action(&plan, cookie)["action"] == "keep",
            "the same completion twice: {code}: {plan}"
        );
        let audit = scene.audit()?;
        let intent = audit.iter().find(|line| line["type"] == "clean_intent");
        ensure!(
            intent.is_some_and(|line| line["act"]["action"] == "complete"),
            "{audit:?}"
        );

        completed_elsewhere(scene, cookie)?;
        thread::sleep(Duration::from_millis(300));
        let (result, code) = scene.clean(&apply)?;
        ensure!(code == 0, "{code}: {result}");
        waiter.until("destroyed")?;
        let (_, status) = waiter.finish()?;
        ensure!(status.success() && !cookie.exists(), "{status}");
        ensure!(sysv::value(other.semid)? == 2, "another cookie is touched");
        for _ in 0..2 {
            actor(&["complete", "--key", &other.text()])?.finish()?;
        }
        other_waiter.finish()?;
        Ok(())
    })
}

fn moved() -> Result<()> {
    Scene::run(true, |scene| {
        let (cookie, mut waiter) = waiter(scene)?;
        completed_elsewhere(scene, cookie)?;
        grow_up();
        let (key, file) = (cookie.text(), scene.path("plan"));
        let forced = ["--complete", "--force-unknown", "--key", &key];
        let with_plan: Vec<&str> = forced.iter().copied().chain(["--plan", &file]).collect();
        let (plan, code) = scene.clean(&with_plan)?;
        ensure!(
            code == 1 && action(&plan, cookie)["action"] == "complete",
            "{plan}"
        );
        // udev was only slow, after all.
        actor(&["complete", "--key", &key])?.finish()?;
        let (result, code) = scene.clean(&["--apply", "--yes", "--plan", &file])?;
        ensure!(
            code == 5 && outcome(&result, cookie) == Some("moved"),
            "{code}: {result}"
        );
        ensure!(sysv::value(cookie.semid)? == 1, "it is completed twice");
        actor(&["complete", "--key", &key])?.finish()?;
        let (_, status) = waiter.finish()?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
}
