//! A cookie that nobody waits for: open, or leaked.

use super::{
    Class, Confidence, Context, Culprit, Evidence, How, MissingStep, Reason, Role, Subject,
    Verdict, life,
    life::{Knowledge, Life},
    outcomes::{open, over, over_completed},
    signature, transaction,
};
use crate::{
    event::ExitStatus,
    ledger::{Cookie, Creator, Exit, Stage, User},
};

pub(super) fn judge(subject: &Subject<'_>, context: &Context<'_>, known: Knowledge) -> Verdict {
    let facts = context.facts;
    let limits = context.thresholds;
    let semaphore = subject.semaphore;
    let Some(cookie) = semaphore.cookie.as_deref() else {
        return Verdict::unknown(Reason::Unreadable);
    };
    let mut evidence = Vec::new();
    if let Some(value) = known.value {
        evidence.push(Evidence::Value { value });
    }
    // Somebody who was told the cookie may use it at any time.
    let carriers = life::carriers(semaphore.key, semaphore.id, facts);
    if !carriers.is_empty() {
        evidence.extend(carriers.iter().map(|&pid| Evidence::Carrier { pid }));
        return open(known, evidence);
    }
    let listed = life::listed(subject.taken, facts);
    let lives: Vec<(&User, Life)> = cookie
        .users
        .iter()
        .map(|user| (user, life::user_life(user, facts, listed)))
        .collect();
    let ends = cookie.users.iter().filter_map(|user| user.exit);
    let ended = ends.map(|exit| facts.now.since(exit.at)).min();
    if known.quiet.min(ended.unwrap_or(known.quiet)) < limits.young {
        return open(known, evidence);
    }
    let alive: Vec<&User> = users(&lives, |life| life == Life::Alive);
    if !alive.is_empty() {
        return living(subject, context, known, evidence, cookie, &alive);
    }
    if lives.iter().any(|(_, life)| *life == Life::Unknown) {
        return Verdict::unknown(Reason::ProcessesUnreadable)
            .with(evidence)
            .with(known.evidence);
    }
    if cookie.gaps.crowded {
        return Verdict::unknown(Reason::Crowded)
            .with(evidence)
            .with(known.evidence);
    }
    let Creator::Known { image, .. } = semaphore.creator else {
        return signature::judge(subject, context, known, evidence);
    };
    let owner = cookie
        .users
        .iter()
        .find(|user| user.who.image == image)
        .or(cookie.users.first());
    let Some(owner) = owner else {
        return signature::judge(subject, context, known, evidence);
    };
    let process = subject.ledger.process(image);
    if transaction::may_be(owner, process) {
        return transaction::judge(subject, context, known, evidence, process);
    }
    dead(subject, context, known, evidence, cookie, owner, &lives)
}

fn users<'a>(lives: &[(&'a User, Life)], wanted: impl Fn(Life) -> bool) -> Vec<&'a User> {
    lives
        .iter()
        .filter(|(_, life)| wanted(*life))
        .map(|(user, _)| *user)
        .collect()
}

/// What proves that a living user will not come back to the cookie.
enum Abandoned {
    No,
    /// It may have, or it may be stopped.
    Maybe(Reason),
    Yes(How, Confidence, Evidence),
}

/// At least one user is alive.
fn living(
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
    evidence.extend(alive.iter().filter_map(|user| interrupted(user)));
    let mut found = None;
    for user in alive {
        match abandoned(subject, context, &known, user) {
            Abandoned::No if over_completed(cookie, &known) => {
                return over(subject.ledger, cookie, known, evidence);
            }
            Abandoned::No => return open(known, evidence),
            Abandoned::Maybe(reason) => {
                return Verdict::unknown(reason).with(evidence).with(known.evidence);
            }
            Abandoned::Yes(how, confidence, proof) => {
                evidence.push(proof);
                found.get_or_insert((how, confidence, *user));
            }
        }
    }
    let Some((how, confidence, user)) = found else {
        return open(known, evidence);
    };
    if known.unseen || known.contradiction || cookie.gaps.order {
        // What was not seen may have been the wait, or the begin of one more operation.
        return incomplete(known, evidence);
    }
    let self_completed = cookie.counts.self_completions();
    if self_completed > 0 {
        evidence.push(Evidence::SelfCompleted {
            count: self_completed,
        });
    }
    evidence.push(Evidence::Quiet { time: known.quiet });
    let mut verdict = Verdict::of(Class::Leaked(how), confidence)
        .missing(Some(match how {
            How::AbandonedOnEintr => MissingStep::WaitAgain,
            _ if user.stage == Stage::Released => MissingStep::Removal,
            _ => MissingStep::Wait,
        }))
        .with(evidence)
        .with(known.evidence);
    verdict.culprit = Some(Culprit {
        role: Role::Owner,
        who: user.who.clone(),
        exit: None,
    });
    verdict
}

/// Whether a living user has left the cookie behind.
fn abandoned(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: &Knowledge,
    user: &User,
) -> Abandoned {
    let limits = context.thresholds;
    let Some(process) = subject.ledger.process(user.who.image) else {
        return Abandoned::No;
    };
    let thread = process.thread(user.who.tid);
    let active_here = thread
        .map(|trail| trail.active)
        .filter(|&active| active > user.last);
    let active = Some(process.active).filter(|&active| active > user.last);
    if matches!(user.stage, Stage::Interrupted | Stage::WaitFailed) {
        // libdm begins the wait again at once; a process that is stopped (SIGSTOP makes semop
        // return EINTR too) or traced does so much later. What shows the difference is that the
        // thread went on with something else.
        return match (active_here, active) {
            (Some(at), _) => Abandoned::Yes(
                How::AbandonedOnEintr,
                Confidence::Observed,
                Evidence::ActiveSince {
                    at,
                    same_thread: true,
                },
            ),
            (None, Some(at)) if at.since(user.last) >= limits.abandoned => Abandoned::Yes(
                How::AbandonedOnEintr,
                Confidence::Inferred,
                Evidence::ActiveSince {
                    at,
                    same_thread: false,
                },
            ),
            _ => Abandoned::Maybe(Reason::MaybeStopped),
        };
    }
    let later_here = process.later_cycle_of_thread(user);
    let later = process.later_cycle(user, limits.abandoned);
    let moved = |same_thread, confidence| {
        let cycle = if same_thread { later_here } else { later };
        cycle.map_or(Abandoned::No, |cycle| {
            Abandoned::Yes(
                How::NeverWaited,
                confidence,
                Evidence::MovedOn {
                    key: cycle.key,
                    closed: cycle.closed,
                    same_thread,
                },
            )
        })
    };
    // After its own decrement, or after the wait, the ioctl is over: the thread that completes a
    // whole later cookie has left this one behind. Before, it may serve two cookies in turn.
    let ioctl_over = matches!(user.stage, Stage::SelfCompleted | Stage::Released);
    let long = known.quiet >= limits.abandoned;
    match (later_here.is_some(), ioctl_over, long) {
        (true, true, _) => moved(true, Confidence::Observed),
        (true, false, true) => moved(true, Confidence::Inferred),
        // Another thread, long after: Go and tokio move work between threads, and the process
        // was not stopped. A thread that still is in its ioctl can take as long as the device.
        (false, true, true) if later.is_some() => moved(false, Confidence::Inferred),
        // No later cookie came to its end either, as when every ioctl fails (moby in 2017): the
        // thread made or tried to make other cookies since, and did not wait for this one.
        (false, true, _) if user.stage == Stage::SelfCompleted => match active_here {
            Some(at) if known.quiet >= limits.moved_on => Abandoned::Yes(
                How::NeverWaited,
                Confidence::Inferred,
                Evidence::ActiveSince {
                    at,
                    same_thread: true,
                },
            ),
            _ => Abandoned::No,
        },
        _ => Abandoned::No,
    }
}

fn incomplete(known: Knowledge, evidence: Vec<Evidence>) -> Verdict {
    let reason = if known.contradiction {
        Reason::Contradiction
    } else {
        Reason::EventsLost
    };
    Verdict::unknown(reason).with(evidence).with(known.evidence)
}

/// Every user has ended, nobody waits, nobody carries the cookie: leaked.
fn dead(
    subject: &Subject<'_>,
    context: &Context<'_>,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
    cookie: &Cookie,
    owner: &User,
    lives: &[(&User, Life)],
) -> Verdict {
    if let Some(created) = subject.semaphore.created {
        evidence.push(Evidence::CreatedBy {
            who: owner.who.clone(),
            at: created,
        });
    }
    for (user, life) in lives {
        evidence.push(match life {
            Life::Dead(Some(Exit {
                at,
                status: Some(status),
            })) => Evidence::Ended {
                who: user.who.clone(),
                at: *at,
                status: *status,
            },
            _ => Evidence::Absent {
                who: user.who.clone(),
            },
        });
    }
    // Unseen calls may have been those of a user that is not in the books: what remains is what
    // the kernel shows.
    if known.unseen || known.contradiction {
        return signature::judge(subject, context, known, evidence);
    }
    // Who did the last step is who left it: a script's last dmsetup, or the owner itself.
    let left = cookie
        .users
        .iter()
        .max_by_key(|user| user.last)
        .unwrap_or(owner);
    let step = cookie.stage(left);
    evidence.push(Evidence::Stage {
        who: left.who.clone(),
        stage: step,
    });
    evidence.extend(interrupted(left));
    let how = how(subject, cookie, left, step);
    let mut verdict = Verdict::of(Class::Leaked(how), known.confidence())
        .missing(missing(cookie, step, &known))
        .with(evidence)
        .with(known.evidence);
    verdict.died_at = Some(step);
    verdict.culprit = Some(Culprit {
        role: Role::Owner,
        who: left.who.clone(),
        exit: left.exit.and_then(|exit| exit.status),
    });
    verdict
}

/// The wait that ended without a result is what its user did last.
fn interrupted(user: &User) -> Option<Evidence> {
    (user.stage == Stage::Interrupted).then_some(Evidence::Interrupted { at: user.last })
}

fn how(subject: &Subject<'_>, cookie: &Cookie, left: &User, step: Stage) -> How {
    let process = subject.ledger.process(left.who.image);
    let later = process.and_then(|process| process.later_cycle_of_thread(left));
    if later.is_some() {
        return if step == Stage::Interrupted {
            How::AbandonedOnEintr
        } else {
            How::NeverWaited
        };
    }
    let completed_later = match (left.exit, cookie.last_completion) {
        (Some(exit), Some(completion)) => completion > exit.at && exit.status.is_some(),
        _ => false,
    };
    if completed_later && cookie.counts.outstanding() <= 0 {
        return How::FinishedAfterDeath { step };
    }
    match left.exit.and_then(|exit| exit.status) {
        Some(ExitStatus::Signal(signal)) => How::OwnerKilled { signal, step },
        Some(ExitStatus::Code(status)) => How::OwnerExited { status, step },
        None => How::OwnerGone { step: Some(step) },
    }
}

fn missing(cookie: &Cookie, step: Stage, known: &Knowledge) -> Option<MissingStep> {
    Some(match step {
        Stage::Created => MissingStep::SetVal,
        Stage::Ready => MissingStep::Increment,
        Stage::Armed | Stage::Done | Stage::SelfCompleted => MissingStep::Wait,
        Stage::Waiting if known.value.is_some_and(|value| value > 0) => MissingStep::Completion {
            count: cookie.counts.outstanding().clamp(1, i64::from(u32::MAX)) as u32,
        },
        Stage::Waiting | Stage::Released | Stage::WaitFailed | Stage::Starved => {
            MissingStep::Removal
        }
        Stage::Interrupted => MissingStep::WaitAgain,
    })
}
