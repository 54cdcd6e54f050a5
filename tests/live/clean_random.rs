//! Random populations of cookies, and random accidents between plan and apply: whatever happens,
//! nothing that anybody may still need is touched.

use std::{
    env,
    process::{Child, Command},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::{
    harness::{RunningActor, new_trial, start_actor},
    sysv,
};
use libtest_mimic::Trial;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, grow_up, outcome_of, planned_semids},
};

/// Rounds, unless `DMTRACE_RANDOM_ROUNDS` says otherwise.
const ROUNDS: u32 = 3;
/// Sets in a round.
const POPULATION: usize = 40;

pub(crate) fn tests() -> Vec<Trial> {
    vec![new_trial("clean::random_worlds_stay_whole", NEEDS, || {
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = number("DMTRACE_RANDOM_SEED").unwrap_or_else(|| {
            u64::from(std::process::id()) << 20
                ^ std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(1, |now| now.as_nanos() as u64)
        });
        let rounds = number("DMTRACE_RANDOM_ROUNDS").map_or(ROUNDS, |rounds| rounds as u32);
        let mut random = Random(seed | 1);
        Scene::run_in(true, |scene| {
            for number in 0..rounds {
                play_round(scene, &mut random)
                    .with_context(|| format!("round {number} of DMTRACE_RANDOM_SEED={seed}"))?;
            }
            Ok(())
        })
    })]
}

/// xorshift64*: good enough to choose.
struct Random(u64);

impl Random {
    fn number_below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn pick_from<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.number_below(list.len())]
    }
}

/// What a set is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Nature {
    Live,
    /// Its owner has ended, and nothing is outstanding: to be removed.
    Leaked,
    /// Its owner has ended, and it may be removed or not: udev, if it runs, may yet complete it;
    /// or two calls ended at the same time on two CPUs, and a backend that sees calls at their end
    /// (syscall tracepoints) cannot tell which was the last.
    Pending,
    /// It is no cookie.
    Foreign,
    /// Its owner has ended well and may have handed it on, or a living process carries it.
    HandedOn,
}

/// What happens to a set between plan and apply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Accident {
    Nothing,
    Incremented,
    Completed,
    SetAnew,
    WaitedFor,
    Removed,
    Reborn,
    Carried,
}

struct Item {
    cookie: Cookie,
    nature: Nature,
    accident: Accident,
    /// What is there in its place after the accident.
    now: Option<Cookie>,
}

fn make_item(scene: &mut Scene, random: &mut Random, carriers: &mut Vec<Child>) -> Result<Item> {
    let hold = |step| ["cycle", "--stop-at", step, "--how", "hold"];
    let stop = |step, how| ["cycle", "--stop-at", step, "--how", how];
    let (nature, cookie) = match random.number_below(10) {
        0 => {
            let step = random.pick_from(&[
                "after-semget",
                "after-setval",
                "after-inc",
                "after-complete",
            ]);
            (Nature::Live, scene.play_actor(&hold(step), "created")?)
        }
        1 => (Nature::Live, scene.play_actor(&hold("in-wait"), "waiting")?),
        2 => (
            Nature::Live,
            scene.play_actor(&["moby", "--hold"], "leaked")?,
        ),
        3 => {
            let key = format!("0x0d4d{:04x}", 1 + random.number_below(0xfffe));
            let (nsems, mode) = random.pick_from(&[("3", "0600"), ("1", "0666"), ("2", "0640")]);
            let args = ["foreign", "--nsems", nsems, "--mode", mode, "--key", &key];
            match scene.play_actor(&args, "created") {
                Ok(cookie) => (Nature::Foreign, cookie),
                // The key is taken.
                Err(_) => (Nature::Live, scene.play_actor(&hold("in-wait"), "waiting")?),
            }
        }
        4 => (Nature::HandedOn, scene.play_actor(&["create"], "set")?),
        5 => {
            let cookie = scene.leak_at("after-setval")?;
            carriers.push(start_carrier(cookie)?);
            (Nature::HandedOn, cookie)
        }
        6 => {
            let step = random.pick_from(&["after-inc", "in-wait", "after-wait"]);
            (Nature::Pending, scene.leak_at(step)?)
        }
        _ => {
            let step = random.pick_from(&["after-semget", "after-complete"]);
            let how = random.pick_from(&["kill", "exit"]);
            (
                Nature::Leaked,
                scene.play_actor(&stop(step, how), "created")?,
            )
        }
    };
    Ok(Item {
        cookie,
        nature,
        accident: Accident::Nothing,
        now: Some(cookie),
    })
}

fn start_carrier(cookie: Cookie) -> Result<Child> {
    Ok(Command::new("sleep")
        .arg("1000")
        .env("DM_UDEV_COOKIE", cookie.key.to_string())
        .spawn()?)
}

fn use_cookie(
    item: &mut Item,
    random: &mut Random,
    carriers: &mut Vec<Child>,
    waiters: &mut Vec<RunningActor>,
) -> Result<()> {
    use Accident::{Carried, Completed, Incremented, Nothing, Reborn, Removed, SetAnew, WaitedFor};
    let cookie = item.cookie;
    let key = cookie.text();
    item.accident = random.pick_from(&[
        Nothing,
        Nothing,
        Nothing,
        Incremented,
        Completed,
        SetAnew,
        WaitedFor,
        Removed,
        Reborn,
        Carried,
    ]);
    match item.accident {
        Nothing => {}
        Incremented => {
            start_actor(&["inc", "--key", &key])?.read_to_end()?;
        }
        Completed => {
            let value = sysv::get_value(cookie.semid)?;
            let (_, status) = start_actor(&["complete", "--key", &key])?.read_to_end()?;
            if value == 0 {
                // EAGAIN leaves no mark, and does no harm.
                ensure!(!status.success(), "0 was decremented");
                item.accident = Nothing;
            }
        }
        SetAnew => sysv::set_value(cookie.semid, 1)?,
        WaitedFor => {
            for _ in 0..2 {
                start_actor(&["inc", "--key", &key])?.read_to_end()?;
            }
            let mut waiter = start_actor(&["release", "--key", &key])?;
            waiter.read_until("waiting")?;
            waiters.push(waiter);
        }
        Removed => {
            sysv::remove_set(cookie.semid)?;
            item.now = None;
        }
        Reborn => {
            sysv::remove_set(cookie.semid)?;
            let flags = 0o600 | libc::IPC_CREAT | libc::IPC_EXCL;
            let semid = sysv::get_set(cookie.key, 1, flags)?;
            sysv::set_value(semid, 1)?;
            item.now = Some(Cookie {
                key: cookie.key,
                semid,
            });
        }
        Carried => carriers.push(start_carrier(cookie)?),
    }
    Ok(())
}

fn play_round(scene: &mut Scene, random: &mut Random) -> Result<()> {
    let (mut carriers, mut waiters) = (Vec::new(), Vec::new());
    let done = play_plan(scene, random, &mut carriers, &mut waiters);
    for mut carrier in carriers {
        let _ended = carrier.kill();
        let _reaped = carrier.wait();
    }
    drop(waiters);
    scene.cast.clear();
    done
}

fn play_plan(
    scene: &mut Scene,
    random: &mut Random,
    carriers: &mut Vec<Child>,
    waiters: &mut Vec<RunningActor>,
) -> Result<()> {
    let mut items = Vec::new();
    for _ in 0..POPULATION {
        items.push(make_item(scene, random, carriers)?);
    }
    grow_up();
    let file = scene.file_path("plan");
    let _earlier_round = std::fs::remove_file(&file);
    let (plan, _) = scene.run_clean(&["--plan", &file])?;
    let wanted = planned_semids(&plan);
    for item in &items {
        let planned = wanted.contains(&item.cookie.semid.into());
        let right = match item.nature {
            Nature::Live | Nature::Foreign | Nature::HandedOn => !planned,
            Nature::Leaked => planned,
            Nature::Pending => true,
        };
        let entries = plan["plan"]["entries"].as_array();
        let entry = entries
            .into_iter()
            .flatten()
            .find(|entry| entry["semid"] == item.cookie.semid);
        ensure!(right, "{:?} {:?}: {entry:?}", item.nature, item.cookie);
    }
    for item in &mut items {
        if wanted.contains(&item.cookie.semid.into()) {
            use_cookie(item, random, carriers, waiters)?;
        }
    }
    let (result, code) = scene.run_clean(&["--apply", "--yes", "--plan", &file])?;
    let mut kept = 0;
    for item in &items {
        let (cookie, accident) = (item.cookie, item.accident);
        let told = outcome_of(&result, cookie);
        let here = || {
            format!(
                "{:?} {accident:?} {cookie:?}: {:.900}",
                item.nature,
                result.to_string()
            )
        };
        let (expected, exists) = match accident {
            _ if !wanted.contains(&cookie.semid.into()) => (None, true),
            Accident::Nothing => (Some("removed"), false),
            Accident::Removed | Accident::Reborn => (Some("gone"), item.now.is_some()),
            _ => (Some("moved"), true),
        };
        kept += u32::from(expected == Some("moved"));
        ensure!(told == expected, "{}", here());
        ensure!(item.now.is_some_and(Cookie::exists) == exists, "{}", here());
    }
    ensure!(code == if kept > 0 { 5 } else { 0 }, "{code}: {result}");
    // What the actors do not know of.
    for item in &items {
        if let Some(cookie) = item.now.filter(|it| it.exists()) {
            let _gone = sysv::remove_set(cookie.semid);
        }
    }
    Ok(())
}
