//! Plays the users of udev cookies, the good and the bad ones. See `cookie-actor help`.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use dmtrace_tests::{
    actor::{
        Actor, ActorStep, MadeCookie, StepFate, hide_numbers, new_ipc_ns, print_failure,
        print_step, sleep_forever,
    },
    hiding::{HidingPlace, hide_cookie},
    sysv::{self, Abi},
};

const HELP: &str = "\
cookie-actor VERB [--new-ipc-ns] [--abi semop|semtimedop] [--key K] [--hold] [--no-numbers] ...
prints one JSON line for each step: step, pid, key, semid, errno; with --no-numbers only failures,
and of these neither key nor semid
  cycle [--events N] [--delay-ms N] [--count N] [--stop-at STEP --how kill|exit|hold|pause]
        --pause-ms N: how long it pauses, before it goes on;
        create, count N uevents, wait, remove; children complete as udev would.
        STEP: after-semget after-setval after-inc after-complete in-wait after-wait
  crowd [--count N] [--seed N]   many cookies, each left at a random step of its making
  moby [--count N | --until-enospc] [--every-ms N]   create, +1, -1 by itself, never wait
        --may-sleep: that -1 without IPC_NOWAIT
        --after-wait: udev completes, it waits, and only forgets to remove
  device --name NAME [--stop-at STEP --how ...]   make and remove a real device, udev completes;
        fails if its node is not as it should be. One STEP more: after-ioctl
  moby ... --device NAME      the same with a real DM_DEV_REMOVE, which fails if NAME is open
  eintr [--then-cycle]       give up the wait on a signal; then a cycle in good order
  over-complete              complete twice, then wait
  create                     as `dmsetup udevcreatecookie`: value 1, exit
  inc | complete | release   on --key, as later dmsetup processes do
  foreign [--nsems N] [--mode OCTAL]   a set with a cookie's key that is no cookie
  victim                     try to create a cookie once and tell the errno
  churn --tag X [--procs M] [--jobs J] [--sets N] [--keyed] [--leave]
        M short processes `cookie-actor churn-child --tag X-i`, each creates and removes N sets;
        with --leave the last set of each is a cookie that stays
  exec-chain [--seconds N]   make a cookie, then become `sleep N`
  thread                     a thread that is not the first makes a cookie, +1; the process stays
  leaderless [--pause-ms N]  a thread that is not the first makes a cookie, the first one ends, the
        other finishes its work after that time: the process looks like a zombie
  odd-thread                 a thread alone in a new namespace makes a cookie, the process stays
  hold-file --path P         keep a file open, such as /proc/PID/ns/ipc
  hide --in PLACE [--procs N]   make a cookie whose number is nowhere but there, and stay
        PLACE: beside-fuse fuse-page behind-lock userfault secret lazy dead-leader no-access, or
        crowd: one of N processes has it
--hold keeps the process alive at the end";

fn main() -> ExitCode {
    match run_verb() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cookie-actor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Options that were not asked for yet.
struct Args(Vec<String>);

impl Args {
    fn take_flag(&mut self, name: &str) -> bool {
        let found = self.0.iter().position(|arg| arg == name);
        found.map(|at| self.0.remove(at)).is_some()
    }

    fn take_text(&mut self, name: &str) -> anyhow::Result<Option<String>> {
        let Some(at) = self.0.iter().position(|arg| arg == name) else {
            return Ok(None);
        };
        if at + 1 >= self.0.len() {
            bail!("{name}: needs a value; see `cookie-actor help`");
        }
        Ok(self.0.drain(at..at + 2).nth(1))
    }

    fn take_number<T: FromStr>(&mut self, name: &str, default: T) -> anyhow::Result<T> {
        match self.take_text(name)? {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| anyhow!("{name} {text}: not a number; see `cookie-actor help`")),
        }
    }

    fn take_millis(&mut self, name: &str) -> anyhow::Result<Duration> {
        Ok(Duration::from_millis(self.take_number(name, 0)?))
    }

    fn check_empty(&self) -> anyhow::Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(arg) => bail!("{arg}: unknown; see `cookie-actor help`"),
        }
    }
}

fn run_verb() -> anyhow::Result<()> {
    let mut args = Args(std::env::args().skip(1).collect());
    if args.0.is_empty() || args.take_flag("help") || args.take_flag("--help") {
        println!("{HELP}");
        return Ok(());
    }
    let verb = args.0.remove(0);
    let stay = args.take_flag("--hold");
    if args.take_flag("--no-numbers") {
        hide_numbers();
    }
    if args.take_flag("--new-ipc-ns") {
        say_new_ns("namespace")?;
    }
    let actor = Actor {
        abi: match args.take_text("--abi")?.as_deref() {
            Some("semop") => Abi::SemOp,
            None | Some("semtimedop") => Abi::SemTimedOp,
            Some(other) => bail!("--abi {other}: unknown; use semop or semtimedop"),
        },
        key: args
            .take_text("--key")?
            .map(|text| parse_key(&text))
            .transpose()?,
        stop: parse_stop(&mut args)?,
        may_sleep: args.take_flag("--may-sleep"),
    };
    let kept = play_verb(&verb, actor, &mut args)?;
    if stay {
        sleep_forever();
    }
    drop(kept);
    Ok(())
}

/// Enters a new IPC namespace and tells its number.
fn say_new_ns(step: &str) -> anyhow::Result<()> {
    new_ipc_ns().context("new IPC namespace; run as root")?;
    let link = fs::read_link("/proc/thread-self/ns/ipc")?;
    let link = link.to_string_lossy();
    let digits: String = link.chars().filter(char::is_ascii_digit).collect();
    print_step(step, None, &[("ns", digits.parse()?)]);
    Ok(())
}

/// Plays a verb; returns a file that is to stay open.
fn play_verb(verb: &str, actor: Actor, args: &mut Args) -> anyhow::Result<Option<File>> {
    match verb {
        "cycle" => {
            let (events, count) = (
                args.take_number("--events", 1)?,
                args.take_number("--count", 1)?,
            );
            let delay = args.take_millis("--delay-ms")?;
            args.check_empty()?;
            for _ in 0..count {
                actor.play_cycle(events, delay).context("cycle")?;
            }
        }
        "crowd" => {
            let (count, seed) = (
                args.take_number("--count", 1)?,
                args.take_number("--seed", 0)?,
            );
            args.check_empty()?;
            actor.leave_crowd(count, seed).context("crowd")?;
            print_step("made", None, &[]);
        }
        "moby" => play_moby(actor, args)?,
        "eintr" => {
            let then_cycle = args.take_flag("--then-cycle");
            args.check_empty()?;
            actor.abandon_on_eintr().context("eintr")?;
            if then_cycle {
                actor.play_cycle(1, Duration::ZERO).context("cycle")?;
            }
        }
        "device" => {
            let name = args.take_text("--name")?.context("--name: missing")?;
            args.check_empty()?;
            if let Some(wrong) = actor.play_device(&name).with_context(|| name.clone())? {
                bail!("{name}: {wrong}");
            }
        }
        "over-complete" => {
            args.check_empty()?;
            let cookie = actor.create_cookie().context("create")?;
            actor.increment(cookie)?;
            for _ in 0..2 {
                actor.complete_cookie(cookie.key)?;
            }
            // Wants 1 more than is there; the error is the point.
            let _ = actor.wait_cookie(cookie.key);
        }
        "create" => {
            args.check_empty()?;
            actor.create_cookie().context("create")?;
        }
        "inc" | "complete" | "release" => {
            args.check_empty()?;
            on_key(verb, actor)?;
        }
        "foreign" => play_foreign(actor, args)?,
        "victim" => {
            args.check_empty()?;
            play_victim(actor)?;
        }
        "thread" => {
            args.check_empty()?;
            let thread = std::thread::spawn(move || -> io::Result<()> {
                let cookie = actor.create_cookie()?;
                actor.increment(cookie)?;
                print_step("armed", Some(cookie), &[]);
                sleep_forever();
            });
            thread
                .join()
                .map_err(|_| anyhow!("the thread panicked"))?
                .context("thread")?;
        }
        "leaderless" => {
            let pause = args.take_millis("--pause-ms")?;
            args.check_empty()?;
            actor.play_leaderless(pause).context("leaderless")?;
        }
        "odd-thread" => {
            args.check_empty()?;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    if say_new_ns("thread-namespace").is_ok() && actor.create_cookie().is_ok() {
                        sleep_forever();
                    }
                });
            });
        }
        "churn" => play_churn(args)?,
        "churn-child" => churn_child(actor, args)?,
        "exec-chain" => exec_chain(actor, args)?,
        "hide" => {
            let place = args.take_text("--in")?.context("--in: missing")?;
            let processes = args.take_number("--procs", 100)?;
            args.check_empty()?;
            let place = HidingPlace::from_name(&place, processes)
                .with_context(|| format!("--in {place}: unknown; see `cookie-actor help`"))?;
            hide_cookie(actor, place).context("hide")?;
        }
        "hold-file" => {
            let path = args.take_text("--path")?.context("--path: missing")?;
            args.check_empty()?;
            return Ok(Some(File::open(&path).with_context(|| path.clone())?));
        }
        _ => bail!("{verb}: unknown verb; see `cookie-actor help`"),
    }
    Ok(None)
}

fn parse_stop(args: &mut Args) -> anyhow::Result<Option<(ActorStep, StepFate)>> {
    let fate = match args.take_text("--how")?.as_deref() {
        None | Some("kill") => StepFate::Kill,
        Some("exit") => StepFate::Exit,
        Some("hold") => StepFate::Hold,
        Some("pause") => StepFate::Pause(args.take_millis("--pause-ms")?),
        Some(other) => bail!("--how {other}: unknown; use kill, exit, hold or pause"),
    };
    let Some(name) = args.take_text("--stop-at")? else {
        return Ok(None);
    };
    let step = ActorStep::from_name(&name)
        .with_context(|| format!("--stop-at {name}: unknown step; see `cookie-actor help`"))?;
    Ok(Some((step, fate)))
}

fn play_moby(actor: Actor, args: &mut Args) -> anyhow::Result<()> {
    let until_enospc = args.take_flag("--until-enospc");
    let count = args.take_number("--count", if until_enospc { u64::MAX } else { 1 })?;
    let every = args.take_millis("--every-ms")?;
    let device = args.take_text("--device")?;
    let after_wait = args.take_flag("--after-wait");
    args.check_empty()?;
    let mut made = 0;
    while made < count {
        let leaked = match &device {
            Some(name) => actor.remove_device_like_moby(name),
            None if after_wait => actor.leave_after_wait().map(drop),
            None => actor.leak_like_moby().map(drop),
        };
        match leaked {
            Ok(()) => made += 1,
            Err(error) if until_enospc && error.raw_os_error() == Some(libc::ENOSPC) => {
                print_step(
                    "exhausted",
                    None,
                    &[("made", made.cast_signed()), ("errno", libc::ENOSPC.into())],
                );
                return Ok(());
            }
            Err(error) => return Err(error).context("moby"),
        }
        if !every.is_zero() {
            std::thread::sleep(every);
        }
    }
    print_step("done", None, &[("made", made.cast_signed())]);
    Ok(())
}

fn on_key(verb: &str, actor: Actor) -> anyhow::Result<()> {
    let key = actor.key.context("--key: missing")?;
    let mut cookie = MadeCookie { key, semid: -1 };
    let result: io::Result<()> = match verb {
        "inc" => sysv::get_set(key, 1, 0).and_then(|semid| {
            cookie.semid = semid;
            actor.increment(cookie)
        }),
        "complete" => actor.complete_cookie(key).map(|semid| cookie.semid = semid),
        _ => actor.wait_cookie(key),
    };
    match result {
        Ok(()) => print_step(verb, Some(cookie), &[]),
        Err(error) => {
            print_failure(verb, cookie, &error);
            return Err(error).with_context(|| format!("{verb} {key:#010x}"));
        }
    }
    Ok(())
}

fn play_foreign(actor: Actor, args: &mut Args) -> anyhow::Result<()> {
    let nsems = args.take_number("--nsems", 1)?;
    let mode = args
        .take_text("--mode")?
        .unwrap_or_else(|| "0600".to_owned());
    let mode = i32::from_str_radix(&mode, 8)
        .with_context(|| format!("--mode {mode}: not an octal number"))?;
    args.check_empty()?;
    let key = actor
        .key
        .unwrap_or(0x0d4d_0000 | std::process::id() & 0xffff);
    let semid =
        sysv::get_set(key, nsems, mode | libc::IPC_CREAT | libc::IPC_EXCL).context("semget")?;
    print_step("created", Some(MadeCookie { key, semid }), &[]);
    Ok(())
}

/// A program that just needs one cookie.
fn play_victim(actor: Actor) -> anyhow::Result<()> {
    match actor.create_cookie() {
        Ok(cookie) => {
            sysv::remove_set(cookie.semid)?;
            print_step("victim", Some(cookie), &[("errno", 0)]);
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            print_step("victim", None, &[("errno", errno.into())]);
            if errno == libc::ENOSPC {
                // As libdm says it.
                eprintln!("Limit for the maximum number of semaphores reached");
                eprintln!("dm_task_set_cookie failed");
            }
        }
    }
    Ok(())
}

fn play_churn(args: &mut Args) -> anyhow::Result<()> {
    let tag = args.take_text("--tag")?.context("--tag: missing")?;
    let procs: u32 = args.take_number("--procs", 1)?;
    let jobs: usize = args.take_number("--jobs", 2)?;
    let sets = args.take_text("--sets")?.unwrap_or_else(|| "1".to_owned());
    let mut options = vec!["--sets".to_owned(), sets];
    for flag in ["--keyed", "--leave"] {
        if args.take_flag(flag) {
            options.push(flag.to_owned());
        }
    }
    args.check_empty()?;
    let exe = std::env::current_exe()?;
    let mut running = std::collections::VecDeque::new();
    let mut bad = 0;
    for i in 0..procs {
        if running.len() >= jobs.max(1) {
            bad += i64::from(!has_finished(running.pop_front())?);
        }
        let child = Command::new(&exe)
            .arg0("cookie-actor")
            .args(["churn-child", "--tag", &format!("{tag}-{i}")])
            .args(&options)
            .spawn()
            .context("churn-child")?;
        running.push_back(child);
    }
    while !running.is_empty() {
        bad += i64::from(!has_finished(running.pop_front())?);
    }
    print_step("done", None, &[("procs", procs.into()), ("failed", bad)]);
    Ok(())
}

fn has_finished(child: Option<std::process::Child>) -> io::Result<bool> {
    child.map_or(Ok(true), |mut child| Ok(child.wait()?.success()))
}

/// Makes a cookie and replaces itself by a program that knows nothing of it.
fn exec_chain(actor: Actor, args: &mut Args) -> anyhow::Result<()> {
    let seconds: u32 = args.take_number("--seconds", 1)?;
    args.check_empty()?;
    let cookie = actor.create_cookie()?;
    actor.increment(cookie)?;
    Err(Command::new("sleep").arg(seconds.to_string()).exec()).context("sleep")
}

fn churn_child(actor: Actor, args: &mut Args) -> anyhow::Result<()> {
    args.take_text("--tag")?;
    let sets: u32 = args.take_number("--sets", 1)?;
    let (keyed, leave) = (args.take_flag("--keyed"), args.take_flag("--leave"));
    args.check_empty()?;
    let flags = 0o600 | libc::IPC_CREAT | libc::IPC_EXCL;
    for i in 0..sets {
        // Keys by process, so that the children do not meet; far from those of cookies.
        let key = if keyed {
            0x4000_0000 | (std::process::id() & 0xffff) << 12 | i & 0xfff
        } else {
            libc::IPC_PRIVATE.cast_unsigned()
        };
        let semid = sysv::get_set(key, 1, flags).context("semget")?;
        sysv::remove_set(semid).context("IPC_RMID")?;
    }
    let left = if leave {
        let cookie = actor.create_cookie().context("create")?;
        actor.increment(cookie)?;
        Some(cookie)
    } else {
        None
    };
    print_step("churned", left, &[("sets", sets.into())]);
    Ok(())
}

fn parse_key(text: &str) -> anyhow::Result<u32> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| anyhow!("--key {text}: not a number; use decimal or 0x…"))
}
