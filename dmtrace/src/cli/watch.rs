//! `dmtrace watch` and `dmtrace record`.

pub(crate) mod counted;
pub(crate) mod printer;
mod summary;

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use dmtrace_core::{
    ids::{IpcNs, SemId},
    ledger::Change,
    verdict::{Judged, State},
};
use serde_json::{Value, json};

use super::{
    args::{RecordArgs, WatchArgs},
    failure::{Failure, exit},
    filter::Filters,
    watch::{
        counted::CountedFindings,
        printer::{PrintStyle, Printer, full_tables, print_remark},
        summary::{Kept, print_summary},
    },
};
use crate::{
    host::{self, Scope},
    output::Out,
    probe::{DmState, Environment, StartError},
    trace::{
        recorder::{Overwrite, Recorder, Rotation},
        run::{BooksView, Observer, Tracing, build_runtime},
        session::{Session, Tap},
    },
    wording::{chain_text, count_noun},
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
        let told = printer.take_reported();
        let full = printer.take_full_tables();
        let limits = limits_text(ending.session.ledger().totals().enospc_failures, &full);
        let out = printer.out_mut();
        let kept = Kept {
            recording: args.record.as_deref(),
            filters: &args.filters,
        };
        print_summary(&ending, &kept, &told, limits, as_json, out)
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
            reported: CountedFindings::default(),
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
        let code = print_summary(&ending, &kept, &quiet.reported, limits, as_json, out)?;
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
    reported: CountedFindings,
    /// Namespaces in which no semaphore could be made.
    full: BTreeSet<IpcNs>,
}

impl Observer for QuietObserver {
    fn on_changes(&mut self, changes: &[Change], _view: &BooksView<'_>) -> Result<()> {
        self.full.extend(full_tables(changes));
        Ok(())
    }

    fn on_finding(&mut self, judged: &Judged<'_>, _view: &BooksView<'_>) -> Result<()> {
        let label = judged.verdict.class.label();
        self.reported.add(judged.semaphore, label);
        Ok(())
    }

    fn on_cleared(&mut self, sem: SemId, label: &'static str, view: &BooksView<'_>) -> Result<()> {
        self.reported.clear(sem, label, view.ledger);
        Ok(())
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
