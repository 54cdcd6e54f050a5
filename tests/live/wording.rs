//! What every verb prints for people: it fits the terminal and loses nothing, a number agrees with
//! its noun, and no reason is said twice.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use dmtrace_tests::harness::{
    RunningActor, Trial, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor,
};

use crate::{
    NEEDS,
    tracer::{WatchProcess, dmtrace_at, run_dmtrace},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("wording::numbers_agree", NEEDS, numbers_agree),
        new_trial(
            "wording::nothing_is_said_twice",
            NEEDS,
            nothing_is_said_twice,
        ),
        new_trial("wording::nobody_is_told_once", NEEDS, nobody_is_told_once),
        new_trial("wording::every_width", NEEDS, every_width),
        new_trial("wording::a_real_terminal", NEEDS, a_real_terminal),
    ]
}

/// Nouns that messages count.
const NOUNS: [&str; 18] = [
    "cookie",
    "finding",
    "set",
    "thread",
    "namespace",
    "message",
    "event",
    "operation",
    "completion",
    "decrement",
    "process",
    "step",
    "device",
    "record",
    "difference",
    "uevent",
    "creation",
    "leak",
];

/// Complains of `1 cookies` and `2 cookie`, with an adjective in between, too.
fn check_plurals(text: &str) -> Result<()> {
    for line in text.lines() {
        let words: Vec<&str> = line
            .split_whitespace()
            .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
            .collect();
        for (at, number) in words.iter().enumerate() {
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            // `uid 1 cookies`, `1 of 2 cookies`: another number, or none at all.
            let named =
                at > 0 && ["uid", "pid", "semid", "process", "thread"].contains(&words[at - 1]);
            for noun in words.iter().skip(at + 1).take(2).take_while(|_| !named) {
                let plural = NOUNS
                    .iter()
                    .any(|one| *noun == format!("{one}s") || *noun == format!("{one}es"));
                ensure!(number != 1 || !plural, "{line}");
                ensure!(
                    number == 1 || !NOUNS.contains(noun) || line.contains(" of "),
                    "{line}"
                );
                if plural || NOUNS.contains(noun) || noun.parse::<u64>().is_ok() {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Complains of a reason that is in a line twice, and of numbers of errors.
fn check_repeats(text: &str) -> Result<()> {
    for line in text.lines() {
        ensure!(!line.contains("os error"), "{line}");
        let mut parts: Vec<&str> = line.split([':', ';']).map(str::trim).collect();
        // A file that is named twice, and `A (B)` with the same in both.
        parts.retain(|part| part.len() > 2);
        for (at, part) in parts.iter().enumerate() {
            ensure!(!parts[..at].contains(part), "{part:?} twice: {line}");
        }
    }
    Ok(())
}

fn output_text(output: &Output) -> String {
    let all = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// A cookie whose owner is killed.
fn leak_cookie() -> Result<RunningActor> {
    let mut owner = start_actor(&["cycle", "--stop-at", "after-inc", "--how", "kill"])?;
    owner.read_to_end()?;
    Ok(owner)
}

fn numbers_agree() -> Result<()> {
    let dir = tempfile::tempdir()?;
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let only = ["--ipc-ns", ns.as_str()];
        let mut leaks = Vec::new();
        for number in 0..3 {
            let path = dir.path().join(number.to_string());
            let file = path.to_str().context("no text")?;
            let tracer = WatchProcess::start(&["--record", file])?;
            while leaks.len() < number {
                leaks.push(leak_cookie()?);
            }
            let waiter = match number {
                2 => Some(start_actor(&[
                    "cycle",
                    "--stop-at",
                    "in-wait",
                    "--how",
                    "hold",
                ])?),
                _ => None,
            };
            for words in [
                &["list"][..],
                &["list", "--all"],
                &["report"],
                &["report", "--bug"],
                &["explain"],
                &["clean"],
                &["clean", "--older-than", "0s"],
            ] {
                check_plurals(&output_text(&run_dmtrace(&[words, &only[..]].concat())?))?;
            }
            check_plurals(&output_text(&run_dmtrace(&["doctor"])?))?;
            check_plurals(&output_text(&run_dmtrace(&["watch", "--duration", "1s"])?))?;
            check_plurals(&output_text(&run_dmtrace(&["serve", "--status"])?))?;
            let more = dir.path().join(format!("more{number}"));
            let more = more.to_str().context("no text")?;
            check_plurals(&output_text(&run_dmtrace(&[
                "record",
                "--duration",
                "1s",
                more,
            ])?))?;
            tracer.stop_trace()?;
            check_plurals(&output_text(&run_dmtrace(&["report", file])?))?;
            check_plurals(&output_text(&run_dmtrace(&["explain", "1", file])?))?;
            let script =
                "for i in $(seq \"$1\"); do \"$0\" cycle --stop-at after-inc --how kill; done";
            let actor = dmtrace_tests::harness::actor_bin()?;
            let actor = actor.to_str().context("no text")?;
            check_plurals(&output_text(&run_dmtrace(&[
                "exec",
                "--grace",
                "0s",
                "--",
                "sh",
                "-c",
                script,
                actor,
                &number.to_string(),
            ])?))?;
            drop(waiter);
        }
        Ok(())
    })?
}

fn nothing_is_said_twice() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("empty"), "")?;
    std::fs::write(path("noise"), "this is no recording, and no plan")?;
    let folder = dir.path().display().to_string();
    let unwritable = [path("none/none"), folder.clone()];
    for file in [path("none"), path("empty"), path("noise"), folder] {
        let file = file.as_str();
        for words in [
            &["report", file][..],
            &["report", "--flamegraph", file, file],
            &["report", "--since", "1d", "--history", file],
            &["explain", "0x0d4d0001", file],
            &["explain", "0x0d4d0001", "--history", file],
            &["list", "--trace", file],
            &["clean", "--trace", file],
            &["clean", "--apply", "--yes", "--plan", file],
            &["exec", "--", file],
        ] {
            let output = run_dmtrace(words)?;
            ensure!(!output.status.success(), "{words:?}");
            check_repeats(&output_text(&output)).with_context(|| words.join(" "))?;
        }
    }
    for file in &unwritable {
        for words in [
            &["record", "--duration", "1s", file][..],
            &["watch", "--duration", "1s", "--record", file],
            &["exec", "--report", file, "--", "true"],
            &["clean", "--plan", file],
            &["serve", "--on-leak", &path("none")],
        ] {
            let output = run_dmtrace(words)?;
            ensure!(!output.status.success(), "{words:?}");
            check_repeats(&output_text(&output)).with_context(|| words.join(" "))?;
        }
    }
    check_repeats(&output_text(&run_dmtrace(&["serve", "--status"])?))
}

/// Somebody who may nothing learns why, once.
fn nobody_is_told_once() -> Result<()> {
    // By its descriptor, which stays open: the file may be where only root may look.
    let binary = File::open(dmtrace_bin()?)?;
    // SAFETY: fcntl with numbers only, on a descriptor of our own.
    let inherited = unsafe { libc::fcntl(binary.as_raw_fd(), libc::F_SETFD, 0) };
    ensure!(inherited == 0, "fcntl: {}", std::io::Error::last_os_error());
    for words in [
        &["list"][..],
        &["report"],
        &["explain"],
        &["clean"],
        &["clean", "--apply", "--yes"],
        &["doctor"],
        &["watch", "--duration", "1s"],
        &["record", "/dev/shm/of-nobody"],
        &["exec", "--", "true"],
        &["serve"],
        &["serve", "--status"],
        &["serve", "--remove"],
        &["report", "--since", "1d"],
    ] {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg("--")
            .arg(format!("/proc/self/fd/{}", binary.as_raw_fd()))
            .args(words)
            .stdin(Stdio::null())
            .output()?;
        check_repeats(&output_text(&output)).with_context(|| words.join(" "))?;
        check_plurals(&output_text(&output)).with_context(|| words.join(" "))?;
    }
    Ok(())
}

/// Words in order, without what belongs to the layout or to the moment.
fn words_of(text: &str) -> String {
    text.split_whitespace().collect()
}

fn every_width() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let mut tracer = WatchProcess::start(&[])?;
        let _leaks = [leak_cookie()?, leak_cookie()?];
        // Until both are judged the verbs would not say the same from one width to the next.
        for _ in 0..2 {
            tracer.wait_object(|it| it["type"] == "finding", Duration::from_secs(20))?;
        }
        for words in [
            &["list", "--ipc-ns", &ns][..],
            &[
                "list",
                "--ipc-ns",
                &ns,
                "-o",
                "verdict,cmdline,parents,key,semid",
            ],
            &["report", "--ipc-ns", &ns],
            &["explain", "--ipc-ns", &ns],
            &["clean", "--ipc-ns", &ns],
            &["doctor", "--no-attach"],
        ] {
            let whole = output_text(&run_dmtrace(words)?);
            for width in [40, 80, 120] {
                let text = String::from_utf8(dmtrace_at(Some(width), words)?.stdout)?;
                for line in text.lines() {
                    ensure!(line.chars().count() <= width, "{words:?} {width}: {line}");
                }
                // Why it leaked, and who did it, are there in full.
                let text = words_of(&text);
                for wanted in ["after announcing an operation", "cookie-actor["] {
                    let wanted = words_of(wanted);
                    if words_of(&whole).contains(&wanted) && words[0] != "clean" {
                        ensure!(text.contains(&wanted), "{words:?} {width}: {text}");
                    }
                }
            }
            let json = [words, &["--json"]].concat();
            let json = String::from_utf8(dmtrace_at(Some(40), &json)?.stdout)?;
            ensure!(json.lines().count() == 1, "{json}");
        }
        tracer.stop_trace()?;
        Ok(())
    })?
}

/// The width of a terminal is asked for, and counts more than `COLUMNS`.
fn a_real_terminal() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?.to_string();
        let _leaks = [leak_cookie()?, leak_cookie()?];
        let words = [
            "list",
            "--ipc-ns",
            &ns,
            "-o",
            "key,semid,state,confidence,ctime,otime",
        ];
        let narrow = on_terminal(50, &words)?;
        let long = |text: &str| {
            text.lines()
                .map(|line| line.trim_end().chars().count())
                .max()
        };
        ensure!(long(&narrow) <= Some(50), "{narrow}");
        let wide = on_terminal(150, &words)?;
        ensure!(long(&wide) > Some(50), "{wide}");
        ensure!(
            narrow.lines().count() > wide.lines().count(),
            "{narrow}{wide}"
        );
        // Which of them, rests on what is known of this machine's clock.
        let words = words_of(&narrow);
        ensure!(
            words.contains("inferred") || words.contains("unknown"),
            "{narrow}"
        );
        Ok(())
    })?
}

/// What `dmtrace` prints on a terminal of this width.
fn on_terminal(columns: u16, words: &[&str]) -> Result<String> {
    let (mut master, mut slave) = (-1, -1);
    let size = libc::winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: two descriptors to fill, no name, no settings, and a size that outlives the call.
    let opened = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    if opened != 0 {
        bail!("openpty: {}", std::io::Error::last_os_error());
    }
    // SAFETY: openpty has just opened it, and nobody else has it.
    let mut master = unsafe { File::from_raw_fd(master) };
    // SAFETY: as for the other side.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let mut child = Command::new(dmtrace_bin()?)
        .args(words)
        .args(["--color", "never"])
        .env("COLUMNS", "33")
        .stdin(Stdio::null())
        .stdout(Stdio::from(slave))
        .spawn()?;
    let mut text = Vec::new();
    // EIO is how a terminal says that its other side is closed.
    let _closed = master.read_to_end(&mut text);
    child.wait()?;
    Ok(String::from_utf8_lossy(&text).replace('\r', ""))
}
