//! Random interleavings of a clean-up with those who use cookies, on real semaphores, against a
//! model of who needs what.
//!
//! The plan is made by the binary, from a real trace. It is carried out here, step by step: between
//! any two of its steps, on whatever cookie it is, somebody may use, change, remove or replace any
//! cookie. What was used before its removal must stay as its user left it, and what was not must go.
//!
//! `DMTRACE_RANDOM_ROUNDS` and `DMTRACE_RANDOM_SEED` say how many and which.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    process::{Child, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use dmtrace::{
    cleanup::{
        apply::{CleanupOutcome, apply_plan},
        audit::Audit,
        file::PlanFile,
        witness::{Sighting, Witness},
    },
    host::{Roots, clock},
};
use dmtrace_core::ids::{BootTime, SemId};
use dmtrace_tests::{
    harness::{new_trial, start_actor},
    sysv::{self, Abi},
};
use libtest_mimic::Trial;

use crate::{
    NEEDS,
    clean_scene::{Cookie, Scene, audit_lines, grow_up},
};

/// Rounds, unless `DMTRACE_RANDOM_ROUNDS` says otherwise.
const ROUNDS: u64 = 2;
/// Processes that die with cookies, and that live on with some.
const CROWDS: (u64, u64) = (8, 2);
/// Cookies of each process.
const CROWD: u64 = 200;
/// Sets that are no cookies.
const FOREIGN: u64 = 10;

pub(crate) fn tests() -> Vec<Trial> {
    vec![new_trial("clean::interleavings", NEEDS, || {
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = number("DMTRACE_RANDOM_SEED").unwrap_or_else(|| fastrand::u64(..));
        let rounds = number("DMTRACE_RANDOM_ROUNDS").unwrap_or(ROUNDS);
        println!("DMTRACE_RANDOM_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut sums = Counts::new();
        let mut number = 0;
        while number < rounds {
            // A trace tells much, and the harness keeps all of it: a new one now and then.
            let end = rounds.min(number + 10);
            Scene::run_in(true, |scene| {
                while number < end {
                    let counts = play_round(scene, &mut random)
                        .with_context(|| format!("round {number} of DMTRACE_RANDOM_SEED={seed}"))?;
                    for (name, count) in counts {
                        *sums.entry(name).or_default() += count;
                    }
                    number += 1;
                }
                Ok(())
            })?;
        }
        println!("{rounds} rounds: {sums:?}");
        for wanted in ["interleavings", "used before its turn", "used in its turn"] {
            ensure!(sums.contains_key(wanted), "nothing was {wanted}");
        }
        Ok(())
    })]
}

type Counts = BTreeMap<&'static str, u64>;

/// What a set is, as far as its users know.
struct Item {
    cookie: Cookie,
    /// It is in the plan.
    planned: bool,
    value: i32,
    /// Somebody has used it since the plan was made. `None`: nobody.
    used: Option<BootTime>,
    waits: u32,
    setvals: u32,
    carried: bool,
    /// Somebody else has removed it.
    removed: bool,
    /// How often the clean-up has asked for it.
    asked: u32,
}

/// Everybody but the clean-up.
struct Model {
    items: Vec<Item>,
    index: BTreeMap<i32, usize>,
    random: fastrand::Rng,
    /// Made anew with the key of one that was removed.
    reborn: Vec<(Cookie, i32)>,
    waiters: Vec<JoinHandle<()>>,
    /// Whether the clean-up has a trace to ask.
    sighted: bool,
    /// One of so many steps is followed by uses.
    calm: u32,
    counts: Counts,
    /// What must not be.
    wrong: Option<anyhow::Error>,
}

/// Asked at the boundaries of each cookie: before the check, after the audit record is written, and
/// after the removal.
struct Boundary {
    model: Mutex<Model>,
    stop: AtomicBool,
    /// Ctrl-C comes at this boundary.
    interrupted_at: Option<u64>,
}

impl Witness for Boundary {
    fn sighting_of(&self, sem: SemId) -> Option<Sighting> {
        let mut model = self.model.lock().ok()?;
        let at = *model.index.get(&sem.semid)?;
        model.items[at].asked += 1;
        model.count_event("boundaries");
        if Some(model.counts["boundaries"]) == self.interrupted_at {
            self.stop.store(true, Ordering::Relaxed);
        }
        if let Err(error) = model.meddle_before(Some(at)) {
            model.wrong.get_or_insert(error);
        }
        let item = &model.items[at];
        let known = model.sighted && sysv::get_key(sem.semid).is_ok();
        known.then(|| Sighting {
            last_op: item.used.unwrap_or_default(),
            waits: item.waits,
            setvals: item.setvals,
            ..Sighting::default()
        })
    }
}

impl Model {
    fn count_event(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Now and then something happens, to this cookie or to another.
    fn meddle_before(&mut self, at: Option<usize>) -> Result<()> {
        while self.random.u32(..self.calm) == 0 {
            let other = self.random.usize(..self.items.len());
            let target = match at {
                Some(at) if self.random.bool() => at,
                _ => other,
            };
            self.use_cookie(target)
                .with_context(|| format!("{:?}", self.items[target].cookie))?;
        }
        Ok(())
    }

    /// Somebody uses a cookie, in one way or the other.
    fn use_cookie(&mut self, at: usize) -> Result<()> {
        let semid = self.items[at].cookie.semid;
        let up = |by| sysv::semop_one(Abi::SemTimedOp, semid, by, libc::IPC_NOWAIT);
        let value = self.items[at].value;
        let way = self.random.u32(..100);
        let (done, value) = match way {
            0..25 => (up(1), value + 1),
            25..45 => (up(-1), value - 1),
            // Leaves the value as it was.
            45..65 => (up(1).and_then(|()| up(-1)), value),
            65..75 => (up(0), value),
            75..83 => (sysv::set_value(semid, 1), 1),
            83..88 => (sysv::set_mode(semid, 0o640), value),
            88..91 if value > 0 => (self.start_waiter(semid), value),
            _ => return self.replace_set(at, way < 96),
        };
        let item = &mut self.items[at];
        match done {
            Ok(()) => {
                item.value = value;
                item.setvals += u32::from((75..83).contains(&way));
                item.waits += u32::from((88..91).contains(&way));
                let first = item.used.replace(clock::boot_now()).is_none();
                let asked = item.asked;
                ensure!(!item.removed, "{semid} was removed and can be used");
                if first && item.planned {
                    self.count_event(match asked {
                        0 => "used before its turn",
                        _ => "used in its turn",
                    });
                }
                Ok(())
            }
            // Nothing has happened.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
            Err(error) => self.may_be_gone(at, &error),
        }
    }

    /// A thread sleeps on it.
    fn start_waiter(&mut self, semid: i32) -> std::io::Result<()> {
        let before = sysv::count_waiters(semid)?;
        self.waiters.push(thread::spawn(move || {
            let _ended = sysv::semop_one(Abi::SemTimedOp, semid, 0, 0);
        }));
        while sysv::count_waiters(semid)? == before {
            thread::yield_now();
        }
        Ok(())
    }

    /// Its owner removes it, perhaps to make another one with the same key.
    fn replace_set(&mut self, at: usize, again: bool) -> Result<()> {
        let Cookie { key, semid } = self.items[at].cookie;
        if let Err(error) = sysv::remove_set(semid) {
            return self.may_be_gone(at, &error);
        }
        ensure!(!self.items[at].removed, "{semid} was removed twice");
        self.items[at].removed = true;
        self.count_event("removed by others");
        if again {
            let flags = 0o600 | libc::IPC_CREAT | libc::IPC_EXCL;
            let semid = sysv::get_set(key, 1, flags)?;
            sysv::set_value(semid, 1)?;
            self.reborn.push((Cookie { key, semid }, 1));
        }
        Ok(())
    }

    /// A use has failed: only where there is nothing more to use.
    fn may_be_gone(&mut self, at: usize, error: &std::io::Error) -> Result<()> {
        let item = &self.items[at];
        let gone = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM));
        let by_clean = item.planned && item.used.is_none() && item.asked >= 2;
        ensure!(gone && (item.removed || by_clean), "a use failed: {error}");
        self.count_event("too late");
        Ok(())
    }

    /// What there is now, against what there must be.
    fn judge_outcome(&self, at: usize, outcome: Option<&CleanupOutcome>) -> Result<()> {
        use CleanupOutcome::{Gone, InUse, Moved, NotTried, Removed};

        let item = &self.items[at];
        let there = item.cookie.exists();
        let tried = outcome.filter(|it| !matches!(it, NotTried));
        match tried {
            _ if item.removed => {
                ensure!(!there, "it is back");
                ensure!(
                    tried.is_none_or(|it| matches!(it, Gone | Moved(_) | InUse)),
                    "it had been removed"
                );
            }
            Some(outcome) if item.used.is_none() && !item.carried => {
                ensure!(matches!(outcome, Removed), "leaked, and left");
                ensure!(!there, "said to be removed, and is there");
            }
            _ => {
                ensure!(there, "needed, and gone");
                let value = sysv::get_value(item.cookie.semid)?;
                ensure!(value == item.value, "value {value}");
                ensure!(
                    tried.is_none_or(|it| matches!(it, Moved(_) | InUse)),
                    "needed"
                );
            }
        }
        Ok(())
    }
}

/// Cookies of processes that have ended and of some that have not, and sets that are no cookies;
/// and those that must be in the plan: their owner has ended, and nothing is outstanding.
fn make_items(scene: &mut Scene, random: &mut fastrand::Rng) -> Result<(Vec<Item>, BTreeSet<i32>)> {
    let (mut items, mut leaked) = (Vec::new(), BTreeSet::new());
    for number in 0..CROWDS.0 + CROWDS.1 {
        let (count, seed) = (CROWD.to_string(), random.u64(..).to_string());
        let args = ["crowd", "--count", &count, "--seed", &seed, "--hold"];
        let mut running = start_actor(&args)?;
        let dead = number < CROWDS.0;
        while let Some(line) = running.next_line()? {
            if line.step == "made" {
                break;
            }
            if line.step == "created" {
                items.push(Item::new(Cookie::from_line(&line)?));
            }
        }
        for item in items.iter_mut().rev().take(CROWD as usize) {
            item.value = sysv::get_value(item.cookie.semid)?;
            // A value of 2 says that udev, if it runs, may yet complete it.
            if dead && item.value < 2 {
                leaked.insert(item.cookie.semid);
            }
        }
        if dead {
            running.kill_group();
        }
        scene.cast.push(running);
    }
    for _ in 0..FOREIGN {
        let key = 0x0d4d_0001 + random.u32(..0xffff);
        let (nsems, mode) = [(3, 0o600), (1, 0o666), (2, 0o640)][random.usize(..3)];
        // The key may be taken.
        if let Ok(semid) = sysv::get_set(key, nsems, mode | libc::IPC_CREAT | libc::IPC_EXCL) {
            items.push(Item::new(Cookie { key, semid }));
        }
    }
    Ok((items, leaked))
}

impl Item {
    const fn new(cookie: Cookie) -> Self {
        Self {
            cookie,
            planned: false,
            value: 0,
            used: None,
            waits: 0,
            setvals: 0,
            carried: false,
            removed: false,
            asked: 0,
        }
    }
}

fn play_round(scene: &mut Scene, random: &mut fastrand::Rng) -> Result<Counts> {
    let (mut items, leaked) = make_items(scene, random)?;
    let file = scene.file_path("plan");
    grow_up();
    let _earlier_round = std::fs::remove_file(&file);
    let (object, code) = scene.run_clean(&["--plan", &file, "--max", "100000"])?;
    ensure!(code == 1, "exit {code}: {:.900}", object.to_string());
    let roots = Roots::host();
    let plan = PlanFile::read(file.as_ref(), clock::boot_id(&roots).as_deref())?.plan;
    let index: BTreeMap<i32, usize> = (items.iter().enumerate())
        .map(|(at, item)| (item.cookie.semid, at))
        .collect();
    for entry in plan.pending() {
        let at = index.get(&entry.sem.semid).context("a stranger")?;
        items[*at].planned = true;
    }
    for item in &items {
        let entry = || {
            let mut entries = plan.entries.iter();
            entries.find(|entry| entry.sem.semid == item.cookie.semid)
        };
        ensure!(
            item.planned || !leaked.contains(&item.cookie.semid),
            "{:?}: kept: {:?}",
            item.cookie,
            entry()
        );
    }
    let carriers = start_carriers(&mut items, random)?;
    let model = Model {
        items,
        index,
        random: random.fork(),
        reborn: Vec::new(),
        waiters: Vec::new(),
        sighted: random.bool(),
        calm: random.u32(2..8),
        counts: Counts::new(),
        wrong: None,
    };
    let interrupted = random.u8(..4) == 0;
    let interrupted_at = interrupted.then(|| random.u64(1..CROWDS.0 * CROWD));
    let boundary = Arc::new(Boundary {
        model: Mutex::new(model),
        stop: AtomicBool::new(false),
        interrupted_at,
    });
    let done = play_plan(scene, &boundary, &plan);
    for mut carrier in carriers {
        let _ended = carrier.kill();
        let _reaped = carrier.wait();
    }
    let model = Arc::into_inner(boundary).context("somebody still asks")?;
    let model = model.model.into_inner().map_err(|_| anyhow!("panicked"))?;
    for cookie in model.items.iter().map(|item| item.cookie) {
        if cookie.exists() {
            sysv::remove_set(cookie.semid)?;
        }
    }
    for (cookie, value) in model.reborn {
        ensure!(
            sysv::get_value(cookie.semid).is_ok_and(|is| is == value),
            "{cookie:?}: made anew, and gone"
        );
        sysv::remove_set(cookie.semid)?;
    }
    for waiter in model.waiters {
        waiter.join().map_err(|_| anyhow!("a waiter panicked"))?;
    }
    scene.cast.clear();
    done.map(|()| model.counts)
}

/// Some leaked ones are handed on before anything is removed.
fn start_carriers(items: &mut [Item], random: &mut fastrand::Rng) -> Result<Vec<Child>> {
    let mut carriers = Vec::new();
    for _ in 0..4 {
        let at = random.usize(..items.len());
        items[at].carried = true;
        let key = items[at].cookie.key.to_string();
        let mut command = Command::new("sleep");
        carriers.push(command.arg("1000").env("DM_UDEV_COOKIE", key).spawn()?);
    }
    Ok(carriers)
}

/// Carries the plan out, and compares what is left with the model.
fn play_plan(
    scene: &Scene,
    boundary: &Arc<Boundary>,
    plan: &dmtrace_core::cleanup::plan::Plan,
) -> Result<()> {
    let lock = || boundary.model.lock().map_err(|_| anyhow!("panicked"));
    {
        let mut model = lock()?;
        for _ in 0..model.items.len() / 4 {
            model.meddle_before(None)?;
        }
    }
    // In memory: thousands of records are synced.
    let memory = Some(Path::new("/dev/shm")).filter(|it| it.is_dir());
    let dir = tempfile::tempdir_in(memory.unwrap_or(scene.dir.path()))?;
    let path = dir.path().join("audit");
    let mut audit = Audit::open(&path)?;
    let witness: Arc<dyn Witness> = Arc::<Boundary>::clone(boundary);
    let report = apply_plan(plan, &mut audit, witness, &boundary.stop, &mut |_| {
        // Between two cookies.
        if let Ok(mut model) = boundary.model.lock()
            && let Err(error) = model.meddle_before(None)
        {
            model.wrong.get_or_insert(error);
        }
    });
    let mut model = lock()?;
    if let Some(error) = model.wrong.take() {
        return Err(error);
    }
    if let Some(error) = report.stopped {
        return Err(error.into());
    }
    let mut outcomes = BTreeMap::new();
    for applied in &report.applied {
        outcomes.insert(applied.entry.sem.semid, &applied.outcome);
    }
    ensure!(
        outcomes.len() == plan.pending().count(),
        "an outcome is missing"
    );
    for (at, item) in model.items.iter().enumerate() {
        let outcome = outcomes.get(&item.cookie.semid).copied();
        let shown = || format!("{:?}: used {:?}: {outcome:?}", item.cookie, item.used);
        model.judge_outcome(at, outcome).with_context(shown)?;
    }
    for outcome in outcomes.values() {
        if !matches!(outcome, CleanupOutcome::NotTried) {
            model.count_event("interleavings");
        }
        if matches!(outcome, CleanupOutcome::Removed) {
            model.count_event("removed");
        }
    }
    // The record says the same.
    let lines = audit_lines(&std::fs::read_to_string(&path)?)?;
    let mut told = BTreeMap::new();
    for line in lines.iter().filter(|it| it["type"] == "clean_outcome") {
        told.insert(line["semid"].as_i64(), line["outcome"].as_str());
    }
    for (&semid, outcome) in &outcomes {
        let said = told.get(&Some(semid.into())).copied().flatten();
        let tried = !matches!(outcome, CleanupOutcome::NotTried);
        let right = said == tried.then_some(outcome.label());
        ensure!(right, "{semid}: {outcome:?}, recorded {said:?}");
    }
    Ok(())
}
