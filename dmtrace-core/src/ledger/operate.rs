//! What one call does to the books of a cookie.

use super::{
    ActorRef, ChangeKind, Cookie, CookieCall, DecrementMeaning, UserStage, WaitEnd, WaitingThread,
    cookie,
};
use crate::{
    event::{Operation, Quality},
    ids::{BootTime, ProcId},
};

/// A call on a cookie as the handlers see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallSeen<'a> {
    pub(super) at: BootTime,
    /// When it was entered: it took effect between then and `at`.
    pub(super) began: BootTime,
    pub(super) who: Option<&'a ActorRef>,
    /// The creator's process, if known.
    pub(super) creator: Option<ProcId>,
    pub(super) quality: Quality,
    pub(super) errno: i32,
}

impl CallSeen<'_> {
    fn by_creator(&self) -> bool {
        match (self.who, self.creator) {
            (Some(who), Some(creator)) => who.image.id == creator,
            _ => false,
        }
    }
}

impl Cookie {
    /// `semctl(SETVAL)`.
    pub(super) fn apply_setval(&mut self, call: CallSeen<'_>, value: i32) -> Option<ChangeKind> {
        if call.errno == 0 && call.at > self.synced {
            self.counts.setvals = self.counts.setvals.saturating_add(1);
            // Operations that happened after this call may have arrived before it.
            if self.first_op.is_none_or(|first| first <= call.at) {
                self.sum = 0;
                self.first_op = None;
                self.clear_owed();
            }
            self.base = Some(value);
            if let Some(who) = call.who {
                self.record_operator(who, call.began, call.at);
                let user = self.user_mut(who, call.at, UserStage::Created);
                if user.stage == UserStage::Created {
                    user.stage = UserStage::Ready;
                }
            }
        }
        self.push_step(call.at, call.who, CookieCall::SetVal, call.errno);
        (call.errno == 0).then_some(ChangeKind::Set { to: value })
    }

    /// `semop` returned.
    pub(super) fn apply_operation(
        &mut self,
        call: CallSeen<'_>,
        ops: &[Operation],
    ) -> Option<ChangeKind> {
        if call.quality.no_result {
            self.gaps.results = true;
        }
        let first = ops.iter().filter(|op| op.num == 0);
        let delta: i32 = first.map(|op| i32::from(op.op)).sum();
        let zero = ops.iter().any(|op| op.op == 0);
        if zero && delta == 0 {
            return self.record_wait_end(call, ops.len() == 1);
        }
        if call.errno != 0 {
            return self.record_failed_call(call, delta);
        }
        let before_release = delta < 0 && self.owed > 0;
        let call = if before_release {
            // Carried out before the wait ended that was told first.
            CallSeen {
                at: self.not_synced(call.began, call.at),
                ..call
            }
        } else {
            call
        };
        if call.at > self.synced {
            let delta = self.deduct_owed(delta);
            self.sum = self.sum.saturating_add(delta);
            if !before_release {
                self.first_op = Some(self.first_op.map_or(call.at, |first| first.min(call.at)));
                if let Some(who) = call.who {
                    self.record_operator(who, call.began, call.at);
                }
            }
        }
        if delta > 0 {
            self.count_increment(call, delta)
        } else {
            self.count_decrement(call, delta.saturating_neg(), before_release)
        }
    }

    /// An earlier time for a call that was seen at `at`, on the same side of what was taken over
    /// from the kernel map.
    pub(super) fn not_synced(&self, earlier: BootTime, at: BootTime) -> BootTime {
        earlier
            .max(BootTime(self.synced.0.saturating_add(1)))
            .min(at)
    }

    /// An operation has succeeded.
    fn record_operator(&mut self, who: &ActorRef, began: BootTime, ended: BootTime) {
        self.last_actor = Some(who.image);
        self.operators
            .note_operation(who.image.id.tgid, began.0, ended.0);
    }

    /// What a call changes beyond what the release before it has told already.
    fn deduct_owed(&mut self, delta: i32) -> i32 {
        let paid = delta.saturating_neg().clamp(0, self.owed);
        self.owed -= paid;
        if delta > 0 && self.owed > 0 {
            // From here on a decrement may be a later one.
            self.clear_owed();
            self.gaps.operations = true;
        }
        self.gaps.late = self.owed > 0;
        delta.saturating_add(paid)
    }

    /// The value is certain by other means.
    pub(super) fn clear_owed(&mut self) {
        self.owed = 0;
        self.gaps.late = false;
    }

    fn count_increment(&mut self, call: CallSeen<'_>, by: i32) -> Option<ChangeKind> {
        if call.at > self.synced {
            let count = if call.by_creator() {
                &mut self.counts.owner_inc
            } else {
                &mut self.counts.other_inc
            };
            *count = count.saturating_add(by.unsigned_abs());
            if let Some(who) = call.who {
                let user = self.user_mut(who, call.at, UserStage::Ready);
                user.incs = user.incs.saturating_add(by.unsigned_abs());
                if user.last == call.at {
                    user.stage = UserStage::Armed;
                }
            }
        }
        self.push_step(call.at, call.who, CookieCall::Up { by }, 0);
        Some(ChangeKind::Up { to: self.value() })
    }

    fn count_decrement(&mut self, call: CallSeen<'_>, by: i32, late: bool) -> Option<ChangeKind> {
        let user = call.who.and_then(|who| self.user(who.image));
        let meaning = if user.is_some() || call.by_creator() {
            DecrementMeaning::SelfCompletion
        } else {
            DecrementMeaning::Completion
        };
        if call.at > self.synced {
            let n = by.unsigned_abs();
            let count = if call.by_creator() {
                &mut self.counts.owner_dec
            } else {
                &mut self.counts.other_dec
            };
            *count = count.saturating_add(n);
            if meaning == DecrementMeaning::Completion {
                self.counts.completions = self.counts.completions.saturating_add(n);
                self.last_completion = Some(
                    self.last_completion
                        .map_or(call.at, |last| last.max(call.at)),
                );
                if let Some(who) = call.who {
                    if self.completers.len() >= cookie::MAX_COMPLETERS {
                        self.completers.pop_front();
                    }
                    self.completers.push_back(who.clone());
                }
            } else if let Some(who) = call.who {
                let user = self.user_mut(who, call.at, UserStage::Ready);
                user.decs = user.decs.saturating_add(n);
                if user.last == call.at {
                    user.stage = UserStage::SelfCompleted;
                }
            }
        }
        self.push_step(call.at, call.who, CookieCall::Down { by, meaning }, 0);
        if late {
            self.timeline.in_time();
        }
        Some(ChangeKind::Down {
            // Of those that are told after the wait's end, the value was what still is to come.
            to: self.value().map(|value| value.saturating_add(self.owed)),
            meaning,
        })
    }

    fn record_failed_call(&mut self, call: CallSeen<'_>, delta: i32) -> Option<ChangeKind> {
        let what = if delta > 0 {
            CookieCall::Up { by: delta }
        } else {
            CookieCall::Down {
                by: delta.saturating_neg(),
                meaning: DecrementMeaning::Completion,
            }
        };
        let starved = delta < 0 && call.errno == libc::EAGAIN;
        if starved {
            self.counts.failed_decrements = self.counts.failed_decrements.saturating_add(1);
            if let Some(who) = call.who
                && self.user(who.image).is_some()
            {
                self.user_mut(who, call.at, UserStage::DecrementFailed)
                    .stage = UserStage::DecrementFailed;
            }
        }
        self.push_step(call.at, call.who, what, call.errno);
        starved.then_some(ChangeKind::DecrementFailed)
    }

    /// A thread is about to wait for zero.
    pub(super) fn wait_begins(&mut self, call: CallSeen<'_>) -> Option<ChangeKind> {
        let who = call.who?;
        let ended_later = self
            .last_wait
            .as_ref()
            .is_some_and(|end| end.who.tid == who.tid && end.at >= call.at);
        if call.at > self.synced {
            self.counts.waits = self.counts.waits.saturating_add(1);
            self.enter_wait(call, who);
            let user = self.user_mut(who, call.at, UserStage::Ready);
            if user.last == call.at && !ended_later {
                user.stage = UserStage::Waiting;
            }
        }
        self.push_step(call.at, call.who, CookieCall::Wait, 0);
        if ended_later {
            return None;
        }
        let known = self
            .waiters
            .iter()
            .any(|waiting| waiting.who.tid == who.tid && waiting.who.image == who.image);
        if !known && self.waiters.len() < cookie::MAX_WAITERS {
            self.waiters.push(WaitingThread {
                who: who.clone(),
                since: call.at,
            });
        }
        Some(ChangeKind::Waiting {
            value: self.value(),
        })
    }

    /// The decrement of the same thread right before was the entry into this wait.
    fn enter_wait(&mut self, call: CallSeen<'_>, who: &ActorRef) {
        match self
            .users
            .iter_mut()
            .find(|user| user.who.image == who.image)
        {
            Some(user) => {
                if user.stage != UserStage::SelfCompleted || user.who.tid != who.tid {
                    return;
                }
                user.wait_entries = user.wait_entries.saturating_add(1);
            }
            None => {
                // Until now it looked like a completer: `dmsetup udevreleasecookie`.
                let last = self.completers.back();
                if last.is_none_or(|last| last.image != who.image || last.tid != who.tid) {
                    return;
                }
                self.completers.pop_back();
                self.counts.completions = self.counts.completions.saturating_sub(1);
                let user = self.user_mut(who, call.at, UserStage::Ready);
                user.decs = 1;
                user.wait_entries = 1;
            }
        }
        self.counts.wait_entries = self.counts.wait_entries.saturating_add(1);
        self.timeline.entered_wait(who.tid);
    }

    fn record_wait_end(&mut self, call: CallSeen<'_>, certain: bool) -> Option<ChangeKind> {
        if let Some(who) = call.who {
            self.waiters
                .retain(|waiting| waiting.who.tid != who.tid || waiting.who.image != who.image);
            // Whoever looked without waiting (`IPC_NOWAIT`), or was refused, uses nothing.
            let stranger = !matches!(call.errno, 0 | libc::EINTR) && self.user(who.image).is_none();
            if call.at > self.synced && !stranger {
                self.counts.waits_done = self.counts.waits_done.saturating_add(1);
                let user = self.user_mut(who, call.at, UserStage::Ready);
                if user.last == call.at {
                    user.stage = match call.errno {
                        0 => UserStage::Released,
                        libc::EINTR => UserStage::Interrupted,
                        _ => UserStage::WaitFailed,
                    };
                }
                self.last_wait = Some(WaitEnd {
                    who: who.clone(),
                    at: call.at,
                    errno: call.errno,
                });
            }
        }
        if call.errno == 0 && call.at > self.synced && certain && !call.quality.no_result {
            if let Some(who) = call.who {
                // It took effect when the wait ended, not when it began: no earlier than the
                // decrement that ended it.
                self.record_operator(who, call.at, call.at);
            }
            if let Some(value) = self.value().filter(|&value| value != 0)
                && self.first_op.is_none_or(|first| first <= call.at)
            {
                // The kernel says zero: operations were missed, or arrive late.
                if value > 0 {
                    self.owed = value;
                    self.gaps.late = true;
                } else {
                    self.gaps.operations = true;
                }
            }
            self.base = Some(0);
            self.sum = 0;
            self.first_op = None;
        }
        self.push_step(call.at, call.who, CookieCall::Waited, call.errno);
        Some(match call.errno {
            0 => ChangeKind::Released,
            errno => ChangeKind::WaitFailed { errno },
        })
    }
}
