//! Attaching the programs of one backend, really, and saying why where it fails.

use std::os::fd::AsFd as _;

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};
use dmtrace_core::{backend::Backend, parallel::together_at_most};
use serde::Serialize;

use super::{
    catalog::subjects_of,
    link::Link,
    spec::{Attachment, ProbeHook, ProbeSubject, ProgramPlan, SubjectWeight},
    tracepoint::Tracepoints,
};
use crate::wording::cause_text;

/// What came of a way to see a subject.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttachOutcome {
    /// Its programs are attached.
    Attached,
    /// They are not, for this reason.
    Failed(String),
    /// Not tried: a better way, or a better backend, works.
    NotNeeded,
}

/// One line of the attach report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attempt {
    pub backend: Backend,
    pub subject: &'static str,
    /// What it provides, in words.
    pub provides: &'static str,
    /// Hooks of this way.
    pub hooks: Vec<String>,
    /// What came of it.
    pub outcome: AttachOutcome,
}

impl Attempt {
    pub(super) fn new(
        backend: Backend,
        subject: &ProbeSubject,
        way: &[Attachment],
        outcome: AttachOutcome,
    ) -> Self {
        Self {
            backend,
            subject: subject.name,
            provides: subject.provides,
            hooks: way.iter().map(|it| it.hook.to_string()).collect(),
            outcome,
        }
    }
}

/// Links that hold the programs in place; dropping them detaches, unless they are pinned.
pub(super) type Links = Vec<Link>;

/// Programs in their places.
#[derive(Default)]
pub(super) struct Attached {
    /// What holds them there.
    pub links: Links,
    pub attachments: Vec<Attachment>,
}

/// Attaches all subjects of a backend, or nothing.
///
/// # Errors
/// The first required subject that no way leads to, with the reason of its last way.
pub(super) fn attach_backend(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    backend: Backend,
    plan: ProgramPlan,
    end: ProgramPlan,
    tracepoints: &Tracepoints,
    report: &mut Vec<Attempt>,
) -> Result<Attached, String> {
    let mut all = Attached::default();
    let best = || {
        let ways = subjects_of(backend, plan, end).filter_map(|subject| subject.ways.first());
        ways.copied().flatten()
    };
    for (number, subject) in subjects_of(backend, plan, end).enumerate() {
        // Once the kernel has taken one of this backend, it will take most of the others. Where
        // there are no kprobes, that shows only when one is attached (`perf_event_open`).
        let taken = match backend {
            Backend::Kprobe => number == 1,
            _ => {
                number == 0
                    && best()
                        .next()
                        .is_some_and(|it| ensure_loaded(ebpf, btf, *it).is_ok())
            }
        };
        if taken {
            load_together(ebpf, btf, best());
        }
        match attach_subject(ebpf, btf, backend, subject, tracepoints, report) {
            Ok(more) => {
                all.links.extend(more.links);
                all.attachments.extend(more.attachments);
            }
            Err(reason) if subject.weight == SubjectWeight::Required => return Err(reason),
            Err(_) => {}
        }
    }
    Ok(all)
}

fn attach_subject(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    backend: Backend,
    subject: &ProbeSubject,
    tracepoints: &Tracepoints,
    report: &mut Vec<Attempt>,
) -> Result<Attached, String> {
    let mut result = Err("no way known".to_owned());
    for way in subject.ways {
        let outcome = if result.is_ok() {
            AttachOutcome::NotNeeded
        } else {
            let links: Result<Links, String> = way
                .iter()
                .map(|attachment| attach_program(ebpf, btf, *attachment, tracepoints))
                .collect();
            result = links.map(|links| Attached {
                links,
                attachments: way.to_vec(),
            });
            match &result {
                Ok(_) => AttachOutcome::Attached,
                Err(reason) => AttachOutcome::Failed(reason.clone()),
            }
        };
        report.push(Attempt::new(backend, subject, way, outcome));
    }
    result
}

/// Loads a program and puts it in its place.
///
/// # Errors
/// The kernel refuses; in words.
pub(super) fn attach_program(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    attachment: Attachment,
    tracepoints: &Tracepoints,
) -> Result<Link, String> {
    ensure_loaded(ebpf, btf, attachment)?;
    let hook = attachment.hook;
    let program = find_program(ebpf, attachment)?;
    let result = match (program, hook) {
        (Program::FEntry(program), ProbeHook::Fentry(_)) => program
            .attach()
            .and_then(|id| program.take_link(id))
            .map(|link| Link::Fd(link.into())),
        (Program::FExit(program), ProbeHook::Fexit(_)) => program
            .attach()
            .and_then(|id| program.take_link(id))
            .map(|link| Link::Fd(link.into())),
        (
            Program::KProbe(program),
            ProbeHook::Kprobe(function) | ProbeHook::Kretprobe(function),
        ) => program
            .attach(function, 0)
            .and_then(|id| program.take_link(id))
            .map(Link::of_perf),
        (Program::TracePoint(program), ProbeHook::Tracepoint(category, tracepoint)) => {
            let program = program.fd().map_err(|error| error_text(&error));
            let link = program.and_then(|program| {
                tracepoints.attach_program(program.as_fd(), category, tracepoint)
            });
            return link.map_err(|reason| format!("{hook}: {reason}"));
        }
        (Program::RawTracePoint(program), ProbeHook::RawTracepoint(tracepoint)) => program
            .attach(tracepoint)
            .and_then(|id| program.take_link(id))
            .map(|link| Link::Fd(link.into())),
        _ => return Err(other_type(attachment)),
    };
    result.map_err(|error| format!("{hook}: {}", error_text(&error)))
}

/// Loads a program, if that has not been done.
///
/// # Errors
/// The kernel refuses; in words.
pub(super) fn ensure_loaded(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    attachment: Attachment,
) -> Result<(), String> {
    load_program(find_program(ebpf, attachment)?, btf, attachment)
}

/// Loads programs beforehand, on all processors: the verifier, which takes most of a start, holds
/// no lock for who has `CAP_BPF` (`bpf_check`). What fails here fails again, with its reason told,
/// when it is attached.
pub(super) fn load_together<'a>(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    attachments: impl Iterator<Item = &'a Attachment>,
) {
    let wanted: Vec<Attachment> = attachments.copied().collect();
    let work: Vec<(&mut Program, Attachment)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            let attachment = wanted.iter().find(|it| it.program == name)?;
            Some((program, *attachment))
        })
        .collect();
    together_at_most(
        MAX_LOADER_THREADS,
        work.into_iter().rev(),
        |(program, attachment)| {
            let _told_later = load_program(program, btf, attachment);
        },
    );
}

/// Threads that load programs; more gain little.
const MAX_LOADER_THREADS: usize = 4;

fn load_program(
    program: &mut Program,
    btf: Option<&Btf>,
    attachment: Attachment,
) -> Result<(), String> {
    let hook = attachment.hook;
    let types = || btf.ok_or_else(|| format!("{hook}: the kernel has no BTF"));
    let result = match (program, hook) {
        (Program::FEntry(program), ProbeHook::Fentry(function)) => program.load(function, types()?),
        (Program::FExit(program), ProbeHook::Fexit(function)) => program.load(function, types()?),
        (Program::KProbe(program), ProbeHook::Kprobe(_) | ProbeHook::Kretprobe(_)) => {
            program.load()
        }
        (Program::TracePoint(program), ProbeHook::Tracepoint(..)) => program.load(),
        (Program::RawTracePoint(program), ProbeHook::RawTracepoint(_)) => program.load(),
        _ => return Err(other_type(attachment)),
    };
    allow_loaded(result).map_err(|error| format!("{hook}: {}", error_text(&error)))
}

fn find_program(
    ebpf: &mut Ebpf,
    Attachment { program, hook, .. }: Attachment,
) -> Result<&mut Program, String> {
    ebpf.program_mut(program)
        .ok_or_else(|| format!("{hook}: the object has no program {program}"))
}

fn other_type(Attachment { program, hook, .. }: Attachment) -> String {
    format!("{hook}: the object's program {program} is of another type")
}

/// A program that an earlier attempt has loaded is as good as one loaded now.
fn allow_loaded(result: Result<(), ProgramError>) -> Result<(), ProgramError> {
    match result {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other,
    }
}

/// One line. The verifier's log has hundreds, of which the end says what is wrong.
fn error_text(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let last = last_words(&log);
        return match last {
            Some(last) => format!("the verifier says: {last} ({})", cause_text(io_error)),
            None => format!("the kernel refuses to load it ({})", cause_text(io_error)),
        };
    }
    one_line(error)
}

/// An error and its causes in one line, without saying anything twice.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = cause_text(error);
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = cause_text(inner);
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// What the verifier has against a program: its last line that is no statistics.
pub(super) fn last_words(log: &str) -> Option<&str> {
    log.lines().rev().map(str::trim).find(|line| {
        !line.is_empty()
            && !line.starts_with("processed ")
            && !line.starts_with("stack depth ")
            && !line.contains(" insns_self ")
            && !line.contains("verification time")
    })
}
