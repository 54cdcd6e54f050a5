//! `dmtrace watch` and `dmtrace record`.

pub(crate) mod printer;

use std::{collections::BTreeSet, path::Path, process::ExitCode};

use anyhow::Result;
use dmtrace_core::{
    ids::IpcNs,
    ledger::Change,
    verdict::{Class, Judged, State, Thresholds},
};
use serde_json::{Value, json};

use super::{
    args::{RecordArgs, WatchArgs},
    failure::{Failure, exit},
    filter::{Filters, shell_word},
    watch::printer::{PrintStyle, Printer, full_tables, print_remark},
};
use crate::{
    host::{self, Scope},
    output::{Out, json, time},
    probe::{DmState, Environment, StartError, registry::running_tracers},
    render::row::Row,
    trace::{
        recorder::{Overwrite, Recorder, Rotation},
        run::{BooksView, Observer, TraceEnd, Tracing, build_runtime},
        session::{Session, Tap},
    },
    wording::{chain_text, count_noun, finding_commands},
};

/// Runs `watch`.
pub(crate) fn run(args: &WatchArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    check_filters(&args.filters)?;
    let recorder = match &args.record {
        Some(path) if path.as_os_str() == "-" => return Err(no_pipe().into()),
        Some(path) => Some(Recorder::create(path, Overwrite::Never, None)?),
        None => None,
    };
    build_runtime()?.block_on(async {
        let mut tracing =
            Tracing::start(args.tuning.probe_options(), recorder_tap(recorder.as_ref()))?;
        if let Some(recorder) = &recorder {
            recorder.name_file()?;
        }
        print_greeting(tracing.session(), as_json, args.duration.is_none());
        if args.all {
            print_remark(
                as_json,
                "sets that are no cookies are shown, not judged: findings are of cookies only",
            );
        }
        if let Some(ns) = args.filters.ipc_ns.filter(|_| !as_json) {
            let scope = Scope {
                namespaces: BTreeSet::from([ns]),
                ..Scope::default()
            };
            let read = host::take_snapshot(&scope);
            if let Some(missing) = args.filters.missing_ns_text(&read.namespaces) {
                print_remark(as_json, &missing);
            }
        }
        let style = PrintStyle {
            json: as_json,
            all: args.all,
        };
        let mut printer = Printer::new(out, style, &args.filters, args.count, recorder.clone());
        printer.print_header(&start_record(tracing.session()))?;
        tracing.run(&mut printer, args.duration, None).await?;
        let ending = tracing.finish(&mut printer)?;
        if let Some(recorder) = &recorder {
            recorder.finish(&ending);
        }
        let told = printer.finding_count();
        let full = printer.take_full_tables();
        let limits = limits_text(ending.session.ledger().totals().enospc_failures, &full);
        let out = printer.out_mut();
        let kept = Kept {
            recording: args.record.as_deref(),
            filters: &args.filters,
        };
        print_summary(&ending, &kept, told, limits, as_json, out)
    })
}

/// What would let nothing pass.
pub(super) fn check_filters(filters: &Filters) -> Result<()> {
    let told = |state: &&State| state.is_finding();
    match filters.state.iter().find(|state| !told(state)) {
        None => Ok(()),
        Some(state) => {
            let told: Vec<&str> = State::ALL.iter().filter(told).map(|it| it.name()).collect();
            Err(Failure::Usage(format!(
                "--state {state}: watch tells of findings only ({}); dmtrace list shows the rest",
                told.join(", ")
            ))
            .into())
        }
    }
}

/// A recording is read from its file while it grows.
fn no_pipe() -> Failure {
    let text =
        "-: a recording cannot go to standard output; give a file (./- for one of this name)";
    Failure::Usage(text.to_owned())
}

/// Runs `record`.
pub(crate) fn record(args: &RecordArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if args.file.as_os_str() == "-" {
        return Err(no_pipe().into());
    }
    let rotation = args.max_size.map(|max| Rotation {
        max: max.as_u64(),
        keep: args.keep,
    });
    let overwrite = if args.force {
        Overwrite::Yes
    } else {
        Overwrite::No
    };
    let recorder = Recorder::create(&args.file, overwrite, rotation)?;
    build_runtime()?.block_on(async {
        let mut tracing =
            Tracing::start(args.tuning.probe_options(), recorder_tap(Some(&recorder)))?;
        let meanwhile = recorder.name_file()?;
        print_greeting(tracing.session(), as_json, args.duration.is_none());
        if let Some(meanwhile) = meanwhile {
            print_remark(
                as_json,
                &format!(
                    "{0} is replaced at the end; until then this recording is {1}{2}",
                    args.file.display(),
                    meanwhile.display(),
                    match rotation {
                        Some(rotation) if rotation.keep > 0 =>
                            format!(", and {}.1 is the file before", args.file.display()),
                        _ => String::new(),
                    }
                ),
            );
        }
        let mut quiet = QuietObserver {
            recorder: recorder.clone(),
            findings: 0,
            full: BTreeSet::new(),
        };
        tracing.run(&mut quiet, args.duration, None).await?;
        let ending = tracing.finish(&mut quiet)?;
        recorder.finish(&ending);
        let limits = limits_text(
            ending.session.ledger().totals().enospc_failures,
            &quiet.full,
        );
        let kept = Kept {
            recording: Some(&args.file),
            filters: &Filters::default(),
        };
        let code = print_summary(&ending, &kept, quiet.findings, limits, as_json, out)?;
        if recorder.failure_text().is_some() {
            return Ok(exit::incomplete_code());
        }
        print_remark(
            as_json,
            &format!(
                "wrote {0}; read it with: dmtrace report {0}",
                args.file.display()
            ),
        );
        Ok(code)
    })
}

/// The tap of a recording, if there is one.
fn recorder_tap(
    recorder: Option<&Recorder>,
) -> impl FnOnce(&crate::probe::Tracer, dmtrace_core::ids::BootTime) -> Result<Option<Tap>, StartError>
{
    move |tracer, began| {
        recorder
            .map(|recorder| recorder.start_tap(tracer, began))
            .transpose()
            .map_err(|error| StartError::Other(chain_text(&error)))
    }
}

/// Writes, prints nothing; stops when the file can no longer be written.
struct QuietObserver {
    recorder: Recorder,
    findings: usize,
    /// Namespaces in which no semaphore could be made.
    full: BTreeSet<IpcNs>,
}

impl Observer for QuietObserver {
    fn on_changes(&mut self, changes: &[Change], _view: &BooksView<'_>) -> Result<()> {
        self.full.extend(full_tables(changes));
        Ok(())
    }

    fn on_finding(&mut self, _judged: &Judged<'_>, _view: &BooksView<'_>) -> Result<()> {
        self.findings += 1;
        Ok(())
    }

    fn on_ended_finding(&mut self, judged: &Judged<'_>, view: &BooksView<'_>) -> Result<()> {
        self.on_finding(judged, view)
    }

    fn on_idle(&mut self) -> Result<()> {
        self.recorder.flush();
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.recorder.failure_text().is_some()
    }
}

/// That the limits were reached, and where, as far as that was seen.
fn limits_text(failures: u64, full: &BTreeSet<IpcNs>) -> Option<String> {
    let place = match full.iter().collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        [ns] => format!(" in IPC namespace {ns}"),
        [ns, more @ ..] => format!(" in IPC namespace {ns} and {} more", more.len()),
    };
    (failures > 0).then(|| {
        format!(
            "{} failed: the limits of kernel.sem were reached{place}",
            count_noun(failures, "creation", "creations")
        )
    })
}

fn print_greeting(session: &Session, as_json: bool, until_interrupted: bool) {
    let tracer = session.tracer();
    let until = if until_interrupted {
        "; Ctrl-C ends"
    } else {
        ""
    };
    print_remark(
        as_json,
        &format!(
            "tracing ({} backend); {} existed before{until}",
            tracer.backend(),
            count_noun(
                session.preexisting_sets(),
                "semaphore set",
                "semaphore sets"
            )
        ),
    );
    let blind = tracer.backend().blind_spot_texts();
    if !blind.is_empty() {
        print_remark(
            as_json,
            "this backend is a last resort (dmtrace doctor says why); it does not see:",
        );
        for spot in blind {
            print_remark(as_json, &format!("  {spot}"));
        }
    }
    for what in tracer.missing_detail() {
        print_remark(as_json, &format!("this kernel does not show: {what}"));
    }
    match tracer.dm_state() {
        DmState::Attached { .. } => {}
        DmState::NotLoaded => print_remark(
            as_json,
            "device-mapper is not loaded: it will be traced as soon as it is",
        ),
        DmState::Impossible { reason } => print_remark(
            as_json,
            &format!("device-mapper cannot be traced, devices stay unknown: {reason}"),
        ),
    }
    if !session.is_registered() {
        print_remark(
            as_json,
            "cannot write /run/dmtrace: list, report and clean will not find this trace",
        );
    }
}

fn start_record(session: &Session) -> Value {
    let tracer = session.tracer();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": Environment::read().kernel,
        "backend": tracer.backend(),
        "blind_spots": tracer.backend().blind_spot_texts(),
        "missing_detail": tracer.missing_detail(),
        "device_mapper": session.dm_report(),
        "ring_bytes": tracer.ring_bytes(),
        "preexisting_sets": session.preexisting_sets(),
        "began_boot_ns": session.trace_start(),
        "command": std::env::args().collect::<Vec<_>>(),
    })
}

/// What the commands after a trace are to look at.
struct Kept<'a> {
    /// Where the trace was kept; without it, what it knew ends with it.
    recording: Option<&'a Path>,
    filters: &'a Filters,
}

impl Kept<'_> {
    /// The commands that say more of findings.
    fn commands(&self, leaked: usize) -> String {
        let filters = self.filters.args_text();
        if let Some(path) = self.recording {
            let file = shell_word(&path.display().to_string());
            return finding_commands(leaked, Some(&file), &filters);
        }
        let own = std::process::id();
        if running_tracers().iter().any(|tracer| tracer.pid != own) {
            // Another trace knows them as well.
            return finding_commands(leaked, None, &filters);
        }
        "shown above; --record FILE keeps a trace, so that report, explain and clean know who made \
         what after its end"
            .to_owned()
    }
}

/// Prints what happened in sum, and chooses the exit code.
///
/// `told` is how many findings were told while the trace ran.
fn print_summary(
    ending: &TraceEnd,
    kept: &Kept<'_>,
    told: usize,
    limits: Option<String>,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let filters = kept.filters;
    let ledger = ending.session.ledger();
    let totals = ledger.totals();
    let wanted = |judged: &Judged<'_>| {
        let mut row = Row::from_books(ledger, judged.semaphore, judged.set, ending.facts.now);
        row.age = row.age.or_else(|| row.wall_age(ending.facts.wall.0));
        row.verdict = Some(judged.verdict.clone());
        filters.passes(&row.candidate())
    };
    let judged: Vec<Judged<'_>> = ending
        .judge_cookies(&Thresholds::default())
        .into_iter()
        .filter(wanted)
        .collect();
    let count = |of: fn(Class) -> bool| judged.iter().filter(|it| of(it.verdict.class)).count();
    let counts = FindingCounts {
        all: count(Class::is_finding),
        leaked: count(|class| matches!(class, Class::Leaked(_))),
        told,
        undecided: count(|class| matches!(class, Class::Unknown(_))),
    };
    let accounting = &ending.accounting;
    let unread = ending.unread_summary();
    let certain = accounting.is_exact() && unread.is_none();
    let elapsed = ending.ran;
    if as_json {
        out.print_json(&json::json_envelope(
            "summary",
            &json!({
                "seconds": elapsed.as_secs_f64(),
                "backend": ending.session.tracer().backend(),
                "totals": totals,
                "findings": counts.all,
                "findings_told": told,
                "undecided": counts.undecided,
                "accounting": accounting,
                "device_mapper": ending.session.dm_report(),
                "exact": accounting.is_exact(),
                "complete": certain,
                "unread": unread,
            }),
        ))?;
    } else {
        let (sets, cookies) = (&totals.sets, &totals.cookies);
        out.print_line("")?;
        out.print_line(&format!(
            "{}{}: {} made ({}), {} removed ({}), {} there now ({})",
            time::age_text(elapsed),
            if filters.is_empty() {
                ""
            } else {
                ", whole host"
            },
            count_noun(sets.created, "set", "sets"),
            count_noun(cookies.created, "cookie", "cookies"),
            sets.destroyed,
            cookies.destroyed,
            sets.live,
            cookies.live
        ))?;
        if let Some(limits) = limits {
            out.print_line(&limits)?;
        }
        print_findings(counts, kept, certain, out)?;
        if let Some(unread) = &unread {
            out.print_line(unread)?;
        }
        out.print_line(&format!("accounting: {}", accounting.summary_line()))?;
        for deficit in &accounting.deficits {
            out.print_line(&format!("  {deficit}"))?;
        }
    }
    out.flush()?;
    Ok(if counts.all > 0 || told > 0 {
        exit::findings_code()
    } else if certain {
        exit::CLEAN
    } else {
        exit::incomplete_code()
    })
}

/// What was found, in numbers.
#[derive(Clone, Copy)]
struct FindingCounts {
    /// There at the end.
    all: usize,
    /// Leaks among these.
    leaked: usize,
    /// Told while the trace ran.
    told: usize,
    /// Cookies that could not be judged.
    undecided: usize,
}

fn print_findings(
    counts: FindingCounts,
    kept: &Kept<'_>,
    certain: bool,
    out: &mut Out,
) -> Result<()> {
    let FindingCounts {
        all,
        leaked,
        told,
        undecided,
    } = counts;
    let scope = kept.filters.scope_text();
    if all > 0 {
        out.print_line(&format!(
            "{}{scope}; {}",
            count_noun(all, "finding", "findings"),
            kept.commands(leaked)
        ))?;
    } else if told > 0 {
        out.print_line(&format!(
            "no leak now{scope}; {} in between, gone by now",
            count_noun(told, "finding", "findings")
        ))?;
    } else if !certain {
        out.print_line(&format!(
            "no leak seen{scope}, but that is not certain, for the reason below"
        ))?;
    } else if undecided > 0 {
        out.print_line(&format!(
            "no leak proven{scope}; {} undecided: dmtrace list --state unknown",
            count_noun(undecided, "cookie is", "cookies are")
        ))?;
    } else {
        out.print_line(&format!("no leak{scope}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_tables_are_told_with_their_namespace() {
        assert_eq!(limits_text(0, &BTreeSet::new()), None);
        let told = |spaces: &[u32]| {
            let spaces = spaces.iter().map(|&ns| IpcNs(ns)).collect();
            limits_text(5, &spaces).unwrap()
        };
        let text = "5 creations failed: the limits of kernel.sem were reached";
        assert_eq!(told(&[]), text);
        assert_eq!(told(&[7]), format!("{text} in IPC namespace 7"));
        assert_eq!(
            told(&[7, 8, 9]),
            format!("{text} in IPC namespace 7 and 2 more")
        );
    }
}
