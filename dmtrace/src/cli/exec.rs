//! `dmtrace exec CMD`: which cookies did a command leave behind?

use std::{cell::RefCell, io, os::unix::ffi::OsStrExt as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use dmtrace_core::{
    facts::SetSnapshot,
    ids::SemId,
    ledger::{Change, Semaphore},
    verdict::{Judged, Thresholds},
};
use serde_json::json;

use super::{
    args::ExecArgs,
    failure::{Failure, exit},
    filter::Filters,
};
use crate::{
    host::regular_file::create_output,
    output::{Out, json},
    render::row::{Row, confidence_word},
    trace::run::{BooksView, EndReason, Observer, TraceEnd, Tracing, build_runtime},
    wording::{cause_text, count_noun},
};

pub(super) fn run(args: &ExecArgs, as_json: bool) -> Result<ExitCode> {
    let mut out = match &args.report {
        Some(path) => {
            let name = path.display().to_string();
            let file = create_output(path).with_context(|| name.clone())?;
            Out::with_writer(Box::new(file), &name)
        }
        None => Out::to_stderr(),
    };
    build_runtime()?.block_on(async {
        let mut tracing = Tracing::start(args.tuning.probe_options(), |_, _| Ok(None))?;
        adopt_orphans();
        let mut child = spawn_child(args)?;
        let pid = child.id();
        let ended = tracing
            .run(&mut SilentObserver, None, Some(&mut child))
            .await?;
        let code = match ended {
            EndReason::Child(status) => exit_code(status),
            EndReason::Signal | EndReason::Enough => 143,
        };
        // udev completes asynchronously: give it the time that it was promised, no more.
        let waited = std::time::Instant::now();
        while waited.elapsed() < args.grace && leaves_cookies(&tracing, pid) {
            tracing
                .run(&mut SilentObserver, Some(Duration::from_millis(100)), None)
                .await?;
        }
        let ending = tracing.finish(&mut SilentObserver)?;
        print_report(args, &ending, pid, code, as_json, &mut out)
    })
}

/// Makes orphans of the command children of this process, so that "a descendant of mine" still
/// holds for a daemon that detached itself.
fn adopt_orphans() {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes integers only. Failure costs detached daemons only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

fn spawn_child(args: &ExecArgs) -> Result<tokio::process::Child> {
    let (program, rest) = args
        .command
        .split_first()
        .ok_or_else(|| Failure::Usage("exec: no command given; use: dmtrace exec CMD".into()))?;
    tokio::process::Command::new(program)
        .args(rest)
        .kill_on_drop(false)
        .spawn()
        .map_err(|error| {
            // A name with a slash is not looked up.
            let named = !program.as_bytes().contains(&b'/');
            let hint = if error.kind() == io::ErrorKind::NotFound && named {
                "; is it in PATH?"
            } else {
                ""
            };
            Failure::Usage(format!(
                "exec: {}: {}{hint}",
                program.to_string_lossy(),
                cause_text(&error)
            ))
            .into()
        })
}

fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(255)
}

struct SilentObserver;

impl Observer for SilentObserver {
    fn on_changes(&mut self, _changes: &[Change], _view: &BooksView<'_>) -> Result<()> {
        Ok(())
    }

    fn on_finding(&mut self, _judged: &Judged<'_>, _view: &BooksView<'_>) -> Result<()> {
        Ok(())
    }

    fn on_idle(&mut self) -> Result<()> {
        Ok(())
    }

    fn should_stop(&self) -> bool {
        false
    }
}

fn leaves_cookies(tracing: &Tracing, pid: Option<u32>) -> bool {
    let ledger = tracing.session().ledger();
    ledger.live_cookies().any(|set| is_ours(ledger, set, pid))
}

/// Whether the command made it, or a descendant of it.
fn is_ours(ledger: &dmtrace_core::ledger::Ledger, set: &Semaphore, pid: Option<u32>) -> bool {
    let Some(process) = set.creator.image().and_then(|image| ledger.process(image)) else {
        return false;
    };
    match &process.image {
        Some(image) => image.descendant,
        // Its description was lost: at least the command itself is known by its number.
        None => Some(process.image_id.id.tgid) == pid,
    }
}

fn print_report(
    args: &ExecArgs,
    ending: &TraceEnd,
    pid: Option<u32>,
    code: u8,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let ledger = ending.session.ledger();
    let now = ending.facts.now;
    let names = RefCell::default();
    // The command has ended and the grace is over: nothing of it is too young to be judged.
    let thresholds = Thresholds {
        young: Duration::ZERO,
        ..Thresholds::default()
    };
    let mut left: Vec<Row<'_>> = ending
        .judge_cookies(&thresholds)
        .into_iter()
        .filter(|judged| is_ours(ledger, judged.semaphore, pid))
        .map(|judged| {
            let row = Row::from_books(ledger, judged.semaphore, judged.set, now);
            let mut row = row.with_names(&names);
            row.verdict = Some(judged.verdict);
            row
        })
        .collect();
    if args.all {
        let set_of = |id: SemId| -> Option<&SetSnapshot> {
            let ns = ending
                .snapshot
                .namespaces
                .iter()
                .find(|ns| ns.ns == id.ns)?;
            ns.sets.iter().find(|set| set.semid == id.semid)
        };
        left.extend(
            ledger
                .live_sets()
                .filter(|set| !set.is_cookie() && is_ours(ledger, set, pid))
                .map(|set| Row::from_books(ledger, set, set_of(set.id), now)),
        );
    }
    keep_matching(&mut left, &args.filters);
    let accounting = &ending.accounting;
    let unread = ending.unread_summary();
    if as_json {
        let rows: Vec<_> = left.iter().map(Row::to_json).collect();
        let body = json!({
            "exit_code": code,
            "left": rows,
            "accounting": accounting,
            "exact": accounting.is_exact(),
            "complete": accounting.is_exact() && unread.is_none(),
            "unread": unread,
        });
        out.print_json(&json::json_envelope("exec", &body))?;
    } else {
        print_left(&left, args.all, out)?;
        if !accounting.is_exact() {
            out.print_line(&format!("accounting: {}", accounting.summary_line()))?;
            for deficit in &accounting.deficits {
                out.print_line(&format!("  {deficit}"))?;
            }
        }
        if let Some(unread) = &unread {
            out.print_line(&format!("dmtrace: {unread}"))?;
        }
    }
    out.flush()?;
    Ok(if !left.is_empty() {
        ExitCode::from(args.error_exitcode)
    } else if !accounting.is_exact() || unread.is_some() {
        exit::incomplete_code()
    } else {
        ExitCode::from(code)
    })
}

/// Keeps what the filters let pass.
pub(super) fn keep_matching(left: &mut Vec<Row<'_>>, filters: &Filters) {
    left.retain(|row| filters.passes(&row.candidate()));
}

fn print_left(left: &[Row<'_>], all: bool, out: &mut Out) -> Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    let what = if all {
        count_noun(left.len(), "semaphore set", "semaphore sets")
    } else {
        count_noun(left.len(), "cookie", "cookies")
    };
    out.print_line(&format!("dmtrace: {what} left by this command"))?;
    for row in left {
        out.print_line(&format!(
            "  {}  semid {}  {}",
            row.semaphore.key,
            row.semaphore.id.semid,
            row.owner_text()
        ))?;
        if let Some(verdict) = &row.verdict {
            out.print_line(&format!(
                "      {} ({})",
                verdict.class,
                confidence_word(verdict)
            ))?;
        }
        if let Some(image) = row.image {
            out.print_line(&format!("      {}", image.command_line()))?;
            let parents: Vec<String> = image
                .parents
                .iter()
                .map(|parent| format!("{}[{}]", parent.comm, parent.id.tgid))
                .collect();
            out.print_line(&format!("      below {}", parents.join(" < ")))?;
        }
        if let Some(site) = row.call_site() {
            out.print_line(&format!("      call site {}", site.chain_line()))?;
        }
    }
    Ok(())
}
