//! Why a completion does not come: the table of causes, most certain first.

use std::time::Duration;

use super::{Context, Evidence, StuckCause, Subject};
use crate::{
    facts::HostFacts,
    ids::{BootTime, IpcNs},
    ledger::{Cookie, CookieCall, FailedLookup},
};

/// What keeps the completion away, and whether that is certain.
pub(super) fn find_cause(
    subject: &Subject<'_>,
    context: &Context<'_>,
    cookie: &Cookie,
    waited: Duration,
    evidence: &mut Vec<Evidence>,
) -> Option<(StuckCause, bool)> {
    let facts = context.facts;
    let udev = &facts.udev;
    let ns = subject.semaphore.id.ns;
    let timeout = waited >= context.thresholds.udev_gives_up(facts);
    let armed = armed_since(cookie);
    if let Some(lookup) = lost_elsewhere(cookie, ns).next() {
        evidence.push(Evidence::LookupFailed {
            who: lookup.who.clone(),
            ns: lookup.ns,
        });
        return Some((
            StuckCause::NamespaceSplit {
                looked_in: Some(lookup.ns),
            },
            true,
        ));
    }
    let Some(daemon) = udev.daemon else {
        evidence.push(Evidence::NoUdevd {
            socket: udev.control_socket,
            activated: udev.activated,
        });
        // systemd starts it on demand, and may be about to.
        return (!udev.activated || timeout).then_some((StuckCause::UdevdDown, !udev.activated));
    };
    // A worker that had read the rules before they were removed may still complete.
    if udev.notify_rule.is_none() && cookie.counts.completions == 0 {
        evidence.push(Evidence::NoNotifyRule);
        return Some((StuckCause::RuleMissing, timeout));
    }
    // Nor does one that has the program open already need it again.
    let details = udev.details.as_ref();
    if details.is_some_and(|details| details.dmsetup.is_none()) && cookie.counts.completions == 0 {
        evidence.push(Evidence::NoDmsetup);
        return Some((StuckCause::DmsetupMissing, timeout));
    }
    let long = waited >= context.thresholds.slow;
    if long && let Some(fact) = no_uevent(cookie) {
        evidence.push(fact);
        return Some((StuckCause::NoUevent, false));
    }
    if long
        && let Some(details) = details
        && let Some(fact) = match () {
            () if details.frozen => Some(Evidence::UdevFrozen { pid: daemon }),
            () if udev.queue_busy && details.workers.is_empty() => Some(Evidence::NoWorker),
            () => None,
        }
    {
        evidence.push(fact);
        return Some((StuckCause::QueueStopped, false));
    }
    let idle = details.filter(|_| long && !udev.queue_busy);
    if (timeout || idle.is_some()) && ns != IpcNs::HOST && cookie.counts.completions == 0 {
        evidence.push(Evidence::OutsideHost { ns });
        return Some((StuckCause::NamespaceSplit { looked_in: None }, false));
    }
    let Some(details) = idle else {
        return timeout.then(|| {
            evidence.extend(udev_progress(facts));
            (StuckCause::EventLost, false)
        });
    };
    evidence.push(Evidence::UdevIdle);
    // Twice a clock tick: both times are rounded.
    let started = BootTime(details.started_ticks.saturating_mul(10_000_000));
    let waits = cookie.waiters.iter().map(|waiting| waiting.since).min();
    let sent = cookie.last_dm.or(armed).or(waits);
    if details.started_ticks > 0 && sent.is_some_and(|sent| started.0 > sent.0 + 20_000_000) {
        evidence.push(Evidence::UdevYounger { pid: daemon });
        return Some((StuckCause::NotReceived, false));
    }
    if cookie.counts.completions == 0 && !details.run_cleared.is_empty() {
        let rules = details.run_cleared.iter().take(3);
        evidence.extend(rules.map(|at| Evidence::RunCleared { at: at.clone() }));
        return Some((StuckCause::RunCleared, false));
    }
    let early = waited < Duration::from_secs(udev.event_timeout);
    let cause = if early {
        StuckCause::EventDropped
    } else {
        StuckCause::EventLost
    };
    Some((cause, false))
}

/// Completions that were seen to look in the wrong place. A stranger's lookup of a key that
/// happens to be the same is possible, so it must come after the cookie was armed and from the
/// program that completes.
pub(super) fn lost_elsewhere(cookie: &Cookie, ns: IpcNs) -> impl Iterator<Item = &FailedLookup> {
    let armed = armed_since(cookie);
    cookie.lookups.iter().filter(move |lookup| {
        let completer = lookup
            .who
            .as_ref()
            .is_some_and(|who| who.name.as_str() == "dmsetup");
        completer && lookup.ns != ns && armed.is_none_or(|armed| lookup.at >= armed)
    })
}

/// What udev is doing.
pub(super) fn udev_progress(facts: &HostFacts) -> Vec<Evidence> {
    let udev = &facts.udev;
    if !udev.queue_busy {
        return Vec::new();
    }
    let workers = udev.details.iter().flat_map(|details| &details.workers);
    let busy = workers
        .filter(|worker| worker.runs.is_some())
        .take(3)
        .map(|worker| Evidence::Worker {
            pid: worker.pid,
            runs: worker.runs.clone(),
        });
    std::iter::once(Evidence::QueueBusy).chain(busy).collect()
}

/// Every uevent is completed and every ioctl has returned, and operations are open all the same:
/// what is missing is not udev's part.
fn no_uevent(cookie: &Cookie) -> Option<Evidence> {
    let counts = &cookie.counts;
    let announced = counts.owner_inc.saturating_add(counts.other_inc);
    let seen = !cookie.gaps.affects_verdicts() && !cookie.gaps.devices;
    let returned = counts.ioctls > 0 && counts.ioctls >= announced;
    // An ioctl whose return was lost has its uevent counted, if there was one.
    let settled = cookie.devices.iter().all(|device| device.errno.is_some());
    (seen
        && returned
        && settled
        && counts.outstanding_increments() > 0
        && counts.uevents <= counts.completions)
        .then_some(Evidence::NoUevent {
            announced,
            ioctls: counts.ioctls,
            uevents: counts.uevents,
        })
}

/// First increment that is remembered.
fn armed_since(cookie: &Cookie) -> Option<BootTime> {
    cookie
        .timeline
        .iter()
        .find(|step| matches!(step.what, CookieCall::Up { .. }) && step.errno == 0)
        .map(|step| step.at)
}
