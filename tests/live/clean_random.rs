//! Random populations of cookies, and random accidents between plan and apply: whatever happens,
//! nothing that anybody may still need is touched.

use std::{
    env,
    process::{Child, Command},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::{
    harness::{Running, actor, test},
    sysv,
};
use libtest_mimic::Trial;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, grow_up, outcome, planned},
};

/// Rounds, unless `DMTRACE_RANDOM_ROUNDS` says otherwise.
const ROUNDS: u32 = 3;
/// Sets in a round.
const POPULATION: usize = 40;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("clean::random_worlds_stay_whole", NEEDS, || {
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = number("DMTRACE_RANDOM_SEED").unwrap_or_else(|| {
            u64::from(std::process::id()) << 20
                ^ std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(1, |now| now.as_nanos() as u64)
        });
        let rounds = number("DMTRACE_RANDOM_ROUNDS").map_or(ROUNDS, |rounds| rounds as u32);
        let mut random = Random(seed | 1);
        Scene::run(true, |scene| {
            for number in 0..rounds {
                round(scene, &mut random)
                    .with_context(|| format!("round {number} of DMTRACE_RANDOM_SEED={seed}"))?;
            }
            Ok(())
        })
    })]
}

/// xorshift64*: good enough to choose.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
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

fn populate(scene: &mut Scene, random: &mut Random, carriers: &mut Vec<Child>) -> Result<Item> {
    let hold = |step| ["cycle", "--stop-at", step, "--how", "hold"];
    let stop = |step, how| ["cycle", "--stop-at", step, "--how", how];
    let (nature, cookie) = match random.below(10) {
        0 => {
            let step = random.of(&[
                "after-semget",
                "after-setval",
                "after-inc",
                "after-complete",
            ]);
            (Nature::Live, scene.play(&hold(step), "created")?)
        }
        1 => (Nature::Live, scene.play(&hold("in-wait"), "waiting")?),
        2 => (Nature::Live, scene.play(&["moby", "--hold"], "leaked")?),
        3 => {
            let key = format!("0x0d4d{:04x}", 1 + random.below(0xfffe));
            let (nsems, mode) = random.of(&[("3", "0600"), ("1", "0666"), ("2", "0640")]);
            let args = ["foreign", "--nsems", nsems, "--mode", mode, "--key", &key];
            match scene.play(&args, "created") {
                Ok(cookie) => (Nature::Foreign, cookie),
                // The key is taken.
                Err(_) => (Nature::Live, scene.play(&hold("in-wait"), "waiting")?),
            }
        }
        4 => (Nature::HandedOn, scene.play(&["create"], "set")?),
        5 => {
            let cookie = scene.leak("after-setval")?;
            carriers.push(carry(cookie)?);
            (Nature::HandedOn, cookie)
        }
        6 => {
            let step = random.of(&["after-inc", "in-wait", "after-wait"]);
            (Nature::Pending, scene.leak(step)?)
        }
        _ => {
            let step = random.of(&["after-semget", "after-complete"]);
            let how = random.of(&["kill", "exit"]);
            (Nature::Leaked, scene.play(&stop(step, how), "created")?)
        }
    };
    Ok(Item {
        cookie,
        nature,
        accident: Accident::Nothing,
        now: Some(cookie),
    })
}

fn carry(cookie: Cookie) -> Result<Child> {
    Ok(Command::new("sleep")
        .arg("1000")
        .env("DM_UDEV_COOKIE", cookie.key.to_string())
        .spawn()?)
}

fn strike(
    item: &mut Item,
    random: &mut Random,
    carriers: &mut Vec<Child>,
    waiters: &mut Vec<Running>,
) -> Result<()> {
    use Accident::{Carried, Completed, Incremented, Nothing, Reborn, Removed, SetAnew, WaitedFor};
    let cookie = item.cookie;
    let key = cookie.text();
    item.accident = random.of(&[
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
            actor(&["inc", "--key", &key])?.finish()?;
        }
        Completed => {
            let value = sysv::value(cookie.semid)?;
            let (_, status) = actor(&["complete", "--key", &key])?.finish()?;
            if value == 0 {
                // EAGAIN leaves no mark, and does no harm.
                ensure!(!status.success(), "0 was decremented");
                item.accident = Nothing;
            }
        }
        SetAnew => sysv::set_value(cookie.semid, 1)?,
        WaitedFor => {
            for _ in 0..2 {
                actor(&["inc", "--key", &key])?.finish()?;
            }
            let mut waiter = actor(&["release", "--key", &key])?;
            waiter.until("waiting")?;
            waiters.push(waiter);
        }
        Removed => {
            sysv::remove(cookie.semid)?;
            item.now = None;
        }
        Reborn => {
            sysv::remove(cookie.semid)?;
            let flags = 0o600 | libc::IPC_CREAT | libc::IPC_EXCL;
            let semid = sysv::get(cookie.key, 1, flags)?;
            sysv::set_value(semid, 1)?;
            item.now = Some(Cookie {
                key: cookie.key,
                semid,
            });
        }
        Carried => carriers.push(carry(cookie)?),
    }
    Ok(())
}

fn round(scene: &mut Scene, random: &mut Random) -> Result<()> {
    let (mut carriers, mut waiters) = (Vec::new(), Vec::new());
    let done = play(scene, random, &mut carriers, &mut waiters);
    for mut carrier in carriers {
        let _ended = carrier.kill();
        let _reaped = carrier.wait();
    }
    drop(waiters);
    scene.cast.clear();
    done
}

fn play(
    scene: &mut Scene,
    random: &mut Random,
    carriers: &mut Vec<Child>,
    waiters: &mut Vec<Running>,
) -> Result<()> {
    let mut items = Vec::new();
    for _ in 0..POPULATION {
        items.push(populate(scene, random, carriers)?);
    }
    grow_up();
    let file = scene.path("plan");
    let (plan, _) = scene.clean(&["--plan", &file])?;
    let wanted = planned(&plan);
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
            strike(item, random, carriers, waiters)?;
        }
    }
    let (result, code) = scene.clean(&["--apply", "--yes", "--plan", &file])?;
    let mut kept = 0;
    for item in &items {
        let (cookie, accident) = (item.cookie, item.accident);
        let told = outcome(&result, cookie);
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
            let _gone = sysv::remove(cookie.semid);
        }
    }
    Ok(())
}
