//! `cargo xtask demo --broken`: a host on which it has happened already. Its semaphores are used up
//! and nobody traced; three commands end that.
//!
//! Of what leaks here each owner had begun to wait: dmtrace judges such a cookie a minute after its
//! last use, and others after ten.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    DemoPrograms,
    relay::{Relay, Showing},
    screen::Screen,
    shadow::shadow_folder,
    show::own_namespace,
    stage::{DemoStage, die_with_parent, stop_requested},
};

/// `kernel.sem` of the namespace: what kernels had for decades.
const LIMITS: &str = "32000 1024000000 500 128";
const LIMITS_PATH: &str = "/proc/sys/kernel/sem";
/// Sets that there is room for.
const ROOM: usize = 128;
/// What dmtrace keeps for later commands and writes down, which is not to be the host's.
const SHADOWED: [(&str, &str); 2] = [("/run", "dmtrace"), ("/var/log", "dmtrace-clean.jsonl")];
/// Until the last use is a minute ago: the kernel's stamps have whole seconds.
const AGE: Duration = Duration::from_secs(62);
const TICK: Duration = Duration::from_millis(100);
/// For what is sure to come. Generous: the machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The section of the screen, and of the README.
pub(super) const SECTION: &str = "commands";

/// Killed in the wait, after which udev completes; and with the wait over.
const KILLED: [&str; 2] = [
    "exec 2>/dev/null; c=$(./cookie-actor cycle --stop-at in-wait --how kill); c=${c##*key\\\":}
     ./cookie-actor complete --key ${c%%,*} >/dev/null",
    "exec ./cookie-actor cycle --stop-at after-wait --how kill >/dev/null",
];
/// So many of each.
const TIMES: usize = 2;
/// Waits for udev, which comes at the end of the demo.
const WAITING: &str = "exec ./cookie-actor cycle --stop-at in-wait --how hold >/dev/null";
/// Between two commands, with the number in a variable, until it is told to go on.
const SCRIPT: &str = "c=$(./cookie-actor create); c=${c##*key\\\":}; c=${c%%,*}
                      read -r go; ./cookie-actor release --key $c >/dev/null";
const DAEMON: &str = "exec ./cookie-actor moby --after-wait --until-enospc --hold >/dev/null";

pub(super) enum BrokenOutcome {
    /// All leaks are gone, and nothing else.
    Mended,
    /// The leaks that dmtrace keeps here.
    Kept(usize),
    Interrupted,
}

/// Makes it, and plays the three commands.
///
/// # Errors
/// Somebody does not play as intended, or a live user came to harm.
pub(super) fn play_broken(
    programs: &DemoPrograms,
    stage: &DemoStage,
    screen: &mut Screen,
) -> Result<BrokenOutcome> {
    for (folder, hidden) in SHADOWED {
        shadow_folder(Path::new(folder), hidden).with_context(|| folder.to_owned())?;
    }
    fs::write(LIMITS_PATH, LIMITS).context(LIMITS_PATH)?;
    print_introduction(screen);
    let mut cast = Cast::new(stage.folder());
    if !break_it(&mut cast, screen)? || !pass_time(screen)? {
        return Ok(BrokenOutcome::Interrupted);
    }
    let at_once = !screen.is_for_docs() && std::io::stdout().is_terminal();
    let mut relay = Relay::new(if at_once {
        Showing::AtOnce
    } else {
        Showing::AtEnd
    });
    if !at_once {
        screen.print_note("\nThe three commands run; what they print comes at the end, because");
        screen.print_note("whoever reads this pipe would have the numbers of cookies meanwhile.");
    }
    let leaks = ROOM - cast.users.len();
    for (words, heading) in COMMANDS {
        if at_once {
            screen.print_note(&format!("\n=== {heading}"));
        }
        let options = ["--ipc-ns", &own_namespace()?].map(str::to_owned);
        let words = words.iter().map(|word| (*word).to_owned()).chain(options);
        let words: Vec<String> = words.collect();
        relay.print_line(&format!("$ dmtrace {}", words.join(" ")));
        let mut command = Command::new(&programs.dmtrace);
        command.args(&words).current_dir(stage.folder());
        command.env("NO_COLOR", "1").env("TZ", "UTC");
        relay.run(command, screen.columns())?;
        relay.print_line("");
        if stop_requested() {
            return Ok(BrokenOutcome::Interrupted);
        }
    }
    if !at_once {
        screen.begin_section(SECTION, "the three commands");
        relay
            .lines()
            .iter()
            .for_each(|line| screen.print_line(line));
    }
    let users = cast.users.len();
    cast.let_users_finish()?;
    let left = count_sets()?;
    screen.print_note("=== what became of it");
    screen.print_note(&format!(
        "removed: {} of {leaks} leaked cookies, and the {users} that were in use are not among them:",
        leaks.saturating_sub(left)
    ));
    screen.print_note("their users have finished in good order.");
    if left > 0 {
        return Ok(BrokenOutcome::Kept(left));
    }
    ensure!(
        cast.run("./cookie-actor cycle >/dev/null")?.success(),
        "cookie-actor cycle: no cookie can be made, though there is room again"
    );
    screen.print_note("Semaphores can be made again.");
    Ok(BrokenOutcome::Mended)
}

/// Those of the README, and what they are for.
const COMMANDS: [(&[&str], &str); 3] = [
    (&["report"], "report: what is it, and who has to do with it"),
    (
        &["clean"],
        "clean: what can be removed, what is kept and why",
    ),
    (&["clean", "--apply"], "clean --apply: remove exactly that"),
];

fn print_introduction(screen: &Screen) {
    let [killed, all] = [TIMES * KILLED.len(), ROOM].map(|it| it.to_string());
    for line in [
        format!("A host that is broken already: {all} semaphore sets, and no room for more. It is"),
        "an IPC namespace that ends with this demo, and nothing traces it:".to_owned(),
        "  a program that waits for udev, a script between two commands: both live".to_owned(),
        format!("  {killed} programs that are killed, in their wait or right after it"),
        "  a daemon that waits for each of its cookies and forgets to remove it".to_owned(),
    ] {
        screen.print_note(&line);
    }
}

/// Uses up all sets; whether nobody stopped that.
fn break_it(cast: &mut Cast<'_>, screen: &Screen) -> Result<bool> {
    for script in [WAITING, SCRIPT] {
        cast.start_user(script)?;
    }
    if !wait_for_sets(2)? {
        return Ok(false);
    }
    for script in KILLED {
        for _ in 0..TIMES {
            // What it is killed by is its end.
            cast.run(script)?;
        }
    }
    let mut daemon = cast.start(DAEMON, Stdio::null())?;
    let full = wait_for_sets(ROOM);
    screen.print_note("\n=== what everybody sees");
    screen.print_note("$ cookie-actor victim");
    let _fails = cast.run("exec ./cookie-actor victim 2>&1 >/dev/null")?;
    // As a restart of its unit would.
    let _gone = daemon.kill();
    daemon.wait().context("daemon")?;
    full
}

/// A minute, with what is left of it.
fn pass_time(screen: &Screen) -> Result<bool> {
    screen.print_note("\nThe daemon is stopped, as a restart of its unit would; its cookies stay.");
    screen.print_note("dmtrace judges a cookie whose owner had begun to wait one minute after its");
    screen.print_note("last use, and others after ten. Ctrl-C ends the demo and leaves nothing.");
    let due = Instant::now() + AGE;
    let mut out = std::io::stdout();
    let mut shown = None;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if out.is_terminal() && shown != Some(left.as_secs()) {
            shown = Some(left.as_secs());
            let text = match left.as_secs() {
                0 => String::new(),
                seconds => format!("{seconds} s to go"),
            };
            write!(out, "\r{text:<20}\r")
                .and_then(|()| out.flush())
                .context("terminal")?;
        }
        if stop_requested() || left.is_zero() {
            return Ok(!stop_requested());
        }
        thread::sleep(left.min(TICK));
    }
}

/// Who has to do with cookies. What is in here is killed when dropped.
struct Cast<'a> {
    folder: &'a Path,
    /// Who uses one and lives, with what tells it to go on.
    users: Vec<(Child, ChildStdin)>,
}

impl<'a> Cast<'a> {
    fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            users: Vec::new(),
        }
    }

    /// Its output is read by nobody: whoever did would have the numbers.
    fn start(&self, script: &str, stdin: Stdio) -> Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(self.folder);
        command.stdin(stdin);
        die_with_parent(&mut command, libc::SIGKILL);
        // Ctrl-C is for us.
        command.process_group(0);
        command.spawn().context("sh: cannot be started")
    }

    fn start_user(&mut self, script: &str) -> Result<()> {
        let mut child = self.start(script, Stdio::piped())?;
        let stdin = child.stdin.take().context("sh: no pipe")?;
        self.users.push((child, stdin));
        Ok(())
    }

    fn run(&self, script: &str) -> Result<ExitStatus> {
        self.start(script, Stdio::null())?.wait().context("sh")
    }

    /// udev completes what is waited for, and the script goes on.
    fn let_users_finish(&mut self) -> Result<()> {
        for set in list_sets()?.into_iter().filter(is_waited_on) {
            let complete = format!("./cookie-actor complete --key {} >/dev/null", set.key);
            ensure!(self.run(&complete)?.success(), "{complete}: failed");
        }
        for (mut user, mut stdin) in self.users.drain(..) {
            stdin.write_all(b"go\n").unwrap_or_default();
            drop(stdin);
            let deadline = Instant::now() + TIMEOUT;
            let status = loop {
                if let Some(status) = user.try_wait().context("live user")? {
                    break status;
                }
                if Instant::now() > deadline {
                    user.kill().context("live user")?;
                    bail!("a live user: has not finished");
                }
                thread::sleep(TICK);
            };
            ensure!(status.success(), "a live user: came to harm ({status})");
        }
        Ok(())
    }
}

impl Drop for Cast<'_> {
    fn drop(&mut self) {
        for (user, _) in &mut self.users {
            // Ended already is as good.
            let _ = user.kill();
            let _ = user.wait();
        }
    }
}

struct ListedSet {
    key: u32,
    semid: i32,
}

/// The sets of this namespace. Who asks has their numbers: not before the last search.
fn list_sets() -> Result<Vec<ListedSet>> {
    let path = "/proc/sysvipc/sem";
    let table = fs::read_to_string(path).context(path)?;
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let key: i32 = fields.next()?.parse().ok()?;
        let semid = fields.next()?.parse().ok()?;
        Some(ListedSet {
            key: key.cast_unsigned(),
            semid,
        })
    };
    Ok(table.lines().filter_map(row).collect())
}

fn is_waited_on(set: &ListedSet) -> bool {
    // SAFETY: three numbers.
    unsafe { libc::semctl(set.semid, 0, libc::GETZCNT) > 0 }
}

/// How many sets there are, without looking at one.
fn count_sets() -> Result<usize> {
    /// `semusz` of `struct seminfo`: for `SEM_INFO` the number of sets.
    const SETS: usize = 7;
    let mut numbers = [0_i32; 10];
    // SAFETY: the call fills a `struct seminfo`, which is ten ints.
    let done = unsafe { libc::semctl(0, 0, libc::SEM_INFO, numbers.as_mut_ptr()) };
    if done < 0 {
        return Err(std::io::Error::last_os_error()).context("SEM_INFO");
    }
    usize::try_from(numbers[SETS]).context("SEM_INFO")
}

/// Waits until there are so many sets; whether nobody stopped that.
fn wait_for_sets(count: usize) -> Result<bool> {
    let deadline = Instant::now() + TIMEOUT;
    while count_sets()? < count {
        if stop_requested() {
            return Ok(false);
        }
        ensure!(Instant::now() < deadline, "cookie-actor: made too few sets");
        thread::sleep(TICK);
    }
    Ok(true)
}
