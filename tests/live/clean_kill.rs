//! `dmtrace clean --apply` ends in the middle: the audit record tells the truth.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, test};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, audit_lines, grow_up, planned},
};

/// Times that it is killed.
const ROUNDS: u32 = 12;
/// Leaked cookies for each time.
const COOKIES: usize = 12;

pub fn tests() -> Vec<Trial> {
    vec![
        test("clean::killed_at_any_moment", NEEDS, killed),
        test("clean::ctrl_c_ends_between_two_cookies", NEEDS, interrupted),
    ]
}

fn start(scene: &Scene, plan: &str, audit: &str) -> Result<Child> {
    let args = ["--apply", "--yes", "--plan", plan];
    Command::new(dmtrace_bin()?)
        .args(scene.args(audit, &args))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("dmtrace clean")
}

fn populate(scene: &mut Scene, count: usize) -> Result<Vec<Cookie>> {
    let mut cookies = Vec::new();
    for _ in 0..count {
        cookies.push(scene.leak("after-setval")?);
    }
    grow_up();
    Ok(cookies)
}

/// semids in lines of one kind.
fn semids(audit: &[Value], kind: &str) -> BTreeSet<i32> {
    audit
        .iter()
        .filter(|line| line["type"] == kind)
        .filter(|line| kind != "clean_outcome" || line["outcome"] == "removed")
        .filter_map(|line| line["semid"].as_i64()?.try_into().ok())
        .collect()
}

/// Everything that is gone was announced; everything that is said to be gone is.
fn truthful(cookies: &[Cookie], audit: &[Value]) -> Result<usize> {
    let (announced, removed) = (
        semids(audit, "clean_intent"),
        semids(audit, "clean_outcome"),
    );
    let gone: BTreeSet<i32> = cookies
        .iter()
        .filter(|it| !it.exists())
        .map(|it| it.semid)
        .collect();
    ensure!(
        gone.is_subset(&announced),
        "{gone:?} gone, {announced:?} announced"
    );
    ensure!(
        removed.is_subset(&gone),
        "{removed:?} removed, {gone:?} gone"
    );
    ensure!(
        gone.len() - removed.len() <= 1,
        "{gone:?} gone, {removed:?} told"
    );
    Ok(gone.len())
}

fn killed() -> Result<()> {
    Scene::run(true, |scene| {
        let mut whole = Duration::from_millis(400);
        let mut in_the_middle = 0;
        for round in 0..=ROUNDS {
            let cookies = populate(scene, COOKIES)?;
            let (plan, audit) = (scene.path("plan"), scene.path("audit"));
            let _none = fs::remove_file(&audit);
            let (object, code) = scene.clean(&["--plan", &plan])?;
            ensure!(code == 1, "{object}");
            let mut child = start(scene, &plan, &audit)?;
            let began = Instant::now();
            if round == 0 {
                ensure!(child.wait()?.success(), "not all are removed");
                whole = began.elapsed();
            } else {
                // More often late, where the removals are.
                thread::sleep(whole * (3 * ROUNDS + round) / (4 * ROUNDS));
                child.kill()?;
                child.wait()?;
            }
            let text = fs::read_to_string(&audit).unwrap_or_default();
            let gone = truthful(&cookies, &audit_lines(&text)?)?;
            in_the_middle += u32::from(gone > 0 && gone < COOKIES);
            // The next one finds the lock free and a record that it can go on with.
            let mut child = start(scene, &plan, &audit)?;
            ensure!(child.wait()?.success(), "the rest is not removed");
            ensure!(!cookies.iter().any(|it| it.exists()), "the rest is left");
            truthful_to_the_end(&fs::read_to_string(&audit)?, cookies.len())?;
            scene.cast.clear();
        }
        println!("killed {ROUNDS} times, {in_the_middle} of them between two removals");
        Ok(())
    })
}

/// All cookies were announced, and every whole line can be read.
fn truthful_to_the_end(text: &str, cookies: usize) -> Result<()> {
    let audit: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    ensure!(text.lines().count() - audit.len() <= 1, "{text}");
    ensure!(semids(&audit, "clean_intent").len() == cookies, "{text}");
    ensure!(
        audit.last().is_some_and(|line| line["type"] == "clean_end"),
        "{text}"
    );
    Ok(())
}

fn interrupted() -> Result<()> {
    Scene::run(true, |scene| {
        let cookies = populate(scene, 60)?;
        let (plan, audit) = (scene.path("plan"), scene.path("audit"));
        let (object, _) = scene.clean(&["--plan", &plan])?;
        ensure!(planned(&object).len() == cookies.len(), "{object}");
        let mut child = start(scene, &plan, &audit)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while cookies.iter().all(|it| it.exists()) {
            ensure!(Instant::now() < deadline, "nothing is removed");
            thread::yield_now();
        }
        let pid = i32::try_from(child.id())?;
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0);
        let code = child.wait()?.code();
        let audit = audit_lines(&fs::read_to_string(&audit)?)?;
        let gone = truthful(&cookies, &audit)?;
        ensure!(
            semids(&audit, "clean_outcome").len() == gone,
            "an outcome is missing"
        );
        let end = audit.last().context("no audit record")?;
        ensure!(
            end["type"] == "clean_end" && end["removed"] == gone,
            "{end}"
        );
        ensure!(end["left"] == cookies.len() - gone, "{end}");
        if gone < cookies.len() {
            ensure!(
                code == Some(5) && end["interrupted"] == true,
                "{code:?}: {end}"
            );
        }
        Ok(())
    })
}
