//! Which backend, by really attaching.

use aya::{Btf, Ebpf};
use dmtrace_core::backend::Backend;

use super::{
    attach::{AttachOutcome, Attached, Attempt, attach_backend},
    environment::Environment,
    error::StartError,
    order,
    spec::ProgramPlan,
    tracepoint::Tracepoints,
};

pub(super) struct Chosen {
    pub backend: Backend,
    /// Which of its programs.
    pub plan: ProgramPlan,
    /// The programs in their places.
    pub attached: Attached,
}

/// Attaches the best backend that this kernel takes.
///
/// # Errors
/// None, with the reason of each.
pub(super) fn choose_backend(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    wanted: Option<Backend>,
    environment: &Environment,
    missing_preempted: &[&str],
    attempts: &mut Vec<Attempt>,
) -> Result<Chosen, StartError> {
    let end = environment.preemption.plan();
    let tracepoints = Tracepoints::default();
    let mut reasons = Vec::new();
    for backend in Backend::ALL {
        if wanted.is_some_and(|wanted| wanted != backend) {
            continue;
        }
        for &plan in plans_of(backend, end) {
            let attached = if plan == ProgramPlan::Preempted {
                attach_preempted(ebpf, btf, missing_preempted, &tracepoints, attempts)
            } else {
                attach_backend(ebpf, btf, backend, plan, end, &tracepoints, attempts)
            };
            match attached {
                Ok(attached) => {
                    return Ok(Chosen {
                        backend,
                        plan,
                        attached,
                    });
                }
                Err(reason) => reasons.push(format!("{backend}: {reason}")),
            }
        }
    }
    let reasons = reasons.join("; ");
    Err(StartError::NoBackend(match wanted {
        Some(_) => format!("{reasons}; leave out --backend; dmtrace doctor says which will do"),
        None => reasons,
    }))
}

/// Only trampolines have programs of their own for kernels that preempt.
const fn plans_of(backend: Backend, best: ProgramPlan) -> &'static [ProgramPlan] {
    match (backend, best) {
        (Backend::Trampoline, ProgramPlan::Preempted) => {
            &[ProgramPlan::Preempted, ProgramPlan::Plain]
        }
        _ => &[ProgramPlan::Plain],
    }
}

fn attach_preempted(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    missing: &[&str],
    tracepoints: &Tracepoints,
    attempts: &mut Vec<Attempt>,
) -> Result<Attached, String> {
    let backend = Backend::Trampoline;
    let failed = |reason: String, attempts: &mut Vec<Attempt>| {
        attempts.push(Attempt {
            backend,
            subject: "preemption",
            provides: "everything, also where the kernel preempts",
            hooks: Vec::new(),
            outcome: AttachOutcome::Failed(reason.clone()),
        });
        reason
    };
    if !missing.is_empty() {
        let reason = format!("this kernel's BTF lacks {}", missing.join(", "));
        return Err(failed(reason, attempts));
    }
    let attached = attach_backend(
        ebpf,
        btf,
        backend,
        ProgramPlan::Preempted,
        ProgramPlan::Preempted,
        tracepoints,
        attempts,
    )?;
    match order::check_order(ebpf) {
        Ok(()) => Ok(attached),
        Err(reason) => Err(failed(reason, attempts)),
    }
}
