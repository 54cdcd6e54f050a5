//! A cookie that nobody waits for: open, or leaked.

use super::{
    Class, Confidence, Context, Culprit, CulpritRole, Evidence, LeakKind, MissingStep,
    PossibleParent, Subject, Undecided, Verdict, life,
    life::{Knowledge, ProcessState},
    outcomes::{open_verdict, over_completed, over_completed_verdict},
    possible_forks, signature, transaction,
};
use crate::{
    event::ExitStatus,
    ledger::{Cookie, Creator, Departure, ProcessExit, User, UserStage},
};

pub(super) fn judge_by_owner(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
) -> Verdict {
    let facts = context.facts;
    let limits = context.thresholds;
    let semaphore = subject.semaphore;
    let Some(cookie) = semaphore.cookie.as_deref() else {
        return Verdict::unknown(Undecided::Unreadable);
    };
    let mut evidence = Vec::new();
    if let Some(value) = known.value {
        evidence.push(Evidence::Value { value });
    }
    // Somebody who was told the cookie may use it at any time.
    let carriers = life::reachable_carriers(semaphore.key, semaphore.id, facts);
    if !carriers.is_empty() {
        evidence.extend(carriers.iter().map(|&pid| Evidence::Carrier { pid }));
        return open_verdict(known, evidence);
    }
    let listed = life::listed_until(subject.taken, facts);
    let lives: Vec<(&User, ProcessState)> = cookie
        .users
        .iter()
        .map(|user| (user, life::user_life(user, facts, listed)))
        .collect();
    let ends = cookie.users.iter().filter_map(|user| user.exit);
    let ended = ends.map(|exit| facts.now.duration_since(exit.at)).min();
    let young = known.quiet.min(ended.unwrap_or(known.quiet)) < limits.young;
    let alive: Vec<&User> = users_where(&lives, |life| life == ProcessState::Alive);
    // Where the wall clock does not tell that it is young, that is said.
    let unused = lives.is_empty() && known.quiet_at_most < limits.young;
    // What somebody else does to a cookie that its owner has left makes it no younger.
    let left = |user: &&User| {
        let departure = departure_by_now(subject, context, &known, user);
        matches!(departure, Departure::Left { certain: true, .. })
    };
    if young && (unused || !alive.iter().all(left)) {
        return open_verdict(known, evidence);
    }
    if !alive.is_empty() {
        return judge_living(subject, context, known, evidence, cookie, &alive);
    }
    if !young {
        return judge_without_users(subject, context, known, evidence, cookie, &lives);
    }
    let early = judge_without_users(
        subject,
        context,
        known.clone(),
        evidence.clone(),
        cookie,
        &lives,
    );
    match early.class {
        // All that it would be blamed on has happened, but what follows may not be seen yet. At the
        // end of a recording nothing follows.
        Class::Leaked(_) => Verdict::unknown(Undecided::Young).with_evidence(early.evidence),
        Class::Unknown(_) => early,
        _ => open_verdict(known, evidence),
    }
}

/// No user is alive.
fn judge_without_users(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
    cookie: &Cookie,
    lives: &[(&User, ProcessState)],
) -> Verdict {
    let facts = context.facts;
    let semaphore = subject.semaphore;
    if lives.iter().any(|(_, life)| *life == ProcessState::Unknown) {
        return Verdict::unknown(Undecided::ProcessesUnreadable)
            .with_evidence(evidence)
            .with_evidence(known.evidence);
    }
    if cookie.gaps.crowded {
        return Verdict::unknown(Undecided::Crowded)
            .with_evidence(evidence)
            .with_evidence(known.evidence);
    }
    // One that was forked while a user had the cookie may have it, though it has not used it.
    let parents = PossibleParent::of_cookie(subject, facts);
    let forks: Vec<Evidence> = possible_forks(&parents, semaphore.id.ns, facts)
        .map(|(pid, name)| Evidence::Candidate {
            pid,
            name: name.to_owned(),
        })
        .collect();
    if !forks.is_empty() {
        evidence.extend(lives.iter().map(|(user, life)| end_of(user, *life)));
        return Verdict::unknown(Undecided::PossibleOwners)
            .with_evidence(evidence)
            .with_evidence(forks)
            .with_evidence(known.evidence);
    }
    let Creator::Known { image, .. } = semaphore.creator else {
        return signature::judge_by_signature(subject, context, known, evidence);
    };
    let owner = cookie
        .users
        .iter()
        .find(|user| user.who.image == image)
        .or(cookie.users.first());
    let Some(owner) = owner else {
        return signature::judge_by_signature(subject, context, known, evidence);
    };
    let process = subject.ledger.process(image);
    if transaction::may_be(owner, process) {
        return transaction::judge_transaction(subject, context, known, evidence, process);
    }
    judge_dead(subject, context, known, evidence, cookie, owner, lives)
}

fn users_where<'a>(
    lives: &[(&'a User, ProcessState)],
    wanted: impl Fn(ProcessState) -> bool,
) -> Vec<&'a User> {
    lives
        .iter()
        .filter(|(_, life)| wanted(*life))
        .map(|(user, _)| *user)
        .collect()
}

/// At least one user is alive.
fn judge_living(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
    cookie: &Cookie,
    alive: &[&User],
) -> Verdict {
    evidence.extend(alive.iter().map(|user| Evidence::Alive {
        who: user.who.clone(),
    }));
    evidence.extend(alive.iter().filter_map(|user| interrupted_wait(user)));
    let mut found = None;
    for user in alive {
        match departure_by_now(subject, context, &known, user) {
            Departure::NotSeen if over_completed(cookie, &known) => {
                return over_completed_verdict(subject.ledger, cookie, known, evidence);
            }
            Departure::NotSeen => return open_verdict(known, evidence),
            Departure::WaitNotResumed => {
                return Verdict::unknown(Undecided::MaybeStopped)
                    .with_evidence(evidence)
                    .with_evidence(known.evidence);
            }
            Departure::Left {
                proof,
                gave_up,
                certain,
            } => {
                evidence.push(Evidence::from(proof));
                let confidence = if certain {
                    Confidence::Observed
                } else {
                    Confidence::Inferred
                };
                found.get_or_insert((LeakKind::of_departure(gave_up), confidence, *user));
            }
        }
    }
    let Some((how, confidence, user)) = found else {
        return open_verdict(known, evidence);
    };
    if known.unseen || known.contradiction || cookie.gaps.order {
        // What was not seen may have been the wait, or the begin of one more operation.
        return incomplete_verdict(known, evidence);
    }
    let self_completed = cookie.counts.self_completions();
    if self_completed > 0 {
        evidence.push(Evidence::SelfCompleted {
            count: self_completed,
        });
    }
    evidence.push(Evidence::Quiet { time: known.quiet });
    let mut verdict = Verdict::new(Class::Leaked(how), confidence)
        .with_missing_step(Some(match how {
            LeakKind::AbandonedOnEintr => MissingStep::WaitAgain,
            _ if user.stage == UserStage::Released => MissingStep::Removal,
            _ => MissingStep::Wait,
        }))
        .with_evidence(evidence)
        .with_evidence(known.evidence);
    verdict.culprit = Some(Culprit {
        role: CulpritRole::Owner,
        who: user.who.clone(),
        exit: None,
    });
    verdict
}

fn incomplete_verdict(known: Knowledge, evidence: Vec<Evidence>) -> Verdict {
    let reason = if known.contradiction {
        Undecided::Contradiction
    } else {
        Undecided::EventsLost
    };
    Verdict::unknown(reason)
        .with_evidence(evidence)
        .with_evidence(known.evidence)
}

/// Every user has ended, nobody waits, nobody carries the cookie: leaked.
fn judge_dead(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
    cookie: &Cookie,
    owner: &User,
    lives: &[(&User, ProcessState)],
) -> Verdict {
    if let Some(created) = subject.semaphore.created {
        evidence.push(Evidence::CreatedBy {
            who: owner.who.clone(),
            at: created,
        });
    }
    evidence.extend(lives.iter().map(|(user, life)| end_of(user, *life)));
    // Unseen calls may have been those of a user that is not in the books: what remains is what
    // the kernel shows.
    if known.unseen || known.contradiction {
        return signature::judge_by_signature(subject, context, known, evidence);
    }
    let left = last_user(cookie, owner);
    let step = cookie.user_stage(left);
    evidence.push(Evidence::Stage {
        who: left.who.clone(),
        stage: step,
    });
    evidence.extend(interrupted_wait(left));
    // What had come to pass by then stays.
    let limits = context.thresholds.departure_limits();
    let departure = subject.ledger.departure_before_end(left, limits);
    let how = match departure {
        Departure::Left { proof, gave_up, .. } => {
            evidence.push(Evidence::from(proof));
            LeakKind::of_departure(gave_up)
        }
        _ => end_kind(cookie, left, step),
    };
    // A fork that has the cookie may be hidden.
    let confidence = if context.facts.processes_complete {
        known.confidence()
    } else {
        Confidence::Inferred
    };
    let mut verdict = Verdict::new(Class::Leaked(how), confidence)
        .with_missing_step(missing_step(cookie, step, known.value))
        .with_evidence(evidence)
        .with_evidence(known.evidence);
    verdict.died_at = Some(step);
    verdict.culprit = Some(Culprit {
        role: CulpritRole::Owner,
        who: left.who.clone(),
        exit: left.exit.and_then(|exit| exit.status),
    });
    verdict
}

/// Who left it: whoever did the last step, such as a script's last dmsetup, or the owner itself. What
/// others do to a cookie that its owner has left for good does not make them its owner.
fn last_user<'a>(cookie: &'a Cookie, owner: &'a User) -> &'a User {
    let by_design = matches!(owner.stage, UserStage::Created | UserStage::Ready)
        && owner
            .exit
            .is_some_and(|exit| matches!(exit.status, None | Some(ExitStatus::Code(0))));
    let left_at = owner.exit.filter(|_| !by_design).map(|exit| exit.at);
    let first_step = |user: &User| {
        let steps = cookie.timeline.iter();
        let own = steps.filter(|step| {
            step.who
                .as_ref()
                .is_some_and(|who| who.image == user.who.image)
        });
        own.map(|step| step.at).min()
    };
    let took_part = |user: &&User| {
        user.who.image == owner.who.image
            || left_at.is_none_or(|left| {
                user.who.image.id.start <= left && first_step(user).is_none_or(|at| at <= left)
            })
    };
    let users = cookie.users.iter().filter(took_part);
    users.max_by_key(|user| user.last).unwrap_or(owner)
}

/// That a user has ended, as it is known.
fn end_of(user: &User, life: ProcessState) -> Evidence {
    let who = user.who.clone();
    match life {
        ProcessState::Dead(Some(ProcessExit {
            at,
            status: Some(status),
        })) => Evidence::Ended { who, at, status },
        _ => Evidence::Absent { who },
    }
}

/// The wait that ended without a result is what its user did last.
fn interrupted_wait(user: &User) -> Option<Evidence> {
    (user.stage == UserStage::Interrupted).then_some(Evidence::Interrupted { at: user.last })
}

/// Whether a living user has left its cookie behind by now. What was not seen may have been its own
/// call; what others did was not.
fn departure_by_now(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: &Knowledge,
    user: &User,
) -> Departure {
    let own = context.facts.now.duration_since(user.last);
    let quiet = if known.unseen {
        known.quiet.min(own)
    } else {
        own
    };
    let limits = context.thresholds.departure_limits();
    subject.ledger.departure_of(user, quiet, limits)
}

/// What it leaked by, if its user did not leave it before its own end.
fn end_kind(cookie: &Cookie, left: &User, step: UserStage) -> LeakKind {
    let completed_later = match (left.exit, cookie.last_completion) {
        (Some(exit), Some(completion)) => completion > exit.at && exit.status.is_some(),
        _ => false,
    };
    if completed_later && cookie.counts.outstanding_increments() <= 0 {
        return LeakKind::FinishedAfterDeath { step };
    }
    match left.exit.and_then(|exit| exit.status) {
        Some(ExitStatus::Signal(signal)) => LeakKind::OwnerKilled { signal, step },
        Some(ExitStatus::Code(status)) => LeakKind::OwnerExited { status, step },
        None => LeakKind::OwnerGone { step: Some(step) },
    }
}

/// What did not happen to a cookie with this value, by how far its user had come.
pub(super) fn missing_step(
    cookie: &Cookie,
    step: UserStage,
    value: Option<i32>,
) -> Option<MissingStep> {
    Some(match step {
        UserStage::Created => MissingStep::SetVal,
        UserStage::Ready => MissingStep::Increment,
        UserStage::Armed | UserStage::Done | UserStage::SelfCompleted => MissingStep::Wait,
        UserStage::Waiting if value.is_some_and(|value| value > 0) => MissingStep::Completion {
            count: cookie
                .counts
                .outstanding_increments()
                .clamp(1, i64::from(u32::MAX)) as u32,
        },
        UserStage::Waiting
        | UserStage::Released
        | UserStage::WaitFailed
        | UserStage::DecrementFailed => MissingStep::Removal,
        UserStage::Interrupted => MissingStep::WaitAgain,
    })
}
