//! A cookie that is gone: how it ended.

use super::{
    Class, Confidence, Context, Culprit, CulpritRole, Evidence, Healthy, LeakKind, Subject,
    Undecided, Verdict, completer,
};
use crate::{
    event::ExitStatus,
    ledger::{Cookie, CookieCall, Creator, EndKind, Ending, User, UserStage},
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
            Some(user) => {
                let kind = leak_kind(cookie, user, ending);
                let mut verdict = Verdict::new(Class::CleanedUp(kind), confidence);
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

/// Who had left it.
fn left_by(cookie: &Cookie) -> Option<&User> {
    cookie.users.iter().max_by_key(|user| user.last)
}

fn leak_kind(cookie: &Cookie, user: &User, ending: &Ending) -> LeakKind {
    let step = cookie.user_stage(user);
    // Alive at the removal: it had left the cookie behind.
    if user.exit.is_none_or(|exit| exit.at > ending.at) {
        return match step {
            UserStage::Interrupted | UserStage::WaitFailed => LeakKind::AbandonedOnEintr,
            _ => LeakKind::NeverWaited,
        };
    }
    match user.exit.and_then(|exit| exit.status) {
        Some(ExitStatus::Signal(signal)) => LeakKind::OwnerKilled { signal, step },
        Some(ExitStatus::Code(status)) => LeakKind::OwnerExited { status, step },
        None => LeakKind::OwnerGone { step: Some(step) },
    }
}
