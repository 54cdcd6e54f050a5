//! Something to look at: healthy cookies and leaked ones on real semaphores, without
//! device-mapper. The program `cookie-actor` of the tests plays their owners and udev.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Profile},
    host, setup,
};

/// What goes wrong: what to tell about it, and how the actor plays it.
const LEAKS: [(&str, &[&str]); 4] = [
    (
        "killed before it waited, udev never came",
        &["cycle", "--stop-at", "after-inc", "--how", "kill"],
    ),
    (
        "killed before it waited, after udev was done",
        &["cycle", "--stop-at", "after-complete", "--how", "kill"],
    ),
    (
        "alive, gave up after an error and never waits (as old docker)",
        &["moby", "--count", "2", "--every-ms", "200", "--hold"],
    ),
    (
        "waits for a completion that udev lost",
        &["cycle", "--stop-at", "in-wait", "--how", "hold"],
    ),
];

const HEALTHY: [&str; 3] = ["cycle", "--delay-ms", "300"];
const EVERY: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(50);

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// `cargo xtask demo`
#[derive(clap::Args)]
pub struct Args {
    /// In an IPC namespace of its own
    #[arg(long)]
    private: bool,
    /// Leave the leaks behind, for `dmtrace clean`
    #[arg(long, conflicts_with = "private")]
    keep: bool,
    /// Stop by itself after this time
    #[arg(long)]
    seconds: Option<u64>,
    /// The built cookie-actor: set by this task for its second half, which runs as root
    #[arg(long, hide = true)]
    actor: Option<PathBuf>,
}

/// Builds the actor; then becomes root, in a namespace if asked, and plays.
///
/// # Errors
/// The build fails, or the actor does.
pub fn main(args: &Args) -> Result<()> {
    if let Some(actor) = &args.actor {
        return play(actor, args);
    }
    setup::ensure()?;
    let actor = build::binary("dmtrace-tests", "cookie-actor", Profile::Release)?;
    if host::is_root() && !args.private {
        return play(&actor, args);
    }
    let mut line: Vec<&str> = Vec::new();
    if !host::is_root() {
        line.push("sudo");
    }
    if args.private {
        line.extend(["unshare", "--ipc"]);
    }
    if let Some(missing) = line.first().filter(|program| !host::has(program)) {
        bail!("{missing}: not in PATH; run as root, without --private");
    }
    let exe = std::env::current_exe().context("the path of xtask: unreadable")?;
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .arg("--")
        .arg(exe)
        .arg("demo")
        .arg("--actor")
        .arg(actor);
    if args.keep {
        command.arg("--keep");
    }
    if let Some(seconds) = args.seconds {
        command.arg("--seconds").arg(seconds.to_string());
    }
    Err(command.exec()).with_context(|| format!("{}: cannot be started", line[0]))
}

fn play(actor: &Path, args: &Args) -> Result<()> {
    stop_on_signals();
    let until = args
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut stage = Stage {
        actor,
        running: Vec::new(),
        made: Made::default(),
    };
    println!("Cookies to look at; meanwhile, in another terminal:");
    println!("    cargo xtask run -- watch");
    println!("    cargo xtask run -- list");
    let result = stage.perform(until);
    stage.clear(args.keep);
    result
}

/// The actors that were sent out, and what they made.
struct Stage<'a> {
    actor: &'a Path,
    running: Vec<(Child, JoinHandle<()>)>,
    made: Made,
}

/// Keys and semids of the sets that are there.
type Made = Arc<Mutex<Vec<(u32, i32)>>>;

impl Stage<'_> {
    fn perform(&mut self, until: Option<Instant>) -> Result<()> {
        for (about, line) in LEAKS {
            self.send(line)?;
            println!("leak: an owner {about}");
            if sleep(EVERY / 2, until) {
                return Ok(());
            }
        }
        println!(
            "healthy: one every {} s, done 0.3 s later; Ctrl-C ends",
            EVERY.as_secs()
        );
        loop {
            self.send(&HEALTHY)?;
            if sleep(EVERY, until) {
                return Ok(());
            }
            self.running
                .retain_mut(|(child, _)| !matches!(child.try_wait(), Ok(Some(_))));
        }
    }

    fn send(&mut self, line: &[&str]) -> Result<()> {
        let mut command = Command::new(self.actor);
        command
            .args(line)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cookie-actor: cannot be started")?;
        let stdout = child.stdout.take().context("cookie-actor: no pipe")?;
        let made = Arc::clone(&self.made);
        let listener = thread::spawn(move || listen(stdout, &made));
        self.running.push((child, listener));
        Ok(())
    }

    /// Ends the actors and removes what they made, unless it was removed or replaced meanwhile.
    fn clear(&mut self, keep: bool) {
        if !keep {
            for (mut child, listener) in self.running.drain(..) {
                // Gone already is as good.
                let _ = child.kill();
                let _ = child.wait();
                let _ = listener.join();
            }
        }
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let there = sets();
        let left: Vec<_> = made.iter().filter(|set| there.contains(set)).collect();
        if keep {
            println!(
                "kept {} sets; remove them: cargo xtask run -- clean",
                left.len()
            );
            return;
        }
        for (key, semid) in left {
            let removed = host::output("ipcrm", &["-s", &semid.to_string()]).is_some();
            let how = if removed {
                "removed"
            } else {
                "not removed; run: ipcrm -s"
            };
            println!("{key:#010x}: {how} {semid}");
        }
    }
}

/// Keeps account of what an actor says in lines of JSON.
fn listen(stdout: ChildStdout, made: &Made) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let (Some(key), Some(semid)) = (number(&line, "key"), number(&line, "semid")) else {
            continue;
        };
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if line.contains("\"step\":\"created\"") {
            made.push((key, semid));
        } else if line.contains("\"step\":\"destroyed\"") {
            made.retain(|set| set.0 != key);
        }
    }
}

fn number<T: std::str::FromStr>(line: &str, name: &str) -> Option<T> {
    let (_, rest) = line.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next()?.parse().ok()
}

/// Keys and semids of the sets of this namespace.
fn sets() -> Vec<(u32, i32)> {
    let table = fs::read_to_string("/proc/sysvipc/sem").unwrap_or_default();
    let set = |line: &str| {
        let mut fields = line.split_whitespace();
        let key: i32 = fields.next()?.parse().ok()?;
        Some((key.cast_unsigned(), fields.next()?.parse().ok()?))
    };
    table.lines().filter_map(set).collect()
}

/// Whether the end came.
fn sleep(time: Duration, until: Option<Instant>) -> bool {
    let woken = Instant::now() + time;
    loop {
        let now = Instant::now();
        if STOP.load(Ordering::Relaxed) || until.is_some_and(|until| now >= until) {
            return true;
        }
        if now >= woken {
            return false;
        }
        thread::sleep(TICK);
    }
}

/// Ctrl-C, an end by another process and a closed terminal lead through the clean-up.
fn stop_on_signals() {
    extern "C" fn stop(_: i32) {
        STOP.store(true, Ordering::Relaxed);
    }
    let handler: extern "C" fn(i32) = stop;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores into an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_actors_say() {
        let line = "{\"step\":\"created\",\"pid\":7,\"key\":223155479,\"semid\":12}";
        assert_eq!(number(line, "key"), Some(223_155_479_u32));
        assert_eq!(number(line, "semid"), Some(12));
        assert_eq!(number::<i32>(line, "sem"), None);
    }
}
