//! `cargo xtask demo`, the README's first command: it prints what the README prints, and leaves
//! nothing behind however it ends.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dmtrace_tests::harness::{actor_bin, dmtrace_bin, in_private_ns, new_trial, xtask_bin};
use libtest_mimic::Trial;

use crate::NEEDS;

/// For what happens soon.
const DEMO_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "demo::prints_what_the_readme_prints",
            NEEDS,
            prints_what_the_readme_prints,
        ),
        new_trial("demo::leaves_nothing_however_it_ends", NEEDS, || {
            [libc::SIGINT, libc::SIGTERM, libc::SIGKILL]
                .into_iter()
                .try_for_each(ended_by)
        }),
        new_trial("demo::broken_leaves_nothing_however_it_ends", NEEDS, || {
            [libc::SIGINT, libc::SIGTERM, libc::SIGKILL]
                .into_iter()
                .try_for_each(broken_ended_by)
        }),
        new_trial(
            "demo::broken_ends_as_it_says",
            NEEDS,
            broken_ends_as_it_says,
        ),
        new_trial("demo::shows_the_rest_where_it_cannot_trace", NEEDS, || {
            in_private_ns(untraceable)?
        }),
    ]
}

fn run_demo(programs: [&Path; 3]) -> Command {
    let [xtask, dmtrace, actor] = programs;
    let mut command = Command::new(xtask);
    command.arg("demo").arg("--program").arg(dmtrace);
    command.arg("--actor").arg(actor);
    command.stdin(Stdio::null());
    command
}

fn build_demo() -> Result<[PathBuf; 3]> {
    Ok([xtask_bin()?, dmtrace_bin()?, actor_bin()?])
}

fn prints_what_the_readme_prints() -> Result<()> {
    let built = build_demo()?;
    let output = run_demo(built.each_ref().map(|path| &**path))
        .arg("--check-docs")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What comes next are two lines.
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    ensure!(
        last.iter().all(|line| line.contains("cargo xtask run -- ")),
        "{last:?}"
    );
    Ok(())
}

/// Ends it when its first leak is known; it has other actors to send out yet.
fn ended_by(signal: i32) -> Result<()> {
    demo_ended_by(signal, &[], "stuck ", "removed")
}

/// Ends it when its semaphores are used up.
fn broken_ended_by(signal: i32) -> Result<()> {
    let before = host_files()?;
    demo_ended_by(
        signal,
        &["--broken"],
        "Limit for the maximum number of semaphores reached",
        "ends with it",
    )?;
    ensure!(
        host_files()? == before,
        "{before:?}, now {:?}",
        host_files()?
    );
    Ok(())
}

/// What dmtrace writes on the host: limits, what its commands keep for each other, the audit record.
fn host_files() -> Result<[Option<Vec<u8>>; 3]> {
    let limits = fs::read("/proc/sys/kernel/sem")?;
    let kept = ["/run/dmtrace/search.json", "/var/log/dmtrace-clean.jsonl"];
    let [searches, audit] = kept.map(|path| fs::read(path).ok());
    Ok([Some(limits), searches, audit])
}

/// Plays it to its end. Whether the leaks are removed is the machine's: where something about it
/// leaves a doubt, they are kept, and the demo says so.
fn broken_ends_as_it_says() -> Result<()> {
    let built = build_demo()?;
    let (sets, files) = (list_sets()?, host_files()?);
    let output = run_demo(built.each_ref().map(|path| &**path))
        .arg("--broken")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let commands = [
        "$ dmtrace report --ipc-ns ",
        "$ dmtrace clean --ipc-ns ",
        "$ dmtrace clean --apply --ipc-ns ",
        "128 of 128 sets in use",
        "their users have finished in good order",
    ];
    for part in commands {
        ensure!(text.contains(part), "no {part} in {text}\n{error}");
    }
    let removed = text.contains("removed: 126 of 126 leaked cookies");
    let ending = match output.status.code() {
        Some(0) => "Semaphores can be made again.",
        Some(4) => "because something about this machine leaves a doubt",
        _ => bail!("{}: {text}\n{error}", output.status),
    };
    ensure!(text.contains(ending), "{text}");
    ensure!(removed == output.status.success(), "{text}");
    ensure!(list_sets()? == sets, "sets of the host have changed");
    ensure!(host_files()? == files, "files of the host have changed");
    Ok(())
}

/// Ends the demo by a signal when it has shown a word; what it says then has another.
fn demo_ended_by(signal: i32, options: &[&str], shown: &str, said: &str) -> Result<()> {
    let built = build_demo()?;
    let before = list_sets()?;
    let mut child = run_demo(built.each_ref().map(|path| &**path))
        .args(options)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no pipe")?);
    let mut line = String::new();
    while !line.contains(shown) {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "{shown}: was not shown");
    }
    let namespace = fs::read_link(format!("/proc/{}/ns/ipc", child.id()))?;
    ensure!(
        processes_inside(&namespace).len() > 2,
        "two others are to be in it"
    );
    // SAFETY: two numbers; the child is not reaped yet, so the number is its.
    ensure!(unsafe { libc::kill(i32::try_from(child.id())?, signal) } == 0);
    let status = child.wait()?;
    if signal == libc::SIGKILL {
        ensure!(status.signal() == Some(signal), "{status}");
    } else {
        ensure!(status.code() == Some(130), "{status}");
        let mut rest = String::new();
        lines.read_to_string(&mut rest)?;
        ensure!(rest.contains(said), "{rest}");
    }
    let deadline = Instant::now() + DEMO_TIMEOUT;
    while !processes_inside(&namespace).is_empty() {
        if Instant::now() > deadline {
            bail!(
                "{:?} live on in {}",
                processes_inside(&namespace),
                namespace.display()
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(list_sets()? == before, "sets of the host have changed");
    Ok(())
}

/// Processes in an IPC namespace.
fn processes_inside(namespace: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/ns/ipc")).is_ok_and(|link| link == namespace)
        })
        .collect()
}

fn list_sets() -> Result<String> {
    let path = "/proc/sysvipc/sem";
    fs::read_to_string(path).context(path)
}

/// As a user who may do nothing: neither trace nor make a namespace.
fn untraceable() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
    let mut copies = Vec::new();
    for program in build_demo()? {
        let copy = dir.path().join(program.file_name().context("no name")?);
        fs::copy(&program, &copy)?;
        copies.push(copy);
    }
    let temporary = dir.path().join("temporary");
    fs::create_dir(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o777))?;
    let copies: [PathBuf; 3] = copies.try_into().map_err(|_| anyhow::anyhow!("programs"))?;
    let inner = run_demo(copies.each_ref().map(|path| &**path));
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(3), "{text}{:?}", output.stderr);
    for part in [
        "cannot be traced",
        "5 foreign sets",
        "IPC namespace",
        "cargo xtask run -- doctor",
    ] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    let left = list_sets()?;
    ensure!(left.lines().count() == 1, "left: {left}");
    let left = fs::read_dir(&temporary)?.count();
    ensure!(left == 0, "{left} files are left");
    Ok(())
}
