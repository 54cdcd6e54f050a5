//! `dmtrace clean --apply` ends in the middle: the audit record tells the truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{dmtrace_bin, new_trial, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, audit_lines, grow_up, planned_semids},
};

/// Times that it is killed.
const ROUNDS: u32 = 12;
/// Leaked cookies for each time.
const COOKIES: usize = 12;
/// Leaked cookies of which some are removed each time, unless `DMTRACE_RANDOM_ROUNDS` says
/// otherwise.
const MANY: usize = 150;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("clean::killed_at_any_moment", NEEDS, killed_at_any_moment),
        new_trial("clean::killed_in_the_act", NEEDS, killed_in_the_act),
        new_trial(
            "clean::ctrl_c_ends_between_two_cookies",
            NEEDS,
            ctrl_c_ends_between_two_cookies,
        ),
    ]
}

fn start_clean(scene: &Scene, plan: &str, audit: &str) -> Result<Child> {
    let args = ["--apply", "--yes", "--plan", plan, "--max", "100000"];
    Command::new(dmtrace_bin()?)
        .args(scene.clean_args(audit, &args))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("dmtrace clean")
}

fn make_cookies(scene: &mut Scene, count: usize) -> Result<Vec<Cookie>> {
    let mut cookies = Vec::new();
    for _ in 0..count {
        cookies.push(scene.leak_at("after-setval")?);
    }
    grow_up();
    Ok(cookies)
}

/// semids in lines of one kind.
fn audit_semids(audit: &[Value], kind: &str) -> BTreeSet<i32> {
    audit
        .iter()
        .filter(|line| line["type"] == kind)
        .filter(|line| kind != "clean_outcome" || line["outcome"] == "removed")
        .filter_map(|line| line["semid"].as_i64()?.try_into().ok())
        .collect()
}

/// Everything that is gone was announced; everything that is said to be gone is.
fn check_audit(cookies: &[Cookie], audit: &[Value]) -> Result<usize> {
    let (announced, removed) = (
        audit_semids(audit, "clean_intent"),
        audit_semids(audit, "clean_outcome"),
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

fn killed_at_any_moment() -> Result<()> {
    Scene::run_in(true, |scene| {
        let mut whole = Duration::from_millis(400);
        let mut in_the_middle = 0;
        for round in 0..=ROUNDS {
            let cookies = make_cookies(scene, COOKIES)?;
            let (plan, audit) = (scene.file_path("plan"), scene.file_path("audit"));
            for old in [&audit, &plan] {
                let _none = fs::remove_file(old);
            }
            let (object, code) = scene.run_clean(&["--plan", &plan])?;
            ensure!(code == 1, "{object}");
            let mut child = start_clean(scene, &plan, &audit)?;
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
            let gone = check_audit(&cookies, &audit_lines(&text)?)?;
            in_the_middle += u32::from(gone > 0 && gone < COOKIES);
            // The next one finds the lock free and a record that it can go on with.
            let mut child = start_clean(scene, &plan, &audit)?;
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
    ensure!(
        audit_semids(&audit, "clean_intent").len() == cookies,
        "{text}"
    );
    ensure!(
        audit.last().is_some_and(|line| line["type"] == "clean_end"),
        "{text}"
    );
    Ok(())
}

/// Killed a moment after an intent is on disk: before, while or after the cookie is removed, or
/// while the outcome is written. The next run takes up the same plan, and is killed, too.
fn killed_in_the_act() -> Result<()> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let count = number("DMTRACE_RANDOM_ROUNDS").unwrap_or(MANY);
    Scene::run_in(true, |scene| {
        let cookies = make_crowd(scene, count)?;
        let (plan, audit) = (scene.file_path("plan"), scene.file_path("audit"));
        let (object, code) = scene.run_clean(&["--plan", &plan, "--max", "100000"])?;
        ensure!(
            code == 1 && planned_semids(&object).len() == count,
            "{object:.900}"
        );
        let mut sums = (0, 0, 0);
        while cookies.iter().any(|it| it.exists()) {
            let before = fs::read_to_string(&audit).unwrap_or_default().len();
            let mut child = start_clean(scene, &plan, &audit)?;
            let wanted = fastrand::usize(1..6);
            let deadline = Instant::now() + Duration::from_secs(60);
            while child.try_wait()?.is_none() {
                let text = fs::read(&audit).unwrap_or_default();
                let text = String::from_utf8_lossy(text.get(before..).unwrap_or_default());
                if text.matches("\"clean_intent\"").count() >= wanted {
                    break;
                }
                ensure!(Instant::now() < deadline, "it hangs");
            }
            let moment = Instant::now() + Duration::from_micros(fastrand::u64(..400));
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            child.kill()?;
            let code = child.wait()?.code();
            let killed = code.is_none();
            ensure!(killed || code == Some(0), "exit {code:?}");
            let (gone, left) = check_unfinished(&cookies, &fs::read_to_string(&audit)?)?;
            sums = (sums.0 + usize::from(killed), gone, left);
        }
        let (kills, gone, left) = sums;
        println!(
            "killed {kills} times; intents without an outcome: {gone} of cookies that are gone, \
             {left} of cookies that were left"
        );
        ensure!(kills > 0, "it was never killed");
        Ok(())
    })
}

/// Many cookies that one process has left.
fn make_crowd(scene: &mut Scene, count: usize) -> Result<Vec<Cookie>> {
    let number = count.to_string();
    let mut running = start_actor(&["moby", "--count", &number, "--hold"])?;
    let mut cookies = Vec::new();
    while let Some(line) = running.next_line()? {
        match line.step.as_str() {
            "created" => cookies.push(Cookie::from_line(&line)?),
            "done" => break,
            _ => {}
        }
    }
    running.kill_group();
    scene.cast.push(running);
    grow_up();
    Ok(cookies)
}

/// Every run is whole but for its end: only its last intent can be without an outcome. Returns how
/// many there are whose cookie was gone all the same, and whose cookie was not.
fn check_unfinished(cookies: &[Cookie], text: &str) -> Result<(usize, usize)> {
    let mut runs: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in text.lines() {
        // One that was torn by a kill.
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let run = line["run"].as_str().context("no run")?.to_owned();
        runs.entry(run).or_default().push(line);
    }
    let (mut open, mut told, mut announced) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for lines in runs.values() {
        let (intents, outcomes) = (
            audit_semids(lines, "clean_intent"),
            audit_semids(lines, "clean_outcome"),
        );
        let missing: Vec<i32> = intents.difference(&outcomes).copied().collect();
        ensure!(missing.len() <= 1, "{missing:?} have no outcome");
        if let Some(&semid) = missing.first() {
            let last = lines.last().context("no line")?;
            ensure!(last["semid"] == semid, "{last} after the intent of {semid}");
        }
        ensure!(
            outcomes.is_subset(&intents),
            "{outcomes:?} were not announced"
        );
        ensure!(told.is_disjoint(&outcomes), "removed twice: {outcomes:?}");
        open.extend(missing);
        told.extend(outcomes);
        announced.extend(intents);
    }
    let (there, gone): (Vec<Cookie>, Vec<Cookie>) = cookies.iter().partition(|it| it.exists());
    for cookie in &there {
        ensure!(!told.contains(&cookie.semid), "{cookie:?} is not gone");
    }
    let mut silently = 0;
    for cookie in &gone {
        let semid = cookie.semid;
        ensure!(announced.contains(&semid), "{cookie:?} was not announced");
        silently += usize::from(!told.contains(&semid));
        ensure!(
            told.contains(&semid) || open.contains(&semid),
            "{cookie:?} is gone"
        );
    }
    Ok((silently, open.len() - silently))
}

fn ctrl_c_ends_between_two_cookies() -> Result<()> {
    Scene::run_in(true, |scene| {
        let cookies = make_cookies(scene, 60)?;
        let (plan, audit) = (scene.file_path("plan"), scene.file_path("audit"));
        let (object, _) = scene.run_clean(&["--plan", &plan])?;
        ensure!(planned_semids(&object).len() == cookies.len(), "{object}");
        let mut child = start_clean(scene, &plan, &audit)?;
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
        let gone = check_audit(&cookies, &audit)?;
        ensure!(
            audit_semids(&audit, "clean_outcome").len() == gone,
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
