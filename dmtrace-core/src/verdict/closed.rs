//! A cookie that is gone: how it ended.

use super::{
    Class, Confidence, Context, Culprit, Evidence, Healthy, How, Reason, Role, Subject, Verdict,
    completer,
};
use crate::{
    event::ExitStatus,
    ledger::{Call, Cookie, EndKind, Ending, Stage, User},
};

pub(super) fn judge(subject: &Subject<'_>, context: &Context<'_>) -> Verdict {
    let (Some(ending), Some(cookie)) = (
        subject.semaphore.ending.as_ref(),
        subject.semaphore.cookie.as_deref(),
    ) else {
        return Verdict::unknown(Reason::RemovalUnseen);
    };
    let lost = context.completeness.lost_of(subject.semaphore);
    let confidence = if cookie.gaps.any() || lost > 0 {
        Confidence::Inferred
    } else {
        Confidence::Observed
    };
    let verdict = match ending.kind {
        EndKind::ByWaiter | EndKind::ByCreator | EndKind::ByOther if starved(cookie, ending) => {
            let (culprit, strangers) = completer::blame(cookie, subject.ledger);
            let mut verdict =
                Verdict::of(Class::OverCompleted, confidence).with([Evidence::Starved {
                    count: cookie.counts.starved,
                }]);
            verdict.culprit = culprit;
            verdict.with(strangers)
        }
        EndKind::ByWaiter | EndKind::ByCreator => {
            Verdict::of(Class::Healthy(Healthy::Finished), confidence)
        }
        EndKind::WhileLive => accident(ending, confidence).with(harm(cookie, ending, context)),
        EndKind::ByOther => match left_by(cookie) {
            Some(user) => Verdict::of(Class::CleanedUp(how(cookie, user, ending)), confidence),
            None => Verdict::unknown(Reason::RemovalUnseen),
        },
        EndKind::WithNamespace | EndKind::NamespaceGone => {
            let left = left_by(cookie).map(|user| Evidence::Stage {
                who: user.who.clone(),
                stage: cookie.stage(user),
            });
            Verdict::unknown(Reason::NamespaceEnded)
                .with([Evidence::NamespaceEnded])
                .with(left)
        }
        EndKind::Vanished => Verdict::unknown(Reason::RemovalUnseen),
    };
    let removed = ending.by.as_ref().map(|who| Evidence::RemovedBy {
        who: who.clone(),
        waiters: u32::try_from(ending.waiters.len()).unwrap_or(u32::MAX),
    });
    verdict.with(removed)
}

/// Whether whoever removed it found nothing left to decrement before its wait: libdm then removes
/// the set at once.
fn starved(cookie: &Cookie, ending: &Ending) -> bool {
    let by = ending.by.as_ref().map(|who| who.image);
    let found_zero = cookie.timeline.iter().any(|step| {
        matches!(step.what, Call::Down { .. })
            && step.errno == libc::EAGAIN
            && step.who.as_ref().map(|who| who.image) == by
    });
    cookie.counts.starved > 0 && (found_zero || ending.kind != EndKind::ByOther)
}

fn accident(ending: &Ending, confidence: Confidence) -> Verdict {
    // A user that lives does not yet use it: only a waiter does for certain.
    let confidence = if ending.waiters.is_empty() {
        Confidence::Inferred
    } else {
        confidence
    };
    let mut verdict = Verdict::of(Class::Accident, confidence);
    verdict.culprit = ending.by.as_ref().map(|who| Culprit {
        role: Role::Remover,
        who: who.clone(),
        exit: None,
    });
    verdict
}

/// What an accident has done: operations that were not completed, what failed after it, devices of
/// the cookie that are suspended.
fn harm(cookie: &Cookie, ending: &Ending, context: &Context<'_>) -> Vec<Evidence> {
    let mut facts = Vec::new();
    let open = cookie.counts.outstanding();
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
        devices.any(|device| device.is(&it.node) || device.is(&it.name))
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

fn how(cookie: &Cookie, user: &User, ending: &Ending) -> How {
    let step = cookie.stage(user);
    // Alive at the removal: it had left the cookie behind.
    if user.exit.is_none_or(|exit| exit.at > ending.at) {
        return match step {
            Stage::Interrupted | Stage::WaitFailed => How::AbandonedOnEintr,
            _ => How::NeverWaited,
        };
    }
    match user.exit.and_then(|exit| exit.status) {
        Some(ExitStatus::Signal(signal)) => How::OwnerKilled { signal, step },
        Some(ExitStatus::Code(status)) => How::OwnerExited { status, step },
        None => How::OwnerGone { step: Some(step) },
    }
}
