//! Plans and results of `clean` as text and as JSON.

use anyhow::Result;
use dmtrace_core::{
    cleanup::{
        plan::{Excess, FuseScope, PlanEntry, PlannedAction},
        prospect::Prospect,
    },
    ids::IpcNs,
    verdict::{Completion, Obstacle},
};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use super::{
    PlanDraft,
    kept::{KeptSample, kept_lines, nothing_text},
};
use crate::{
    cleanup::{
        apply::{AppliedEntry, CleanupOutcome, CleanupReport},
        file::KIND,
        result::{self, CleanResult, CleanedCookie},
    },
    cli::{args::CleanArgs, filter::shell_word, value::duration_word},
    output::{Out, json, print_remark},
    render::remedy::{CleanCommand, waits_text},
    wording::{count_noun, of_number},
};

/// Indentation of what has no room on the line: below the cookie.
const INDENT: usize = 14;
/// The same below a line of the summary.
const KEPT_INDENT: usize = 9;

pub(super) fn cookies_text(number: usize) -> String {
    count_noun(number, "cookie", "cookies")
}

/// The plan as text.
pub(super) fn print_plan(args: &CleanArgs, draft: &PlanDraft, out: &mut Out) -> Result<()> {
    let options = given_options(args);
    let mut entries: Vec<&PlanEntry> = draft.plan().entries.iter().collect();
    entries.sort_by_key(|entry| (!entry.action.changes_cookie(), entry.sem));
    let mut sample = KeptSample::default();
    for entry in entries {
        if !sample.shows(draft, entry) {
            continue;
        }
        let mut line = plan_line(entry, out.width());
        if let Some(prospect) = draft.lifts.get(&entry.sem)
            && let Some(flags) = prospect.flags
        {
            let (key, ns) = (entry.identity.key, entry.sem.ns);
            let mut others = draft.plan().entries.iter();
            let command = CleanCommand {
                flags: flags.with_options(draft.plan().options),
                key,
                ns,
                name_ns: others.any(|it| it.identity.key == key && it.sem.ns != ns),
                options: &options,
            };
            line.push_str(&lifting_hint(command, prospect));
        }
        out.print_hanging(&line, INDENT)?;
    }
    if let Some(rest) = sample.rest() {
        out.print_line(&rest)?;
    }
    for device in &draft.suspended {
        out.print_line(&format!(
            "warning: {} ({}) is suspended: look before you remove cookies",
            device.node, device.name
        ))?;
    }
    out.flush()?;
    for note in &draft.notes {
        print_remark(note);
    }
    Ok(())
}

/// What to do next.
pub(super) fn print_advice(args: &CleanArgs, draft: &PlanDraft, out: &mut Out) -> Result<()> {
    let wanted = draft.wanted_count();
    let kept = draft.plan().entries.len() - wanted;
    let lines = kept_lines(draft);
    let text = if draft.plan().over_limit {
        format!(
            "dry run: {}; {}",
            excess_text(draft),
            lift_text(args, draft)
        )
    } else if wanted == 0 {
        format!("dry run: {}", nothing_text(args, kept))
    } else if let Some(path) = &args.plan {
        format!(
            "dry run: would {}, {kept} kept; do it with: dmtrace clean --apply --plan {}",
            pending_text(draft),
            path.display()
        )
    } else {
        format!(
            "dry run: would {}, {kept} kept; repeat with --apply.",
            pending_text(draft)
        )
    };
    out.print_line(&text)?;
    print_kept(&lines, out)
}

fn print_kept(lines: &[String], out: &mut Out) -> Result<()> {
    let mut lines = lines.iter();
    Ok(lines.try_for_each(|line| out.print_hanging(line, KEPT_INDENT))?)
}

/// Why the fuse has blown.
pub(super) fn excess_text(draft: &PlanDraft) -> String {
    let acts = pending_text(draft);
    match draft.plan().excess {
        Some(Excess {
            count,
            max,
            of: FuseScope::Unproven,
        }) => format!(
            "the plan would {acts}; {count} of them are no proven leaks of owners that have ended, \
             and without --max at most {max} are taken"
        ),
        Some(Excess { max, .. }) => format!("the plan would {acts}, more than --max {max}"),
        None => format!("the plan would {acts}, more than its --max"),
    }
}

/// What would make the fuse hold.
pub(super) fn lift_text(args: &CleanArgs, draft: &PlanDraft) -> String {
    let enough = draft.wanted_count();
    let acted = draft.plan().pending().count() > 0;
    match &args.plan {
        // What has blown when the file was written is not in it any more.
        Some(path) if args.apply && !acted => {
            format!(
                "remove it, and make it anew with: dmtrace clean --max {enough} --plan {}",
                path.display()
            )
        }
        _ => format!(
            "look at it (dmtrace clean{}), then add --max {enough}",
            given_text(args)
        ),
    }
}

/// What was given to choose cookies and to decide about them, each after a space: the next command
/// is about the same.
fn given_text(args: &CleanArgs) -> String {
    let flags = [
        ("abandoned", args.abandoned),
        ("complete", args.complete),
        ("force-unknown", args.force_unknown),
    ];
    let flags = flags.into_iter().filter(|(_, given)| *given);
    let mut words: Vec<String> = flags.map(|(name, _)| format!(" --{name}")).collect();
    words.push(given_options(args));
    let named = args.cookies.iter().filter_map(|name| match name.key {
        Some(key) => Some(key.to_string()),
        None => name.semid.map(|semid| semid.to_string()),
    });
    words.extend(named.map(|name| format!(" {name}")));
    words.push(args.filters.args_text());
    words.concat()
}

fn plan_line(entry: &PlanEntry, width: Option<usize>) -> String {
    match &entry.action {
        PlannedAction::Destroy => removal_line("would remove", entry, width),
        PlannedAction::Complete(completion) => {
            kept_line("would complete", entry, &completion_text(*completion))
        }
        PlannedAction::Keep { obstacles: because } => {
            kept_line("kept", entry, &obstacles_text(entry, because))
        }
    }
}

/// What would lift a refusal.
fn lifting_hint(command: CleanCommand<'_>, prospect: &Prospect) -> String {
    let flags = command.flags;
    let when = if flags.force_unknown {
        "if you are sure"
    } else if flags.complete {
        "to complete what is lost"
    } else {
        "to remove it all the same"
    };
    format!("; {when}{}: {command}", waits_text(prospect))
}

/// What this clean-up was given that decides what it takes, each after a space.
fn given_options(args: &CleanArgs) -> String {
    let mut options = String::new();
    if let Some(path) = &args.source.trace {
        let path = shell_word(&path.display().to_string());
        options.push_str(&format!(" --trace {path}"));
    }
    if args.source.no_trace {
        options.push_str(" --no-trace");
    }
    if let Some(age) = args.older_than {
        options.push_str(&format!(" --older-than {}", duration_word(age)));
    }
    options
}

/// Prints what came of one cookie.
pub(super) fn print_result(applied: &AppliedEntry<'_>, out: &mut Out) -> std::io::Result<()> {
    let line = result_line(applied, out.width());
    out.print_hanging(&line, INDENT)
}

fn result_line(applied: &AppliedEntry<'_>, width: Option<usize>) -> String {
    let AppliedEntry { entry, outcome } = applied;
    match outcome {
        CleanupOutcome::Removed => removal_line("removed", entry, width),
        CleanupOutcome::Completed(completion) => {
            kept_line("completed", entry, &completion_text(*completion))
        }
        CleanupOutcome::Gone => kept_line("gone", entry, "it had been removed already"),
        CleanupOutcome::RemovedLate(_) => kept_line(
            "REMOVED",
            entry,
            "IT WAS USED at this moment: look at its owner",
        ),
        CleanupOutcome::NotTried => kept_line("not tried", entry, ""),
        other => kept_line("kept", entry, &other.detail().unwrap_or_default()),
    }
}

/// What is made good.
fn completion_text(completion: Completion) -> String {
    match completion {
        Completion { value: 1, .. } => {
            "its only completion is lost, and a thread waits for it".to_owned()
        }
        Completion { value, count, .. } => format!(
            "{count} of {value} completions {}, and a thread waits for {}",
            of_number(&count, "is lost", "are lost"),
            of_number(&count, "it", "them"),
        ),
    }
}

/// What a plan does: `remove 3 cookies`, `complete 1 cookie`, or both.
pub(super) fn pending_text(draft: &PlanDraft) -> String {
    let completed = draft.completion_count();
    let removed = draft.wanted_count() - completed;
    // A plan whose fuse has blown says no more which.
    if draft.plan().over_limit && draft.plan().options.complete && completed == 0 {
        return format!("remove or complete {}", cookies_text(removed));
    }
    match (removed, completed) {
        (removed, 0) => format!("remove {}", cookies_text(removed)),
        (0, completed) => format!("complete {}", cookies_text(completed)),
        (removed, completed) => format!("remove {}, complete {completed}", cookies_text(removed)),
    }
}

/// `would remove  0x0d4d1234 semid 7 [ns]  reason  owner`: the reason in a few words where only
/// that keeps it on one line.
fn removal_line(action: &str, entry: &PlanEntry, width: Option<usize>) -> String {
    let mark = if entry.verdict.observed || entry.orphan.is_some() {
        ""
    } else {
        " (inferred)"
    };
    let text = entry.verdict.text.as_str();
    let full = text.strip_prefix("leaked: ").unwrap_or(text);
    let brief = entry.verdict.brief.as_str();
    let owner = owner_text(entry);
    let tail = if owner.is_empty() {
        owner
    } else {
        format!("  {owner}")
    };
    let head = line_head(action, entry);
    let whole = |reason: &str| format!("{head}  {reason}{mark}{tail}");
    let fits = |line: &String| width.is_none_or(|width| line.width() <= width);
    [full, brief]
        .into_iter()
        .filter(|reason| !reason.is_empty())
        .map(whole)
        .find(fits)
        .unwrap_or_else(|| whole(full))
}

/// `kept          0x0d4d1234 semid 7 [ns]: reason`.
fn kept_line(action: &str, entry: &PlanEntry, reason: &str) -> String {
    let head = line_head(action, entry);
    if reason.is_empty() {
        head
    } else {
        format!("{head}: {reason}")
    }
}

fn line_head(action: &str, entry: &PlanEntry) -> String {
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

fn owner_text(entry: &PlanEntry) -> String {
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
fn obstacles_text(entry: &PlanEntry, because: &[Obstacle]) -> String {
    if because.is_empty() {
        return "nothing is done, because the plan would do too much (see below)".to_owned();
    }
    let is_class =
        |obstacle: &Obstacle| matches!(obstacle, Obstacle::NotLeaked { .. } | Obstacle::NotACookie);
    let named = because.iter().any(is_class);
    let mut parts = Vec::new();
    if named {
        parts.push(entry.verdict.text.clone());
    }
    // What is not known to be leaked is not seen to be, either.
    let said = |obstacle: &&Obstacle| {
        is_class(obstacle) || (named && matches!(obstacle, Obstacle::Inferred))
    };
    parts.extend(
        because
            .iter()
            .filter(|obstacle| !said(obstacle))
            .map(ToString::to_string),
    );
    parts.join("; ")
}

pub(super) fn print_conclusion(
    args: &CleanArgs,
    draft: &PlanDraft,
    report: &CleanupReport<'_>,
    out: &mut Out,
) -> Result<()> {
    let planned = draft.wanted_count();
    if planned == 0 {
        let kept = draft.plan().entries.len();
        out.print_line(&nothing_text(args, kept))?;
        print_kept(&kept_lines(draft), out)?;
    } else {
        let removed = report.count_where(|outcome| {
            matches!(
                outcome,
                CleanupOutcome::Removed | CleanupOutcome::RemovedLate(_)
            )
        });
        let completed =
            report.count_where(|outcome| matches!(outcome, CleanupOutcome::Completed(_)));
        let done = match (draft.completion_count(), completed) {
            (0, _) => format!("{removed} of {} removed", cookies_text(planned)),
            (to_complete, completed) => format!(
                "{removed} of {} removed, {completed} of {to_complete} completed",
                cookies_text(planned - to_complete)
            ),
        };
        out.print_line(&format!(
            "{}{done}; audit record in {}",
            if report.interrupted {
                "interrupted: "
            } else {
                ""
            },
            args.audit.display()
        ))?;
        let kept = kept_lines(draft);
        if !kept.is_empty() {
            out.print_line("kept, and what would lift that:")?;
        }
        print_kept(&kept, out)?;
    }
    out.flush()?;
    if args.yes {
        for note in &draft.notes {
            print_remark(note);
        }
    }
    Ok(())
}

/// The plan as JSON; also what `--plan` writes.
pub(super) fn as_object(draft: &PlanDraft) -> Value {
    let mut body = json!(draft.file);
    body["notes"] = json!(draft.notes);
    body["suspended_devices"] = json!(draft.suspended);
    json::json_envelope(KIND, &body)
}

pub(super) fn result_json(
    args: &CleanArgs,
    draft: &PlanDraft,
    report: &CleanupReport<'_>,
) -> Value {
    let cookies = report.applied.iter();
    let cookies = cookies.map(|AppliedEntry { entry, outcome }| CleanedCookie {
        ipc_ns: entry.sem.ns,
        semid: entry.sem.semid,
        key: entry.identity.key.to_string(),
        outcome: outcome.kind(),
        detail: outcome.detail(),
        owner: entry.owner.clone(),
        verdict: entry.verdict.clone(),
    });
    json::json_envelope(
        result::KIND,
        &CleanResult {
            complete: report.is_complete(),
            data_complete: !draft.incomplete,
            interrupted: report.interrupted,
            stopped: report.stopped.as_ref().map(ToString::to_string),
            planned: draft.wanted_count(),
            audit: args.audit.clone(),
            notes: draft.notes.clone(),
            suspended_devices: draft.suspended.clone(),
            cookies: cookies.collect(),
        },
    )
}

#[cfg(test)]
mod tests {
    use dmtrace_core::{cleanup::prospect::CleanFlags, ids::Key};

    use super::*;
    use crate::cli::{Verb, tests::parse_args};

    #[test]
    fn the_next_command_has_what_was_given() {
        let given = |words: &[&str]| match parse_args(&[&["clean"], words].concat()).verb {
            Verb::Clean(args) => given_text(&args),
            other => panic!("{other:?}"),
        };
        assert_eq!(given(&["--max", "3"]), "");
        for words in [
            &["--abandoned", "--ipc-ns", "7"][..],
            &["--complete", "--trace", "r.dmt", "--comm", "lvm"],
            &["--no-trace", "--older-than", "120", "0x0d4d1234", "7"],
        ] {
            assert_eq!(given(words), format!(" {}", words.join(" ")));
        }
    }

    #[test]
    fn a_refusal_says_what_would_lift_it() {
        let hint = |flags, ns, waits| {
            let command = CleanCommand {
                flags,
                key: Key(0x0d4d_0001),
                ns,
                name_ns: false,
                options: " --trace r.dmt",
            };
            let prospect = Prospect {
                flags: Some(flags),
                waits,
                obstacles: Vec::new(),
                completion_obstacles: Vec::new(),
            };
            lifting_hint(command, &prospect)
        };
        assert_eq!(
            hint(CleanFlags::FORCE_UNKNOWN, IpcNs::HOST, Vec::new()),
            "; if you are sure: dmtrace clean --force-unknown 0x0d4d0001 --trace r.dmt"
        );
        let young = Obstacle::TooYoung {
            seconds: 9,
            needed: 600,
        };
        assert_eq!(
            hint(CleanFlags::COMPLETE, IpcNs(7), vec![young]),
            "; to complete what is lost, once nobody has touched it for 10m00s: dmtrace clean \
             --complete 0x0d4d0001 --ipc-ns 7 --trace r.dmt"
        );
    }
}
