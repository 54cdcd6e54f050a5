//! `dmtrace clean`: removes cookies whose leak is proven, and nothing else.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    args::Clean,
    case::Case,
    failure::{Failure, exit},
    row::Row,
};
use crate::{
    clean::{
        apply::{Applied, Outcome, Report, apply},
        audit::Audit,
        devices::{Suspended, suspended},
        file::{KIND, PlanFile},
        plan::{Action, Options, Plan, PlanEntry},
        witness::Witness,
    },
    host::{Roots, clock},
    ids::IpcNs,
    output::{Out, json, table},
    probe::Environment,
    verdict::{Context, Judged, Obstacle, Rules, Thresholds},
};

/// What is old enough by default, for a leak that was seen.
const OLDER_THAN: Duration = Duration::from_secs(60);

/// The kernel's times have seconds: only after two of them does every later call show.
const TICK: i64 = 2;

/// Columns of the text.
const WIDTH: usize = 80;

/// A plan, and what is to be said with it.
struct Draft {
    file: PlanFile,
    notes: Vec<String>,
    /// Something could not be read, so that more may be leaked.
    incomplete: bool,
    suspended: Vec<Suspended>,
}

/// Runs the verb.
pub fn run(args: &Clean, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    check(args, as_json)?;
    let draft = match args.plan.as_deref().filter(|_| args.apply) {
        Some(path) => read(path, args.max)?,
        None => draft(args)?,
    };
    if args.apply {
        let code = carry_out(args, &draft, as_json, out)?;
        return Ok(code);
    }
    let object = as_object(&draft);
    if let Some(path) = &args.plan {
        PlanFile::write(path, &object.to_string())?;
    }
    if as_json {
        out.json(&object)?;
    } else {
        show(&draft, out)?;
        advise(args, &draft, out)?;
    }
    Ok(if draft.wanted() > 0 {
        exit::findings()
    } else if draft.incomplete {
        exit::incomplete()
    } else {
        exit::CLEAN
    })
}

impl Draft {
    const fn plan(&self) -> &Plan {
        &self.file.plan
    }

    /// What would be removed if the fuse allowed it.
    fn wanted(&self) -> usize {
        let wanted = |entry: &&PlanEntry| match &entry.action {
            Action::Destroy => true,
            Action::Keep { because } => because.is_empty(),
        };
        self.plan().entries.iter().filter(wanted).count()
    }
}

/// What makes no sense, and what will not work, before any work.
fn check(args: &Clean, as_json: bool) -> Result<()> {
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()).into());
    let filters = &args.filters;
    if args.force_unknown && filters.semid.is_some() == filters.key.is_some() {
        return usage("--force-unknown: name one cookie, with either --semid or --key");
    }
    if args.apply && args.plan.is_some() {
        let plain = filters.is_empty()
            && !args.abandoned
            && !args.force_unknown
            && args.older_than.is_none()
            && args.source.trace.is_none()
            && !args.source.no_trace;
        if !plain {
            return usage(
                "--apply --plan carries out the plan in the file as it is; give filters and \
                 options when it is made",
            );
        }
    }
    if !args.apply {
        return Ok(());
    }
    if !args.yes && !io::stdin().is_terminal() {
        return usage("--apply: there is no terminal to ask on; use --apply --yes");
    }
    if !args.yes && as_json {
        return usage("--json --apply: nothing can be asked in JSON; use --apply --yes");
    }
    if !Environment::read().capabilities.sys_admin {
        return Err(Failure::Environment(
            "--apply needs CAP_SYS_ADMIN, to enter IPC namespaces and remove others' semaphores; \
             run as root (sudo dmtrace clean --apply)"
                .to_owned(),
        )
        .into());
    }
    Ok(())
}

/// The plan in a file.
fn read(path: &std::path::Path, max: usize) -> Result<Draft> {
    let roots = Roots::host();
    let mut file = PlanFile::read(path, clock::boot_id(&roots).as_deref())?;
    let count = file.plan.removals().count();
    file.plan.blown |= count > max;
    Ok(Draft {
        file,
        notes: Vec::new(),
        incomplete: false,
        suspended: suspended(&roots),
    })
}

/// Gathers everything and decides.
fn draft(args: &Clean) -> Result<Draft> {
    let draft = draft_once(args)?;
    let plan = draft.plan();
    let touched = plan
        .removals()
        .map(|entry| entry.identity.ctime.0.max(entry.identity.otime.0))
        .max();
    match touched {
        Some(touched) if plan.made.0.saturating_sub(touched) < TICK => {
            // Something was touched in this very second, and could be again without a trace in
            // its times.
            thread::sleep(Duration::from_secs(TICK.unsigned_abs()));
            draft_once(args)
        }
        _ => Ok(draft),
    }
}

fn draft_once(args: &Clean) -> Result<Draft> {
    let roots = Roots::host();
    let case = Case::of_host(args.source.trace.as_deref(), !args.source.no_trace)?;
    let mut thresholds = Thresholds::default();
    let older_than = args.older_than.unwrap_or(OLDER_THAN);
    thresholds.old = match args.older_than {
        Some(older_than) if args.force_unknown => older_than,
        _ => thresholds.old.max(older_than),
    };
    let context = Context {
        facts: &case.facts,
        completeness: &case.completeness,
        thresholds: &thresholds,
    };
    let judged: Vec<Judged<'_>> = case
        .judge(&thresholds)
        .into_iter()
        .filter(|judged| {
            let row = Row::new(&case, judged.clone());
            args.filters.pass(&row.candidate())
        })
        .collect();
    if args.force_unknown && judged.len() > 1 {
        return Err(Failure::Usage(format!(
            "--force-unknown: {} cookies match; name one, with --ipc-ns",
            judged.len()
        ))
        .into());
    }
    let options = Options {
        rules: Rules {
            inferred: false,
            older_than,
        },
        max: Some(args.max),
        abandoned: args.abandoned,
        force_unknown: args.force_unknown,
    };
    let mut plan = Plan::build(&judged, &case.ledger, &context, options);
    plan.entries.sort_by_key(|entry| entry.sem);
    let unread = plan.entries.iter().any(is_kept_unread);
    Ok(Draft {
        file: PlanFile {
            boot_id: clock::boot_id(&roots),
            plan,
        },
        incomplete: case.incomplete || unread,
        notes: case.notes,
        suspended: suspended(&roots),
    })
}

/// Whether a cookie that may be leaked is kept because something could not be read.
fn is_kept_unread(entry: &PlanEntry) -> bool {
    let Action::Keep { because } = &entry.action else {
        return false;
    };
    matches!(entry.verdict.class.as_str(), "leaked" | "unknown")
        && because.iter().any(|obstacle| {
            matches!(
                obstacle,
                Obstacle::NotRead | Obstacle::CarriersUnreadable | Obstacle::ProcessesUnreadable
            )
        })
}

/// Asks, and carries out.
fn carry_out(args: &Clean, draft: &Draft, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let plan = draft.plan();
    if plan.blown {
        return Err(Failure::Partial(format!(
            "the plan removes {} cookies, more than --max {}: nothing was removed; look at it \
             with: dmtrace clean",
            draft.wanted(),
            args.max
        ))
        .into());
    }
    if !args.yes {
        show(draft, out)?;
        if draft.wanted() > 0 {
            out.flush()?;
            if !confirmed(draft.wanted())? {
                out.line("nothing was removed.")?;
                return Ok(exit::findings());
            }
        }
    }
    let report = if draft.wanted() == 0 {
        Report::default()
    } else {
        let mut audit = Audit::open(&args.audit)?;
        let stop = stop_on_signals();
        let mut broken = None;
        let report = apply(plan, &mut audit, witness(), stop, &mut |applied| {
            if !as_json
                && broken.is_none()
                && let Err(error) = out.line(&result_line(applied)).and_then(|()| out.flush())
            {
                // The reader has gone. What was asked for is done all the same.
                broken = Some(error);
            }
        });
        if let Some(error) = broken {
            return Err(error.into());
        }
        report
    };
    if as_json {
        out.json(&result(args, draft, &report))?;
    } else {
        conclude(args, draft, &report, out)?;
    }
    if let Some(error) = &report.stopped {
        eprintln!("dmtrace: {error}");
    }
    Ok(if !report.is_complete() {
        exit::partial()
    } else if draft.incomplete {
        exit::incomplete()
    } else {
        exit::CLEAN
    })
}

#[cfg(feature = "live")]
fn witness() -> Arc<dyn Witness> {
    Arc::new(crate::clean::witness::Traces::open())
}

#[cfg(not(feature = "live"))]
fn witness() -> Arc<dyn Witness> {
    Arc::new(crate::clean::witness::Nobody)
}

/// Asks on the terminal.
fn confirmed(count: usize) -> io::Result<bool> {
    let mut terminal = io::stderr();
    write!(terminal, "remove {}? [y/N] ", cookies(count))?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Set by the first Ctrl-C. The second one ends the program.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the work between two cookies.
fn stop_on_signals() -> &'static AtomicBool {
    extern "C" fn note(_: i32) {
        STOP.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    let handler: extern "C" fn(i32) = note;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: all zeros is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
        // SAFETY: the handler only stores into an atomic; the old action is not asked for.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
    &STOP
}

fn cookies(count: usize) -> String {
    format!("{count} cookie{}", if count == 1 { "" } else { "s" })
}

/// The plan as text.
fn show(draft: &Draft, out: &mut Out) -> Result<()> {
    let mut entries: Vec<&PlanEntry> = draft.plan().entries.iter().collect();
    entries.sort_by_key(|entry| (entry.action != Action::Destroy, entry.sem));
    for entry in entries {
        out.line(&plan_line(entry))?;
    }
    for device in &draft.suspended {
        out.line(&fit(
            &format!(
                "warning: {} ({}) is suspended: look before you remove cookies",
                device.node, device.name
            ),
            WIDTH,
        ))?;
    }
    out.flush()?;
    for note in &draft.notes {
        eprintln!("dmtrace: {note}");
    }
    Ok(())
}

/// What to do next.
fn advise(args: &Clean, draft: &Draft, out: &mut Out) -> Result<()> {
    let wanted = draft.wanted();
    let kept = draft.plan().entries.len() - wanted;
    let text = if draft.plan().blown {
        format!(
            "dry run: {} to remove, more than --max {}; raise it to go on.",
            cookies(wanted),
            args.max
        )
    } else if wanted == 0 {
        format!("dry run: nothing to remove, {kept} kept.")
    } else if let Some(path) = &args.plan {
        format!(
            "dry run: {wanted} to remove, {kept} kept; do it with: dmtrace clean --apply --plan {}",
            path.display()
        )
    } else {
        format!("dry run: {wanted} to remove, {kept} kept; repeat with --apply to remove.")
    };
    Ok(out.line(&text)?)
}

fn plan_line(entry: &PlanEntry) -> String {
    match &entry.action {
        Action::Destroy if entry.verdict.observed => removal("would remove", entry, ""),
        Action::Destroy => removal("would remove", entry, " ?"),
        Action::Keep { because } => line("kept", entry, &obstacles(entry, because)),
    }
}

fn result_line(applied: &Applied<'_>) -> String {
    let Applied { entry, outcome } = applied;
    match outcome {
        Outcome::Removed => removal("removed", entry, ""),
        Outcome::Gone => line("gone", entry, "it had been removed already"),
        Outcome::RemovedLate(_) => line(
            "REMOVED",
            entry,
            "IT WAS USED at this moment: look at its owner",
        ),
        Outcome::NotTried => line("not tried", entry, ""),
        other => line("kept", entry, &other.detail().unwrap_or_default()),
    }
}

/// `would remove  0x0d4d1234 semid 7 [ns]  reason  owner`, at most [`WIDTH`] columns: in full if
/// that fits, else in two words.
fn removal(action: &str, entry: &PlanEntry, mark: &str) -> String {
    let text = entry.verdict.text.as_str();
    let full = text.strip_prefix("leaked: ").unwrap_or(text);
    let brief = entry.verdict.brief.as_str();
    let owner = owner(entry);
    let tail = if owner.is_empty() {
        owner
    } else {
        format!("  {owner}")
    };
    let head = head(action, entry);
    let room = WIDTH
        .saturating_sub(head.chars().count() + tail.chars().count() + mark.len())
        .saturating_sub(2);
    let reason = if full.chars().count() <= room || brief.is_empty() {
        fit(full, room)
    } else {
        fit(brief, room)
    };
    fit(&format!("{head}  {reason}{mark}{tail}"), WIDTH)
}

/// `kept          0x0d4d1234 semid 7 [ns]: reason`, at most [`WIDTH`] columns.
fn line(action: &str, entry: &PlanEntry, reason: &str) -> String {
    let colon = if reason.is_empty() { "" } else { ": " };
    fit(&format!("{}{colon}{reason}", head(action, entry)), WIDTH)
}

fn head(action: &str, entry: &PlanEntry) -> String {
    let ns = if entry.sem.ns == IpcNs::HOST {
        String::new()
    } else {
        format!(" [{}]", entry.sem.ns)
    };
    format!(
        "{action:<12}  {} semid {}{ns}",
        entry.identity.key, entry.sem.semid
    )
}

fn fit(text: &str, width: usize) -> String {
    table::cut(text, Some(width.max(2)))
}

fn owner(entry: &PlanEntry) -> String {
    entry.owner.as_ref().map_or_else(String::new, |owner| {
        let ended = if entry.gone.contains(&owner.id) {
            "+"
        } else {
            ""
        };
        format!("{}[{}]{ended}", owner.name, owner.id.tgid)
    })
}

/// Why it is kept; what it is comes first.
fn obstacles(entry: &PlanEntry, because: &[Obstacle]) -> String {
    if because.is_empty() {
        return "more would be removed than --max allows".to_owned();
    }
    let is_class = |obstacle: &&Obstacle| {
        matches!(obstacle, Obstacle::NotLeaked { .. } | Obstacle::NotACookie)
    };
    let mut parts = Vec::new();
    if because.iter().any(|obstacle| is_class(&obstacle)) {
        parts.push(entry.verdict.text.clone());
    }
    parts.extend(
        because
            .iter()
            .filter(|obstacle| !is_class(obstacle))
            .map(ToString::to_string),
    );
    parts.join("; ")
}

fn conclude(args: &Clean, draft: &Draft, report: &Report<'_>, out: &mut Out) -> Result<()> {
    let planned = draft.wanted();
    if planned == 0 {
        out.line("nothing to remove.")?;
    } else {
        let removed =
            report.count(|outcome| matches!(outcome, Outcome::Removed | Outcome::RemovedLate(_)));
        out.line(&format!(
            "{}{removed} of {} removed; audit record in {}",
            if report.interrupted {
                "interrupted: "
            } else {
                ""
            },
            cookies(planned),
            args.audit.display()
        ))?;
    }
    out.flush()?;
    if args.yes {
        for note in &draft.notes {
            eprintln!("dmtrace: {note}");
        }
    }
    Ok(())
}

/// The plan as JSON; also what `--plan` writes.
fn as_object(draft: &Draft) -> Value {
    let mut body = json!(draft.file);
    body["complete"] = json!(!draft.incomplete);
    body["notes"] = json!(draft.notes);
    body["suspended_devices"] = json!(draft.suspended);
    json::envelope(KIND, &body)
}

fn result(args: &Clean, draft: &Draft, report: &Report<'_>) -> Value {
    let applied: Vec<Value> = report
        .applied
        .iter()
        .map(|Applied { entry, outcome }| {
            json!({
                "ipc_ns": entry.sem.ns,
                "semid": entry.sem.semid,
                "key": entry.identity.key.to_string(),
                "outcome": outcome.label(),
                "detail": outcome.detail(),
                "owner": entry.owner,
                "verdict": entry.verdict,
            })
        })
        .collect();
    json::envelope(
        "clean_result",
        &json!({
            "complete": report.is_complete(),
            "data_complete": !draft.incomplete,
            "interrupted": report.interrupted,
            "stopped": report.stopped.as_ref().map(ToString::to_string),
            "planned": draft.wanted(),
            "audit": args.audit,
            "notes": draft.notes,
            "suspended_devices": draft.suspended,
            "cookies": applied,
        }),
    )
}
