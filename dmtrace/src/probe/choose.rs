//! Which backend, by really attaching.

use aya::{Btf, Ebpf};
use dmtrace_core::backend::Backend;

use super::{
    attach::{Attached, Attempt, Outcome, attach_backend},
    environment::Environment,
    error::StartError,
    order,
    spec::Plan,
    tracepoint::Tracepoints,
};

pub(super) struct Chosen {
    pub backend: Backend,
    /// Which of its programs.
    pub plan: Plan,
    /// The programs in their places.
    pub attached: Attached,
}

/// Attaches the best backend that this kernel takes.
///
/// # Errors
/// None, with the reason of each.
pub(super) fn choose(
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
        for &plan in plans(backend, end) {
            let attached = if plan == Plan::Preempted {
                let missing = missing_preempted;
                preempted(ebpf, btf, backend, missing, &tracepoints, attempts)
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
    Err(StartError::NoBackend(reasons.join("; ")))
}

/// kprobes have no programs of their own for kernels that preempt.
const fn plans(backend: Backend, best: Plan) -> &'static [Plan] {
    match (backend, best) {
        (Backend::Trampoline | Backend::Tracepoint, Plan::Preempted) => {
            &[Plan::Preempted, Plan::Plain]
        }
        _ => &[Plan::Plain],
    }
}

fn preempted(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    backend: Backend,
    missing: &[&str],
    tracepoints: &Tracepoints,
    attempts: &mut Vec<Attempt>,
) -> Result<Attached, String> {
    let failed = |reason: String, attempts: &mut Vec<Attempt>| {
        attempts.push(Attempt {
            backend,
            subject: "preemption",
            provides: "everything, also where the kernel preempts",
            hooks: Vec::new(),
            outcome: Outcome::Failed(reason.clone()),
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
        Plan::Preempted,
        Plan::Preempted,
        tracepoints,
        attempts,
    )?;
    if backend != Backend::Trampoline {
        return Ok(attached);
    }
    match order::check(ebpf) {
        Ok(()) => Ok(attached),
        Err(reason) => Err(failed(reason, attempts)),
    }
}
