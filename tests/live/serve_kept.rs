//! What outlives a service: its successor knows who made what, and says what it cannot know.

use std::{collections::BTreeMap, fs, process::Command, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::{
    harness::{RunningActor, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor},
    sysv,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{NEEDS, pins::BpfFs, service::Service};

/// How often the service is killed, unless this variable says otherwise.
const KILLS: (&str, u32) = ("DMTRACE_KILLS", 40);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "serve_kept::a_leak_while_it_was_down_is_attributed",
            NEEDS,
            a_leak_while_it_was_down_is_attributed,
        ),
        new_trial(
            "serve_kept::an_upgrade_is_a_short_gap",
            NEEDS,
            an_upgrade_is_a_short_gap,
        ),
        new_trial("serve_kept::a_gap_is_said", NEEDS, a_gap_is_said),
        new_trial(
            "serve_kept::another_layout_starts_anew",
            NEEDS,
            another_layout_starts_anew,
        ),
        new_trial(
            "serve_kept::an_orderly_end_leaves_nothing",
            NEEDS,
            an_orderly_end_leaves_nothing,
        ),
        new_trial("serve_kept::keep_and_remove", NEEDS, keep_and_remove),
        new_trial(
            "serve_kept::what_was_lost_of_others_hides_no_leak",
            NEEDS,
            what_was_lost_of_others_hides_no_leak,
        ),
        new_trial(
            "serve_kept::killed_at_random_moments",
            NEEDS,
            killed_at_random_moments,
        ),
    ]
}

/// Somebody who leaks a cookie: its number, the semid, and what removes it when dropped.
fn leak_cookie() -> Result<(u32, i32, RunningActor)> {
    let mut leaker = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
    let pid = leaker.pid();
    let (lines, _) = leaker.read_to_end()?;
    let semid = lines.last().context("no line")?.semid()?;
    Ok((pid, semid, leaker))
}

/// What `list` says of the cookies of this namespace, by semid.
fn list_rows() -> Result<BTreeMap<i32, Value>> {
    let ns = ns_of("thread-self")?.to_string();
    let output = Command::new(dmtrace_bin()?)
        .args(["list", "--json", "--ipc-ns", &ns])
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    let list: Value = serde_json::from_slice(&output.stdout).with_context(|| error.into_owned())?;
    let rows = list["semaphores"].as_array().context("no list")?;
    rows.iter()
        .map(|row| {
            let semid = row["semid"].as_i64().context("no semid")?;
            Ok((i32::try_from(semid)?, row.clone()))
        })
        .collect()
}

/// The semids of this namespace, by the kernel's own table.
fn semids_there() -> Result<Vec<i32>> {
    // Of the namespace of the thread that opens it.
    let table = fs::read_to_string("/proc/sysvipc/sem")?;
    let rows = table.lines().skip(1);
    rows.map(|row| {
        let semid = row.split_whitespace().nth(1).context("no semid")?;
        Ok(semid.parse()?)
    })
    .collect()
}

fn owner_pid(row: &Value) -> Option<u64> {
    (row["owner_known"] == "observed").then(|| row["owner"]["pid"].as_u64())?
}

fn a_leak_while_it_was_down_is_attributed() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let args = ["--pins", &bpf.pins_arg()];
        let service = Service::start(&args)?;
        let (before, first, _first) = leak_cookie()?;
        service.kill_service()?;
        let (pid, semid, _leaker) = leak_cookie()?;
        // Known although nobody listens.
        let list = list_rows()?;
        ensure!(owner_pid(&list[&first]) == Some(before.into()), "{list:?}");
        ensure!(owner_pid(&list[&semid]) == Some(pid.into()), "{list:?}");
        let mut service = Service::start(&args)?;
        let line = service.wait_line(&format!("by cookie-actor[{pid}]"))?;
        ensure!(line.contains("leaked: owner killed by SIGKILL"), "{line}");
        ensure!(line.contains("call site semget < "), "{line}");
        service.wait_line(&format!("by cookie-actor[{before}]"))?;
        service.wait_line("tracing continued while no service ran: no semaphore was missed")?;
        let status = service.status()?;
        let health = &status["health"];
        ensure!(health["continuity"]["past"] == "unbroken", "{health}");
        let number = |name: &str| health[name].as_u64().context("no number");
        let sum = number("submitted")? + number("dropped")?;
        ensure!(number("seen")? == sum, "{health}");
        let (_, said) = service.stop_service()?;
        ensure!(!said.contains("NOT EXACT"), "{said}");
        ensure!(!bpf.dir().exists(), "something is left");
        Ok(())
    })?
}

fn an_upgrade_is_a_short_gap() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let pins = bpf.pins_arg();
        let service = Service::start(&["--pins", &pins])?;
        let (before, first, _first) = leak_cookie()?;
        service.kill_service()?;
        let (pid, semid, _leaker) = leak_cookie()?;
        // Asking for one backend is another build for it.
        let mut service = Service::start(&["--pins", &pins, "--backend", "tracepoint"])?;
        let line = service.wait_line("gap: nothing was seen from ")?;
        ensure!(line.contains("created unseen: 0;"), "{line}");
        let list = list_rows()?;
        ensure!(owner_pid(&list[&first]) == Some(before.into()), "{list:?}");
        ensure!(owner_pid(&list[&semid]) == Some(pid.into()), "{list:?}");
        // Its own programs trace, once.
        let (pid, semid, _leaker) = leak_cookie()?;
        let list = list_rows()?;
        ensure!(owner_pid(&list[&semid]) == Some(pid.into()), "{list:?}");
        let status = service.status()?;
        let seen = &status["health"]["counts"];
        ensure!(status["health"]["drift"] == 0, "{status} {seen}");
        service.kill_service()
    })?
}

fn a_gap_is_said() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let args = ["--pins", &bpf.pins_arg()];
        let service = Service::start(&args)?;
        let (before, first, _first) = leak_cookie()?;
        let (_, gone, _gone) = leak_cookie()?;
        service.kill_service()?;
        bpf.remove_links()?;
        // The kernel lets them go a little later.
        sleep(Duration::from_secs(4));
        let (_, unknown, _unknown) = leak_cookie()?;
        sysv::remove_set(gone)?;
        let mut service = Service::start(&args)?;
        let line = service.wait_line("gap: nothing was seen from ")?;
        ensure!(
            line.contains("the probes ended with the service")
                && line.contains("sets created unseen: 1; removed: 1; used: 0"),
            "{line}"
        );
        let list = list_rows()?;
        ensure!(owner_pid(&list[&first]) == Some(before.into()), "{list:?}");
        ensure!(list[&unknown]["owner"].is_null(), "{list:?}");
        ensure!(!list.contains_key(&gone), "{list:?}");
        let (pid, semid, _leaker) = leak_cookie()?;
        let list = list_rows()?;
        ensure!(owner_pid(&list[&semid]) == Some(pid.into()), "{list:?}");
        service.kill_service()
    })?
}

fn another_layout_starts_anew() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let pins = bpf.pins_arg();
        let service = Service::start(&["--pins", &pins])?;
        let (_, semid, _leaker) = leak_cookie()?;
        service.kill_service()?;
        let mut service = Service::start(&["--pins", &pins, "--max-semaphores", "1000"])?;
        let line = service.wait_line("gap: nothing was seen until ")?;
        ensure!(
            line.contains("cannot be used") && !line.contains("unseen: 0"),
            "{line}"
        );
        let list = list_rows()?;
        ensure!(list[&semid]["owner"].is_null(), "{list:?}");
        service.kill_service()
    })?
}

fn an_orderly_end_leaves_nothing() -> Result<()> {
    let bpf = BpfFs::mount()?;
    let service = Service::start(&["--pins", &bpf.pins_arg()])?;
    ensure!(bpf.dir().exists(), "nothing is pinned");
    service.stop_service()?;
    ensure!(!bpf.dir().exists(), "something is left");
    Ok(())
}

fn keep_and_remove() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let pins = bpf.pins_arg();
        let args = ["--keep", "--pins", &pins];
        let (status, said) = Service::start(&args)?.stop_service()?;
        ensure!(status.success(), "{status}: {said}");
        ensure!(said.contains("tracing continues"), "{said}");
        let (pid, semid, _leaker) = leak_cookie()?;
        let mut service = Service::start(&args)?;
        service.wait_line(&format!("by cookie-actor[{pid}]"))?;
        let remove = || -> Result<(Option<i32>, String)> {
            let output = Command::new(dmtrace_bin()?)
                .args(["serve", "--remove", "--pins", &pins])
                .output()?;
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            Ok((output.status.code(), text))
        };
        let (code, text) = remove()?;
        ensure!(
            code == Some(3) && text.contains("another dmtrace serve runs"),
            "{text}"
        );
        service.stop_service()?;
        ensure!(
            owner_pid(&list_rows()?[&semid]) == Some(pid.into()),
            "not kept"
        );
        let (code, text) = remove()?;
        ensure!(
            code == Some(0) && text.contains("nothing is left"),
            "{text}"
        );
        ensure!(!bpf.dir().exists(), "something is left");
        let entries = fs::read_dir("/run/dmtrace")?.flatten();
        let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        ensure!(
            !texts.into_iter().any(|text| text.contains(&pins)),
            "a file of the trace is left"
        );
        // Others may trace on this machine; the service does not.
        let output = Command::new(dmtrace_bin()?)
            .args(["list", "--json"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            !text.contains("trace of dmtrace serve, which is still in the kernel"),
            "{text}"
        );
        Ok(())
    })?
}

/// So many sets come and go while no service runs that the maps cannot keep them all. Cookies that
/// are made then, and later, have all of their story.
fn what_was_lost_of_others_hides_no_leak() -> Result<()> {
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let args = ["--pins", &bpf.pins_arg()];
        Service::start(&args)?.kill_service()?;
        let mut crowd =
            start_actor(&["churn", "--tag", "crowd", "--procs", "60", "--sets", "400"])?;
        crowd.read_to_end()?;
        let (before, _, _before) = leak_cookie()?;
        let mut service = Service::start(&args)?;
        let health = service.status()?["health"].clone();
        ensure!(health["counts"]["history_lost"] != 0, "{health}");
        let (after, _, _after) = leak_cookie()?;
        for pid in [before, after] {
            let line = service.wait_line(&format!("by cookie-actor[{pid}]"))?;
            let whole = line.contains("owner killed by SIGKILL") && line.contains("; command ");
            ensure!(whole && line.contains("(observed)"), "{line}");
        }
        service.kill_service()
    })?
}

/// A service that is killed at any moment, its start included, while others make and remove
/// semaphores. What its successors say must be what the kernel has.
fn killed_at_random_moments() -> Result<()> {
    let kills = std::env::var(KILLS.0);
    let kills: u32 = kills.map_or(Ok(KILLS.1), |text| text.parse())?;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    in_private_ns(|| {
        let bpf = BpfFs::mount()?;
        let args = ["--pins", &bpf.pins_arg()];
        let mut random = fastrand::Rng::with_seed(seed);
        let mut made: BTreeMap<i32, u64> = BTreeMap::new();
        let mut service = Some(Service::start(&args)?);
        // Their sets are removed when they are dropped.
        let mut all = Vec::new();
        let mut kill = 0;
        while kill < kills {
            let mut users = start_users(kill, random.u64(..))?;
            let removed = remove_some(&mut made, &mut random)?;
            sleep(Duration::from_millis(random.u64(0..60)));
            if let Some(service) = service.take() {
                service.kill_service()?;
                kill += 1;
            }
            // Some do not get far.
            while random.u8(0..3) == 0 && kill < kills {
                let young = Service::spawn(&args)?;
                sleep(Duration::from_millis(random.u64(0..500)));
                young.kill_service()?;
                kill += 1;
            }
            service = Some(Service::start(&args)?);
            for user in &mut users {
                let (lines, _) = user.read_to_end()?;
                for line in lines.iter().filter(|line| line.step == "created") {
                    let pid = u64::try_from(line.number("pid")?)?;
                    made.insert(line.semid()?, pid);
                }
            }
            all.append(&mut users);
            let present = semids_there()?;
            made.retain(|semid, _| present.contains(semid));
            ensure!(
                made.len() == present.len(),
                "kill {kill}: the test knows {}, the kernel has {}",
                made.len(),
                present.len()
            );
            let list = list_rows()?;
            let context = || format!("kill {kill}, seed {seed}, {removed} removed");
            ensure!(
                list.keys().copied().eq(made.keys().copied()),
                "{}: another set of sets",
                context()
            );
            for (semid, pid) in &made {
                let row = &list[semid];
                ensure!(
                    owner_pid(row) == Some(*pid),
                    "{}: made by {pid}, and the list says: {row}",
                    context()
                );
            }
            let Some(service) = &mut service else {
                continue;
            };
            let status = service.status()?;
            let health = &status["health"];
            // A ring that others on this machine have filled is another matter.
            let kept = health["counts"]["history_lost"] == 0 || health["dropped"] != 0;
            ensure!(
                health["continuity"]["past"] == "unbroken"
                    && kept
                    && health["counts"]["sem_map_full"] == 0,
                "{}: {health}",
                context()
            );
        }
        Ok(())
    })?
}

/// They make cookies, and leave some, at every step of their making.
fn start_users(round: u32, seed: u64) -> Result<Vec<RunningActor>> {
    let seed = (seed % 1_000_000).to_string();
    let tag = format!("round-{round}");
    Ok(vec![
        start_actor(&["crowd", "--count", "4", "--seed", &seed])?,
        start_actor(&[
            "churn", "--tag", &tag, "--procs", "4", "--sets", "20", "--leave",
        ])?,
    ])
}

fn remove_some(made: &mut BTreeMap<i32, u64>, random: &mut fastrand::Rng) -> Result<usize> {
    let some: Vec<i32> = made.keys().copied().collect();
    let mut removed = 0;
    for semid in some {
        if random.u8(0..3) == 0 {
            sysv::remove_set(semid)?;
            made.remove(&semid);
            removed += 1;
        }
    }
    Ok(removed)
}
