//! Who called whom when a cookie was made: programs without frame pointers, Go, programs that have
//! ended and programs that are no longer there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{TestNeed, dmtrace_bin, in_private_ns, new_trial, ns_of, start_actor};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    NEEDS,
    tracer::{WatchProcess, dmtrace_json, run_dmtrace},
};

const COMPILED: &[TestNeed] = &[TestNeed::Root, TestNeed::Program("cc")];
const CONTAINED: &[TestNeed] = &[
    TestNeed::Root,
    TestNeed::Program("cc"),
    TestNeed::Program("unshare"),
];
const GO: &[TestNeed] = &[TestNeed::Root, TestNeed::Program("go")];
const CGO: &[TestNeed] = &[
    TestNeed::Root,
    TestNeed::Program("cc"),
    TestNeed::Program("go"),
];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial("call_site::of_the_actor_is_complete", NEEDS, of_the_actor),
        new_trial(
            "call_site::without_frame_pointers_is_complete",
            COMPILED,
            without_frame_pointers,
        ),
        new_trial(
            "call_site::of_a_process_that_was_gone_before_anyone_looked",
            COMPILED,
            of_a_process_that_was_gone_before_anyone_looked,
        ),
        new_trial(
            "call_site::of_a_program_that_was_replaced_is_not_made_up",
            COMPILED,
            of_a_program_that_was_replaced_is_not_made_up,
        ),
        new_trial(
            "call_site::a_recording_names_calls_without_the_program",
            COMPILED,
            a_recording_names_calls_without_the_program,
        ),
        new_trial("call_site::of_a_stripped_go_program", GO, of_go),
        new_trial("call_site::of_c_called_by_go_is_complete", CGO, of_cgo),
        new_trial(
            "call_site::a_static_program_is_complete",
            COMPILED,
            static_program,
        ),
        new_trial(
            "call_site::of_a_container_through_a_living_process",
            CONTAINED,
            of_a_container_through_a_living_process,
        ),
        new_trial(
            "call_site::a_deep_stack_says_where_it_is_cut",
            COMPILED,
            a_deep_stack_says_where_it_is_cut,
        ),
    ]
}

/// Makes a cookie and dies. `DEPTH` more frames of a kilobyte each; `FIRST` names a function.
const C: &str = include_str!("programs/leaker.c");

/// The same in Go.
const GO_SOURCE: &str = include_str!("programs/leaker.go");

/// C called from Go, `DEPTH` calls deep.
const CGO_SOURCE: &str = include_str!("programs/leaker_cgo.go");

/// Builds the C program.
fn compile_program(dir: &Path, first: &str, more: &[&str]) -> Result<PathBuf> {
    let program = dir.join("leaker");
    let source = dir.join("leaker.c");
    fs::write(&source, C)?;
    let status = Command::new("cc")
        .args(["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"])
        .args(["-Wl,--build-id", &format!("-DFIRST={first}")])
        .args(more)
        .arg("-o")
        .args([&program, &source])
        .status()
        .context("cc")?;
    ensure!(status.success(), "cc: {status}");
    Ok(program)
}

fn run_program(program: &Path) -> Result<()> {
    Command::new(program)
        .stdin(Stdio::null())
        .status()
        .with_context(|| program.display().to_string())?;
    Ok(())
}

/// The one leaked cookie of the namespace, once a running trace knows its calls.
fn leaked_row(ns: u32) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (report, _) = dmtrace_json(&["report", "--ipc-ns", &ns.to_string()])?;
        let rows = report["leaked"].as_array().cloned().unwrap_or_default();
        match rows.as_slice() {
            [row] if row["call_site"].is_object() => return Ok(row["call_site"].clone()),
            _ if Instant::now() > deadline => anyhow::bail!("no call site: {report}"),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn site_line(site: &Value) -> Result<&str> {
    site["line"].as_str().with_context(|| site.to_string())
}

/// Whether the functions come in this order, and the chain is complete.
fn expect_calls(site: &Value, functions: &[&str]) -> Result<()> {
    let line = site_line(site)?;
    let mut rest = line;
    for function in functions {
        let at = rest.find(function);
        let at = at.with_context(|| {
            let why = &site["truncated"];
            format!("{function} is not where it should be: {line} (truncated: {why})")
        })?;
        rest = &rest[at + function.len()..];
    }
    ensure!(site["complete"] == true, "not complete: {site}");
    ensure!(site["truncated"].is_null(), "{site}");
    Ok(())
}

fn of_the_actor() -> Result<()> {
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let _tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        let mut killed = start_actor(&["cycle", "--stop-at", "after-inc"])?;
        killed.read_to_end()?;
        let site = leaked_row(ns)?;
        expect_calls(&site, &["semget < ", "cookie_actor::", " < main < "])?;
        ensure!(site_line(&site)?.starts_with("semget"), "{site}");
        let frame = &site["frames"][0];
        ensure!(
            frame["build_id"].is_string() && frame["how"] == "observed",
            "{frame}"
        );
        Ok(())
    })?
}

const CHAIN: &[&str] = &[
    "semget",
    "lose_cookie",
    "sink",
    "first_one",
    "main",
    "_start",
];

fn without_frame_pointers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &[])?;
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        run_program(&program)?;
        expect_calls(&leaked_row(ns)?, CHAIN)?;
        let folded = run_dmtrace(&["report", "--folded", "--ipc-ns", &ns.to_string()])?;
        let text = String::from_utf8(folded.stdout)?;
        let lines: Vec<&str> = text.lines().collect();
        ensure!(
            matches!(lines[..], [line] if line.starts_with("leaker;_start;")
                && line.ends_with(";main;first_one;sink;lose_cookie;semget 1")),
            "{text}"
        );
        let svg = dir.path().join("a.svg");
        let file = svg.to_str().context("path")?;
        let by = ["report", "--by", "stack", "--flamegraph", file];
        let (report, _) = dmtrace_json(&[&by[..], &["--ipc-ns", &ns.to_string()]].concat())?;
        let group = &report["by_stack"][0];
        ensure!(group["leaked"] == 1, "{report}");
        expect_calls(&group["call_site"], CHAIN)?;
        ensure!(fs::read_to_string(&svg)?.contains("first_one"));
        // A finding of the trace itself has it, too.
        let found = |object: &Value| object["type"] == "finding";
        expect_calls(
            &tracer.wait_object(found, Duration::from_secs(30))?["call_site"],
            CHAIN,
        )
    })?
}

/// Runs a program while the tracer is stopped, and something else before it goes on.
fn behind_the_tracer(ns: u32, program: &Path, then: impl FnOnce() -> Result<()>) -> Result<Value> {
    let tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
    tracer.send_signal(libc::SIGSTOP)?;
    let ran = run_program(program).and_then(|()| then());
    tracer.send_signal(libc::SIGCONT)?;
    ran?;
    leaked_row(ns)
}

fn of_a_process_that_was_gone_before_anyone_looked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &[])?;
    in_private_ns(|| {
        let site = behind_the_tracer(ns_of("thread-self")?, &program, || Ok(()))?;
        expect_calls(&site, CHAIN)
    })?
}

fn of_a_program_that_was_replaced_is_not_made_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &[])?;
    in_private_ns(|| {
        let replace = || {
            fs::remove_file(&program)?;
            compile_program(dir.path(), "another_build", &["-DDEPTH=2"]).map(drop)
        };
        let site = behind_the_tracer(ns_of("thread-self")?, &program, replace)?;
        let why = site["truncated"].as_str().context("not truncated")?;
        ensure!(
            why.contains("build-id") && why.contains("not found"),
            "{why}"
        );
        // libc is there; of the program only the address is known.
        let line = site_line(&site)?;
        ensure!(line.starts_with("semget < leaker+0x"), "{line}");
        ensure!(line.ends_with(" < ..."), "{line}");
        ensure!(!line.contains("another_build"), "{line}");
        Ok(())
    })?
}

fn a_recording_names_calls_without_the_program() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &[])?;
    let file = dir.path().join("a.dmt").display().to_string();
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let mut tracer = Command::new(dmtrace_bin()?)
            .args(["record", "-d", "5s", &file])
            .spawn()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while fs::metadata(&file).map_or(0, |file| file.len()) == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        run_program(&program)?;
        run_program(&program).ok();
        let status = tracer.wait()?;
        ensure!(status.code() == Some(1), "record: {status}");
        fs::remove_file(&program)?;
        let (report, _) = dmtrace_json(&["report", &file, "--ipc-ns", &ns.to_string()])?;
        let row = &report["leaked"][0];
        expect_calls(&row["call_site"], CHAIN)
    })?
}

/// Builds a program of Go.
fn compile_go(dir: &Path, source: &str, cgo: bool, flags: &[&str]) -> Result<PathBuf> {
    let program = dir.join("leaker");
    let file = dir.join("main.go");
    fs::write(&file, source)?;
    let status = Command::new("go")
        .arg("build")
        .args(flags)
        .arg("-o")
        .args([&program, &file])
        .env("GOCACHE", dir.join("cache"))
        .env("HOME", dir)
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .env("GO111MODULE", "off")
        .status()
        .context("go")?;
    ensure!(status.success(), "go: {status}");
    Ok(program)
}

fn of_go() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_go(dir.path(), GO_SOURCE, false, &["-ldflags=-s -w"])?;
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let _tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        run_program(&program)?;
        let chain = [
            "syscall",
            "main.loseCookie",
            "main.throughGo",
            "main.main.func1",
            "goexit",
        ];
        let site = leaked_row(ns)?;
        expect_calls(&site, &chain)?;
        ensure!(
            site_line(&site)?.matches("main.throughGo").count() == 4,
            "{site}"
        );
        let text = site.to_string();
        ensure!(text.contains("main.go"), "no source file: {text}");
        Ok(())
    })?
}

/// C runs on another stack than the goroutine that calls it.
fn of_cgo() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // In a static program libc has its thread-local variables where Go looks for its own.
    let kinds: [&[&str]; 3] = [
        &["-ldflags=-s -w"],
        &["-ldflags=-s -w", "-buildmode=pie"],
        &["-ldflags=-s -w -linkmode external -extldflags -static"],
    ];
    for flags in kinds {
        let source = CGO_SOURCE.replace("DEPTH", "3");
        let program = compile_go(dir.path(), &source, true, flags)?;
        in_private_ns(|| {
            let ns = ns_of("thread-self")?;
            let site = behind_the_tracer(ns, &program, || Ok(()))?;
            let chain = [
                "runtime.asmcgocall",
                "runtime.cgocall",
                "main._Cfunc_lose_cookie",
                "main.throughGo",
                "main.main.func1",
                "runtime.goexit",
            ];
            expect_calls(&site, &chain)?;
            let count = site_line(&site)?.matches("main.throughGo").count();
            ensure!(count == 4, "{flags:?}: {site}");
            Ok(())
        })??;
    }
    let source = CGO_SOURCE.replace("DEPTH", "40");
    let program = compile_go(dir.path(), &source, true, &[])?;
    in_private_ns(|| {
        let site = behind_the_tracer(ns_of("thread-self")?, &program, || Ok(()))?;
        let why = site["truncated"].as_str().context("not truncated")?;
        ensure!(
            why.starts_with("the copied ")
                && why.ends_with(" of the goroutine's stack are used up"),
            "{why}"
        );
        ensure!(
            site_line(&site)?.starts_with("semget < lose_cookie < "),
            "{site}"
        );
        Ok(())
    })?
}

fn static_program() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &["-static"])?;
    in_private_ns(|| {
        let site = behind_the_tracer(ns_of("thread-self")?, &program, || Ok(()))?;
        expect_calls(
            &site,
            &["semget", "lose_cookie", "sink", "first_one", "main"],
        )
    })?
}

/// The program exists in another mount namespace only, where something else still runs.
fn of_a_container_through_a_living_process() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &[])?;
    let room = dir.path().join("room");
    fs::create_dir(&room)?;
    let script = "mount -t tmpfs room room && cp leaker room/inside && rm leaker && \
                  { room/inside; echo ran; exec sleep 60; }";
    in_private_ns(|| {
        let mut container = None;
        let ran = || {
            let child = Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-c", script])
                .current_dir(dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            let child = container.insert(child);
            let mut said = [0; 4];
            let mut out = child.stdout.take().context("no standard output")?;
            Ok(std::io::Read::read_exact(&mut out, &mut said)?)
        };
        let site = behind_the_tracer(ns_of("thread-self")?, Path::new("true"), ran);
        if let Some(mut child) = container {
            child.kill()?;
            child.wait()?;
        }
        ensure!(!program.exists() && !room.join("inside").exists());
        expect_calls(&site?, CHAIN)
    })?
}

fn a_deep_stack_says_where_it_is_cut() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = compile_program(dir.path(), "first_one", &["-DDEPTH=100"])?;
    in_private_ns(|| {
        let ns = ns_of("thread-self")?;
        let _tracer = WatchProcess::start(&["--ipc-ns", &ns.to_string()])?;
        run_program(&program)?;
        let site = leaked_row(ns)?;
        let why = site["truncated"].as_str().context("not truncated")?;
        ensure!(why == "the copied 32 KiB of the stack are used up", "{why}");
        // A frame has 1,056 bytes at least; what is copied begins somewhere in a page.
        let sinks = site_line(&site)?.matches("sink").count();
        ensure!((25..=32).contains(&sinks), "{sinks}: {site}");
        Ok(())
    })?
}
