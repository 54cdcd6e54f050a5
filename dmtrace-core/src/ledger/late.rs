//! Calls that are told after their set has gone: whoever completes an operation wakes the waiter,
//! and that one may have removed the set before the return of the completion is seen.

use super::{ActorRef, Change, ChangeKind, Cookie, Ledger, operate::CallSeen};
use crate::{
    event::{Event, EventKind},
    ids::{BootTime, Key, SemId},
};

impl Ledger {
    /// Whether a wait on a cookie has ended that decrements must have ended which are not told
    /// yet.
    pub fn awaits_decrements(&self, sem: SemId) -> bool {
        let known = self.semaphore(sem).or_else(|| self.history.latest(sem));
        let cookie = known.and_then(|known| known.cookie.as_deref());
        cookie.is_some_and(|cookie| cookie.gaps.late)
    }

    /// A call on a cookie that is gone: the last waiter's EIDRM, or an event that was overtaken.
    #[expect(
        clippy::too_many_arguments,
        reason = "those of the call that came too late"
    )]
    pub(super) fn call_late(
        &mut self,
        event: &Event,
        sem: SemId,
        key: Key,
        errno: i32,
        who: Option<ActorRef>,
        action: impl FnOnce(&mut Cookie, CallSeen<'_>) -> Option<ChangeKind>,
        out: &mut Vec<Change>,
    ) {
        let closed = self.history.latest_mut(sem);
        let Some((creator, end, cookie)) = closed.and_then(|closed| {
            let creator = closed.creator.image().map(|image| image.id);
            let end = closed.ending.as_ref().map(|ending| ending.at);
            Some((creator, end, closed.cookie.as_deref_mut()?))
        }) else {
            self.totals.late += 1;
            return;
        };
        let at = cookie.not_synced(took_effect(event, errno, end), event.at);
        let kind = action(
            cookie,
            CallSeen {
                at,
                began: event.began.unwrap_or(at).min(at),
                who: who.as_ref(),
                creator,
                quality: event.quality,
                errno,
            },
        );
        cookie.waiters.clear();
        cookie.timeline.in_time();
        if let Some(who) = &who {
            self.hold_image(sem, who.image, true);
        }
        if let Some(kind) = kind {
            out.push(Change {
                at,
                sem,
                key,
                who,
                kind,
            });
        }
    }
}

/// When a call had its effect, if it was told after its set had been removed: it had it before.
fn took_effect(event: &Event, errno: i32, closed: Option<BootTime>) -> BootTime {
    let Some(closed) = closed.filter(|&closed| errno == 0 && closed < event.at) else {
        return event.at;
    };
    match &event.what {
        // What ended a wait came before that wait's end.
        EventKind::Op { ops, .. } if ops.iter().any(|op| op.op != 0) => {
            event.began.unwrap_or(closed).min(closed)
        }
        _ => closed,
    }
}
