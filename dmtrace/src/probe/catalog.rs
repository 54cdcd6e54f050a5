//! The table of probes, asked: which subjects a backend has, which subject a program serves.

use dmtrace_core::backend::Backend;

use super::{
    spec::{Plan, Subject},
    table,
};

pub(super) const fn device_mapper(plan: Plan) -> &'static [Subject] {
    match plan {
        Plan::Plain => table::DEVICE_MAPPER,
        Plan::Preempted => table::DEVICE_MAPPER_PREEMPTED,
    }
}

/// Subjects of a backend; `end` is the plan for the end of processes.
pub(super) fn subjects(
    backend: Backend,
    plan: Plan,
    end: Plan,
) -> impl Iterator<Item = &'static Subject> {
    let own = match (backend, plan) {
        (Backend::Trampoline, Plan::Plain) => table::TRAMPOLINE,
        (Backend::Trampoline, Plan::Preempted) => table::TRAMPOLINE_PREEMPTED,
        (Backend::Kprobe, _) => table::KPROBE,
        (Backend::Tracepoint, Plan::Plain) => table::TRACEPOINT,
        (Backend::Tracepoint, Plan::Preempted) => table::TRACEPOINT_PREEMPTED,
    };
    let end = match end {
        Plan::Plain => &table::END,
        Plan::Preempted => &table::END_PREEMPTED,
    };
    own.iter().chain(std::iter::once(end))
}

/// What a program lets us see; the programs of all backends have different names.
#[cfg(feature = "live")]
pub(super) fn subject_of(program: &str) -> &'static str {
    let plans = [Plan::Plain, Plan::Preempted].into_iter();
    let mut all = plans.flat_map(|plan| {
        let backends = Backend::ALL.into_iter();
        let own = backends.flat_map(move |backend| subjects(backend, plan, plan));
        own.chain(device_mapper(plan))
    });
    let found = all.find(|subject| {
        let mut programs = subject.ways.iter().copied().flatten();
        programs.any(|attachment| attachment.program == program)
    });
    found.map_or("other", |subject| subject.name)
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Attachment, Skip};
    use super::*;

    fn ways() -> impl Iterator<Item = &'static [Attachment]> {
        let plans = [Plan::Plain, Plan::Preempted].into_iter();
        let subjects = plans.flat_map(|plan| {
            let backends = Backend::ALL.into_iter();
            let all = backends.flat_map(move |backend| subjects(backend, plan, plan));
            all.chain(device_mapper(plan))
        });
        subjects.flat_map(|subject| subject.ways).copied()
    }

    #[test]
    fn names_survive_the_kernels_cut_at_15_bytes() {
        for attachment in ways().flatten() {
            assert!(attachment.program.len() <= 15, "{}", attachment.program);
        }
    }

    #[test]
    fn who_makes_good_is_attached_as_well() {
        for way in ways() {
            for attachment in way {
                let Skip::MadeGoodBy(others) = attachment.skip else {
                    continue;
                };
                for other in others {
                    let there = way.iter().any(|it| it.program == *other);
                    assert!(there, "{}: {other} is not there", attachment.program);
                }
            }
        }
    }
}
