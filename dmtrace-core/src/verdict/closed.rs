//! A cookie that is gone: how it ended.

use super::{
    Class, Confidence, Context, Culprit, CulpritRole, Evidence, Healthy, LeakKind, Subject,
    Thresholds, Undecided, Verdict, completer, owner::missing_step, transaction,
};
use crate::{
    event::ExitStatus,
    ledger::{Cookie, CookieCall, Creator, Departure, EndKind, Ending, User, UserStage},
};

pub(super) fn judge_closed(subject: &Subject<'_>, context: &Context<'_>) -> Verdict {
    let (Some(ending), Some(cookie)) = (
        subject.semaphore.ending.as_ref(),
        subject.semaphore.cookie.as_deref(),
    ) else {
        return Verdict::unknown(Undecided::RemovalUnseen);
    };
    let lost = context.completeness.loss_evidence(subject.semaphore);
    let confidence = if cookie.gaps.affects_verdicts() || lost.is_some() {
        Confidence::Inferred
    } else {
        Confidence::Observed
    };
    let verdict = match ending.kind {
        // Its owner had left it behind: what strangers did to it then is no operation of its.
        EndKind::ByWaiter | EndKind::ByOther
            if let Some((user, kind)) =
                abandoned_by(subject, cookie, ending, context.thresholds) =>
        {
            cleaned_up_verdict(cookie, user, ending, kind, confidence)
        }
        EndKind::ByWaiter | EndKind::ByCreator | EndKind::ByOther
            if decrement_failed(cookie, ending) =>
        {
            let (culprit, strangers) = completer::blame_completer(cookie, subject.ledger);
            let mut verdict = Verdict::new(Class::OverCompleted, confidence).with_evidence([
                Evidence::DecrementsFailed {
                    count: cookie.counts.failed_decrements,
                },
            ]);
            verdict.culprit = culprit;
            verdict.with_evidence(strangers)
        }
        EndKind::ByWaiter | EndKind::ByCreator => {
            Verdict::new(Class::Healthy(Healthy::Finished), confidence)
        }
        EndKind::WhileLive => accident_verdict(ending, confidence)
            .with_evidence(harm_evidence(cookie, ending, context)),
        EndKind::ByOther => match left_by(cookie) {
            // Whether those who got it were done with it nobody has seen.
            Some(user) if transaction::may_be(user, subject.ledger.process(user.who.image)) => {
                Verdict::unknown(Undecided::MaybeHandedOn)
            }
            Some(user) => {
                let (kind, certain) = leak_kind(subject, user, ending, context.thresholds);
                let confidence = if certain {
                    confidence
                } else {
                    Confidence::Inferred
                };
                cleaned_up_verdict(cookie, user, ending, kind, confidence)
            }
            None => Verdict::unknown(match subject.semaphore.creator {
                Creator::Unknown(why) => Undecided::CreatorUnknown(why),
                Creator::Known { .. } => Undecided::RemovalUnseen,
            }),
        },
        EndKind::WithNamespace | EndKind::NamespaceGone => {
            let left = left_by(cookie).map(|user| Evidence::Stage {
                who: user.who.clone(),
                stage: cookie.user_stage(user),
            });
            Verdict::unknown(Undecided::NamespaceEnded)
                .with_evidence([Evidence::NamespaceEnded])
                .with_evidence(left)
        }
        EndKind::Vanished => Verdict::unknown(Undecided::RemovalUnseen),
    };
    let removed = ending.by.as_ref().map(|who| Evidence::RemovedBy {
        who: who.clone(),
        waiters: u32::try_from(ending.waiters.len()).unwrap_or(u32::MAX),
    });
    verdict.with_evidence(removed)
}

/// Whether whoever removed it found nothing left to decrement before its wait: libdm then removes
/// the set at once.
fn decrement_failed(cookie: &Cookie, ending: &Ending) -> bool {
    let by = ending.by.as_ref().map(|who| who.image);
    let found_zero = cookie.timeline.iter().any(|step| {
        matches!(step.what, CookieCall::Down { .. })
            && step.errno == libc::EAGAIN
            && step.who.as_ref().map(|who| who.image) == by
    });
    cookie.counts.failed_decrements > 0 && (found_zero || ending.kind != EndKind::ByOther)
}

/// A leak of this user, removed by somebody.
fn cleaned_up_verdict(
    cookie: &Cookie,
    user: &User,
    ending: &Ending,
    kind: LeakKind,
    confidence: Confidence,
) -> Verdict {
    let step = cookie.user_stage(user);
    let mut verdict = Verdict::new(Class::CleanedUp(kind), confidence)
        .with_missing_step(missing_step(cookie, step, cookie.value()));
    verdict.culprit = Some(Culprit {
        role: CulpritRole::Owner,
        who: user.who.clone(),
        exit: user
            .exit
            .filter(|exit| exit.at <= ending.at)
            .and_then(|exit| exit.status),
    });
    verdict
}

fn accident_verdict(ending: &Ending, confidence: Confidence) -> Verdict {
    // A user that lives does not yet use it: only a waiter does for certain.
    let confidence = if ending.waiters.is_empty() {
        Confidence::Inferred
    } else {
        confidence
    };
    let mut verdict = Verdict::new(Class::Accident, confidence);
    verdict.culprit = ending.by.as_ref().map(|who| Culprit {
        role: CulpritRole::Remover,
        who: who.clone(),
        exit: None,
    });
    verdict
}

/// What an accident has done: operations that were not completed, what failed after it, devices of
/// the cookie that are suspended.
fn harm_evidence(cookie: &Cookie, ending: &Ending, context: &Context<'_>) -> Vec<Evidence> {
    let mut facts = Vec::new();
    let open = cookie.counts.outstanding_increments();
    if let Ok(count) = u32::try_from(open)
        && count > 0
    {
        facts.push(Evidence::Outstanding { count });
    }
    let after = cookie
        .lookups
        .iter()
        .filter(|lookup| lookup.at >= ending.at);
    facts.extend(after.map(|lookup| Evidence::LookupAfter {
        who: lookup.who.clone(),
    }));
    let suspended = context.facts.dm.suspended.iter().filter(|it| {
        let mut devices = cookie.devices.iter();
        devices.any(|device| device.matches(&it.node) || device.matches(&it.name))
    });
    facts.extend(suspended.map(|it| Evidence::Suspended {
        device: it.name.clone(),
    }));
    facts
}

/// The maker that lived, had certainly left it behind before, and is not who removed it.
fn abandoned_by<'a>(
    subject: &Subject<'_>,
    cookie: &'a Cookie,
    ending: &Ending,
    limits: &Thresholds,
) -> Option<(&'a User, LeakKind)> {
    let maker = subject.semaphore.creator.image()?;
    let by = ending.by.as_ref()?;
    let user = cookie.user(maker)?;
    let lived = user.exit.is_none_or(|exit| exit.at > ending.at);
    if !lived || by.image.id == maker.id {
        return None;
    }
    let quiet = ending.at.duration_since(user.last);
    let limits = limits.departure_limits();
    match subject.ledger.departure_of(user, quiet, limits) {
        Departure::Left {
            gave_up,
            certain: true,
            ..
        } => Some((user, LeakKind::of_departure(gave_up))),
        _ => None,
    }
}

/// Who had left it.
fn left_by(cookie: &Cookie) -> Option<&User> {
    cookie.users.iter().max_by_key(|user| user.last)
}

/// How it had leaked when it was removed, and whether no other explanation is left.
fn leak_kind(
    subject: &Subject<'_>,
    user: &User,
    ending: &Ending,
    limits: &Thresholds,
) -> (LeakKind, bool) {
    let cookie = subject.semaphore.cookie.as_deref();
    let step = cookie.map_or(user.stage, |cookie| cookie.user_stage(user));
    let Some(exit) = user.exit.filter(|exit| exit.at <= ending.at) else {
        // Alive at the removal: it had left the cookie behind.
        let quiet = ending.at.duration_since(user.last);
        let limits = limits.departure_limits();
        return match subject.ledger.departure_of(user, quiet, limits) {
            Departure::Left {
                gave_up, certain, ..
            } => (LeakKind::of_departure(gave_up), certain),
            _ => {
                let gave_up = matches!(step, UserStage::Interrupted | UserStage::WaitFailed);
                (LeakKind::of_departure(gave_up), false)
            }
        };
    };
    let limits = limits.departure_limits();
    if let Departure::Left { gave_up, .. } = subject.ledger.departure_before_end(user, limits) {
        return (LeakKind::of_departure(gave_up), true);
    }
    let kind = match exit.status {
        Some(ExitStatus::Signal(signal)) => LeakKind::OwnerKilled { signal, step },
        Some(ExitStatus::Code(status)) => LeakKind::OwnerExited { status, step },
        None => LeakKind::OwnerGone { step: Some(step) },
    };
    (kind, true)
}
