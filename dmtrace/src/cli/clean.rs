//! `dmtrace clean`: removes cookies whose leak is proven, and nothing else.

mod again;
mod kept;
mod limit;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Result;
use dmtrace_core::{
    cleanup::{
        plan::{OLDER_THAN, Plan, PlanEntry, PlanOptions, PlannedAction},
        prospect::{CleanFlags, Prospect},
    },
    facts::SuspendedDevice,
    ids::SemId,
    verdict::{Context, Judged, RemovalRules},
};

use super::{
    args::CleanArgs,
    failure::{Failure, exit},
    filter::Filters,
    value::CookieName,
};
use crate::{
    case::{Case, SearchDepth},
    cleanup::{
        apply::{CleanupReport, apply_plan},
        audit::Audit,
        file::PlanFile,
        witness::Witness,
    },
    host::{Roots, clock, devices},
    output::{Out, print_remark},
    probe::environment::Capabilities,
    render::doubt::DoubtCounts,
    wording::{causes_text, count_noun},
};

/// A plan, and what is to be said with it.
struct PlanDraft {
    file: PlanFile,
    notes: Vec<String>,
    /// Cookies that are kept because nobody can tell whether they are leaked.
    doubts: DoubtCounts,
    /// Something could not be read, so that more may be leaked.
    incomplete: bool,
    suspended: Vec<SuspendedDevice>,
    /// Options that would make it act on what it keeps.
    lifts: BTreeMap<SemId, Prospect>,
    /// Something that is to be removed may have been touched in this very second.
    fresh: bool,
}

pub(super) fn run(args: &CleanArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if args.raise_limit {
        return limit::raise_limit(args, as_json, out);
    }
    if args.restore_limit {
        return limit::restore_limit(args, as_json, out);
    }
    check_args(args, as_json)?;
    // Before rights and terminals are spoken of: a file that is not there comes first.
    let given = args.plan.as_deref().filter(|_| args.apply);
    let given = given.map(|path| read_plan(path, args.max)).transpose()?;
    if args.apply {
        check_rights()?;
    }
    let draft = match given {
        Some(draft) => draft,
        None => again::draft_plan(args)?,
    };
    if args.apply {
        let code = carry_out(args, &draft, as_json, out)?;
        return Ok(code);
    }
    let object = text::as_object(&draft);
    if let Some(path) = &args.plan {
        PlanFile::write(path, &object.to_string())?;
    }
    if as_json {
        out.print_json(&object)?;
    } else {
        text::print_plan(args, &draft, out)?;
        text::print_advice(args, &draft, out)?;
    }
    Ok(if draft.wanted_count() > 0 {
        exit::findings_code()
    } else if draft.is_uncertain() {
        exit::incomplete_code()
    } else {
        exit::CLEAN
    })
}

impl PlanDraft {
    const fn plan(&self) -> &Plan {
        &self.file.plan
    }

    /// Whether more may be leaked than what it acts on.
    const fn is_uncertain(&self) -> bool {
        self.incomplete || self.doubts.any()
    }

    /// What is to be completed.
    fn completion_count(&self) -> usize {
        let completed = |entry: &&PlanEntry| entry.action.completion().is_some();
        self.plan().entries.iter().filter(completed).count()
    }

    /// What would be done if the fuse allowed it.
    fn wanted_count(&self) -> usize {
        let wanted = |entry: &&PlanEntry| match &entry.action {
            PlannedAction::Destroy | PlannedAction::Complete(_) => true,
            PlannedAction::Keep { obstacles: because } => because.is_empty(),
        };
        self.plan().entries.iter().filter(wanted).count()
    }
}

/// What makes no sense, and what will not work, before any work.
fn check_args(args: &CleanArgs, as_json: bool) -> Result<()> {
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()).into());
    let filters = &args.filters;
    let named = [filters.semid.is_some(), filters.key.is_some()];
    let named = named.iter().filter(|it| **it).count() + args.cookies.len();
    // Several only after somebody has had a list of them to look at.
    let reviewed = args.plan.is_some() && !args.apply;
    let chosen = !filters.is_empty() || !args.cookies.is_empty();
    if args.force_unknown && named != 1 && !(reviewed && chosen) {
        return usage(
            "--force-unknown: name one cookie: dmtrace clean --force-unknown COOKIE; or choose \
             several with filters, into a plan to look at: --force-unknown --ipc-ns NS --plan FILE",
        );
    }
    if args.apply && args.plan.is_some() {
        let plain = filters.is_empty()
            && args.cookies.is_empty()
            && !args.abandoned
            && !args.force_unknown
            && !args.complete
            && args.older_than.is_none()
            && args.source.trace.is_none()
            && !args.source.no_trace;
        if !plain {
            return usage(
                "--apply --plan carries out the plan in the file as it is; give cookies, filters \
                 and options when it is made",
            );
        }
    }
    if !args.apply {
        // Before any work; what comes up meanwhile is not replaced either.
        args.plan.as_deref().map_or(Ok(()), PlanFile::check_free)?;
        return Ok(());
    }
    if !args.yes && as_json {
        return usage("--json --apply: nothing can be asked in JSON; use --apply --yes");
    }
    Ok(())
}

/// Whether somebody can be asked, where that is needed.
fn check_terminal(args: &CleanArgs, wanted: usize, is_terminal: bool) -> Result<()> {
    if args.yes || wanted == 0 || is_terminal {
        return Ok(());
    }
    let text = "--apply: there is no terminal to ask on; use --apply --yes";
    Err(Failure::Usage(text.to_owned()).into())
}

/// Whether this process may carry anything out.
fn check_rights() -> Result<()> {
    if !Capabilities::of_this_process().sys_admin {
        return Err(Failure::Environment(
            "--apply needs CAP_SYS_ADMIN, to enter IPC namespaces and remove others' semaphores; \
             run the same command as root (sudo)"
                .to_owned(),
        )
        .into());
    }
    Ok(())
}

/// The plan in a file.
fn read_plan(path: &std::path::Path, max: Option<usize>) -> Result<PlanDraft> {
    let roots = Roots::host();
    let mut file = PlanFile::read(path, clock::boot_id(&roots).as_deref())?;
    file.plan.apply_limit(max);
    Ok(PlanDraft {
        doubts: file.doubts,
        incomplete: !file.complete,
        file,
        notes: Vec::new(),
        suspended: devices::read_devices(&roots).suspended,
        lifts: BTreeMap::new(),
        fresh: false,
    })
}

/// Whether a plan is made for the first time by this command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Attempt {
    First,
    Again,
}

/// `least`: what is younger is kept, whatever is asked for.
fn draft_once(args: &CleanArgs, least: Duration, attempt: Attempt) -> Result<PlanDraft> {
    let roots = Roots::host();
    let mut wish = args.search.to_wish(SearchDepth::Full);
    if attempt == Attempt::Again && wish.depth == SearchDepth::Full {
        // What was searched just now still counts.
        wish.depth = SearchDepth::Fast;
    }
    wish.own_files.push(args.audit.clone());
    let recording = args.source.trace.as_deref();
    let join = (!args.source.no_trace).into();
    let mut case = Case::of_searched_host(recording, join, &wish)?;
    let older_than = args.older_than.unwrap_or(OLDER_THAN).max(least);
    case.thresholds.old = match args.older_than {
        Some(older_than) if args.force_unknown => older_than,
        _ => case.thresholds.old.max(older_than),
    };
    let context = case.context();
    let judged = chosen_cookies(&case, args);
    let hidden = args.filters.unknown_makers_text(&case);
    let absent = absent_lines(&args.cookies, &judged, &args.filters)?;
    if args.force_unknown && judged.len() > 1 && args.plan.is_none() {
        return Err(Failure::Usage(format!(
            "--force-unknown: several cookies match ({}); name one, with --ipc-ns",
            judged.len()
        ))
        .into());
    }
    let options = PlanOptions {
        rules: RemovalRules {
            inferred: false,
            older_than,
        },
        max: args.max,
        abandoned: args.abandoned,
        force_unknown: args.force_unknown,
        complete: args.complete,
    };
    let lifts = lifting_prospects(&judged, &case, &context, options);
    let mut plan = Plan::build(&judged, &case.ledger, &context, options);
    plan.entries.sort_by_key(|entry| entry.sem);
    let unread = plan.entries.iter().any(kept::is_kept_unread);
    let kept: BTreeSet<SemId> = plan
        .entries
        .iter()
        .filter(|entry| matches!(entry.action, PlannedAction::Keep { .. }))
        .map(|entry| entry.sem)
        .collect();
    let in_doubt = judged.iter().filter(|it| kept.contains(&it.semaphore.id));
    let doubts = in_doubt.filter_map(Judged::doubt).collect();
    let incomplete = case.incomplete || unread;
    let fresh = plan.pending().any(|it| again::is_fresh(it, &case.facts));
    Ok(PlanDraft {
        file: PlanFile {
            boot_id: clock::boot_id(&roots),
            plan,
            doubts,
            complete: !incomplete,
        },
        doubts,
        incomplete,
        notes: case.notes.into_iter().chain(absent).chain(hidden).collect(),
        suspended: case.facts.dm.suspended,
        lifts,
        fresh,
    })
}

/// What would make a plan act on what it keeps with these options: others.
fn lifting_prospects(
    judged: &[Judged<'_>],
    case: &Case,
    context: &Context<'_>,
    options: PlanOptions,
) -> BTreeMap<SemId, Prospect> {
    let lift = |cookie: &Judged<'_>| {
        let prospect = Prospect::ask_plan(cookie, &case.ledger, context, Some(options));
        let others = prospect.flags? != CleanFlags::default();
        others.then_some((cookie.semaphore.id, prospect))
    };
    judged.iter().filter_map(lift).collect()
}

/// The cookies that were named and that the filters let pass, judged.
pub(super) fn chosen_cookies<'a>(case: &'a Case, args: &CleanArgs) -> Vec<Judged<'a>> {
    let mut judged = case.judge_all();
    judged.retain(|judged| {
        let row = case.row_of(judged.clone());
        let id = judged.semaphore.id;
        let named = |name: &CookieName| name.matches(judged.semaphore.key, id.semid);
        (args.cookies.is_empty() || args.cookies.iter().any(named))
            && args.filters.passes(&row.candidate())
    });
    judged
}

/// A line for each cookie that was named and is not there.
///
/// # Errors
/// One number names several: nobody is to guess which was meant.
fn absent_lines(
    names: &[CookieName],
    judged: &[Judged<'_>],
    filters: &Filters,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for name in names {
        let found: Vec<_> = judged
            .iter()
            .filter(|it| name.matches(it.semaphore.key, it.semaphore.id.semid))
            .collect();
        if found.is_empty() {
            notes.push(format!(
                "{name}: no such cookie is there{}; dmtrace list shows all",
                filters.scope_text()
            ));
        }
        if found.len() > 1 {
            let spaces: Vec<String> = found
                .iter()
                .map(|it| it.semaphore.id.ns.to_string())
                .collect();
            return Err(Failure::Usage(format!(
                "{name} names {}, in the IPC namespaces {}; say which with --ipc-ns, or give the key",
                count_noun(found.len(), "cookie", "cookies"),
                spaces.join(", ")
            ))
            .into());
        }
    }
    Ok(notes)
}

/// Asks, and carries out.
fn carry_out(
    args: &CleanArgs,
    draft: &PlanDraft,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let plan = draft.plan();
    if plan.over_limit {
        let text = format!(
            "{}: nothing was done; {}",
            text::excess_text(draft),
            text::lift_text(args, draft)
        );
        return Err(Failure::Partial(text).into());
    }
    check_terminal(args, draft.wanted_count(), io::stdin().is_terminal())?;
    let nothing = draft.wanted_count() == 0;
    // Who asks for nothing but the act wants to know why there is none.
    if !args.yes || (nothing && !as_json) {
        text::print_plan(args, draft, out)?;
        if !nothing {
            out.flush()?;
            if !ask_confirmation(&text::pending_text(draft))? {
                out.print_line("nothing was done.")?;
                return Ok(exit::findings_code());
            }
        }
    }
    let report = if nothing {
        CleanupReport::default()
    } else {
        let mut audit = Audit::open(&args.audit)?;
        let stop = stop_on_signals();
        let mut broken = None;
        let report = apply_plan(plan, &mut audit, witness(), stop, &mut |applied| {
            if !as_json
                && broken.is_none()
                && let Err(error) = text::print_result(applied, out).and_then(|()| out.flush())
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
        out.print_json(&text::result_json(args, draft, &report))?;
    } else {
        text::print_conclusion(args, draft, &report, out)?;
    }
    if let Some(error) = &report.stopped {
        print_remark(&causes_text(error));
    }
    Ok(if !report.is_complete() {
        exit::partial_code()
    } else if draft.is_uncertain() {
        exit::incomplete_code()
    } else {
        exit::CLEAN
    })
}

#[cfg(feature = "live")]
fn witness() -> Arc<dyn Witness> {
    Arc::new(crate::cleanup::witness::TraceWitness::open())
}

#[cfg(not(feature = "live"))]
fn witness() -> Arc<dyn Witness> {
    Arc::new(crate::cleanup::witness::NoWitness)
}

/// Asks on the terminal.
fn ask_confirmation(acts: &str) -> io::Result<bool> {
    let mut terminal = io::stderr();
    write!(terminal, "{acts}? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Set by the first Ctrl-C. The second one ends the program.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the work between two cookies.
fn stop_on_signals() -> &'static AtomicBool {
    extern "C" fn note_interrupt(_: i32) {
        STOP.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    let handler: extern "C" fn(i32) = note_interrupt;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{
            Verb,
            tests::{TestPage, parse_args},
        },
        wording::chain_text,
    };

    fn clean_args(words: &[&str]) -> CleanArgs {
        match parse_args(&[&["clean"], words].concat()).verb {
            Verb::Clean(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plan_that_is_not_there_is_said_before_anything_else() {
        let mut args = clean_args(&["--apply", "--plan", "/nosuch/x.plan"]);
        for yes in [false, true] {
            args.yes = yes;
            let error = run(&args, false, &mut TestPage::default().out()).unwrap_err();
            let text = chain_text(&error);
            assert!(text.contains("/nosuch/x.plan"), "{text}");
            assert!(text.contains("No such file"), "{text}");
        }
    }

    #[test]
    fn a_terminal_is_needed_only_where_something_is_asked() {
        let (asking, sure) = (clean_args(&["--apply"]), clean_args(&["--apply", "--yes"]));
        assert!(check_terminal(&asking, 3, false).is_err());
        assert!(check_terminal(&asking, 0, false).is_ok());
        assert!(check_terminal(&asking, 3, true).is_ok());
        assert!(check_terminal(&sure, 3, false).is_ok());
    }
}
