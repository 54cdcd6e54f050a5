//! A cookie that somebody waits for: never leaked; healthy, slow or stuck.

use std::time::Duration;

use super::{
    Cause, Class, Confidence, Context, Evidence, Healthy, MissingStep, Subject, Verdict,
    life::Knowledge,
};
use crate::{
    ids::{BootTime, IpcNs},
    ledger::Cookie,
};

pub(super) fn judge(subject: &Subject<'_>, context: &Context<'_>, known: Knowledge) -> Verdict {
    let facts = context.facts;
    let limits = context.thresholds;
    let empty = Cookie::default();
    let cookie = subject.semaphore.cookie.as_deref().unwrap_or(&empty);
    let seen = known.since.map(|since| facts.now.since(since));
    let waited = seen.unwrap_or(known.quiet);
    let mut evidence = vec![Evidence::WaitedFor { time: waited }];
    let outstanding = known.value.filter(|&value| value > 0);
    let completions = cookie.counts.completions;
    if let Some(value) = known.value {
        evidence.push(Evidence::Value { value });
    }
    if completions > 0 {
        evidence.push(Evidence::Completed { count: completions });
    }
    let observed = known.confidence();
    let found = if waited < limits.young {
        None
    } else {
        cause(subject, context, cookie, waited, &mut evidence)
    };
    let verdict = match found {
        Some((cause, certain)) => {
            let confidence = if certain {
                observed
            } else {
                Confidence::Inferred
            };
            Verdict::of(Class::Stuck(cause), confidence)
        }
        None if waited >= limits.slow => {
            if facts.udev.queue_busy {
                evidence.push(Evidence::QueueBusy);
            }
            Verdict::of(Class::Healthy(Healthy::SlowUdev), observed)
        }
        None => Verdict::of(Class::Healthy(Healthy::Waiting), observed),
    };
    let count = outstanding.map_or(0, i32::unsigned_abs);
    verdict
        .missing((count > 0).then_some(MissingStep::Completion { count }))
        .with(evidence)
        .with(known.evidence)
}

/// What keeps the completion away, and whether that is certain.
fn cause(
    subject: &Subject<'_>,
    context: &Context<'_>,
    cookie: &Cookie,
    waited: Duration,
    evidence: &mut Vec<Evidence>,
) -> Option<(Cause, bool)> {
    let facts = context.facts;
    let udev = &facts.udev;
    let ns = subject.semaphore.id.ns;
    let timeout = waited >= context.thresholds.udev_gives_up(facts);
    // The completion itself was seen to look in the wrong place. A stranger's lookup of a key
    // that happens to be the same is possible, so it must come after the cookie was armed and
    // from the program that completes.
    let armed = armed_since(cookie);
    let lost = cookie.lookups.iter().find(|lookup| {
        let completer = lookup
            .who
            .as_ref()
            .is_some_and(|who| who.name.as_str() == "dmsetup");
        completer && armed.is_none_or(|armed| lookup.at >= armed)
    });
    if let Some(lookup) = lost {
        evidence.push(Evidence::LookupFailed {
            who: lookup.who.clone(),
            ns: lookup.ns,
        });
        return Some((
            Cause::NamespaceSplit {
                looked_in: Some(lookup.ns),
            },
            true,
        ));
    }
    if udev.daemon.is_none() {
        evidence.push(Evidence::NoUdevd {
            socket: udev.control_socket,
            activated: udev.activated,
        });
        // systemd starts it on demand, and may be about to.
        return (!udev.activated || timeout).then_some((Cause::UdevdDown, !udev.activated));
    }
    // A worker that had read the rules before they were removed may still complete.
    if udev.notify_rule.is_none() && cookie.counts.completions == 0 {
        evidence.push(Evidence::NoNotifyRule);
        return Some((Cause::RuleMissing, timeout));
    }
    if !timeout {
        return None;
    }
    if ns != IpcNs::HOST && cookie.counts.completions == 0 {
        evidence.push(Evidence::OutsideHost { ns });
        return Some((Cause::NamespaceSplit { looked_in: None }, false));
    }
    Some((Cause::EventLost, false))
}

/// First increment that is remembered.
fn armed_since(cookie: &Cookie) -> Option<BootTime> {
    cookie
        .timeline
        .iter()
        .find(|step| matches!(step.what, crate::ledger::Call::Up { .. }) && step.errno == 0)
        .map(|step| step.at)
}
