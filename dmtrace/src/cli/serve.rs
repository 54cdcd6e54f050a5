//! `dmtrace serve`.

use std::{io::Write as _, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use dmtrace_core::{
    ids::IpcNs,
    verdict::{Class, is_worth_a_search},
};

use super::{
    args::ServeArgs,
    failure::{Failure, exit},
};
use crate::{
    case::{Case, SearchDepth, SearchWish, TraceUse},
    finding::{SetOwner, SetReport},
    history,
    host::{self, Roots, clock::boot_now},
    metrics::{self, Exposure},
    output::{Out, time},
    service::{self, ExportOptions, OrphanMark, SearchResult, ServiceReport, SocketAccess},
    trace::run::build_runtime,
    wording::{chain_text, count_noun, finding_commands},
};

/// Of the process that searches for the service.
const WORKER_NICENESS: i32 = 10;

pub(super) fn run(args: &ServeArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if args.search_worker {
        print_search()?;
        return Ok(exit::CLEAN);
    }
    if args.status || args.search {
        let (answer, status) = if args.search {
            service::ask_search()?
        } else {
            service::ask_status()?
        };
        if as_json {
            out.print_json(&answer)?;
        } else {
            print_status(&status, out)?;
        }
        return Ok(status_code(&status));
    }
    if args.remove {
        let removed = service::remove_left_pins(&args.pins)?;
        out.print_line(&removal_text(removed, &args.pins))?;
        for pins in service::left_elsewhere() {
            out.print_line(&format!(
                "a trace is left elsewhere: dmtrace serve --remove{pins}"
            ))?;
        }
        return Ok(exit::CLEAN);
    }
    if let Some(dir) = &args.metrics_textfile {
        metrics::check_textfile_dir(dir).context("--metrics-textfile")?;
    }
    if !args.no_history && args.history != Path::new(history::PATH) {
        history::check_named_file(&args.history).map_err(|error| as_usage(&error))?;
    }
    let hook = args.on_leak.as_deref().map(str::parse).transpose();
    let hook = hook
        .context("--on-leak")
        .map_err(|error| as_usage(&error))?;
    let group = args.group.as_deref().map(parse_group).transpose();
    let options = service::ServiceOptions {
        tracing: args.tuning.probe_options(),
        access: SocketAccess {
            group: group.map_err(|error| as_usage(&error))?,
        },
        verbose: args.verbose,
        auto_clean: args.auto_clean,
        audit: args.audit.clone(),
        history: (!args.no_history).then(|| history::HistoryOptions {
            path: args.history.clone(),
            limit: args.history_limit << 20,
            retention: args.history_for,
            boot_id: host::clock::boot_id(&Roots::host()).unwrap_or_default(),
        }),
        pins: args.pins.clone(),
        keep: args.keep,
        export: ExportOptions {
            listen: args.metrics.clone(),
            exposure: if args.metrics_exposed {
                Exposure::Network
            } else {
                Exposure::Loopback
            },
            textfile: args.metrics_textfile.clone(),
            hook,
        },
    };
    build_runtime()?.block_on(service::run_service(&options))?;
    Ok(exit::CLEAN)
}

/// Findings first, then whatever keeps "none" from being certain.
fn status_code(status: &ServiceReport) -> ExitCode {
    let orphaned = status.search.as_ref().and_then(|it| it.orphaned);
    match status.findings.standing {
        Some(1..) => exit::findings_code(),
        _ if orphaned > Some(0) => exit::findings_code(),
        Some(0) if status.unread.is_none() && !status.doubts.any() => exit::CLEAN,
        Some(0) | None => exit::incomplete_code(),
    }
}

/// Searches for the service: its answer is for that alone.
fn print_search() -> Result<()> {
    // The service and everybody else come first.
    // SAFETY: numbers. Where it is refused the search is as urgent as anything.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, WORKER_NICENESS) };
    let wish = SearchWish {
        depth: SearchDepth::Fast,
        vouched: Vec::new(),
        own_files: Vec::new(),
    };
    let case = Case::of_searched_host(None, TraceUse::MapsWithoutStacks, &wish)?;
    let mut found = SearchResult::default();
    let judged = case.judge_all();
    let older = judged
        .iter()
        .filter(|it| it.semaphore.is_live() && is_worth_a_search(it.verdict.class));
    for it in older {
        match it
            .set
            .filter(|_| matches!(it.verdict.class, Class::Orphaned(_)))
        {
            Some(set) => found.orphans.push(OrphanMark::new(it.semaphore.id, set)),
            None => found.held += u64::from(case.is_held(it.semaphore.key)),
        }
    }
    match case.completeness.marks.last() {
        Some(mark) => found.ended = Some(mark.search.ended),
        None if !judged.iter().any(|it| is_worth_a_search(it.verdict.class)) => {
            found.ended = Some(boot_now());
        }
        None => found.failure = case.notes.last().cloned(),
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &found)?;
    Ok(out.flush()?)
}

/// A value on the command line that makes no sense.
fn as_usage(error: &anyhow::Error) -> anyhow::Error {
    Failure::Usage(chain_text(error)).into()
}

/// What came of `--remove`, and where it has looked.
fn removal_text(removed: bool, pins: &Path) -> String {
    if removed {
        "tracing has stopped; nothing is left in the kernel".to_owned()
    } else {
        let shown = pins.display();
        format!("nothing to remove: no trace was left running in {shown}")
    }
}

/// Number of a group, by its name or as it is.
fn parse_group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let file = "/etc/group";
    let groups = std::fs::read_to_string(file).context(file)?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let number = fields.nth(1)?.parse().ok()?;
            found.then_some(number)
        })
        .next()
        .with_context(|| format!("--group: {file} has no group {name}"))
}

/// Who made a cookie, as `list` names it; what is not known is not named.
fn owner_text(set: &SetReport) -> String {
    let mark = set.owner_mark();
    match &set.owner {
        Some(SetOwner { pid, comm, .. }) if comm.is_empty() => format!("process {pid}{mark}"),
        Some(SetOwner { pid, comm, .. }) => format!("{comm}[{pid}]{mark}"),
        None => "owner unknown".to_owned(),
    }
}

/// Where it is, if not where one looks first.
fn ns_text(set: &SetReport) -> String {
    match set.ipc_ns {
        IpcNs::HOST => String::new(),
        other => format!("  IPC namespace {other}"),
    }
}

/// What is in doubt, and what a search has found of it.
fn search_lines(status: &ServiceReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(search) = &status.search {
        let when = search.seconds_ago.map(|seconds| {
            let age = time::age_text(Duration::from_secs(seconds));
            let held = match search.held {
                Some(1..) => format!(", {} held by somebody", search.held.unwrap_or_default()),
                _ => String::new(),
            };
            format!(
                "last search for holders {age} ago: {} orphaned{held}",
                search.orphaned.unwrap_or_default()
            )
        });
        lines.extend(when);
        if search.running {
            lines.push("a search for holders is being made".to_owned());
        }
        if let Some(why) = &search.failure {
            lines.push(format!("the last search for holders was not made: {why}"));
        }
        if search.orphaned > Some(0) {
            lines.push("remove what is orphaned: dmtrace clean".to_owned());
        }
    }
    lines.extend(status.doubts.line("", "dmtrace report"));
    lines
}

fn print_status(status: &ServiceReport, out: &mut Out) -> Result<()> {
    let or_unknown = |text: &str| if text.is_empty() { "?" } else { text }.to_owned();
    let health = &status.health;
    out.print_line(&format!(
        "dmtrace {} running for {}, pid {}, {} backend",
        or_unknown(&status.version),
        time::age_text(Duration::from_secs(status.seconds)),
        status.pid,
        or_unknown(&health.backend),
    ))?;
    if let Some(seconds) = status.as_of_seconds_ago {
        let age = time::age_text(Duration::from_secs(seconds));
        out.print_line(&format!(
            "the service is scanning; this status is {age} old, without the list of findings"
        ))?;
    }
    let cookies = status.totals.cookies;
    // Counted with the cookies, for their keys.
    let foreign = status.foreign_sets;
    let and_foreign = match foreign {
        0 => String::new(),
        _ => format!(", {}", count_noun(foreign, "foreign set", "foreign sets")),
    };
    out.print_line(&format!(
        "cookies: {} made, {} removed, {} there now{and_foreign}",
        cookies.created,
        cookies.destroyed,
        cookies.live.saturating_sub(foreign),
    ))?;
    out.print_line(&format!(
        "messages: seen {} = submitted {} + dropped {}{}; drift {}",
        health.seen,
        health.submitted,
        health.dropped,
        match health.dropped {
            0 => "",
            _ => " (recovered from the maps)",
        },
        health.drift,
    ))?;
    for line in search_lines(status) {
        out.print_hanging(&line, 2)?;
    }
    let listed = &status.findings.list;
    match status.findings.standing {
        None => out.print_line("the service does not say what it has found")?,
        Some(0) if status.unread.is_some() => {
            out.print_line("no active findings, but that is not certain, for the reason below")?;
        }
        Some(0) if status.doubts.any() => {
            out.print_line("no active findings, but that is not certain: see above")?;
        }
        Some(0) => out.print_line("no active findings")?,
        Some(standing) => {
            let leaked = |set: &&SetReport| {
                let class = set.verdict.as_ref().and_then(|verdict| verdict.class);
                matches!(class, Some(Class::Leaked(_)))
            };
            out.print_line(&format!(
                "{}; {}",
                count_noun(standing, "active finding", "active findings"),
                finding_commands(listed.iter().filter(leaked).count(), None, "")
            ))?;
        }
    }
    for set in listed {
        let verdict = set.verdict.as_ref().map_or("?", |it| it.text.as_str());
        out.print_line(&format!(
            "  {}  semid {}  {}{}  {verdict}",
            set.key,
            set.semid,
            ns_text(set),
            owner_text(set),
        ))?;
    }
    if let Some(unread) = &status.unread {
        out.print_line(unread)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::output::testing::capture_output;

    fn status_text(answer: &Value) -> String {
        let status = ServiceReport::deserialize(answer).unwrap();
        capture_output(None, |out| print_status(&status, out))
    }

    #[test]
    fn where_there_is_nothing_to_remove_it_is_said_where_that_is() {
        assert_eq!(
            removal_text(false, Path::new("/sys/fs/bpf/mine")),
            "nothing to remove: no trace was left running in /sys/fs/bpf/mine"
        );
    }

    #[test]
    fn a_status_says_what_the_service_cannot_read() {
        let none = json!({"standing": 0});
        let blind = status_text(&json!({
            "unread": "not everything could be read: /proc; mount it",
            "findings": none,
        }));
        let end = "no active findings, but that is not certain, for the reason below\n\
                   not everything could be read: /proc; mount it\n";
        assert!(blind.ends_with(end), "{blind}");
        let old = status_text(&json!({"unread": null, "findings": none}));
        assert!(old.ends_with("no active findings\n"), "{old}");
    }

    #[test]
    fn a_status_tells_when_the_last_search_was_and_what_it_found() {
        let of = |object: Value| {
            let status = ServiceReport::deserialize(&object).unwrap();
            (status_text(&object), status_code(&status))
        };
        let (text, code) = of(json!({
            "findings": {"standing": 0},
            "search": {"made": 1, "seconds_ago": 40, "orphaned": 128, "held": 2},
            "doubts": {"older": 2},
        }));
        for part in [
            "last search for holders 40s ago: 128 orphaned, 2 held by somebody\n",
            "cannot tell: 2 cookies are older than any trace: dmtrace report\n",
            "no active findings, but that is not certain: see above\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(code, exit::findings_code());
        let (text, code) = of(json!({
            "findings": {"standing": 0},
            "search": {"running": true, "made": 1, "orphaned": null},
            "doubts": {"older": 128},
        }));
        assert!(
            text.contains("a search for holders is being made\n"),
            "{text}"
        );
        assert!(!text.contains("orphaned"), "nobody knows yet: {text}");
        assert_eq!(code, exit::incomplete_code());
        let (text, code) = of(json!({"findings": {"standing": 0}, "search": {"orphaned": 0}}));
        assert!(text.ends_with("\nno active findings\n"), "{text}");
        assert_eq!(code, exit::CLEAN);
    }

    #[test]
    fn a_status_without_findings_is_no_status_of_none() {
        for silent in [json!({}), json!({"findings": {"standing": "many"}})] {
            let text = status_text(&silent);
            assert!(
                text.ends_with("the service does not say what it has found\n"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_status_counts_cookies_as_list_does() {
        let told = |foreign: u64| {
            status_text(&json!({
                "totals": {"cookies": {"created": 60, "destroyed": 0, "live": 60}},
                "foreign_sets": foreign,
            }))
        };
        let mixed = told(1);
        assert!(mixed.contains(" 59 there now, 1 foreign set\n"), "{mixed}");
        let plain = told(0);
        assert!(plain.contains(" 60 there now\n"), "{plain}");
    }

    #[test]
    fn an_owner_that_is_not_known_has_no_name_and_no_number() {
        let of = |row: Value| owner_text(&SetReport::deserialize(row).unwrap());
        assert_eq!(of(json!({"owner": null})), "owner unknown");
        assert_eq!(of(json!({})), "owner unknown");
        assert_eq!(of(json!({"owner": {"pid": 7, "comm": ""}})), "process 7");
        let known =
            json!({"owner_known": "observed", "owner": {"pid": 7, "comm": "lvm", "ended": true}});
        assert_eq!(of(known), "lvm[7]+");
        let inferred = json!({"owner_known": "inferred", "owner": {"pid": 7, "comm": "lvm"}});
        assert_eq!(of(inferred), "lvm[7]?");
    }
}
