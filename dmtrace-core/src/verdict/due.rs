//! When a verdict may change although nothing happens: the next limit of time.

use std::time::Duration;

use super::{Context, Judged};
use crate::ids::BootTime;

/// After this time the verdict on a cookie may be another one, if nothing happens. `None` if time
/// alone changes nothing any more.
///
/// Times from which the limits count are those of the calls on the cookie, of waits, and of the
/// ends of its users. It may be too early: a limit may not matter in this case.
pub fn next_due(judged: &Judged<'_>, context: &Context<'_>) -> Option<Duration> {
    let (facts, limits) = (context.facts, context.thresholds);
    let semaphore = judged.semaphore;
    let elapsed = |at: BootTime| facts.now.duration_since(at);
    let mut since: Vec<Duration> = semaphore.created.map(elapsed).into_iter().collect();
    if let Some(cookie) = semaphore.cookie.as_deref() {
        since.extend(cookie.last_call.map(elapsed));
        since.extend(cookie.waiters.iter().map(|waiting| elapsed(waiting.since)));
        let ends = cookie.users.iter().filter_map(|user| user.exit);
        since.extend(ends.map(|exit| elapsed(exit.at)));
    }
    if let Some(set) = judged.set {
        let touched = facts.locate_last_touch(set);
        // In whole seconds, as the stamps are.
        for age in [touched.least_age(facts.now), touched.most_age(facts.now)] {
            since.push(Duration::from_secs(age.as_secs()));
        }
    }
    let limits = [
        limits.young,
        limits.moved_on,
        limits.slow,
        limits.abandoned,
        limits.udev_gives_up(facts),
        limits.old,
    ];
    since
        .iter()
        .flat_map(|since| limits.iter().filter_map(|limit| limit.checked_sub(*since)))
        .filter(|left| !left.is_zero())
        .min()
}
