//! The table of probes, asked: which subjects a backend has, which subject a program serves.

use dmtrace_core::backend::Backend;

use super::{
    spec::{ProbeSubject, ProgramPlan},
    table,
};

pub(super) const fn device_mapper(plan: ProgramPlan) -> &'static [ProbeSubject] {
    match plan {
        ProgramPlan::Plain => table::DEVICE_MAPPER,
        ProgramPlan::Preempted => table::DEVICE_MAPPER_PREEMPTED,
    }
}

/// Subjects of a backend; `end` is the plan for the end of processes.
pub(super) fn subjects_of(
    backend: Backend,
    plan: ProgramPlan,
    end: ProgramPlan,
) -> impl Iterator<Item = &'static ProbeSubject> {
    let own = match (backend, plan) {
        (Backend::Trampoline, ProgramPlan::Plain) => table::TRAMPOLINE,
        (Backend::Trampoline, ProgramPlan::Preempted) => table::TRAMPOLINE_PREEMPTED,
        (Backend::Kprobe, _) => table::KPROBE,
        (Backend::Tracepoint, _) => table::TRACEPOINT,
    };
    let end = match end {
        ProgramPlan::Plain => &table::END,
        ProgramPlan::Preempted => &table::END_PREEMPTED,
    };
    own.iter().chain(std::iter::once(end))
}

/// What a program lets us see; the programs of all backends have different names.
#[cfg(feature = "live")]
pub(super) fn subject_of(program: &str) -> &'static str {
    let plans = [ProgramPlan::Plain, ProgramPlan::Preempted].into_iter();
    let mut all = plans.flat_map(|plan| {
        let backends = Backend::ALL.into_iter();
        let own = backends.flat_map(move |backend| subjects_of(backend, plan, plan));
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
    use super::super::spec::{Attachment, SkipCost};
    use super::*;

    fn all_ways() -> impl Iterator<Item = &'static [Attachment]> {
        let plans = [ProgramPlan::Plain, ProgramPlan::Preempted].into_iter();
        let subjects = plans.flat_map(|plan| {
            let backends = Backend::ALL.into_iter();
            let all = backends.flat_map(move |backend| subjects_of(backend, plan, plan));
            all.chain(device_mapper(plan))
        });
        subjects.flat_map(|subject| subject.ways).copied()
    }

    #[test]
    fn names_survive_the_kernels_cut_at_15_bytes() {
        for attachment in all_ways().flatten() {
            assert!(attachment.program.len() <= 15, "{}", attachment.program);
        }
    }

    #[test]
    fn who_makes_good_is_attached_as_well() {
        for way in all_ways() {
            for attachment in way {
                let SkipCost::MadeGoodBy(others) = attachment.skip else {
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
