//! A cookie whose creator is not known, or not all of its story: what its fields allow to infer, and no more.

use super::{
    Class, Confidence, Context, Evidence, Healthy, LeakKind, MissingStep, ProcessFate, Signature,
    Subject, Undecided, Verdict, life::Knowledge,
};
use crate::{
    facts::{HostFacts, SemState, SetSnapshot},
    ledger::Creator,
    wall_clock::StampSpan,
    witness::{LVM_PREFIXES, is_cookie_program},
};

/// It is taken to make cookies here, and by no witness.
const BLOCKDEV: &str = "blockdev";

/// Programs that run scripts.
const INTERPRETERS: &[&str] = &[
    "ash", "bash", "busybox", "dash", "ksh", "make", "perl", "python", "python3", "sh", "zsh",
];

pub(super) fn judge_by_signature(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
) -> Verdict {
    let facts = context.facts;
    let limits = context.thresholds;
    let unknown = match subject.semaphore.creator {
        Creator::Unknown(why) => Undecided::CreatorUnknown(why),
        Creator::Known { .. } if known.contradiction => Undecided::Contradiction,
        Creator::Known { .. } => Undecided::EventsLost,
    };
    let Some((set, state)) = subject
        .set
        .and_then(|set| Some((set, set.first?)))
        .filter(|_| known.fresh)
    else {
        let reason = match subject.set {
            Some(set) if set.first.is_none() => Undecided::Unreadable,
            _ => unknown,
        };
        return Verdict::unknown(reason)
            .with_evidence(evidence)
            .with_evidence(known.evidence);
    };
    let made = facts.locate_stamp(set.ctime);
    let (age, age_at_most) = (made.least_age(facts.now), made.most_age(facts.now));
    evidence.push(age_evidence(facts, made));
    if state.pid != 0 {
        // The last operator acted at `otime`, or at the SETVAL if there was no operation.
        let acted = if set.otime.0 != 0 {
            set.otime
        } else {
            set.ctime
        };
        let fate = process_fate(facts, state.pid, facts.locate_stamp(acted));
        evidence.push(Evidence::LastOperator {
            pid: state.pid,
            fate,
        });
        let old = known.quiet >= limits.old && age >= limits.old;
        if fate == ProcessFate::MaybeAlive || (fate == ProcessFate::Alive && old) {
            // It may have forgotten the cookie (moby in 2017) or still need it: only its history
            // tells.
            let name = facts.processes.get(&state.pid);
            evidence.push(Evidence::Candidate {
                pid: state.pid,
                name: name.map_or_else(String::new, |live| live.comm.clone()),
            });
            evidence.push(Evidence::Quiet { time: known.quiet });
            return Verdict::unknown(Undecided::PossibleOwners)
                .with_evidence(evidence)
                .with_evidence(known.evidence);
        }
        if fate == ProcessFate::Alive {
            // The creator, or whoever incremented it: in the middle of its work. A completer
            // that lives on is no completer.
            return Verdict::new(Class::Healthy(Healthy::Open), Confidence::Inferred)
                .with_evidence(evidence)
                .with_evidence(known.evidence);
        }
    }
    let undecided = |reason, evidence: Vec<Evidence>, known: Knowledge| {
        Verdict::unknown(reason)
            .with_evidence(evidence)
            .with_evidence(known.evidence)
    };
    if age < limits.old || known.quiet < limits.old {
        let maybe_old = age_at_most >= limits.old && known.quiet_at_most >= limits.old;
        let reason = if maybe_old {
            Undecided::ClockSet
        } else {
            unknown
        };
        return undecided(reason, evidence, known);
    }
    if !facts.processes_complete {
        return undecided(Undecided::ProcessesUnreadable, evidence, known);
    }
    if !facts.carriers_complete {
        return undecided(Undecided::CarriersUnreadable, evidence, known);
    }
    let fields = classify_signature(set, state);
    let candidates: Vec<Evidence> = candidate_culprits(facts, set, subject, fields).collect();
    if !candidates.is_empty() {
        evidence.extend(candidates);
        return undecided(Undecided::PossibleOwners, evidence, known);
    }
    // After the possible owners: a person may vouch for what was lost, not for them.
    if context
        .completeness
        .loss_evidence(subject.semaphore)
        .is_some()
    {
        // The kernel maps still tell what the lost messages said: they come first.
        return undecided(Undecided::EventsLost, evidence, known);
    }
    evidence.push(Evidence::Quiet { time: known.quiet });
    Verdict::new(
        Class::Leaked(LeakKind::Signature { fields }),
        Confidence::Inferred,
    )
    .with_missing_step(Some(match fields {
        Signature::NeverSet => MissingStep::SetVal,
        Signature::NeverUsed => MissingStep::Release,
        Signature::NotCompleted | Signature::OneLeft => MissingStep::Wait,
        Signature::NotRemoved => MissingStep::Removal,
    }))
    .with_evidence(evidence)
    .with_evidence(known.evidence)
}

/// The table of signatures.
const fn classify_signature(set: &SetSnapshot, state: SemState) -> Signature {
    match (state.value, set.otime.0 != 0) {
        (0, false) => Signature::NeverSet,
        (1, false) => Signature::NeverUsed,
        (0, true) => Signature::NotRemoved,
        (1, true) => Signature::OneLeft,
        _ => Signature::NotCompleted,
    }
}

/// Its age, or what is known of it.
fn age_evidence(facts: &HostFacts, made: StampSpan) -> Evidence {
    match made.age(facts.now) {
        Some(time) => Evidence::Age { time },
        None => Evidence::AgeInDoubt {
            least: made.least_age(facts.now),
            most: made.most_age(facts.now),
            step: facts.last_clock_step(),
        },
    }
}

/// What became of the process that had this number then.
fn process_fate(facts: &HostFacts, pid: u32, then: StampSpan) -> ProcessFate {
    let Some(live) = facts.processes.get(&pid) else {
        return if facts.processes_complete {
            ProcessFate::Gone
        } else {
            ProcessFate::Unknown
        };
    };
    if !live.may_have_acted_by(then.latest) {
        ProcessFate::Reused
    } else if live.may_have_acted_by(then.earliest) {
        ProcessFate::Alive
    } else {
        ProcessFate::MaybeAlive
    }
}

/// Living processes that may have made or used the set: known programs that were there when it
/// was touched last, and can reach it.
fn candidate_culprits<'a>(
    facts: &'a HostFacts,
    set: &'a SetSnapshot,
    subject: &'a Subject<'_>,
    fields: Signature,
) -> impl Iterator<Item = Evidence> + 'a {
    let touched = facts.locate_last_touch(set).latest;
    facts
        .processes
        .iter()
        .filter(move |(_, live)| {
            // A cookie that was set and never used is what `dmsetup udevcreatecookie` leaves
            // to a script.
            let script = fields == Signature::NeverUsed && INTERPRETERS.contains(&&*live.comm);
            (makes_cookies(&live.comm) || script)
                && live.may_have_acted_by(touched)
                && live.ipc_ns.is_none_or(|ns| ns == subject.semaphore.id.ns)
        })
        .map(|(&pid, live)| Evidence::Candidate {
            pid,
            name: live.comm.clone(),
        })
}

/// Whether a program of this name may make cookies: in doubt it may, also a command of LVM that only
/// looks.
fn makes_cookies(comm: &str) -> bool {
    is_cookie_program(comm)
        || comm == BLOCKDEV
        || LVM_PREFIXES.iter().any(|prefix| comm.starts_with(prefix))
}
