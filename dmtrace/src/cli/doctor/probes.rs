//! Attaching for real: which backend, which probe, and why not a better one.

use dmtrace_core::backend::Backend;
use serde_json::json;

use super::{CheckStatus, DoctorReport, TracingState, selftest};
use crate::probe::{
    AttachOutcome, Attempt, DmState, Environment, Options, ProgramPlan, StartError, Tracer,
};

/// Small: nothing but the self-test goes through it.
const OPTIONS: Options = Options {
    backend: None,
    ring_bytes: 1 << 20,
    max_sems: 65_536,
    max_procs: 1024,
};

/// Attaches, and tells what came of it.
pub(super) fn check_probes(environment: &Environment, report: &mut DoctorReport) -> TracingState {
    let mut tracer = match Tracer::start(OPTIONS) {
        Ok(tracer) => tracer,
        Err(error) => {
            report.add_failure("attach", error.to_string(), fix_text(&error, environment));
            return TracingState::Impossible;
        }
    };
    report
        .more
        .push(("backend", json!(tracer.backend().name())));
    report.more.push(("attempts", json!(tracer.attempts())));
    report
        .more
        .push(("device_mapper", json!(tracer.dm_state())));
    report
        .more
        .push(("device_mapper_attempts", json!(tracer.dm_attempts())));
    report_skipped(&tracer, report);
    report_chosen(&tracer, report);
    report_preemption(&tracer, environment, report);
    device_mapper(&tracer, report);
    for what in tracer.missing_detail() {
        report.add_warning(
            "detail",
            format!("not captured on this kernel: {what}"),
            "please report the kernel version",
        );
    }
    selftest::check_selftest(&mut tracer, report);
    TracingState::Works
}

/// What lets it start, as far as that is not in the error.
fn fix_text(error: &StartError, environment: &Environment) -> String {
    let report = "please report the kernel version (uname -r) and this line";
    match error {
        StartError::Privilege { .. } => "run as root: sudo dmtrace doctor".to_owned(),
        StartError::Lockdown => "boot without lockdown=confidentiality".to_owned(),
        StartError::NoBtf(missing) => missing.fix.clone(),
        StartError::UnknownKernel(_) => report.to_owned(),
        StartError::NoBackend(_) => {
            let mut fixes = Vec::new();
            if let Err(obstacle) = &environment.tracefs {
                fixes.push(obstacle.fix.clone());
            }
            let paranoid = environment.perf_event_paranoid.is_some_and(|it| it >= 3);
            if paranoid && !environment.capabilities.sys_admin {
                fixes.push("sysctl kernel.perf_event_paranoid=2, or run as root".to_owned());
            }
            if fixes.is_empty() {
                fixes.push(report.to_owned());
            }
            fixes.join("; ")
        }
        StartError::Other(_) if environment.capabilities.sys_admin => report.to_owned(),
        StartError::Other(_) => "run as root: sudo dmtrace doctor".to_owned(),
    }
}

/// Better backends that do not work here. Only the reason of the last way counts: the others are
/// for other kernels.
fn report_skipped(tracer: &Tracer, report: &mut DoctorReport) {
    for backend in Backend::ALL
        .into_iter()
        .take_while(|&backend| backend != tracer.backend())
    {
        let reason = tracer
            .attempts()
            .iter()
            .filter(|attempt| attempt.backend == backend)
            .filter_map(|attempt| match &attempt.outcome {
                AttachOutcome::Failed(reason) => Some((attempt.subject, reason)),
                AttachOutcome::Attached | AttachOutcome::NotNeeded => None,
            })
            .next_back();
        let text = match reason {
            Some((subject, reason)) => {
                format!("{backend}: does not work here ({subject}): {reason}")
            }
            None => format!("{backend}: does not work here"),
        };
        report.add_warning("backend", text, "");
    }
}

fn report_chosen(tracer: &Tracer, report: &mut DoctorReport) {
    let backend = tracer.backend();
    let blind = backend.blind_spot_texts();
    if blind.is_empty() {
        report.add_pass("backend", format!("{backend}: chosen; sees everything"));
    } else {
        report.add_check(
            "backend",
            CheckStatus::Warn,
            format!("{backend}: chosen; does not see {}", blind.join("; ")),
            None,
        );
    }
    let mine: Vec<&Attempt> = tracer
        .attempts()
        .iter()
        .filter(|attempt| attempt.backend == backend)
        .collect();
    report_probes(&mine, report);
}

/// Only trampolines and raw tracepoints can be preempted; kprobes and system call tracepoints run
/// with preemption off.
fn report_preemption(tracer: &Tracer, environment: &Environment, report: &mut DoctorReport) {
    let kernel = environment.preemption.text();
    report
        .more
        .push(("preemption", json!(environment.preemption)));
    report.more.push(("plan", json!(tracer.plan())));
    match (
        environment.preemption.plan(),
        tracer.plan(),
        tracer.backend(),
    ) {
        (ProgramPlan::Plain, _, _) => report.add_pass("preemption", kernel),
        (_, ProgramPlan::Preempted, _) => report.add_pass(
            "preemption",
            format!("{kernel}; probes are where it cannot, or twice"),
        ),
        (_, ProgramPlan::Plain, Backend::Trampoline) => report.add_warning(
            "preemption",
            format!("{kernel}, and the probes for that do not work here: runs may be skipped"),
            "dmtrace watch --backend kprobe, which the kernel does not preempt",
        ),
        (_, ProgramPlan::Plain, backend) => report.add_pass(
            "preemption",
            format!("{kernel}, but not inside a {backend}; a probe that it skips is counted"),
        ),
    }
}

/// device-mapper has its own choice, apart from the backend.
fn device_mapper(tracer: &Tracer, report: &mut DoctorReport) {
    match tracer.dm_state() {
        DmState::NotLoaded => {
            report.add_pass(
                "device-mapper",
                "dm_mod is not loaded; dmtrace will attach when it is".to_owned(),
            );
            return;
        }
        DmState::Attached { by, uevents } => {
            let how = if *uevents {
                ""
            } else {
                "; uevents by what the ioctls return"
            };
            report.add_pass("device-mapper", format!("{by}: chosen{how}"));
        }
        DmState::Impossible { .. } => {}
    }
    let mine: Vec<&Attempt> = tracer.dm_attempts().iter().collect();
    report_probes(&mine, report);
    for attempt in &mine {
        let better = mine.iter().any(|other| {
            other.subject == attempt.subject
                && matches!(other.outcome, AttachOutcome::Attached)
                && other.backend != attempt.backend
        });
        if let (true, AttachOutcome::Failed(reason)) = (better, &attempt.outcome) {
            report.add_warning("probe", format!("{}: {reason}", attempt.subject), "");
        }
    }
}

fn report_probes(mine: &[&Attempt], report: &mut DoctorReport) {
    for attempt in mine {
        let hooks = hooks_text(&attempt.hooks);
        match &attempt.outcome {
            AttachOutcome::Attached => {
                report.add_pass("probe", format!("{}: {hooks}", attempt.subject));
            }
            AttachOutcome::NotNeeded => {}
            AttachOutcome::Failed(reason) => {
                let other = mine.iter().any(|other| {
                    other.subject == attempt.subject
                        && matches!(other.outcome, AttachOutcome::Attached)
                });
                if !other {
                    report.add_warning(
                        "probe",
                        format!(
                            "{}: {reason}; not seen: {}",
                            attempt.subject, attempt.provides
                        ),
                        "",
                    );
                }
            }
        }
    }
}

/// Where a subject is seen; what stands there several times is named once.
fn hooks_text(hooks: &[String]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for hook in hooks {
        match counted.iter_mut().find(|(name, _)| name == hook) {
            Some((_, count)) => *count += 1,
            None => counted.push((hook, 1)),
        }
    }
    let texts: Vec<String> = counted
        .into_iter()
        .map(|(hook, count)| match count {
            1 => hook.to_owned(),
            _ => format!("{hook} x{count}"),
        })
        .collect();
    texts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_hooks_are_named_once() {
        let hooks = ["sys_enter", "sys_exit", "sys_exit"].map(|it| format!("raw_tp:{it}"));
        assert_eq!(hooks_text(&hooks), "raw_tp:sys_enter raw_tp:sys_exit x2");
        assert_eq!(hooks_text(&[]), "");
    }
}
